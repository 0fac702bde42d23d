"""A task's events: appended by its attempt, followed by whoever wants to see them.

The rules that make a follower see every event once and in order, whatever happens meanwhile:

1. ``append`` is synchronous: numbers, keeps, hands to the store, wakes, and does nothing else.
2. Only what can be read again is evicted: events that the store has, and where there is no store (a chat) those that
   every follower has taken. When nothing can be evicted the attempt waits (:meth:`Tail.room`), and the engine reads its
   source no further.
3. A follower looks (:meth:`Tail.covers`, :meth:`Tail.since`) and attaches itself (:meth:`Tail.listen`) with no await in
   between. What the tail does not cover is read from the store, events and task in one read; then it looks again.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Protocol

from claude_daemon.core.event import TERMINAL, Emission, Event, first_seq

# What one chat may hold for a follower that has not read it yet, roughly: a long answer many times over.
MAX_BYTES: Final = 8 * 1024 * 1024
# What a task keeps at hand of what the store has already: minutes of a stream, for followers that come back.
DURABLE_BYTES: Final = 1024 * 1024
_EVENT_OVERHEAD_BYTES: Final = 200


class Evicted(LookupError):
    """Events after the follower's cursor are no longer kept."""


class Keeper(Protocol):
    """Makes the events of a task public, and durable."""

    def told(self, seq: int, emission: Emission) -> Event | None:
        """The event as followers are told it, ``raw`` its whole JSON; None for what they are not told. Pure."""

    def keep(self, fence: int, events: Sequence[Event], told: Callable[[bool], None]) -> None:
        """Hands them to the store, in order; ``told`` hears once they are durable, or that the fence was stale."""


class _Follower:
    """``taken``: the number of the last event it was given."""

    def __init__(self, taken: int) -> None:
        self.taken = taken
        self.waiter: asyncio.Future[None] | None = None


class Tail:
    """The events of one task. One attempt at a time appends; any number of followers read, each from its own cursor.

    With a ``keeper`` the task is durable, and its tail covers nothing until :meth:`begin` says from where on.
    """

    def __init__(self, keeper: Keeper | None = None, *, max_bytes: int | None = None) -> None:
        self.last_seq = 0
        self.finished = False
        self.lost = False
        """Somebody else holds the task now: nothing of this attempt counts any more."""
        self._keeper = keeper
        self._max_bytes = max_bytes or (MAX_BYTES if keeper is None else DURABLE_BYTES)
        self._events: list[Event] = []
        self._bytes = 0
        self._fence = 0
        self._next = 1
        self._from: int | None = 0 if keeper is None else None
        self._durable = 0
        self._followers: set[_Follower] = set()
        self._listeners: set[Callable[[], None]] = set()
        self._room: asyncio.Future[None] | None = None

    # who appends

    def begin(self, fence: int, after: int = 0) -> None:
        """Numbers from here on carry this fence; ``after``: the last that the store has.

        Raises ValueError unless the fence is larger than every one before.
        """
        first = first_seq(fence)
        if first <= self.last_seq:
            raise ValueError(f"fence {fence} is not larger than that of event {self.last_seq}")
        self._fence, self._next = fence, first
        if self._from is None:
            self._from = after

    def append(self, emissions: Sequence[Emission]) -> None:
        """Numbers and keeps the events, and wakes the followers. After a terminal event nothing follows."""
        events = [event for emission in emissions if (event := self._numbered(emission)) is not None]
        if not events or self.lost:
            return
        self._add(events)
        if self._keeper is not None:
            last = events[-1].seq
            self._keeper.keep(self._fence, events, lambda held: self._committed(last, held))

    def next_seq(self) -> int:
        """The number of an event that is made durable first and told then, by :meth:`tell`."""
        seq, self._next = self._next, self._next + 1
        return seq

    def tell(self, event: Event, *, after: int | None = None) -> None:
        """An event that the store has already. ``after``: the last before it, where no attempt of ours told it."""
        if after is not None and self._from is None:
            self._from = after
        self._durable = max(self._durable, event.seq)
        self._add([event])

    async def room(self) -> None:
        """Waits while the tail is full. For the one attempt that appends."""
        while self._bytes > self._max_bytes and not self.lost:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def _numbered(self, emission: Emission) -> Event | None:
        seq = self.next_seq()
        if self._keeper is not None:
            return self._keeper.told(seq, emission)
        return Event(seq, emission.type, emission.data, emission.raw)

    def _add(self, events: Sequence[Event]) -> None:
        for event in events:
            assert not self.finished, "an event after the terminal one"
            self._events.append(event)
            self._bytes += _size(event)
            self.last_seq = event.seq
            self.finished = event.type in TERMINAL
        self._evict()
        for follower in self._followers:
            if follower.waiter is not None and not follower.waiter.done():
                follower.waiter.set_result(None)
        for listener in tuple(self._listeners):
            listener()

    def _committed(self, seq: int, held: bool) -> None:
        if held:
            self._durable = max(self._durable, seq)
        else:
            self.lost = True
        self._evict()
        self._tell_room()

    # who follows

    @property
    def begun(self) -> bool:
        """Whether it is known from where on events are here."""
        return self._from is not None

    def covers(self, after: int) -> bool:
        """Whether every event after this number is here, or will be."""
        return self._from is not None and after >= self._from

    def since(self, after: int) -> Sequence[Event]:
        """The events after this number, which :meth:`covers` says are here."""
        return self._events[self._index(after) :]

    def listen(self, listener: Callable[[], None]) -> None:
        """Calls it after each change, synchronously, until :meth:`unlisten`: it may look, and must not wait."""
        self._listeners.add(listener)

    def unlisten(self, listener: Callable[[], None]) -> None:
        self._listeners.discard(listener)

    async def changed(self) -> None:
        """Waits for the next change. Look first, with no await in between."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        self.listen(wake)
        try:
            await future
        finally:
            self.unlisten(wake)

    async def follow(self, after: int = 0) -> AsyncIterator[list[Event]]:
        """A chat's events with a number above ``after``, in batches, to the terminal one. Raises :class:`Evicted`."""
        if not self.covers(after):
            raise Evicted(f"events up to {self._from} are gone; asked for those after {after}")
        follower = _Follower(after)
        self._followers.add(follower)
        try:
            while True:
                batch = self._take(follower)
                if batch:
                    yield batch
                elif self.finished:
                    return
                else:
                    follower.waiter = asyncio.get_running_loop().create_future()
                    await follower.waiter
        finally:
            self._followers.discard(follower)
            self._evict()
            self._tell_room()

    def _take(self, follower: _Follower) -> list[Event]:
        batch = self._events[self._index(follower.taken) :]
        if batch:
            follower.taken = batch[-1].seq
            self._evict()
            self._tell_room()
        return batch

    def _index(self, seq: int) -> int:
        """How many of the kept events have this number or a smaller one."""
        return bisect_right(self._events, seq, key=lambda event: event.seq)

    # what is let go

    def _evict(self) -> None:
        """What may go (rule 2) goes: of a chat at once, of a task when it is more than is kept at hand."""
        if self._keeper is None:
            count = self._index(min((follower.taken for follower in self._followers), default=0))
            freed = sum(map(_size, self._events[:count]))
        else:
            count, freed = self._beyond_what_is_kept()
        if count:
            self._from = self._events[count - 1].seq
            self._bytes -= freed
            del self._events[:count]

    def _beyond_what_is_kept(self) -> tuple[int, int]:
        count = freed = 0
        while self._bytes - freed > self._max_bytes and self._events[count].seq <= self._durable:
            freed += _size(self._events[count])
            count += 1
            if count == len(self._events):
                break
        return count, freed

    def _tell_room(self) -> None:
        full = self._bytes > self._max_bytes and not self.lost
        if self._room is not None and not self._room.done() and not full:
            self._room.set_result(None)


def _size(event: Event) -> int:
    """Roughly what it holds in memory: most of it is text."""
    if event.raw is not None:
        return len(event.raw) + _EVENT_OVERHEAD_BYTES
    delta = event.data.get("delta")
    if not isinstance(delta, dict):
        return _EVENT_OVERHEAD_BYTES
    return sum(len(part) for part in delta.values() if isinstance(part, str)) + _EVENT_OVERHEAD_BYTES
