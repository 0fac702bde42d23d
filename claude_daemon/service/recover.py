"""Leases kept, and tasks whose attempt is gone: at the start those of the daemon before, later whoever fell silent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.task import Effects, Outcome, Task
from claude_daemon.ports import Clock, RunningTask, StoreUnavailable
from claude_daemon.service.book import LEASE_S, Book
from claude_daemon.service.dispatch import Dispatcher
from claude_daemon.service.run import CANCELLED, LOST, SAID, Ticket, ended_with

_RENEW_S: Final = LEASE_S / 3
"""Two renewals may fail before a lease ends."""
_POLL_S: Final = 30.0
"""What no hint told of is found by then."""
_AT_ONCE: Final = 200
"""Queued tasks that are looked at before others have their turn."""

_CRASHED: Final = Failure(code=Code.INTERRUPTED, message="the daemon ended while the task ran")


def after_crash(task: Task, max_attempts: int, *, said: bool = False) -> tuple[bool, Outcome]:
    """Whether a task whose attempt is gone runs again, and how that attempt, or the task, has ended. Pure.

    One that may have changed something outside is never run twice, nor one whose session has its message (``said``),
    and one that has taken the daemon down with it often enough is not run again.
    """
    if task.cancel_requested_at is not None:
        return False, ended_with(CANCELLED)
    if task.effects is not Effects.NONE:
        why = "the daemon ended while the task ran, and it may have changed something: it is not run a second time"
        return False, ended_with(replace(_CRASHED, message=why))
    if said:
        return False, ended_with(SAID)
    if task.attempt >= max_attempts:
        why = f"the daemon ended while the task ran, for the last of {task.attempt} attempts"
        return False, ended_with(replace(_CRASHED, message=why))
    return True, ended_with(_CRASHED)


class Recovery:
    """``told`` hears of each task that was recovered, and of what went wrong: name, fields."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        book: Book,
        *,
        monotonic: Clock,
        max_attempts: int,
        told: Callable[[str, dict[str, Any]], None] = lambda name, fields: None,
    ) -> None:
        self._dispatcher = dispatcher
        self._book = book
        self._monotonic = monotonic
        self.max_attempts = max_attempts
        self._told = told

    async def start(self) -> None:
        """Everything that the daemon before has left, and everything that waits. Raises StoreUnavailable."""
        book = self._book
        await book.store.join(book.node, book.now())
        for found in await book.store.running():
            await self._recover(found)
        if await book.store.paused():
            self._dispatcher.hold()
            self._told("queue.paused", {})
        await self._find_queued()

    async def run(self) -> None:
        """Renews leases, and looks for what was missed; never ends."""
        since_poll = 0.0
        while True:
            await asyncio.sleep(_RENEW_S)
            since_poll += _RENEW_S
            with contextlib.suppress(StoreUnavailable):  # its health says so, and it is asked again soon
                await self.renew()
                if since_poll >= _POLL_S:
                    since_poll = 0.0
                    await self.poll()

    async def renew(self) -> None:
        """An attempt that has lost its lease ends, and nothing of it counts."""
        runs = {run.task.id: run for run in self._dispatcher.attempts}
        if not runs:
            return
        held = await self._book.store.renew(self._book.node, list(runs), self._book.now() + LEASE_S)
        for task_id in runs.keys() - held:
            if self._dispatcher.find(task_id) is runs[task_id]:
                runs[task_id].tail.lost = True
                self._dispatcher.cut(runs[task_id], LOST)
                self._told("task.lease_lost", {"task_id": task_id})

    async def poll(self) -> None:
        """What is queued and does not wait here; what runs nowhere."""
        now = self._book.now()
        for found in await self._book.store.running():
            ours = found.node == self._book.node
            if self._dispatcher.find(found.task.id) is None and (ours or found.lease_until < now):
                await self._recover(found)
        await self._find_queued()

    async def _recover(self, found: RunningTask) -> None:
        task = found.task
        said = await self._dispatcher.said(task.spec)
        again, outcome = after_crash(task, self.max_attempts, said=said)
        outcome = replace(outcome, usage=found.usage)
        self._told("task.recovered", {"task_id": task.id, "node": found.node, "attempt": task.attempt, "again": again})
        if again:
            await self._book.put_back(task, outcome)  # and is found among the queued
        else:
            await self._book.end(task, outcome)

    async def _find_queued(self) -> None:
        now, monotonic = self._book.now(), self._monotonic()
        for number, found in enumerate(await self._book.store.queued()):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # ten thousand of them are not to hold up the loop
            if self._dispatcher.waits(found.id) or self._dispatcher.find(found.id) is not None:
                continue
            if found.cancelled:
                await self._book.end_unwanted(found.id)
                continue
            age = max(0.0, now - found.queued_at)
            whose = found.key_id, found.trust_domain
            ticket = Ticket(found.id, found.lane, *whose, found.priority, monotonic - age, found.sessions)
            timeout = None if found.deadline_at is None else found.deadline_at - now
            self._dispatcher.enqueue(ticket, timeout_s=timeout)
