"""One ready queue for everything that wants to run, and the life of an attempt.

Next is: the highest priority (a waiting task gains one a minute), then the key with the least running, then the one
that has waited longest. A lane that has no place for the next one of its queue serves nobody behind it: no one
overtakes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, cast

from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.event import MESSAGE, MESSAGE_EVENT, TASK_STARTED, Emission
from claude_daemon.core.task import Lane, Outcome, State, Task, TaskSpec, advance
from claude_daemon.ports import Clock, Ended, Engine, Ids, Lease, Schemas
from claude_daemon.service.hint import Hint
from claude_daemon.service.judge import Judge
from claude_daemon.service.queue import ReadyQueue
from claude_daemon.service.run import (
    CANCELLED,
    INTERNAL,
    INTERRUPTED,
    Run,
    cut_short,
    ended_with,
    last_event,
)

__all__ = ["DispatchSettings", "Dispatcher", "Run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchSettings:
    """``max_waiting``: requests that wait for a place, per lane; ``wait_timeout_s``: how long each may."""

    max_waiting: int
    wait_timeout_s: float
    max_attempts: int


class Dispatcher:
    """Queues, leases and runs tasks. :meth:`run` owns the attempts; nothing runs without it.

    ``settled`` is told every end; ``broken`` what an engine raised, which none may: the task fails, the rest goes on.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        settings: DispatchSettings,
        *,
        schemas: Schemas,
        now: Clock,
        monotonic: Clock,
        ids: Ids,
        settled: Callable[[Run], None] = lambda run: None,
        broken: Callable[[Run, Exception], None] = lambda run, error: None,
    ) -> None:
        self._engines = {engine.lane: engine for engine in engines}
        self._settings = settings
        self._schemas = schemas
        self._now = now
        self._monotonic = monotonic
        self._ids = ids
        self._settled = settled
        self._broken = broken
        self._running: set[Run] = set()
        self._running_per_key: Counter[str] = Counter()
        self._queues: dict[Lane, ReadyQueue[Run]] = {
            lane: ReadyQueue(self._running_per_key.__getitem__) for lane in self._engines
        }
        self._pumps: set[Lane] = set()
        self._group: asyncio.TaskGroup | None = None
        self._closing = asyncio.Event()
        self.idled = Hint()
        """Given each time the last task has ended."""
        for engine in engines:
            engine.on_room(self._pumper(engine.lane))

    def submit(self, spec: TaskSpec) -> Run:
        """Queues a task, and starts it at once where there is a place. Raises Refusal when the queue is full."""
        if self._closing.is_set():
            raise Refusal(INTERRUPTED)
        queue = self._queues[spec.lane]
        if len(queue) >= self._settings.max_waiting:
            raise Refusal.because(
                Code.OVERLOADED,
                "too many requests are waiting already",
                retry_after_seconds=self._retry_after(spec.lane),
            )
        task = Task(id=self._ids("task"), spec=spec, created_at=self._now())
        run = Run(task, self._monotonic())
        queue.add(run)
        self._pump(spec.lane)
        if run.attempt is None and not run.task.state.terminal:
            self._expire_later(run)
        return run

    def cancel(self, run: Run) -> None:
        """Ends a task wherever it is; one that has ended stays as it is."""
        self._cut(run, CANCELLED)

    def interrupt_all(self) -> None:
        """Ends everything that waits or runs, as ``interrupted``."""
        for queue in self._queues.values():
            for run in queue:
                self._cut(run, INTERRUPTED)
        for run in list(self._running):
            self._cut(run, INTERRUPTED)

    @property
    def waiting(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing runs."""
        return not self._running and not self.waiting

    async def run(self) -> None:
        """Owns every attempt until :meth:`close`; what runs by then is interrupted."""
        async with asyncio.TaskGroup() as self._group:
            try:
                for lane in self._engines:
                    self._pump(lane)
                await self._closing.wait()
            finally:
                self._closing.set()
                self.interrupt_all()
        self._group = None

    def close(self) -> None:
        self._closing.set()

    # who is next

    def _expire_later(self, run: Run) -> None:
        loop = asyncio.get_running_loop()
        run.expiry = loop.call_later(self._settings.wait_timeout_s, self._expire, run)

    def _pumper(self, lane: Lane) -> Callable[[], None]:
        return lambda: self._pump_soon(lane)

    def _pump_soon(self, lane: Lane) -> None:
        """In the next pass of the loop: who gives a place back is then no longer counted as running."""
        if lane not in self._pumps:
            self._pumps.add(lane)
            asyncio.get_running_loop().call_soon(self._pump, lane)

    def _pump(self, lane: Lane) -> None:
        """Starts whoever can start, in order, and stops at the first who cannot."""
        self._pumps.discard(lane)
        queue = self._queues[lane]
        while queue and self._group is not None and not self._closing.is_set():
            run = queue.next(self._monotonic())
            engine = self._engines[lane]
            try:
                lease = engine.lease(run.task.spec)
                why = engine.unavailable() if lease is None else None
            except Exception as error:  # an attempt begins here: one that cannot must not hold up those behind it
                self._broken(run, error)
                self._settle(run, ended_with(INTERNAL))
                continue
            if lease is None:
                self._fail_all(lane, why)
                return
            self._start(run, lease)

    def _fail_all(self, lane: Lane, failure: Failure | None) -> None:
        """Nobody waits for an engine that cannot come up."""
        for run in self._queues[lane] if failure is not None else ():
            self._settle(run, Outcome(state=State.FAILED, failure=failure))

    def _expire(self, run: Run) -> None:
        failure = Failure(
            code=Code.QUEUE_TIMEOUT,
            message=f"no place became free within {self._settings.wait_timeout_s:g} s",
            retry_after_seconds=self._retry_after(run.task.spec.lane),
        )
        self._settle(run, ended_with(failure))

    def _retry_after(self, lane: Lane) -> float:
        """A guess at when waiting again may help: the longer the queue, the later."""
        return float(min(30, 1 + len(self._queues[lane]) // 16))

    # the life of an attempt

    def _start(self, run: Run, lease: Lease) -> None:
        assert self._group is not None
        self._unqueue(run)
        run.task = advance(
            run.task,
            State.RUNNING,
            attempt=run.task.attempt + 1,
            started_at=run.task.started_at or self._now(),
        )
        run.start, run.worker_id = lease.start, lease.worker_id
        self._running.add(run)
        self._running_per_key[run.key_id] += 1
        attempt = run.attempt = self._group.create_task(self._attempt(run, lease), context=run.context)
        # one that is cancelled before its first step never runs a line of its own, its `finally` included
        attempt.add_done_callback(lambda _: self._end(run, attempt, lease, Ended(outcome=cut_short(run))))

    async def _attempt(self, run: Run, lease: Lease) -> None:
        attempt = asyncio.current_task()
        assert attempt is not None
        ended = None
        try:
            run.tail.begin_attempt(run.task.attempt)
            started = {
                "lane": run.task.spec.lane,
                "start": lease.start,
                "worker": lease.worker_id,
                "attempt": run.task.attempt,
            }
            run.tail.append([Emission(TASK_STARTED, started)])
            ended = await self._ended(run, lease)
        except asyncio.CancelledError:
            pass  # by :meth:`_cut`, which knows why
        except Exception as error:  # the boundary of an attempt
            self._broken(run, error)
            ended = Ended(outcome=ended_with(INTERNAL))
        finally:
            self._end(run, attempt, lease, ended or Ended(outcome=cut_short(run)))

    async def _ended(self, run: Run, lease: Lease) -> Ended:
        """Runs the lease. With a schema, the end of the answer is told only when the answer has been judged."""
        schema = run.task.spec.output_schema
        judge = Judge(self._schemas, schema) if schema is not None else None
        # closed at once when we are cancelled, so that the turn is interrupted now and not when memory is collected
        async with aclosing(cast(Any, lease.run())) as batches:
            async for batch in batches:
                ended = batch[-1] if isinstance(batch[-1], Ended) else None
                emissions = [item for item in batch if isinstance(item, Emission)]
                if judge is not None:
                    emissions = judge.hold(emissions)
                await self._tell(run, emissions)
                if ended is not None:
                    if judge is None:
                        return ended
                    outcome, held = await judge.judge(ended.outcome)
                    await self._tell(run, held)
                    return replace(ended, outcome=outcome)
        raise AssertionError("an engine's run must end in Ended")

    async def _tell(self, run: Run, emissions: Sequence[Emission]) -> None:
        if not emissions:
            return
        if run.first_delta_at is None and any(e.type in (MESSAGE_EVENT, MESSAGE) for e in emissions):
            run.first_delta_at = self._monotonic()
        run.tail.append(emissions)
        await run.tail.room()

    def _end(self, run: Run, attempt: asyncio.Task[None], lease: Lease, ended: Ended) -> None:
        """The attempt is over, and with it the task unless another one tries. Once for each attempt."""
        if run.attempt is not attempt:
            return
        run.attempt = None
        self._running.discard(run)
        self._running_per_key[run.key_id] -= 1
        if not self._running_per_key[run.key_id]:
            del self._running_per_key[run.key_id]
        try:
            lease.release()
        except Exception as error:  # its end is told even so
            self._broken(run, error)
        if self._may_rerun(run, ended):
            run.task = advance(run.task, State.QUEUED)
            self._queues[run.task.spec.lane].add(run, first=True)
            self._expire_later(run)
            self._pump_soon(run.task.spec.lane)
        else:
            self._settle(run, ended.outcome)

    def _may_rerun(self, run: Run, ended: Ended) -> bool:
        """A process that died before a word of its answer was told: another one tries, and nobody sees it."""
        failure = ended.outcome.failure
        crashed = failure is not None and (failure.code is Code.ENGINE_CRASHED or ended.again)
        told = run.first_delta_at is not None
        stopped = run.ending is not None or self._closing.is_set()
        return crashed and not told and not stopped and run.task.attempt < self._settings.max_attempts

    # the end

    def _cut(self, run: Run, failure: Failure) -> None:
        """Ends a task now, for this reason unless it already ends for another."""
        if run.task.state.terminal or run.ending is not None:
            return
        run.ending = failure
        if run.attempt is not None:
            run.attempt.cancel()
        else:
            self._settle(run, cut_short(run))

    def _unqueue(self, run: Run) -> None:
        self._queues[run.task.spec.lane].discard(run)
        if run.expiry is not None:
            run.expiry.cancel()
            run.expiry = None

    def _settle(self, run: Run, outcome: Outcome) -> None:
        """The task has ended: state, last event, whoever waits."""
        self._unqueue(run)
        run.task = advance(run.task, outcome.state, outcome=outcome, finished_at=self._now())
        run.tail.append([last_event(outcome)])
        self._settled(run)
        if self.idle:
            self.idled.give()
