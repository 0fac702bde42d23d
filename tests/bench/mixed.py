"""The text lane under a load of many shapes: who starts warm, who on a spare, who must wait for a spawn. Row 5."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from tests.bench.chats import Chat, pairs
from tests.bench.client import Connection, Unexpected
from tests.bench.measure import Row, Scale, Summary
from tests.bench.stage import Daemon, Stage

SYSTEM_PROMPTS = 50
SCHEMAS = 5
CLIENTS = 4
_SEED = 2
_HISTORY_SHARE, _SCHEMA_SHARE = 0.3, 0.1
_SAMPLE_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """One request as its client saw it; times by the monotonic clock."""

    request_id: str
    began: float
    first_s: float

    @property
    def first_at(self) -> float:
        return self.began + self.first_s


class _Watcher(threading.Thread):
    """Looks at the workers every 50 ms: when was one idle?"""

    def __init__(self, daemon: Daemon) -> None:
        super().__init__(daemon=True)
        self._daemon = daemon
        self._stop_asked = threading.Event()
        self.idle: list[tuple[float, int, int]] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop_asked.set()
        self.join()

    def run(self) -> None:
        with suppress(OSError, Unexpected), Connection(self._daemon.socket) as control:
            while not self._stop_asked.wait(_SAMPLE_S):
                workers = self._daemon.control("status", control)["workers"]
                self.idle.append((time.monotonic(), workers["idle"], workers["spares"]))

    def idle_during(self, sent: _Sent) -> tuple[bool, bool]:
        """Whether a worker was idle all the time that the request waited for its first text: any; an unbound one."""
        seen = [workers for workers in self.idle if sent.began <= workers[0] <= sent.first_at]
        return bool(seen) and min(idle for _, idle, _ in seen) > 0, bool(seen) and min(s for _, _, s in seen) > 0


def chats(count: int) -> list[Chat]:
    """The same at every run: system prompts by Zipf's law with s = 1, some with history, some with a schema."""
    chance = random.Random(_SEED)
    weights = [1 / rank for rank in range(1, SYSTEM_PROMPTS + 1)]
    systems = chance.choices(range(SYSTEM_PROMPTS), weights, k=count)
    return [_chat(number, system, chance) for number, system in enumerate(systems)]


def _chat(number: int, system: int, chance: random.Random) -> Chat:
    history = pairs(chance.randint(1, 5)) if chance.random() < _HISTORY_SHARE else []
    schema: dict[str, Any] | None = None
    if chance.random() < _SCHEMA_SHARE:
        field = f"answer_{chance.randrange(SCHEMAS)}"
        schema = {"type": "object", "properties": {field: {"type": "string"}}, "required": [field]}
        schema["additionalProperties"] = False
    prompt = f"Question number {number}. [[tokens=20]]"
    return Chat(prompt=prompt, system=_system(system), history=history, schema=schema)


def _system(number: int) -> str:
    return f"You are assistant number {number} of a company. " + "Be brief, be kind, and never guess. " * 10


def _send(daemon: Daemon, connection: Connection, chat: Chat, request_id: str, dialect: str) -> _Sent:
    request = chat.request(dialect, "text", daemon.key, request_id)
    began = time.monotonic()
    return _Sent(request_id=request_id, began=began, first_s=connection.first_delta(request))


class _Errors(list[BaseException]):
    def raise_first(self) -> None:
        if self:
            raise self[0]


def _dialect(number: int) -> str:
    return ("openai", "anthropic")[number % 2]


def _open_loop(daemon: Daemon, asked: Sequence[Chat], per_s: float) -> list[_Sent]:
    """Arrivals at random (seeded) intervals, whatever became of those before."""
    chance, sent, errors = random.Random(_SEED), list[_Sent](), _Errors()

    def one(number: int, chat: Chat) -> None:
        try:
            with Connection(daemon.url) as connection:
                sent.append(_send(daemon, connection, chat, f"open-{number}", _dialect(number)))
        except BaseException as error:
            errors.append(error)

    threads = []
    due = time.monotonic()
    for number, chat in enumerate(asked):
        due += chance.expovariate(per_s)
        time.sleep(max(0.0, due - time.monotonic()))
        threads.append(threading.Thread(target=one, args=(number, chat), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()
    errors.raise_first()
    return sent


def _closed_loop(daemon: Daemon, asked: Sequence[Chat]) -> list[_Sent]:
    """Each client sends its next request when it has its answer."""
    todo: queue.SimpleQueue[tuple[int, Chat]] = queue.SimpleQueue()
    for numbered in enumerate(asked):
        todo.put(numbered)
    sent, errors = list[_Sent](), _Errors()

    def client() -> None:
        try:
            with Connection(daemon.url) as connection:
                while not errors:
                    number, chat = todo.get_nowait()
                    sent.append(_send(daemon, connection, chat, f"closed-{number}", _dialect(number)))
        except queue.Empty:
            pass
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=client, daemon=True) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    errors.raise_first()
    return sent


def open_loop(stage: Stage, scale: Scale) -> Iterator[Row]:
    asked = chats(scale.open_requests)
    with stage.fresh_daemon() as daemon:
        what = f"mixed load, open loop at {scale.open_per_s:g}/s"
        yield _measured(stage, daemon, what, lambda: _open_loop(daemon, asked, scale.open_per_s), [1] * scale.reference)


def closed_loop(stage: Stage, scale: Scale) -> Iterator[Row]:
    asked = chats(scale.closed_requests)
    with stage.fresh_daemon() as daemon:
        what = f"mixed load, closed loop, {CLIENTS} clients"
        yield _measured(stage, daemon, what, lambda: _closed_loop(daemon, asked), [CLIENTS] * (scale.reference // 2))


def _measured(stage: Stage, daemon: Daemon, what: str, run: Callable[[], list[_Sent]], together: Sequence[int]) -> Row:
    """The load, between two halves of its reference: rounds of so many ``claude -p`` together."""
    reference = _Reference(stage.per_request(Chat().prompt))
    half = len(together) // 2
    reference.rounds(together[:half])
    with _Watcher(daemon) as watcher:
        began = time.monotonic()
        sent = run()
        took = time.monotonic() - began
    status = daemon.control("status")
    daemon.calm()
    reference.rounds(together[half:])

    by_kind: dict[str, list[_Sent]] = {}
    kinds = {line["request_id"]: str(line["start"]) for line in daemon.settled()}
    for one in sent:
        by_kind.setdefault(kinds[one.request_id], []).append(one)
    idle_colds = [idle for one in by_kind.get("cold", ()) if any(idle := watcher.idle_during(one))]
    found = {
        "starts": {kind: len(by_kind.get(kind, ())) for kind in [*status["starts"], *by_kind]},
        "cold_while_idle": len(idle_colds),
        "cold_while_unbound_idle": sum(unbound for _, unbound in idle_colds),
        "spawned": int(status["workers"]["spawned"]),
        "chats_per_s": len(sent) / took,
        "reference_chats_per_s": reference.per_second,
    }
    ours, theirs = Summary.ms([one.first_s for one in sent]), Summary.ms(reference.first_s)
    return Row(
        what=what,
        unit="ms",
        ours=ours,
        reference_is=f"claude -p per request, {max(together)} at a time",
        reference=theirs,
        ratio=ours.median / theirs.median,
        hold="no cold start while idle",
        holds=not idle_colds,
        notes=_told(found, {kind: Summary.ms([one.first_s for one in ones]) for kind, ones in by_kind.items()}),
        details=found,
    )


def _told(found: Mapping[str, Any], by_kind: Mapping[str, Summary]) -> list[str]:
    total = sum(found["starts"].values())
    return [
        "starts: " + " · ".join(f"{count / total:.0%} {kind}" for kind, count in found["starts"].items()),
        *(
            f"{kind}: {summary.median:.0f} ms, p90 {summary.p90:.0f}, p99 {summary.p99:.0f}, n {summary.n}"
            for kind, summary in by_kind.items()
        ),
        f"cold while a worker was idle: {found['cold_while_idle']}, "
        f"an unbound one: {found['cold_while_unbound_idle']}; {found['spawned']} processes spawned",
        f"{found['chats_per_s']:.1f} chats/s, reference {found['reference_chats_per_s']:.1f}/s",
    ]


class _Reference:
    """A process per request, some at a time."""

    def __init__(self, one: Callable[[], float]) -> None:
        self._one = one
        self.first_s: list[float] = []
        self._seconds = 0.0

    def rounds(self, together: Sequence[int]) -> None:
        for count in together:
            began = time.monotonic()
            with ThreadPoolExecutor(count) as threads:
                self.first_s += threads.map(lambda _: self._one(), range(count))
            self._seconds += time.monotonic() - began

    @property
    def per_second(self) -> float:
        return len(self.first_s) / self._seconds
