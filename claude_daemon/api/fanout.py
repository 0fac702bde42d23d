"""Many followers of one task: one pass writes to all of them, joined from each one's cursor.

A follower reads the store until its task's tail covers what comes next, and is live from then on. Live, it costs one
``write`` for each pass and no task of its own to wake. The first event after a pause is passed on at once; what
follows within :data:`COALESCE_S` goes together. A follower whose buffer is full is passed over: its cursor stays, and
it goes on when there is room; one that stays full is let go, and comes back with its cursor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from itertools import islice
from typing import Final, Protocol

from claude_daemon.core.event import Event
from claude_daemon.service.follow import Follow
from claude_daemon.service.tail import Tail

COALESCE_S: Final = 0.004
"""What a reader does not notice, and ten events of a fast model."""
MAX_BUFFERED_BYTES: Final = 1024 * 1024
"""Written for one follower and not yet taken by its kernel; beyond it nothing more is written."""
PIECE_BYTES: Final = 64 * 1024
"""Of what is read from the store, so much is written before its reader must have taken some."""
PATIENCE_S: Final = 5.0
"""How long a follower may stay over that: a phone that changes cells is back by then."""
SLICE: Final = 100
"""Followers served without a break, about half a millisecond: a pass over a thousand lets others have their turn."""
MAX_READING: Final = 8
"""Followers that read the store at once: a thousand that come back together after a restart come one after another."""
_LOOK_AGAIN_S: Final = 0.05
"""A transport tells us nothing when it has room again."""

_Joined = dict[tuple["Frame", int], tuple[bytes, int, int]]
"""What one pass has joined already: form and cursor → the frames after it, the last event among them, how many."""
Frame = Callable[[Event], bytes]
"""One event as it goes over the wire. Compared by identity: use the same function for all followers of a kind."""


class Why(StrEnum):
    """Why a follower is not served any more."""

    ENDED = "ended"  # the last event was delivered
    SLOW = "slow"  # it did not read
    GONE = "gone"  # its connection is closed
    DRAIN = "drain"  # this daemon stops; another one will go on
    BEHIND = "behind"  # what it needs is in the store alone


class Sink(Protocol):
    """One follower's connection."""

    def write(self, data: bytes) -> None:
        """Whole frames, at once."""

    async def write_piece(self, events: Sequence[Event]) -> None:
        """Events that were read from the store, waiting until the reader has taken most of them."""

    @property
    def buffered(self) -> int:
        """Bytes not yet taken; negative when the connection is closed."""


class Cursor:
    """Where a follower is: what it was given last. Its owner may read it at any time."""

    def __init__(self, after: int) -> None:
        self.after = after


class _Live:
    __slots__ = ("cursor", "done", "frame", "full_since", "sink")

    def __init__(self, cursor: Cursor, sink: Sink, frame: Frame) -> None:
        self.cursor = cursor
        self.sink = sink
        self.frame = frame
        self.done: asyncio.Future[Why] = asyncio.get_running_loop().create_future()
        self.full_since: float | None = None

    def end(self, why: Why) -> None:
        if not self.done.done():
            self.done.set_result(why)


class _Channel:
    """The live followers of one tail."""

    def __init__(self, tail: Tail) -> None:
        self._tail = tail
        self.delivered = 0
        self._loop = asyncio.get_running_loop()
        self._live: set[_Live] = set()
        self._scheduled: asyncio.Handle | None = None
        self._passed_at = float("-inf")
        self._dirty = False  # something has changed since this pass began
        self._full = False

    def __len__(self) -> int:
        return len(self._live)

    def attach(self, live: _Live) -> None:
        """No await lies between the look that found the tail to cover its cursor and this."""
        if not self._live:
            self._tail.listen(self._changed)
        self._live.add(live)
        self._changed()

    def detach(self, live: _Live) -> None:
        self._live.discard(live)
        if not self._live:
            self._tail.unlisten(self._changed)

    def flush(self) -> None:
        """What is new goes out now, to all."""
        if self._scheduled is not None:
            self._scheduled.cancel()
            self._scheduled = None
        self._serve_all(iter(tuple(self._live)), {}, len(self._live))

    def _changed(self) -> None:
        self._dirty = True
        if self._scheduled is None:
            since = self._loop.time() - self._passed_at
            if since >= COALESCE_S:
                self._scheduled = self._loop.call_soon(self._pass)
            else:
                self._scheduled = self._loop.call_later(COALESCE_S - since, self._pass)

    def _pass(self) -> None:
        self._passed_at = self._loop.time()
        self._dirty = self._full = False
        self._slice(iter(tuple(self._live)), {})

    def _slice(self, followers: Iterator[_Live], joined: _Joined) -> None:
        """A part of a pass; what has changed meanwhile is the next one's."""
        if self._serve_all(followers, joined, SLICE) == SLICE:
            self._scheduled = self._loop.call_soon(self._slice, followers, joined)
            return
        self._scheduled = None
        if self._dirty:
            self._changed()
        elif self._full:
            self._scheduled = self._loop.call_later(_LOOK_AGAIN_S, self._pass)

    def _serve_all(self, followers: Iterator[_Live], joined: _Joined, at_most: int) -> int:
        """Serves so many, or those there are; how many that were."""
        served = 0
        for live in islice(followers, at_most):
            served += 1
            if not live.done.done() and self._serve(live, joined):
                self._full = True
        return served

    def _serve(self, live: _Live, joined: _Joined) -> bool:
        """Gives one follower what is new to it; True when it had no room for that."""
        tail, after = self._tail, live.cursor.after
        buffered = live.sink.buffered
        if buffered < 0:
            live.end(Why.GONE)
        elif not tail.covers(after):
            if tail.begun:
                live.end(Why.BEHIND)
        elif after < tail.last_seq:
            if buffered > MAX_BUFFERED_BYTES:
                return self._is_full(live)
            live.full_since = None
            key = (live.frame, after)
            found = joined.get(key)
            if found is None:
                events = tail.since(after)
                found = joined[key] = b"".join(map(live.frame, events)), events[-1].seq, len(events)
            live.sink.write(found[0])
            live.cursor.after = found[1]
            self.delivered += found[2]
        if tail.finished and live.cursor.after >= tail.last_seq:
            live.end(Why.ENDED)
        return False

    def _is_full(self, live: _Live) -> bool:
        if live.full_since is None:
            live.full_since = self._passed_at
        elif self._passed_at - live.full_since > PATIENCE_S:
            live.end(Why.SLOW)
            return False
        return True


class Fanout:
    """Serves followers. ``runs`` tells whether a task's attempt is under way here: such a one is worth staying for."""

    def __init__(self, follow: Follow, runs: Callable[[str], bool]) -> None:
        self._follow = follow
        self._runs = runs
        self._channels: dict[Tail, _Channel] = {}
        self._following: dict[_Live, str] = {}
        self._draining = False
        self.sent_on = 0
        """Followers that were told to go on elsewhere, since the start."""
        self.slow = 0
        """Followers that were let go because they did not read, since the start."""
        self._delivered = 0
        self._reading = asyncio.Semaphore(MAX_READING)

    @property
    def followers(self) -> int:
        return len(self._following)

    @property
    def delivered(self) -> int:
        """Events that were written to followers, since the start."""
        return self._delivered + sum(channel.delivered for channel in self._channels.values())

    async def serve(self, task_id: str, cursor: Cursor, sink: Sink, frame: Frame) -> Why:
        """Delivers a task's events after the cursor, each once and in order; why that is over.

        Raises Refusal for a task that is gone.
        """
        why = await self._serve(task_id, cursor, sink, frame)
        self.slow += why is Why.SLOW
        return why

    async def _serve(self, task_id: str, cursor: Cursor, sink: Sink, frame: Frame) -> Why:
        with self._follow.tails.held(task_id) as tail:
            while True:
                while not tail.covers(cursor.after):
                    async with self._reading:
                        page = await self._follow.page(task_id, cursor.after)
                    if not await self._write(page.events, cursor, sink):
                        return Why.SLOW
                    if page.over:
                        return Why.ENDED
                    if page.complete and not tail.begun:
                        break  # nothing more until somebody runs it
                if self._draining and not self._runs(task_id):
                    self.sent_on += 1
                    return Why.DRAIN
                why = await self._follow_live(task_id, tail, _Live(cursor, sink, frame))
                if why is not Why.BEHIND:
                    return why

    async def _write(self, events: Sequence[Event], cursor: Cursor, sink: Sink) -> bool:
        """What the store had, piece by piece; False when one of them is not taken in time."""
        for piece in _pieces(events):
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await sink.write_piece(piece)
            except TimeoutError:
                return False
            cursor.after = piece[-1].seq
            self._delivered += len(piece)
            await asyncio.sleep(0)  # a reader that is as fast as we are is not to keep the loop to itself
        return True

    async def _follow_live(self, task_id: str, tail: Tail, live: _Live) -> Why:
        channel = self._channels.setdefault(tail, _Channel(tail))
        channel.attach(live)
        self._following[live] = task_id
        try:
            return await live.done
        finally:
            del self._following[live]
            channel.detach(live)
            if not channel and self._channels.pop(tail, None) is not None:
                self._delivered += channel.delivered

    def begin_drain(self) -> None:
        """Followers of tasks that do not run here are sent elsewhere at once; the others stay for the end."""
        self._draining = True
        for live, task_id in self._following.items():
            if not self._runs(task_id):
                self._send_on(live)

    def end_drain(self) -> None:
        self._draining = False

    def close(self) -> None:
        """Everybody is given what there is, and sent elsewhere."""
        self._draining = True
        for channel in self._channels.values():
            channel.flush()
        for live in self._following:
            self._send_on(live)

    def _send_on(self, live: _Live) -> None:
        self.sent_on += 1
        live.end(Why.DRAIN)


def _pieces(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """In order, each of about :data:`PIECE_BYTES` or one event."""
    piece: list[Event] = []
    size = 0
    for event in events:
        piece.append(event)
        size += len(event.raw or b"")
        if size >= PIECE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece
