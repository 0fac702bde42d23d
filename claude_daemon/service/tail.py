"""A task's events: appended by its attempt, followed by whoever wants to see them.

The rules that make a follower see every event once and in order:

1. ``append`` is synchronous: numbers, keeps, wakes, and does nothing else.
2. ``follow`` checks what is there and attaches itself as a waiter with no await in between.
3. Only what every follower has taken is evicted, and nothing before there is one. When the tail is full, the attempt
   waits (:meth:`Tail.room`), and the engine reads its source no further. Who asks for what is no longer there is told
   so (:class:`Evicted`) and not given the rest as if it were all.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Sequence
from typing import Final

from claude_daemon.core.event import FENCE_SHIFT, TERMINAL, Emission, Event

# What one task may hold for followers that have not read it yet, roughly: a long answer many times over.
MAX_BYTES: Final = 8 * 1024 * 1024
_EVENT_OVERHEAD_BYTES: Final = 200


class Evicted(LookupError):
    """Events after the follower's cursor are no longer kept."""


class _Follower:
    """``taken``: the number of the last event it was given."""

    def __init__(self, taken: int) -> None:
        self.taken = taken
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Tail:
    """The events of one task. One attempt appends; any number of followers read, each from its own cursor."""

    def __init__(self, *, max_bytes: int = MAX_BYTES) -> None:
        self.last_seq = 0
        self.finished = False
        self._max_bytes = max_bytes
        self._events: list[Event] = []
        self._bytes = 0
        self._next = 1
        self._evicted = 0
        self._followers: set[_Follower] = set()
        self._room: asyncio.Future[None] | None = None

    def begin_attempt(self, fence: int) -> None:
        """Numbers from here on carry this fence. Raises ValueError unless it is larger than every one before."""
        first = (fence << FENCE_SHIFT) + 1
        if first <= self.last_seq:
            raise ValueError(f"fence {fence} is not larger than that of event {self.last_seq}")
        self._next = first

    def append(self, emissions: Sequence[Emission]) -> None:
        """Numbers and keeps the events, and wakes the followers. After a terminal event nothing follows."""
        for emission in emissions:
            assert not self.finished, "an event after the terminal one"
            event = Event(self._next, emission.type, emission.data, emission.raw)
            self._next += 1
            self._events.append(event)
            self._bytes += _size(event)
            self.last_seq = event.seq
            self.finished = event.type in TERMINAL
        for follower in self._followers:
            follower.wake()

    async def room(self) -> None:
        """Waits while the tail is full. For the one attempt that appends."""
        while self._bytes > self._max_bytes:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    async def follow(self, after: int = 0) -> AsyncIterator[list[Event]]:
        """The events with a number above ``after``, in batches, up to the terminal one. Raises :class:`Evicted`."""
        if after < self._evicted:
            raise Evicted(f"events up to {self._evicted} are gone; asked for those after {after}")
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

    def _take(self, follower: _Follower) -> list[Event]:
        batch = self._events[self._index(follower.taken) :]
        if batch:
            follower.taken = batch[-1].seq
            self._evict()
        return batch

    def _index(self, seq: int) -> int:
        """How many of the kept events have this number or a smaller one."""
        return bisect_right(self._events, seq, key=lambda event: event.seq)

    def _evict(self) -> None:
        """Lets go of what every follower has taken; where there is none, somebody may still come for all of it."""
        count = self._index(min((follower.taken for follower in self._followers), default=0))
        if count == 0:
            return
        self._evicted = self._events[count - 1].seq
        self._bytes -= sum(map(_size, self._events[:count]))
        del self._events[:count]
        if self._room is not None and not self._room.done() and self._bytes <= self._max_bytes:
            self._room.set_result(None)


def _size(event: Event) -> int:
    """Roughly what it holds in memory: most of it is text."""
    if event.raw is not None:
        return len(event.raw) + _EVENT_OVERHEAD_BYTES
    delta = event.data.get("delta")
    if not isinstance(delta, dict):
        return _EVENT_OVERHEAD_BYTES
    return sum(len(part) for part in delta.values() if isinstance(part, str)) + _EVENT_OVERHEAD_BYTES
