"""One ready queue for everything that wants to run, and who gets the next place.

Next is: the trust domain with the least running; within it the highest priority (a waiting task gains one a minute),
then the key with the least running, then the one that has waited longest (:mod:`~claude_daemon.service.queue`),
whatever their lanes: lanes that share their room share its order. Nobody overtakes. Where the
next one has a place and its lane no process for it yet, one place is kept for it, and others of its lane wait behind
it. A task whose session is at another's turn does not stand in the queue yet, and holds up nobody. Chats wait in RAM,
and only for a while. Durable tasks wait as tickets, and what they ask is read when their turn comes near.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.event import Emission
from claude_daemon.core.room import Room
from claude_daemon.core.task import Effects, Lane, Outcome, State, Task, TaskSpec, advance
from claude_daemon.ports import Clock, Ended, Engine, Ids, Lease, NotYet, Schemas, StoreUnavailable, is_copying
from claude_daemon.service.approvals import Approvals
from claude_daemon.service.attempt import Attempts
from claude_daemon.service.backlog import Backlog
from claude_daemon.service.book import Book
from claude_daemon.service.deadlines import Deadlines
from claude_daemon.service.hint import Hint
from claude_daemon.service.queue import ReadyQueue
from claude_daemon.service.run import (
    CANCELLED,
    INTERNAL,
    INTERRUPTED,
    LATE,
    SAID,
    Run,
    Ticket,
    cut_short,
    ended_with,
    last_event,
)
from claude_daemon.service.shares import Shares, makes_way
from claude_daemon.service.turns import Turns

T = TypeVar("T")

__all__ = ["DispatchSettings", "Dispatcher", "Run"]

# A store that cannot be read or written now is asked again after so long; its own health says how it is.
_STORE_RETRY_S: Final = 1.0


Said = Callable[[TaskSpec], Awaitable[bool]]
"""Whether a task's session holds its user message already, so that it must not be said again."""


async def _never_said(spec: TaskSpec) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchSettings:
    """``max_waiting``: chats that wait for a place, per lane; ``wait_timeout_s``: how long each may.

    ``stall_s``: how long an attempt waits for its events to become durable, and a stop for ends that are not yet.
    ``approval_timeout_s``: how long a call waits for somebody's word.
    """

    max_waiting: int
    wait_timeout_s: float
    max_attempts: int
    stall_s: float = 10.0
    approval_timeout_s: float = 300.0


class Dispatcher:
    """Queues, leases and runs tasks. :meth:`run` owns the attempts; nothing runs without it.

    ``begins`` is told every attempt, within its context; ``settled`` every end; ``broken`` what an engine raised, which
    none may: the task fails, the rest goes on. ``said``: see :data:`Said`. ``may_begin``: whether a durable task of
    this key may begin besides so many turns of the key, and so many in all; a chat is asked about when it is submitted.
    ``told`` hears how many events an engine told.
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
        book: Book | None = None,
        parts: Callable[[Emission], Sequence[Emission]] = lambda emission: [emission],
        said: Said = _never_said,
        may_begin: Callable[[str, int, int], bool] = lambda key_id, running, of_all: True,
        begins: Callable[[Run], None] = lambda run: None,
        settled: Callable[[Run], None] = lambda run: None,
        broken: Callable[[Task | None, Exception], None] = lambda task, error: None,
        told: Callable[[int], None] = lambda events: None,
    ) -> None:
        self._engines = {engine.lane: engine for engine in engines}
        self._settings = settings
        self._book = book
        self._now = now
        self._monotonic = monotonic
        self._ids = ids
        self.said = said
        self._may_begin = may_begin
        self._begins = begins
        self._settled = settled
        self._broken = broken
        self.approvals = Approvals(timeout_s=settings.approval_timeout_s, now=now, ids=ids)
        self._attempts = Attempts(
            schemas, book, self.approvals, monotonic=monotonic, parts=parts, stall_s=settings.stall_s, told=told
        )
        self._running: set[Run] = set()
        self._saving: dict[Run, asyncio.Task[None]] = {}
        self._shares = Shares()
        self._queue: ReadyQueue[Run | Ticket] = ReadyQueue(self._shares, self._has_its_turn)
        self.turns = Turns()
        self._backlog = Backlog(self._queue, self.turns)
        self._in_line: dict[str, Run] = {}  # chats whose session is at another's turn
        self._deadlines = Deadlines(self._too_late)
        self._runs: dict[str, Run] = {}
        self._turns: dict[str, int] = {}
        """By key, how many of them are its."""
        self._lanes: dict[Room, list[Lane]] = {}
        self._pumps: set[Room] = set()
        self._group: asyncio.TaskGroup | None = None
        self._closing = asyncio.Event()
        self.unsaved = 0
        """Ends that could not be made durable before the daemon stopped; its next start finds those tasks running."""
        self.idled = Hint()
        """Given each time the last task has ended."""
        self.concurrent: Callable[[str], int | None] = lambda key_id: None
        """How many of a key may run at once, None for no bound."""
        for engine in engines:
            self._lanes.setdefault(engine.room, []).append(engine.lane)
        for room in self._lanes:
            room.on_change(partial(self._pump_soon, room))

    def apply(self, settings: DispatchSettings) -> None:
        """For what comes from now on."""
        self._settings = settings
        self._attempts.stall_s = settings.stall_s
        self.approvals.timeout_s = settings.approval_timeout_s

    # chats

    def submit(self, spec: TaskSpec, accept: Callable[[Task], None] = lambda task: None) -> Run:
        """Queues a chat, and starts it at once where there is a place. Raises Refusal when the queue is full, unless
        another trust domain has more in it: then the last one of that is refused.

        ``accept`` is asked last, with the task that it becomes: it may refuse it too.
        """
        if self._closing.is_set():
            raise Refusal(INTERRUPTED)
        leaves = None
        if self._chats(spec.lane) >= self._settings.max_waiting:
            leaves = makes_way(self._chats_of(spec.lane), spec.trust_domain)
            if leaves is None:
                raise Refusal(self._overloaded(spec.lane))
        task = Task(id=self._ids("task"), spec=spec, created_at=self._now())
        accept(task)
        if leaves is not None:
            self.cut(leaves, self._overloaded(spec.lane))
        run = self._enter(Run(task, self._monotonic()))
        self.turns.enter(task.id, spec.sessions)
        if self.turns.may_begin(task.id):
            self._queue.add(run)
        else:
            self._in_line[task.id] = run
        self._pump(self._engines[spec.lane].room)
        if run.attempt is None and not run.task.state.terminal:
            self._expire_later(run)
        return run

    def cancel(self, run: Run, why: Failure = CANCELLED) -> None:
        """Ends a run wherever it is; one that has ended stays as it is."""
        self.cut(run, why)

    # durable tasks

    def enqueue(self, ticket: Ticket, *, timeout_s: float | None = None, first: bool = False) -> None:
        """Queues a task that the store has as queued; once is enough. ``timeout_s``: by then it ends wherever it is;
        one that has a deadline here already keeps it."""
        if self._closing.is_set() or ticket.id in self._runs or not self._backlog.add(ticket, first=first):
            return
        if timeout_s is not None:
            self._deadlines.add(ticket.id, timeout_s)
        self._pump_lane_soon(ticket.lane)

    def hold(self) -> None:
        """From now on no durable task is begun; they wait."""
        self._backlog.hold()
        for room in self._lanes:
            self._pump_soon(room)  # a chat may have stood behind one

    def unhold(self) -> None:
        self._backlog.unhold()
        for room in self._lanes:
            self._pump_soon(room)

    def withdraw(self, task_id: str) -> bool:
        """Takes a durable task out of the queue, for whoever ends it; False when it does not wait here."""
        if self._backlog.take(task_id) is None:
            return False
        self._deadlines.discard(task_id)
        self._step(task_id)
        return True

    def waits(self, task_id: str) -> bool:
        """Whether a durable task waits here."""
        return task_id in self._backlog

    def find(self, task_id: str) -> Run | None:
        """A chat that waits or runs, or a durable task from its start until its end is saved."""
        return self._runs.get(task_id)

    def of_key(self, key_id: str) -> Sequence[Run]:
        """Its chats that wait or run, and its durable tasks from their start until their end is saved."""
        return [run for run in self._runs.values() if run.key_id == key_id]

    @property
    def attempts(self) -> Sequence[Run]:
        """The attempts under way that hold a lease of the store's."""
        return [run for run in self._running if run.durable and run.claimed]

    # all of them

    def cut(self, run: Run, failure: Failure) -> None:
        """Ends a run now, for this reason unless it already ends for another."""
        if run.task.state.terminal or run.ending is not None:
            return
        run.ending = failure
        if run.attempt is not None:
            if run.claimed:
                run.attempt.cancel()
        elif run not in self._saving:
            self._settle(run, cut_short(run))

    def interrupt_all(self) -> None:
        """Ends every chat and every attempt, as ``interrupted``; tasks that wait go on waiting."""
        for run in list(self._runs.values()):
            self.cut(run, INTERRUPTED)

    @property
    def waiting(self) -> int:
        """Chats that wait for a place."""
        return sum(map(self._chats, self._engines))

    @property
    def queued(self) -> int:
        """Durable tasks that wait."""
        return len(self._backlog)

    @property
    def held(self) -> bool:
        """No durable task is begun: see :meth:`hold`."""
        return self._backlog.held

    @property
    def oldest_seconds(self) -> float | None:
        """How long the one has waited that has waited longest of those who could begin; None for none."""
        oldest = min((waiting.queued_at for waiting in self._queue), default=None)
        return None if oldest is None else self._monotonic() - oldest

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def under_way(self) -> Collection[Run]:
        """All that run now."""
        return self._running

    @property
    def by_worker(self) -> dict[str, Run]:
        """What runs now, by the id of the process that it has."""
        return {run.worker_id: run for run in self._running if run.worker_id is not None}

    @property
    def idle(self) -> bool:
        """Nothing runs, no chat waits, and every end is saved."""
        return not self._running and not self._saving and not self.waiting

    async def run(self) -> None:
        """Owns every attempt until :meth:`close`; what runs by then is interrupted, and its end saved."""
        async with asyncio.TaskGroup() as self._group:
            try:
                for room in self._lanes:
                    self._pump(room)
                await self._closing.wait()
            finally:
                self._closing.set()
                self._backlog.hold()
                self.interrupt_all()
            await self._saved()
        self._group = None

    async def _saved(self) -> None:
        """Waits for what is being saved; a store that takes nothing is not waited for longer than an attempt would."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.stall_s) as patience:
                while not self.idle:
                    if self._running:  # the clock runs for the store alone
                        patience.reschedule(asyncio.get_running_loop().time() + self._settings.stall_s)
                    await self.idled.wait()
        for saving in self._saving.values():
            saving.cancel()

    def close(self) -> None:
        self._closing.set()

    # who is next

    def _chats(self, lane: Lane) -> int:
        in_line = len(self._in_line) if lane is Lane.SESSION else 0
        return self._queue.waiting(lane) - self._backlog.in_queue(lane) + in_line

    def _chats_of(self, lane: Lane) -> list[Run]:
        """Those that wait for a place of the lane, or for their turn in a session."""
        waiting = [one for one in self._queue.of(lane) if isinstance(one, Run)]
        return [*waiting, *self._in_line.values()] if lane is Lane.SESSION else waiting

    def _overloaded(self, lane: Lane) -> Failure:
        return Failure(
            code=Code.OVERLOADED,
            message="too many requests are waiting already",
            retry_after_seconds=self._retry_after(lane),
        )

    def _step(self, task_id: str, session: str | None = None) -> None:
        """The task leaves its session, or one of its two: whoever stands behind it may begin."""
        for other in self.turns.leave(task_id, session):
            run = self._in_line.pop(other, None)
            if run is not None:
                self._queue.add(run)
            else:
                self._backlog.step(other)
            self._pump_lane_soon(Lane.SESSION)

    def _expire_later(self, run: Run) -> None:
        loop = asyncio.get_running_loop()
        run.expiry = loop.call_later(self._settings.wait_timeout_s, self._expire, run)

    def _pump_lane_soon(self, lane: Lane) -> None:
        self._pump_soon(self._engines[lane].room)

    def _pump_soon(self, room: Room) -> None:
        """In the next pass of the loop: who gives a place back is then no longer counted as running."""
        if room not in self._pumps:
            self._pumps.add(room)
            asyncio.get_running_loop().call_soon(self._pump, room)

    def _pump(self, room: Room) -> None:
        """Starts whoever can start, and tells those who wait in vain."""
        self._pumps.discard(room)
        if self._group is None or self._closing.is_set() or not self._queue:
            return
        self._fill(room)
        self._queue.restore()
        for lane in self._lanes[room] if self._queue else ():
            if self._queue.waiting(lane):
                self._fail_all(lane, self._engines[lane].unavailable())

    def _fill(self, room: Room) -> None:
        """Gives out places in order. A lane is left at the first of it who cannot start, and a place is kept for that
        one: it waits for its process, or for what it asks, and neither takes long."""
        lanes, kept = set(self._lanes[room]), 0
        while room.free > kept and (waiting := self._queue.next(self._monotonic(), lanes)) is not None:
            task, engine = waiting.task, self._engines[waiting.lane]
            if task is None:
                assert isinstance(waiting, Ticket)
                self._read(waiting)
                lanes.discard(waiting.lane)
                kept += 1
                continue
            try:
                lease = engine.lease(task.spec)
                in_vain = lease is None and engine.unavailable() is not None
            except NotYet:
                self._queue.pass_over(waiting)
                continue
            except Exception as error:  # an attempt begins here: one that cannot must not hold up those behind it
                self._broken(task, error)
                self._give_up(waiting, task)
                continue
            if lease is None:
                lanes.discard(waiting.lane)
                kept += not in_vain
                continue
            self._start(waiting if isinstance(waiting, Run) else self._taken(waiting, task), lease)

    def _has_its_turn(self, waiting: Run | Ticket) -> bool:
        """Whether its key, and all together, have fewer turns under way than they may."""
        key_id, running = waiting.key_id, self._shares.of_key(waiting.key_id)
        most = self.concurrent(key_id) if running else None  # a key of which nothing runs may begin
        if most is not None and running >= most:
            return False
        # a chat was held to the rate limits when it came: there it is refused, and does not wait
        return isinstance(waiting, Run) or self._may_begin(key_id, running, len(self._running))

    def _enter(self, run: Run) -> Run:
        self._runs[run.task.id] = run
        _count(self._turns, run.key_id, 1)
        return run

    def turns_of(self, key_id: str | None) -> int:
        """Turns of a key, or of all: chats that run or wait for a place, and durable tasks that have begun."""
        return len(self._runs) if key_id is None else self._turns.get(key_id, 0)

    def _read(self, ticket: Ticket) -> None:
        """What the ticket asks comes from the store; then it goes on."""
        if not ticket.reading:
            ticket.reading = True
            self._own(self._reading(ticket))

    async def _reading(self, ticket: Ticket) -> None:
        assert self._book is not None
        try:
            task = await self._book.store.get(ticket.id)
        except StoreUnavailable:
            await self._pause(_STORE_RETRY_S)
            task = None
        else:
            if task is None or task.state is not State.QUEUED:
                self.withdraw(ticket.id)
        finally:
            ticket.reading = False
        if task is not None and ticket.id in self._backlog:
            self._backlog.has_read(ticket, task)
        self._pump(self._engines[ticket.lane].room)

    def _taken(self, ticket: Ticket, task: Task) -> Run:
        """A ticket's run. Its deadline stays."""
        assert self._book is not None
        self._backlog.take(ticket.id)
        run = self._enter(Run(task, ticket.queued_at, self._book.tails.hold(task.id)))
        if task.spec.timeout_seconds is not None:
            self._deadlines.add(task.id, task.created_at + task.spec.timeout_seconds - self._now())
        return run

    def _give_up(self, waiting: Run | Ticket, task: Task) -> None:
        if isinstance(waiting, Run):
            self._settle(waiting, ended_with(INTERNAL))
        else:
            self.withdraw(waiting.id)
            self._own(self._end_waiting(task, INTERNAL))

    def _fail_all(self, lane: Lane, failure: Failure | None) -> None:
        """No chat waits for an engine that cannot come up; a task does."""
        for waiting in self._queue.of(lane) if failure is not None else ():
            if isinstance(waiting, Run):
                self._settle(waiting, Outcome(state=State.FAILED, failure=failure))

    def _expire(self, run: Run) -> None:
        failure = Failure(
            code=Code.QUEUE_TIMEOUT,
            message=f"no place became free within {self._settings.wait_timeout_s:g} s",
            retry_after_seconds=self._retry_after(run.lane),
        )
        self._settle(run, ended_with(failure))

    def _too_late(self, task_id: str) -> None:
        """A durable task's time is over, wherever it is."""
        run = self._runs.get(task_id)
        if run is not None:
            self.cut(run, LATE)
        elif self.withdraw(task_id) and self._group is not None:
            self._own(self._end_queued(task_id, LATE))

    async def _end_queued(self, task_id: str, failure: Failure) -> None:
        """Tried until the store can be read; the next start finds what this one could not end."""
        assert self._book is not None
        while not self._closing.is_set():
            try:
                task = await self._book.store.get(task_id)
            except StoreUnavailable:
                await self._pause(_STORE_RETRY_S)
                continue
            if task is not None and task.state is State.QUEUED:
                await self._end_waiting(task, failure)
            return

    async def _pause(self, seconds: float) -> None:
        """Or until the daemon stops."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()

    async def _end_waiting(self, task: Task, failure: Failure) -> None:
        assert self._book is not None
        with contextlib.suppress(StoreUnavailable):  # the store closes: the next start finds it queued
            await self._book.end(task, ended_with(failure))

    def _retry_after(self, lane: Lane) -> float:
        """A guess at when waiting again may help: the longer the queue, the later."""
        return float(min(30, 1 + self._chats(lane) // 16))

    # the life of an attempt

    def _own(self, coroutine: Coroutine[Any, Any, None]) -> None:
        assert self._group is not None
        self._group.create_task(self._guarded(coroutine))

    async def _guarded(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """The boundary of what is done for one task: its trouble is nobody else's."""
        try:
            await coroutine
        except Exception as error:
            self._broken(None, error)

    async def finish(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Does it to its end, whether or not whoever waits for it goes away: what is durable must be told. What
        it raises is its caller's."""
        if self._group is None:
            return await coroutine
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        done.add_done_callback(
            lambda future: future.cancelled() or future.exception()
        )  # seen, if nobody waits any more

        async def run() -> None:
            try:
                result = await coroutine
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(result)

        self._group.create_task(run())
        return await asyncio.shield(done)

    def _start(self, run: Run, lease: Lease) -> None:
        assert self._group is not None
        if not run.durable:
            self._unqueue(run)
            run.task = advance(
                run.task,
                State.RUNNING,
                attempt=run.task.attempt + 1,
                started_at=run.task.started_at or self._now(),
            )
        run.start, run.worker_id, run.started_at = lease.start, lease.worker_id, self._monotonic()
        run.lease = lease
        if is_copying(lease):
            lease.copied = partial(self._step, run.task.id)
        run.context.run(self._begins, run)
        self._running.add(run)
        self._shares.begin(run.key_id, run.trust_domain)
        attempt = run.attempt = self._group.create_task(self._attempt(run, lease), context=run.context)
        # one that is cancelled before its first step never runs a line of its own, its `finally` included
        attempt.add_done_callback(lambda _: self._end(run, attempt, lease, None))

    async def _attempt(self, run: Run, lease: Lease) -> None:
        attempt = asyncio.current_task()
        assert attempt is not None
        ended = None
        try:
            ended = await self._attempts.make(run, lease)
        except asyncio.CancelledError:
            pass  # by :meth:`cut`, which knows why
        except StoreUnavailable:
            run.put_off = True
        except Exception as error:  # the boundary of an attempt
            self._broken(run.task, error)
            ended = Ended(outcome=ended_with(INTERNAL))
        finally:
            self._end(run, attempt, lease, ended)

    def _end(self, run: Run, attempt: asyncio.Task[None], lease: Lease, ended: Ended | None) -> None:
        """The attempt is over, and with it the task unless another one tries. Once for each attempt."""
        if run.attempt is not attempt:
            return
        run.attempt = run.lease = None
        self._running.discard(run)
        self._shares.end(run.key_id, run.trust_domain)
        for room in self._lanes if self._queue else ():
            self._pump_soon(room)  # one more of its key may run, whatever the lane
        ended = ended or Ended(outcome=replace(cut_short(run), usage=lease.usage))
        try:
            lease.release()
        except Exception as error:  # its end is told even so
            self._broken(run.task, error)
        if run.durable:
            self._end_durable(run, ended)
        elif self._may_rerun(run, ended) and run.first_delta_at is None and run.task.spec.session is None:
            run.task = advance(run.task, State.QUEUED)
            self._queue.add(run, first=True)
            self._expire_later(run)
            self._pump_lane_soon(run.lane)
        else:
            self._settle(run, ended.outcome)

    def _may_rerun(self, run: Run, ended: Ended) -> bool:
        """Whether another try may go better: the process died, or the engine says so. Nobody wants it any less."""
        failure = ended.outcome.failure
        crashed = failure is not None and (failure.code is Code.ENGINE_CRASHED or ended.again)
        stopped = run.ending is not None or self._closing.is_set()
        return crashed and not stopped and run.task.attempt < self._settings.max_attempts

    # the end of a durable task's attempt

    def _end_durable(self, run: Run, ended: Ended) -> None:
        if run.claimed:
            assert self._group is not None
            self._saving[run] = self._group.create_task(self._save(run, ended))
            return
        if run.put_off and not self._closing.is_set():  # the store could not tell whether it is ours: later
            asyncio.get_running_loop().call_later(_STORE_RETRY_S, self._comes_back, run)
            self._forget(run, comes_back=True)
        else:
            self._forget(run)
        self._tell_idle()

    def _comes_back(self, run: Run, *, first: bool = False) -> None:
        """To the queue, as old as it was. Its deadline has stayed, unless it passed meanwhile: then it ends now."""
        spec = run.task.spec
        whose = run.key_id, run.trust_domain
        ticket = Ticket(run.task.id, run.lane, *whose, run.priority, run.queued_at, spec.sessions)
        self.enqueue(ticket, timeout_s=None if run.task.spec.timeout_seconds is None else 0.0, first=first)

    async def _save(self, run: Run, ended: Ended) -> None:
        """Its end becomes durable, and is told then; or it goes back to the queue."""
        assert self._book is not None
        again = False
        try:
            if run.tail.lost:
                return  # somebody else's word counts
            goes_back, outcome = self._goes_back(run, ended), ended.outcome
            if goes_back and await self.said(run.task.spec):
                goes_back, outcome = False, replace(ended_with(SAID), usage=outcome.usage)
            if goes_back:
                again = await self._book.requeue(run, outcome)
            elif await self._book.settle(run, outcome):
                self._settled(run)
        except (StoreUnavailable, asyncio.CancelledError):
            self.unsaved += 1
        except Exception as error:  # an end that cannot be written down as it is
            self._broken(run.task, error)
            await self._save_plainly(run)
        finally:
            self._saving.pop(run, None)
            self._forget(run, comes_back=again)
            if again:
                self._comes_back(run, first=True)
            self._tell_idle()

    async def _save_plainly(self, run: Run) -> None:
        assert self._book is not None
        try:
            if await self._book.settle(run, ended_with(INTERNAL)):
                self._settled(run)
        except Exception as error:
            self._broken(run.task, error)
            self.unsaved += 1

    def _goes_back(self, run: Run, ended: Ended) -> bool:
        """Whether another attempt is made. One that may have changed something outside is never made twice."""
        if run.task.effects is not Effects.NONE:
            return False
        return self._may_rerun(run, ended) or run.ending is INTERRUPTED

    def _forget(self, run: Run, *, comes_back: bool = False) -> None:
        if self._runs.pop(run.task.id, None) is not None:
            _count(self._turns, run.key_id, -1)
        if run.durable:
            assert self._book is not None
            self._book.tails.release(run.task.id, run.tail)
            if not comes_back:
                self._deadlines.discard(run.task.id)
        if not comes_back:
            self._step(run.task.id)
        if run.expiry is not None:
            run.expiry.cancel()

    # the end of a chat

    def _unqueue(self, run: Run) -> None:
        self._queue.discard(run)
        self._in_line.pop(run.task.id, None)
        if run.expiry is not None:
            run.expiry.cancel()
            run.expiry = None

    def _settle(self, run: Run, outcome: Outcome) -> None:
        """A chat has ended: state, last event, whoever waits."""
        self._unqueue(run)
        run.task = advance(run.task, outcome.state, outcome=outcome, finished_at=self._now())
        run.tail.append([last_event(outcome)])
        self._forget(run)
        self._settled(run)
        self._tell_idle()

    def _tell_idle(self) -> None:
        if self.idle:
            self.idled.give()


def _count(counts: dict[str, int], name: str, more: int) -> None:
    """What comes to nothing is not kept."""
    left = counts.get(name, 0) + more
    if left:
        counts[name] = left
    else:
        del counts[name]
