"""The tail's three rules with a store behind it, whose commits the test releases one by one."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.event import MESSAGE_EVENT, TASK_SUCCEEDED, Event, first_seq
from claude_daemon.ports import StoredEvent
from tests.service.disk import TASK, Scene

PATIENCE_S = 10.0


class Reader:
    """Follows from a cursor, one batch at a time, and notes what it was told."""

    def __init__(self, scene: Scene, after: int = 0) -> None:
        self.after = after
        self.events: list[Event] = []
        self.over = False
        self._batches = cast(Any, scene.follow.events(TASK.id, after))
        self._next: asyncio.Task[None] | None = None

    def take(self) -> None:
        if not self.over and (self._next is None or self._next.done()):
            self._next = asyncio.ensure_future(self._take())

    async def _take(self) -> None:
        try:
            self.events += await anext(self._batches)
        except StopAsyncIteration:
            self.over = True

    async def finish(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not self.over:
                self.take()
                assert self._next is not None
                await self._next

    async def leave(self) -> int:
        """Stops; the cursor to come back with."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait({self._next})
        await self._batches.aclose()
        return self.events[-1].seq if self.events else self.after

    @property
    def words(self) -> list[str]:
        said = (orjson.loads(event.raw or b"{}")["said"] for event in self.events)
        return [word for word in said if word is not None]


async def passes(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


STEPS = st.lists(
    st.sampled_from(["say", "many", "commit", "commit", "attempt", "take", "take", "join", "leave"]), max_size=60
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.sampled_from([1, 1200, 100_000]))
async def test_whatever_is_committed_when_every_follower_sees_every_event_once_and_in_order(
    steps: list[str], max_bytes: int
) -> None:
    scene = Scene(max_bytes)
    readers = [Reader(scene)]
    scene.attempt()
    for number, step in enumerate(steps):
        reader = readers[number % len(readers)]
        match step:
            case "say":
                scene.say()
            case "many":
                scene.say(7)
            case "commit":
                scene.disk.commit()
            case "attempt":
                scene.attempt()
            case "take":
                reader.take()
            case "join":
                readers.append(Reader(scene))
            case "leave":
                back = Reader(scene, await reader.leave())
                back.events = reader.events
                readers[number % len(readers)] = back
        await passes(number % 3)
    scene.end()
    expected = [str(n) for n in range(scene.said)]
    for reader in readers:
        await reader.finish()
        assert reader.words == expected
        seqs = [event.seq for event in reader.events]
        assert seqs == sorted(set(seqs))
        assert seqs == [event.seq for event in scene.disk.kept]
    assert len(scene.tails) == 0


async def test_a_follower_that_leaves_a_hundred_times_hears_the_same_as_one_that_never_did() -> None:
    scene = Scene(max_bytes=4096)
    steady, restless = Reader(scene), Reader(scene)
    steady.take()
    restless.take()
    scene.attempt()
    heard: list[Event] = []
    for number in range(100):
        scene.say(20)
        await passes(number % 4)
        scene.disk.commit()
        cursor = await restless.leave()
        heard += restless.events
        restless = Reader(scene, cursor)
        restless.take()
        steady.take()
        await passes()
    scene.end()
    await steady.finish()
    await restless.finish()
    restless.events = heard + restless.events
    assert restless.words == steady.words == [str(n) for n in range(2000)]


async def test_what_is_kept_at_hand_is_not_read_from_the_store() -> None:
    scene = Scene(max_bytes=100_000)
    scene.attempt()
    scene.say(50)
    reader = Reader(scene, first_seq(1))
    reader.take()
    await passes()
    scene.end()
    await reader.finish()
    assert (len(reader.words), scene.disk.reads) == (50, 0)


async def test_nothing_is_evicted_that_the_store_does_not_have_and_the_attempt_waits_meanwhile() -> None:
    scene = Scene(max_bytes=1)
    scene.attempt()
    assert scene.tail is not None
    scene.say(50)
    assert len(scene.tail.since(0)) == 51
    waiting = asyncio.ensure_future(scene.tail.room())
    await passes()
    assert not waiting.done()
    while scene.disk.commit():
        pass
    async with asyncio.timeout(PATIENCE_S):
        await waiting
    assert not scene.tail.covers(first_seq(1))
    assert scene.tail.covers(scene.tail.last_seq)


async def test_an_attempt_that_has_lost_its_task_is_told_so_and_says_nothing_more() -> None:
    scene = Scene()
    scene.attempt()
    scene.say()
    assert scene.tail is not None
    scene.disk.task = replace(scene.disk.task, fence=2)
    waiting = asyncio.ensure_future(scene.tail.room())
    while scene.disk.commit():
        pass
    async with asyncio.timeout(PATIENCE_S):
        await waiting
    assert scene.tail.lost
    last = scene.tail.last_seq
    scene.say()
    assert scene.tail.last_seq == last


async def test_who_follows_a_task_that_waits_hears_it_from_its_first_word() -> None:
    scene = Scene()
    reader = Reader(scene)
    reader.take()
    await passes(5)
    scene.attempt()
    scene.say(3)
    scene.end()
    await reader.finish()
    assert reader.words == ["0", "1", "2"]


async def test_a_task_that_is_ended_while_it_waits_ends_its_followers() -> None:
    scene = Scene()
    reader = Reader(scene)
    reader.take()
    await passes(5)
    event = StoredEvent(seq=first_seq(1), type=TASK_SUCCEEDED, encoded=b'{"said":null}')
    scene.disk.end(event)
    scene.tails.tell(TASK.id, event, after=0)
    await reader.finish()
    assert [event.seq for event in reader.events] == [first_seq(1)]


@pytest.mark.parametrize("after", [0, first_seq(1), first_seq(1) + 2, first_seq(9)])
async def test_a_cursor_anywhere_in_a_finished_task_is_answered_and_over(after: int) -> None:
    scene = Scene()
    scene.attempt()
    scene.say(2)
    scene.end()
    reader = Reader(scene, after)
    await reader.finish()
    assert [event.seq for event in reader.events] == [event.seq for event in scene.disk.kept if event.seq > after]


async def test_a_task_that_is_not_there_is_refused() -> None:
    scene = Scene()
    with pytest.raises(Refusal) as refused:
        async with aclosing(cast(Any, scene.follow.events("task_2"))) as batches:
            await anext(batches)
    assert refused.value.failure.code is Code.NOT_FOUND
    assert len(scene.tails) == 0


def test_messages_are_not_encoded_twice() -> None:
    """The event that a follower gets holds the bytes that the store was handed."""
    scene = Scene(max_bytes=100_000)
    scene.attempt()
    scene.say()
    assert scene.tail is not None
    told = scene.tail.since(first_seq(1))
    _, events, _ = scene.disk._waiting[-1]
    assert told[0].raw is events[0].encoded
    assert told[0].type == MESSAGE_EVENT
