"""One ready queue for everything that wants to run, and the life of an attempt.

Next is: the highest priority (a waiting task gains one a minute), then the key with the least running, then the one
that has waited longest. A lane that has no place for the next one of its queue serves nobody behind it: no one
overtakes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol, cast

from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.event import (
    MESSAGE,
    MESSAGE_EVENT,
    TASK_CANCELLED,
    TASK_FAILED,
    TASK_STARTED,
    TASK_SUCCEEDED,
    Emission,
    Event,
)
from claude_daemon.core.task import Kind, Lane, Outcome, State, Task, TaskSpec, advance
from claude_daemon.ports import Clock, Ended, Engine, Ids, Lease
from claude_daemon.service.tail import Tail

_AGEING_S: Final = 60.0  # a waiting task gains one priority in this time
_TERMINAL_EVENT: Mapping[State, str] = {
    State.SUCCEEDED: TASK_SUCCEEDED,
    State.FAILED: TASK_FAILED,
    State.CANCELLED: TASK_CANCELLED,
}


class SchemaJudge(Protocol):
    """Whether a text is what a JSON schema asks for; None if so. Bounded in time."""

    async def validate(self, schema: Mapping[str, Any], text: str) -> Failure | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchSettings:
    """``max_waiting``: requests that wait for a place, per lane; ``wait_timeout_s``: how long each may."""

    max_waiting: int
    wait_timeout_s: float
    max_attempts: int


class Run:
    """A task on its way: its state now, its events, and the way to cancel it."""

    def __init__(self, task: Task, monotonic: float) -> None:
        self.task = task
        self.tail = Tail(keep=task.spec.kind is not Kind.CHAT)
        self.queued_at = monotonic
        self.start: str | None = None
        self.worker_id: str | None = None
        self.first_delta_at: float | None = None
        self.done = asyncio.Event()
        self.interrupted = False  # cancelled by us and not by its caller
        self.attempt: asyncio.Task[None] | None = None
        self.expiry: asyncio.TimerHandle | None = None

    def follow(self, after: int = 0) -> AsyncIterator[list[Event]]:
        """The task's events, see :meth:`Tail.follow`."""
        return self.tail.follow(after)


class Dispatcher:
    """Queues, leases and runs tasks. :meth:`run` owns the attempts; nothing runs without it."""

    def __init__(
        self,
        engines: Sequence[Engine],
        settings: DispatchSettings,
        *,
        schemas: SchemaJudge,
        now: Clock,
        monotonic: Clock,
        ids: Ids,
        settled: Callable[[Run], None] = lambda run: None,
    ) -> None:
        self._engines = {engine.lane: engine for engine in engines}
        self._settings = settings
        self._schemas = schemas
        self._now = now
        self._monotonic = monotonic
        self._ids = ids
        self._settled = settled
        self._waiting: dict[Lane, list[Run]] = {lane: [] for lane in self._engines}
        self._running: set[Run] = set()
        self._running_per_key: Counter[str] = Counter()
        self._group: asyncio.TaskGroup | None = None
        self._closing = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        for engine in engines:
            engine.on_room(self._pumper(engine.lane))

    def submit(self, spec: TaskSpec) -> Run:
        """Queues a task, and starts it at once where there is a place. Raises Refusal when the queue is full."""
        queue = self._waiting[spec.lane]
        if len(queue) >= self._settings.max_waiting:
            raise Refusal.because(
                Code.OVERLOADED,
                "too many requests are waiting already",
                retry_after_seconds=self._retry_after(spec.lane),
            )
        task = Task(id=self._ids("task"), spec=spec, created_at=self._now())
        run = Run(task, self._monotonic())
        queue.append(run)
        self._idle.clear()
        self._pump(spec.lane)
        if run.attempt is None:
            timeout = self._settings.wait_timeout_s
            run.expiry = asyncio.get_running_loop().call_later(timeout, self._expire, run)
        return run

    def cancel(self, run: Run) -> None:
        """Ends a task wherever it is; one that has ended stays as it is."""
        if run.attempt is not None:
            run.attempt.cancel()
        elif not run.task.state.terminal:
            self._unqueue(run)
            self._settle(run, Outcome(state=State.CANCELLED, failure=_cancelled()))

    def interrupt_all(self) -> None:
        """Ends everything that waits or runs, as ``interrupted``."""
        for run in [run for queue in self._waiting.values() for run in queue]:
            self._unqueue(run)
            self._settle(run, Outcome(state=State.FAILED, failure=_interrupted()))
        for run in list(self._running):
            run.interrupted = True
            if run.attempt is not None:
                run.attempt.cancel()

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        return len(self._running)

    async def wait_idle(self) -> None:
        """Waits until nothing waits and nothing runs."""
        await self._idle.wait()

    async def run(self) -> None:
        """Owns every attempt until :meth:`close`; what runs by then is interrupted."""
        async with asyncio.TaskGroup() as self._group:
            for lane in self._engines:
                self._pump(lane)
            await self._closing.wait()
            self.interrupt_all()
        self._group = None

    def close(self) -> None:
        self._closing.set()

    def _pumper(self, lane: Lane) -> Callable[[], None]:
        return lambda: self._pump(lane)

    def _pump(self, lane: Lane) -> None:
        """Starts whoever can start, in order, and stops at the first who cannot."""
        queue = self._waiting[lane]
        while queue and self._group is not None and not self._closing.is_set():
            run = queue[0] if len(queue) == 1 else min(queue, key=self._rank)
            lease = self._engines[lane].lease(run.task.spec)
            if lease is None:
                self._fail_all(lane, self._engines[lane].unavailable())
                return
            queue.remove(run)
            self._start(run, lease)

    def _fail_all(self, lane: Lane, failure: Failure | None) -> None:
        """Nobody waits for an engine that cannot come up."""
        for run in list(self._waiting[lane]) if failure is not None else ():
            self._unqueue(run)
            self._settle(run, Outcome(state=State.FAILED, failure=failure))

    def _rank(self, run: Run) -> tuple[float, int, float]:
        waited = self._monotonic() - run.queued_at
        priority = run.task.spec.priority + waited // _AGEING_S
        return -priority, self._running_per_key[run.task.spec.key_id], run.queued_at

    def _unqueue(self, run: Run) -> None:
        queue = self._waiting[run.task.spec.lane]
        if run in queue:
            queue.remove(run)

    def _expire(self, run: Run) -> None:
        if run.attempt is None and not run.task.state.terminal:
            self._unqueue(run)
            why = f"no place became free within {self._settings.wait_timeout_s:g} s"
            failure = Failure(
                code=Code.QUEUE_TIMEOUT,
                message=why,
                retry_after_seconds=self._retry_after(run.task.spec.lane),
            )
            self._settle(run, Outcome(state=State.FAILED, failure=failure))

    def _retry_after(self, lane: Lane) -> float:
        """A guess at when waiting again may help: the longer the queue, the later."""
        return float(min(30, 1 + len(self._waiting[lane]) // 16))

    def _start(self, run: Run, lease: Lease) -> None:
        assert self._group is not None
        if run.expiry is not None:
            run.expiry.cancel()
            run.expiry = None
        run.task = advance(
            run.task,
            State.RUNNING,
            attempt=run.task.attempt + 1,
            started_at=run.task.started_at or self._now(),
        )
        run.start, run.worker_id = lease.start, lease.worker_id
        self._running.add(run)
        self._running_per_key[run.task.spec.key_id] += 1
        run.attempt = self._group.create_task(self._attempt(run, lease))

    async def _attempt(self, run: Run, lease: Lease) -> None:
        outcome = Outcome(state=State.CANCELLED, failure=_cancelled())
        try:
            run.tail.begin_attempt(run.task.attempt)
            started = {
                "lane": run.task.spec.lane,
                "start": lease.start,
                "worker": lease.worker_id,
                "attempt": run.task.attempt,
            }
            run.tail.append([Emission(TASK_STARTED, started)])
            outcome = await self._judged(run, lease)
        except asyncio.CancelledError:
            if run.interrupted:
                outcome = Outcome(state=State.FAILED, failure=_interrupted())
        finally:
            lease.release()
            self._running.discard(run)
            self._running_per_key[run.task.spec.key_id] -= 1
            if not self._rerun(run, outcome):
                self._settle(run, outcome)

    async def _judged(self, run: Run, lease: Lease) -> Outcome:
        """Runs the lease. With a schema, the end of the answer is told only when the answer has been judged."""
        judge = _Judge(run.task.spec.output_schema) if run.task.spec.output_schema is not None else None
        # closed at once when we are cancelled, so that the turn is interrupted now and not when memory is collected
        async with aclosing(cast(Any, lease.run())) as batches:
            async for batch in batches:
                ended = batch[-1] if isinstance(batch[-1], Ended) else None
                emissions = [item for item in batch if isinstance(item, Emission)]
                if judge is not None:
                    emissions = judge.hold(emissions)
                if emissions:
                    self._told(run, emissions)
                    await run.tail.room()
                if ended is not None:
                    outcome = ended.outcome
                    return outcome if judge is None else await self._judge(run, judge, outcome)
        raise AssertionError("an engine's run must end in Ended")

    def _told(self, run: Run, emissions: Sequence[Emission]) -> None:
        if run.first_delta_at is None and any(e.type in (MESSAGE_EVENT, MESSAGE) for e in emissions):
            run.first_delta_at = self._monotonic()
        run.tail.append(emissions)

    async def _judge(self, run: Run, judge: _Judge, outcome: Outcome) -> Outcome:
        if outcome.state is not State.SUCCEEDED:
            return outcome
        # an answer that was cut short or refused is told as it is: its stop reason says so
        if outcome.stop_reason in ("end_turn", "stop_sequence"):
            failure = await self._schemas.validate(judge.schema, judge.text)
            if failure is not None:
                return Outcome(state=State.FAILED, usage=outcome.usage, failure=failure)
        if judge.held:
            self._told(run, judge.held)
        return outcome

    def _rerun(self, run: Run, outcome: Outcome) -> bool:
        """A process that died before a word of its answer was told: another one tries, and nobody sees it."""
        crashed = outcome.failure is not None and outcome.failure.code is Code.ENGINE_CRASHED
        if not crashed or run.first_delta_at is not None or self._closing.is_set():
            return False
        if run.task.attempt >= self._settings.max_attempts:
            return False
        run.task = advance(run.task, State.QUEUED)
        run.attempt = None
        self._waiting[run.task.spec.lane].insert(0, run)
        asyncio.get_running_loop().call_soon(self._pump, run.task.spec.lane)
        run.expiry = asyncio.get_running_loop().call_later(self._settings.wait_timeout_s, self._expire, run)
        return True

    def _settle(self, run: Run, outcome: Outcome) -> None:
        """The task has ended: state, last event, whoever waits. A task that has ended is left as it is."""
        if run.task.state.terminal:
            return
        if run.expiry is not None:
            run.expiry.cancel()
        state = outcome.state if outcome.state in _TERMINAL_EVENT else State.FAILED
        run.task = advance(run.task, state, outcome=outcome, finished_at=self._now())
        run.tail.append([Emission(_TERMINAL_EVENT[state], _told_end(outcome))])
        run.done.set()
        self._settled(run)
        if not self._running and not self.waiting:
            self._idle.set()


class _Judge:
    """Collects an answer's text and holds back its end, for a schema."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.schema = schema
        self.held: list[Emission] = []
        self._pieces: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def hold(self, emissions: Sequence[Emission]) -> list[Emission]:
        """What may be told now."""
        told: list[Emission] = []
        for emission in emissions:
            self._read(emission)
            last = emission.type == MESSAGE or emission.data.get("type") in ("message_delta", "message_stop")
            (self.held if last or self.held else told).append(emission)
        return told

    def _read(self, emission: Emission) -> None:
        data = emission.data
        if emission.type == MESSAGE:
            self._pieces += [block["text"] for block in data.get("content", ()) if block.get("type") == "text"]
        elif emission.type == MESSAGE_EVENT and data.get("type") == "content_block_delta":
            self._pieces.append(data["delta"].get("text", ""))


def _told_end(outcome: Outcome) -> dict[str, Any]:
    told: dict[str, Any] = {"stop_reason": outcome.stop_reason, "usage": asdict(outcome.usage)}
    if outcome.failure is not None:
        told["error"] = {"code": outcome.failure.code.value, "message": outcome.failure.message}
    return told


def _cancelled() -> Failure:
    return Failure(code=Code.CANCELLED, message="the task was cancelled")


def _interrupted() -> Failure:
    return Failure(
        code=Code.INTERRUPTED,
        message="the daemon stopped before the answer was complete",
        retry_after_seconds=1.0,
    )
