"""What metrics cost: the counting that a chat makes, and a scrape."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from claude_daemon.core.budget import Charge
from claude_daemon.core.task import Kind, Lane, Outcome, State, Task, TaskSpec, Usage
from claude_daemon.meters import Meters
from claude_daemon.service.run import Run
from claude_daemon.telemetry.metrics import Metrics
from tests.bench.chats import UPSTREAM_MODEL, Chat
from tests.bench.client import Connection, Unexpected
from tests.bench.machine import cpu_seconds
from tests.bench.measure import Row, Scale, Summary
from tests.bench.stage import Daemon, Stage

_SHARE_AT_MOST = 0.01
_READY_P99_MS = 20.0
_COUNTED_AT_ONCE = 1000
_MODEL_CALL = {
    Lane.DIRECT: {"request_id": "req_1", "failure": None},
    Lane.TEXT: {"worker_id": "w_1", "request_id": "req_1", "failure": None},
}
_CONTROL = {"Claude-Daemon-Control": "1", "Accept": "text/plain"}


def metrics(stage: Stage, scale: Scale) -> Iterator[Row]:
    yield from _counting(stage, scale)
    yield from _scraping(stage, scale)


def _counting(stage: Stage, scale: Scale) -> Iterator[Row]:
    """All that a chat has counted, in this process, against a daemon's processor time for a chat; its workers' and the
    upstream's are not in it. The direct lane's is the smaller."""
    daemon, chat = stage.daemon, Chat()
    for lane, chats in ((Lane.DIRECT, scale.direct), (Lane.TEXT, scale.warm)):
        request = chat.request("anthropic", lane.value, daemon.key)
        count, counted, spent = _counter(lane), [], []
        for _ in range(scale.blocks):
            counted += [_timed(count) for _ in range(scale.blocks)]
            spent.append(_served(daemon, request, chats))
        ours, theirs = Summary.of(counted, 1e6), Summary.of(spent, 1e6)
        share = ours.median / theirs.median
        yield Row(
            what=f"metrics of a chat, {lane.value} lane",
            unit="µs",
            ours=ours,
            reference_is="processor time of the daemon for the chat",
            reference=theirs,
            ratio=share,
            hold=f"≤ {_SHARE_AT_MOST:g} ×",
            holds=share <= _SHARE_AT_MOST,
            notes=[f"{share:.2%} of it"],
        )


def _served(daemon: Daemon, request: bytes, chats: int) -> float:
    """The daemon's CPU seconds a chat."""
    daemon.http.ask(request)
    daemon.calm()
    began = cpu_seconds(daemon.pid)
    for _ in range(chats):
        answer = daemon.http.ask(request)
        if answer.status != 200:
            raise Unexpected(f"no chat: {answer.body!r}")
    return (cpu_seconds(daemon.pid) - began) / chats


class _Request:
    method = "POST"


def _counter(lane: Lane) -> Callable[[], None]:
    """Counts one chat, as the edge, the dispatcher, the book and the broker do."""
    meters = Meters(Metrics(), monotonic=time.monotonic)
    meters.models = frozenset({UPSTREAM_MODEL})
    spec = TaskSpec(
        kind=Kind.CHAT,
        lane=lane,
        request={"model": UPSTREAM_MODEL, "messages": []},
        key_id="local",
        trust_domain="default",
        request_id="req_1",
    )
    usage = Usage(input_tokens=10, output_tokens=20, cache_creation_input_tokens=5, cache_read_input_tokens=5)
    outcome, bill = Outcome(state=State.SUCCEEDED, usage=usage), Charge(cost_micro_usd=90, micro_usd=90)
    run = Run(Task(id="task_1", spec=spec, created_at=0.0, outcome=outcome), time.monotonic())
    run.start = "direct" if lane is Lane.DIRECT else "warm"
    run.started_at = run.first_delta_at = time.monotonic()
    request = _Request()

    def count() -> None:
        meters.access(request, "/v1/messages", 200, 0.02)
        meters.settled(run)
        meters.paid(run.task, outcome, bill)
        meters.model_called(_MODEL_CALL[lane])

    return count


def _timed(count: Callable[[], None]) -> float:
    """Seconds of this thread for one: it waits for nothing, so what others do meanwhile is not its cost."""
    began = time.thread_time()
    for _ in range(_COUNTED_AT_ONCE):
        count()
    return (time.thread_time() - began) / _COUNTED_AT_ONCE


def _scraping(stage: Stage, scale: Scale) -> Iterator[Row]:
    """A scrape, and what others feel of one after another without a pause; a real one comes every 15 s."""
    daemon = stage.daemon
    with Connection(daemon.url) as probe, Connection(daemon.socket) as scraper:

        def ready() -> float:
            return probe.get("/ready").total_s

        alone = Summary.ms([ready() for _ in range(scale.probes)])
        scrapes: list[float] = []
        size = len(scraper.get("/control/v1/metrics", _CONTROL).body)
        with _without_pause(lambda: scrapes.append(scraper.get("/control/v1/metrics", _CONTROL).total_s)):
            meanwhile = Summary.ms([ready() for _ in range(scale.probes)])
    yield Row(what="a scrape of /metrics", unit="ms", ours=Summary.ms(scrapes), notes=[f"{size / 1000:.0f} kB"])
    yield Row(
        what="/ready while /metrics is scraped without pause",
        unit="ms",
        ours=meanwhile,
        reference_is="nothing to do",
        reference=alone,
        ratio=meanwhile.median / alone.median,
        hold=f"p99 ≤ {_READY_P99_MS:g} ms",
        holds=meanwhile.p99 <= _READY_P99_MS,
        notes=[f"p99 {meanwhile.p99:.2f} ms, with nothing to do {alone.p99:.2f}"],
    )


@contextmanager
def _without_pause(do: Callable[[], None]) -> Iterator[None]:
    over = threading.Event()

    def again() -> None:
        while not over.is_set():
            do()

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
