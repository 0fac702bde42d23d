"""SIGTERM in the middle of twenty requests, a WebSocket and an SSE stream: ours, aiohttp's ``run_app``, uvicorn."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import orjson

from tests.bench.measure import Row, Scale, Summary
from tests.bench.stage import Daemon, Stage
from tests.load.scene import LIMIT_S, REQUESTS, Scene, Seen, Server

_SIGNAL_AFTER_S = 1.0
_POLL_S = 0.01  # of the control API: nothing there tells a change
_NOTICE_MS = 100.0
_EXIT_MS = 300.0
_RUNNING = "Speak slowly. [[tokens=25]] [[pace=100ms]]"  # over before the slowest of the twenty
_QUEUED = "And then? [[tokens=2]]"
_REFERENCES: Mapping[str, str] = {"run_app": "run_app", "uvicorn": "uvicorn_app"}
_SETTINGS = {"ENGINE__WORKERS": 1}  # so that the second task waits


def shutdown(stage: Stage, scale: Scale) -> Iterator[Row]:
    """Ours some times, the references once and both at a time: theirs are seconds of waiting, or never."""
    ours = [_ours(stage) for _ in range(scale.blocks)]
    with ThreadPoolExecutor() as threads:
        references = dict(zip(_REFERENCES, threads.map(partial(_reference, stage), _REFERENCES.values()), strict=True))
    first = references["run_app"]
    notes = [f"ours: {_told(seen)}" for seen in ours] + [f"{name}: {_told(seen)}" for name, seen in references.items()]
    answered = [len(seen.answered_s) for seen in ours]
    refused = all(refused.well for seen in ours for refused in seen.new_work)
    yield Row(
        what=f"SIGTERM: requests answered of {REQUESTS} in flight",
        unit="",
        ours=Summary.of(answered),
        reference_is="aiohttp's run_app",
        reference=Summary.of([len(first.answered_s)]),
        hold=f"{REQUESTS}, new work 503, status 0",
        holds=min(answered) == REQUESTS and refused and not any(seen.status for seen in ours),
        notes=notes,
    )
    yield _row("SIGTERM: the WebSocket is told", [seen.notice_s for seen in ours], first.notice_s, _NOTICE_MS)
    yield _row("SIGTERM: the SSE stream has ended well", [seen.end_s for seen in ours], first.end_s, _NOTICE_MS)
    yield _row(
        "SIGTERM: the end, after the slowest request",
        [seen.exit_after_slowest_s for seen in ours],
        first.exit_after_slowest_s,
        _EXIT_MS,
    )


def _row(what: str, ours: Sequence[float | None], reference: float | None, at_most_ms: float) -> Row:
    """What never happened counts as the limit."""
    mine = Summary.ms([LIMIT_S if seconds is None else seconds for seconds in ours])
    return Row(
        what=what,
        unit="ms",
        ours=mine,
        reference_is="aiohttp's run_app" if reference is not None else f"aiohttp's run_app: not within {LIMIT_S:g} s",
        reference=None if reference is None else Summary.ms([reference]),
        ratio=None if reference is None else mine.median / (reference * 1000.0),
        hold=f"≤ {at_most_ms:g} ms",
        holds=None not in ours and mine.p99 <= at_most_ms,
    )


def _told(seen: Seen) -> str:
    """A line of all that was seen."""
    refused = all(refused.well for refused in seen.new_work)
    statuses = sorted({str(refused.status or "no answer") for refused in seen.new_work})
    return ", ".join(
        [
            f"{len(seen.answered_s)}/{REQUESTS} answered",
            f"new work {'503' if refused else 'without a 503 (' + ', '.join(statuses) + ')'}",
            f"WebSocket told {_after(seen.notice_s)}, closed {seen.close_code}",
            f"SSE ended {_after(seen.end_s)}",
            f"exit {_after(seen.exit_after_slowest_s)} after the slowest",
            f"status {seen.status}" if seen.status is not None else f"killed after {LIMIT_S:g} s",
        ]
    )


def _after(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds * 1000:.0f} ms"


def _ours(stage: Stage) -> Seen:
    with stage.fresh_daemon(_SETTINGS) as daemon:
        running = daemon.submit(_RUNNING)
        _until_one_runs(daemon)
        queued = daemon.submit(_QUEUED)
        return _played(Server.daemon(daemon.url, daemon.key, running, queued), daemon.process)


def _until_one_runs(daemon: Daemon) -> None:
    deadline = time.monotonic() + LIMIT_S
    while daemon.control("status")["queue"]["running"] != 1:
        if time.monotonic() > deadline:
            raise TimeoutError("the first task does not begin")
        time.sleep(_POLL_S)


def _reference(stage: Stage, module: str) -> Seen:
    command = [sys.executable, "-m", f"tests.bench.{module}"]
    with subprocess.Popen(command, env=stage.environment(), stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            url = orjson.loads(process.stdout.readline())["url"]
            server = Server(url=url, headers={}, chat={}, events="/v1/events", stream="/v1/stream")
            return _played(server, process)
        finally:
            process.kill()


def _played(server: Server, process: subprocess.Popen[bytes]) -> Seen:
    scene = Scene(
        server,
        moment=partial(asyncio.sleep, _SIGNAL_AFTER_S),
        stop=process.terminate,
        ended=partial(asyncio.to_thread, _ended, process),
    )
    return asyncio.run(scene.play())


def _ended(process: subprocess.Popen[bytes]) -> int | None:
    """Its status; None for one that had to be killed. A wait with a timeout would look twenty times a second only."""
    killer = threading.Timer(LIMIT_S, process.kill)
    killer.start()
    status = process.wait()
    killer.cancel()
    return None if status == -signal.SIGKILL else status
