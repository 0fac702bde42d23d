"""Following a task wherever its events are: in the store, in the tail of its attempt, or still to come."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.event import Emission, Event
from claude_daemon.ports import Clock, StoredEvent, Tasks
from claude_daemon.service.tail import Keeper, Tail

# One read of the store: a screenful of deltas many times over, and little even when a thousand followers hold one each.
PAGE_EVENTS: Final = 1000
PAGE_BYTES: Final = 128 * 1024

NO_TASK: Final = Failure(code=Code.NOT_FOUND, message="There is no such task.")

Encoder = Callable[[str, int, float, Emission], tuple[str, bytes] | None]
"""Task, number, time and what was said → the public event's type and its whole JSON; None for what is not told."""


class StoreKeeper:
    """A task's :class:`~claude_daemon.service.tail.Keeper`: public form, and the store's write-behind."""

    def __init__(self, task_id: str, store: Tasks, encode: Encoder, now: Clock) -> None:
        self._task_id = task_id
        self._store = store
        self._encode = encode
        self._now = now

    def told(self, seq: int, emission: Emission) -> Event | None:
        told = self._encode(self._task_id, seq, self._now(), emission)
        return None if told is None else Event(seq, told[0], {}, told[1])

    def keep(self, fence: int, events: Sequence[Event], told: Callable[[bool], None]) -> None:
        self._store.append(self._task_id, fence, [stored(event) for event in events], told)


def stored(event: Event) -> StoredEvent:
    """Raises ValueError for an event that has no public form."""
    if event.raw is None:
        raise ValueError(f"event {event.seq} is not encoded")
    return StoredEvent(seq=event.seq, type=event.type, encoded=event.raw)


def _event(event: StoredEvent) -> Event:
    return Event(event.seq, event.type, {}, event.encoded)


class Tails:
    """The tails of the tasks that run here or are followed here; nobody else's are in RAM."""

    def __init__(self, keeper: Callable[[str], Keeper]) -> None:
        self._keeper = keeper
        self._held: dict[str, tuple[Tail, int]] = {}

    def hold(self, task_id: str) -> Tail:
        """The task's tail, to be given back by :meth:`release`."""
        tail, holders = self._held.get(task_id, (None, 0))
        if tail is None or tail.finished:  # one that is finished belongs to an earlier life of the task
            tail, holders = Tail(self._keeper(task_id)), 0
        self._held[task_id] = tail, holders + 1
        return tail

    def release(self, task_id: str, tail: Tail) -> None:
        held, holders = self._held.get(task_id, (None, 0))
        if held is not tail:
            return
        if holders > 1:
            self._held[task_id] = tail, holders - 1
        else:
            del self._held[task_id]

    @contextlib.contextmanager
    def held(self, task_id: str) -> Iterator[Tail]:
        tail = self.hold(task_id)
        try:
            yield tail
        finally:
            self.release(task_id, tail)

    def find(self, task_id: str) -> Tail | None:
        """The tail, if anybody holds it."""
        return self._held.get(task_id, (None, 0))[0]

    def tell(self, task_id: str, event: StoredEvent, *, after: int) -> None:
        """What was made durable from outside of an attempt, for whoever follows; ``after``: the last event before."""
        tail = self.find(task_id)
        if tail is not None and not tail.finished:
            tail.tell(_event(event), after=after)

    def __len__(self) -> int:
        return len(self._held)


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What the store has after a cursor. ``over``: nothing will follow; ``complete``: nothing more was there then."""

    events: Sequence[Event]
    over: bool
    complete: bool


class Follow:
    """Reads a task's events from a cursor on, each once and in order, to the end of the task."""

    def __init__(self, store: Tasks, tails: Tails) -> None:
        self._store = store
        self.tails = tails

    async def page(self, task_id: str, after: int) -> Page:
        """Raises Refusal for a task that is gone."""
        page = await self._store.events(task_id, after, PAGE_EVENTS, PAGE_BYTES)
        if page is None:
            raise Refusal(NO_TASK)
        events = [_event(event) for event in page.events]
        # not by the last event: a task that was tried again has ended before
        return Page(events=events, over=page.complete and page.terminal, complete=page.complete)

    async def events(self, task_id: str, after: int = 0) -> AsyncIterator[Sequence[Event]]:
        """In batches, up to the terminal event. Raises Refusal for a task that is gone."""
        with self.tails.held(task_id) as tail:
            while True:
                if tail.covers(after):
                    events, over, more = tail.since(after), tail.finished, False
                else:
                    page = await self.page(task_id, after)
                    events, over, more = page.events, page.over, tail.begun or not page.complete
                if events:
                    after = events[-1].seq
                    yield events
                if over:
                    return
                if not events and not more:
                    await tail.changed()
