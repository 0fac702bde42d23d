"""Durable tasks that wait: in the store whole, in RAM as tickets."""

from __future__ import annotations

from collections import Counter
from typing import Final

from claude_daemon.core.task import Lane, Task
from claude_daemon.service.queue import ReadyQueue
from claude_daemon.service.run import Run, Ticket
from claude_daemon.service.turns import Turns

# What waits is read ahead of its turn, so that no place is empty meanwhile; a task may be 16 MiB.
READ_AHEAD: Final = 4


class Backlog:
    """Keeps the tickets, and puts them into the queue unless they are held back, all or by their session."""

    def __init__(self, queue: ReadyQueue[Run | Ticket], turns: Turns) -> None:
        self._queue = queue
        self._turns = turns
        self._tickets: dict[str, Ticket] = {}
        self._read: set[Ticket] = set()
        self._waiting: Counter[Lane] = Counter()
        self.held = False
        """No task is begun: the queue is paused, or the daemon drains."""

    def add(self, ticket: Ticket, *, first: bool = False) -> bool:
        """False for a task that waits already. What its ticket asks is kept while few are, else read in its turn."""
        if ticket.id in self._tickets:
            return False
        self._tickets[ticket.id] = ticket
        if ticket.task is not None and len(self._read) < READ_AHEAD:
            self._read.add(ticket)
        else:
            ticket.task = None
        self._turns.enter(ticket.id, ticket.sessions)
        if not self.held:
            self._put(ticket, first=first)
        return True

    def step(self, task_id: str) -> bool:
        """It is the task's turn in its session; False for one that does not wait here."""
        ticket = self._tickets.get(task_id)
        if ticket is not None and not self.held:
            self._put(ticket)
        return ticket is not None

    def has_read(self, ticket: Ticket, task: Task) -> None:
        """Keeps what the ticket asks, whose turn it is; where enough are read, another one is read again later."""
        if len(self._read) >= READ_AHEAD:
            other = max(self._read, key=lambda waiting: waiting.queued_at)
            other.task = None
            self._read.discard(other)
        ticket.task = task
        self._read.add(ticket)

    def take(self, task_id: str) -> Ticket | None:
        """Takes a ticket out, to run its task or to end it."""
        ticket = self._tickets.pop(task_id, None)
        if ticket is not None:
            self._read.discard(ticket)
            self._pull(ticket)
        return ticket

    def hold(self) -> None:
        if not self.held:
            self.held = True
            for ticket in self._tickets.values():
                self._pull(ticket)

    def unhold(self) -> None:
        if self.held:
            self.held = False
            for ticket in self._tickets.values():
                self._put(ticket)

    def in_queue(self, lane: Lane) -> int:
        """Tickets of the lane that stand in the queue now."""
        return self._waiting[lane]

    def _put(self, ticket: Ticket, *, first: bool = False) -> None:
        if self._turns.may_begin(ticket.id):
            self._queue.add(ticket, first=first)
            self._waiting[ticket.lane] += 1

    def _pull(self, ticket: Ticket) -> None:
        if ticket in self._queue:
            self._queue.discard(ticket)
            self._waiting[ticket.lane] -= 1

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._tickets

    def __len__(self) -> int:
        return len(self._tickets)
