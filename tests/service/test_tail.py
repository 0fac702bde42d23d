"""The tail's rules, one by one, and all of them under any interleaving."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_daemon.core.event import FENCE_SHIFT, MESSAGE_EVENT, TASK_SUCCEEDED, Emission, Event
from claude_daemon.service.tail import Evicted, Tail

END = Emission(TASK_SUCCEEDED, {})


def said(number: int, size: int = 0) -> Emission:
    return Emission(MESSAGE_EVENT, {"number": number}, b"x" * size)


def numbers(events: list[Event]) -> list[int]:
    return [event.data["number"] for event in events if event.type == MESSAGE_EVENT]


async def passes() -> None:
    """Lets everything that is ready run."""
    for _ in range(5):
        await asyncio.sleep(0)


class Reader:
    """A follower that takes what there is when it is let."""

    def __init__(self, tail: Tail, after: int = 0) -> None:
        self.batches = cast(Any, tail.follow(after))
        self.events: list[Event] = []
        self.over = False
        self._taking: asyncio.Task[None] | None = None

    def take(self) -> None:
        """Takes the next batch, as soon as there is one."""
        if self._taking is None or self._taking.done():
            self._taking = asyncio.ensure_future(self._take())

    async def _take(self) -> None:
        try:
            self.events += await anext(self.batches)
        except StopAsyncIteration:
            self.over = True

    async def finish(self) -> None:
        async with asyncio.timeout(10):
            while not self.over:
                self.take()
                assert self._taking is not None
                await self._taking

    async def leave(self) -> None:
        if self._taking is not None:
            self._taking.cancel()
            await asyncio.wait({self._taking})
        await self.batches.aclose()


async def read(follower: AsyncIterator[list[Event]]) -> list[Event]:
    return [event async for batch in follower for event in batch]


async def test_append_numbers_from_the_fence_of_the_attempt() -> None:
    tail = Tail()
    tail.begin(1)
    tail.append([said(1), said(2)])
    assert tail.last_seq == (1 << FENCE_SHIFT) + 2
    tail.begin(2)
    tail.append([said(3), END])
    events = await read(tail.follow())
    assert [event.seq >> FENCE_SHIFT for event in events] == [1, 1, 2, 2]
    assert [event.seq for event in events] == sorted({event.seq for event in events})


@pytest.mark.parametrize("fence", [0, 1, 2])
def test_a_fence_that_is_not_larger_raises_and_changes_nothing(fence: int) -> None:
    tail = Tail()
    tail.begin(2)
    tail.append([said(1)])
    with pytest.raises(ValueError, match=f"fence {fence}"):
        tail.begin(fence)
    tail.append([said(2)])
    assert tail.last_seq == (2 << FENCE_SHIFT) + 2


async def test_nothing_follows_a_terminal_event() -> None:
    tail = Tail()
    tail.append([said(1), END])
    with pytest.raises(AssertionError, match="terminal"):
        tail.append([said(2)])
    with pytest.raises(AssertionError, match="terminal"):
        tail.append([END, said(2)])
    assert numbers(await read(tail.follow())) == [1]


async def test_a_follower_waits_for_what_is_appended_later_and_ends_with_the_terminal_event() -> None:
    tail, reader = Tail(), None
    reader = Reader(tail)
    reader.take()
    await passes()
    assert reader.events == []
    tail.append([said(1)])
    await passes()
    assert numbers(reader.events) == [1]
    tail.append([said(2)])
    tail.append([END])
    await reader.finish()
    assert numbers(reader.events) == [1, 2]
    assert reader.events[-1].type == TASK_SUCCEEDED


async def test_what_was_appended_between_two_looks_is_one_batch() -> None:
    tail = Tail()
    for number in range(5):
        tail.append([said(number)])
    tail.append([END])
    assert [len(batch) async for batch in tail.follow()] == [6]


async def test_a_follower_attached_late_gets_everything_when_nobody_was_there_before() -> None:
    tail = Tail()
    tail.append([said(1), said(2), END])
    assert numbers(await read(tail.follow())) == [1, 2]


async def test_a_cursor_leaves_out_what_it_has_seen() -> None:
    tail = Tail()
    tail.append([said(1), said(2), END])
    assert numbers(await read(tail.follow(after=1))) == [2]


async def test_a_follower_that_asks_for_what_is_gone_is_told_so() -> None:
    tail = Tail()
    tail.append([said(1), said(2)])
    first = Reader(tail)
    first.take()
    await passes()
    with pytest.raises(Evicted, match="up to 2 are gone; asked for those after 1"):
        await anext(tail.follow(after=1))
    tail.append([said(3), END])
    assert numbers(await read(tail.follow(after=2))) == [3]
    await first.finish()
    assert numbers(first.events) == [1, 2, 3]


async def test_only_what_every_follower_has_taken_is_evicted() -> None:
    tail = Tail(max_bytes=1500)
    fast, slow = Reader(tail), Reader(tail)
    fast.take()
    slow.take()
    await passes()
    tail.append([said(1, 1000)])
    await passes()  # both have it
    tail.append([said(2, 1000), said(3, 1000)])
    fast.take()
    await passes()
    room = asyncio.ensure_future(tail.room())
    await passes()
    assert not room.done()
    slow.take()
    await passes()
    assert room.done()
    tail.append([END])
    await fast.finish()
    await slow.finish()
    assert numbers(fast.events) == numbers(slow.events) == [1, 2, 3]


async def test_a_full_tail_has_room_again_when_the_slow_follower_leaves() -> None:
    tail = Tail(max_bytes=500)
    fast, slow = Reader(tail), Reader(tail)
    fast.take()
    slow.take()
    await passes()
    tail.append([said(1, 1000)])
    await passes()
    tail.append([said(2, 1000)])
    fast.take()
    await passes()
    room = asyncio.ensure_future(tail.room())
    await passes()
    assert not room.done()
    await slow.leave()
    async with asyncio.timeout(10):
        await room
    await fast.leave()


async def test_there_is_room_below_the_bound_and_none_above_it_without_a_follower() -> None:
    tail = Tail(max_bytes=1500)
    tail.append([said(1, 1000)])
    await tail.room()
    tail.append([said(2, 1000)])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await tail.room()
    tail.append([END])  # the end is told even so
    assert numbers(await read(tail.follow())) == [1, 2]
    await tail.room()


async def test_text_without_raw_bytes_counts_too() -> None:
    tail = Tail(max_bytes=1000)
    delta = {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x" * 2000}}
    tail.append([Emission(MESSAGE_EVENT, delta)])
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await tail.room()


STEP = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 4)),
    st.tuples(st.just("attempt"), st.just(0)),
    st.tuples(st.just("take"), st.integers(0, 3)),
    st.tuples(st.just("pass"), st.just(0)),
    st.tuples(st.just("leave"), st.integers(0, 3)),
)


async def _play(steps: list[tuple[str, int]], followers: int) -> None:
    tail = Tail(max_bytes=2000)
    readers = [Reader(tail) for _ in range(followers)]
    for reader in readers:
        reader.take()  # attached before the first event
    await passes()
    gone: set[int] = set()
    count, fence = 0, 0
    for what, value in steps:
        if what == "append":
            tail.append([said(count + n, 300) for n in range(value)])
            count += value
        elif what == "attempt":
            fence += 1
            tail.begin(fence)
        elif what == "pass":
            await passes()
        elif value < followers and what == "take" and value not in gone:
            readers[value].take()
        elif value < followers and what == "leave" and value not in gone:
            gone.add(value)
            await readers[value].leave()
    tail.append([END])
    for number, reader in enumerate(readers):
        if number in gone:
            assert numbers(reader.events) == list(range(len(numbers(reader.events))))  # a prefix, in order
        else:
            await reader.finish()
            assert numbers(reader.events) == list(range(count))
            assert [event.seq for event in reader.events] == sorted({event.seq for event in reader.events})
    if len(gone) < followers:
        await tail.room()  # everything is taken, so nothing is held


@given(st.lists(STEP, max_size=40), st.integers(1, 4))
@settings(max_examples=150, deadline=None)
async def test_every_follower_sees_every_event_once_and_in_order(steps: list[tuple[str, int]], followers: int) -> None:
    await _play(steps, followers)
