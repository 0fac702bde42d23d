"""A task's events: appended by its attempt, followed by whoever wants to see them.

The rules that make a follower see every event once and in order:

1. ``append`` is synchronous: numbers, keeps, wakes, and does nothing else.
2. ``follow`` checks what is there and attaches itself as a waiter with no await in between.
3. Only what no follower can still need is evicted; when the tail is full, the attempt waits (:meth:`Tail.room`), and
   the engine reads its source no further.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Final

from claude_daemon.core.event import FENCE_SHIFT, TERMINAL, Emission, Event

# What one task may hold for followers that have not read it yet, roughly: a long answer many times over.
MAX_BYTES: Final = 8 * 1024 * 1024
_EVENT_OVERHEAD_BYTES: Final = 200


class Tail:
    """The events of one task. ``keep=False`` (chats): events are dropped once their one follower has them."""

    def __init__(self, *, keep: bool, max_bytes: int = MAX_BYTES) -> None:
        self.last_seq = 0
        self.finished = False
        self._keep = keep
        self._max = max_bytes
        self._events: list[Event] = []
        self._bytes = 0
        self._next = 1
        self._waiters: set[asyncio.Future[None]] = set()
        self._room: asyncio.Future[None] | None = None

    def begin_attempt(self, fence: int) -> None:
        """Numbers from here on carry this fence; it must be larger than every one before."""
        self._next = (fence << FENCE_SHIFT) + 1

    def append(self, emissions: Sequence[Emission]) -> None:
        """Numbers and keeps the events, and wakes the followers. After a terminal event nothing follows."""
        assert not self.finished, "an event after the terminal one"
        for emission in emissions:
            event = Event(self._next, emission.type, emission.data, emission.raw)
            self._next += 1
            self._events.append(event)
            self._bytes += _size(event)
            self.finished = self.finished or event.type in TERMINAL
        self.last_seq = self._next - 1
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def room(self) -> None:
        """Waits while the tail is full."""
        while self._bytes > self._max:
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    async def follow(self, after: int = 0) -> AsyncIterator[list[Event]]:
        """The events with a number above ``after``, in batches, up to the terminal one."""
        while True:
            batch = self._after(after)
            if batch:
                after = batch[-1].seq
                if not self._keep:
                    self._drop(after)
                yield batch
                if batch[-1].type in TERMINAL:
                    return
                continue
            if self.finished:
                return
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def _after(self, after: int) -> list[Event]:
        events = self._events
        if not events or events[-1].seq <= after:
            return []
        if events[0].seq > after:
            return list(events)
        return [event for event in events if event.seq > after]

    def _drop(self, up_to: int) -> None:
        self._events = [event for event in self._events if event.seq > up_to]
        self._bytes = sum(_size(event) for event in self._events)
        if self._room is not None and not self._room.done() and self._bytes <= self._max:
            self._room.set_result(None)


def _size(event: Event) -> int:
    if event.raw is not None:
        return len(event.raw) + _EVENT_OVERHEAD_BYTES
    delta = event.data.get("delta")
    text = delta.get("text") or delta.get("thinking") or "" if isinstance(delta, dict) else ""
    return len(text) + _EVENT_OVERHEAD_BYTES
