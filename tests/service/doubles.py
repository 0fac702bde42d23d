"""A port's other side: an engine whose places and answers a test gives out by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from claude_daemon.core.errors import Code, Failure, Fault
from claude_daemon.core.event import MESSAGE_EVENT, TERMINAL, Emission, Event
from claude_daemon.core.room import Room
from claude_daemon.core.task import Kind, Lane, Outcome, State, TaskSpec, Usage
from claude_daemon.ports import Ended, HealthReport, NotYet
from claude_daemon.service.dispatch import Dispatcher, DispatchSettings, Run

SPEC = TaskSpec(
    kind=Kind.CHAT,
    lane=Lane.TEXT,
    request={"model": "claude-sonnet-5-5", "messages": []},
    key_id="local",
    trust_domain="default",
    request_id="req_1",
)
SUCCEEDED = Outcome(state=State.SUCCEEDED, stop_reason="end_turn")
PATIENCE_S = 10.0

Batch = Sequence[Emission | Ended]


def spec(**changes: Any) -> TaskSpec:
    return replace(SPEC, **changes)


def failed(code: Code) -> Outcome:
    return Outcome(state=State.FAILED, failure=Failure(code=code, message=f"it is {code}"))


def text(piece: str) -> Emission:
    data = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}
    return Emission(MESSAGE_EVENT, data)


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeLease:
    """Its run yields what the test says. Clear ``may_end`` for one that does not come to its end when interrupted."""

    start = "warm"
    worker_id = "wrk_1"
    usage = Usage()

    def __init__(self, engine: FakeEngine, spec: TaskSpec) -> None:
        self.spec = spec
        self.released = False
        self.closed = False
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()
        self.copied: Callable[[str], None] = lambda session_id: None
        self._engine = engine
        self._said: asyncio.Queue[Batch | BaseException] = asyncio.Queue()

    def say(self, *items: Emission | Ended | Outcome) -> None:
        self._said.put_nowait([Ended(outcome=item) if isinstance(item, Outcome) else item for item in items])

    def throw(self, error: BaseException) -> None:
        self._said.put_nowait(error)

    def stop(self) -> None:
        """Ends its run without a word."""
        self._said.put_nowait([])

    async def run(self) -> AsyncIterator[Batch]:
        self.began.set()
        try:
            while True:
                said = await self._said.get()
                if isinstance(said, BaseException):
                    raise said
                if not said:
                    return
                yield said
                if isinstance(said[-1], Ended):
                    return
        finally:
            self.closed = True
            await self.may_end.wait()
            self.release()

    def release(self) -> None:
        if not self.released:
            self.released = True
            self._engine.room.give_back(self)


class FakeEngine:
    """``places`` at once, or those of a ``room`` that is shared. ``down``: why there will be none; ``broken``: raised
    instead of a lease; ``not_yet``: the request ids of those that wait for something of their own; ``ready``: whether
    there is a process for anybody."""

    def __init__(self, places: int = 1, lane: Lane = Lane.TEXT, room: Room | None = None) -> None:
        self.lane = lane
        self.room = room or Room(places)
        self.down: Failure | None = None
        self.broken: Exception | None = None
        self.not_yet: set[str] = set()
        self.ready = True
        self.leases: list[FakeLease] = []

    @property
    def places(self) -> int:
        return self.room.limit

    @places.setter
    def places(self, places: int) -> None:
        self.room.limit = places

    def unsupported(self, spec: TaskSpec) -> Failure | None:
        if "tools" in spec.request:
            return Failure(code=Code.UNSUPPORTED_PARAMETER, message="no tools here", param="tools")
        return None

    def approximated(self, spec: TaskSpec) -> Sequence[str]:
        return ["max_tokens"] if "max_tokens" in spec.request else []

    def lease(self, spec: TaskSpec) -> FakeLease | None:
        if self.broken is not None:
            error, self.broken = self.broken, None
            raise error
        if spec.request_id in self.not_yet:
            raise NotYet
        lease = FakeLease(self, spec)
        if not self.ready or not self.room.take(lease):
            return None
        self.leases.append(lease)
        return lease

    def tell_room(self) -> None:
        self.room.tell()

    def unavailable(self) -> Failure | None:
        return self.down

    def health(self) -> Mapping[str, HealthReport]:
        return {}

    @property
    def served(self) -> list[str]:
        """The request ids of all that have had a place, in order."""
        return [lease.spec.request_id for lease in self.leases]


class FakeHomes:
    """``messages``: those that the sessions' transcripts hold."""

    def __init__(self) -> None:
        self.removed: list[str] = []
        self.messages: set[str] = set()

    def warm(self, session_id: str) -> bool:
        return False

    async def remove(self, session_id: str) -> None:
        self.removed.append(session_id)

    def keep_only(self, sessions: Set[str]) -> Sequence[str]:
        return []

    async def said(self, spec: TaskSpec) -> bool:
        return spec.session is not None and spec.session.message in self.messages


class FakeSchemas:
    """Every text satisfies every schema but for the one that is ``wrong``."""

    def __init__(self) -> None:
        self.judged: list[str] = []

    async def check(self, schema: object) -> Sequence[Fault]:
        return []

    async def validate(self, schema: Mapping[str, Any], text: str) -> Failure | None:
        self.judged.append(text)
        if text == "wrong":
            return Failure(code=Code.SCHEMA_MISMATCH, message="wrong")
        return None


class Desk:
    """A dispatcher over fake engines, running for as long as the ``async with`` lasts."""

    def __init__(self, *engines: FakeEngine, **settings: Any) -> None:
        self.engine = engines[0] if engines else FakeEngine()
        self.clock = Clock()
        self.schemas = FakeSchemas()
        self.settled: list[Run] = []
        self.broken: list[Exception] = []
        self._numbers = iter(range(1, 100_000))
        defaults: dict[str, Any] = {"max_waiting": 100, "wait_timeout_s": 60.0, "max_attempts": 3}
        self.dispatcher = Dispatcher(
            engines or [self.engine],
            DispatchSettings(**{**defaults, **settings}),
            schemas=self.schemas,
            now=lambda: 5000.0,
            monotonic=self.clock,
            ids=lambda prefix: f"{prefix}_{next(self._numbers)}",
            settled=self.settled.append,
            broken=lambda task, error: self.broken.append(error),
        )
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Desk:
        await self._group.__aenter__()
        self.running = self._group.create_task(self.dispatcher.run())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc: Any) -> None:
        self.dispatcher.close()
        async with asyncio.timeout(PATIENCE_S):
            await self._group.__aexit__(None, None, None)

    def submit(self, name: str = "req_1", **changes: Any) -> Run:
        return self.dispatcher.submit(spec(request_id=name, **changes))

    async def lease(self, number: int) -> FakeLease:
        """The n-th place that was ever given (from 0), once its run has begun."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.engine.leases) <= number:
                await asyncio.sleep(0)
            await self.engine.leases[number].began.wait()
        return self.engine.leases[number]


async def all_of(run: Run) -> list[Event]:
    """Every event of a run, to its end."""
    events: list[Event] = []
    async with asyncio.timeout(PATIENCE_S):
        async for batch in run.follow():
            events += batch
    assert events[-1].type in TERMINAL
    return events


async def ended(run: Run) -> Outcome:
    """How a run ended, once it has."""
    await all_of(run)
    assert run.task.outcome is not None
    return run.task.outcome
