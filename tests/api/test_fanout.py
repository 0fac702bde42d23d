"""Many followers of one tail: joined, coalesced, bounded, and nobody misses a thing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_daemon.api import fanout as module
from claude_daemon.api.fanout import MAX_BUFFERED_BYTES, Cursor, Fanout, Why
from claude_daemon.core.errors import Refusal
from claude_daemon.core.event import Event
from tests.service.disk import TASK, Scene

PATIENCE_S = 10.0


def frame(event: Event) -> bytes:
    assert event.raw is not None
    return event.raw + b"\n"


class Sink:
    """A connection that takes what it is given; ``buffered`` is what the test says."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.pieces = 0
        self.buffered = 0
        self.reads = asyncio.Event()
        self.reads.set()

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    async def write_piece(self, events: Sequence[Event]) -> None:
        self.pieces += 1
        await self.reads.wait()
        self.write(b"".join(map(frame, events)))

    @property
    def seqs(self) -> list[int]:
        return [orjson.loads(line)["seq"] for line in b"".join(self.writes).splitlines()]


class Crowd:
    """A scene, its fan-out, and followers of it."""

    def __init__(self, max_bytes: int = 1_000_000) -> None:
        self.scene = Scene(max_bytes)
        self.runs = True
        self.fanout = Fanout(self.scene.follow, lambda task_id: self.runs)
        self.group = asyncio.TaskGroup()

    def follow(self, after: int = 0) -> tuple[Sink, asyncio.Task[Why], Cursor]:
        sink, cursor = Sink(), Cursor(after)
        return sink, self.group.create_task(self.fanout.serve(TASK.id, cursor, sink, frame)), cursor

    async def live(self, count: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.fanout.followers < count:
                await asyncio.sleep(0)


@asynccontextmanager
async def crowd(max_bytes: int = 1_000_000) -> AsyncIterator[Crowd]:
    made = Crowd(max_bytes)
    async with made.group:
        yield made


@pytest.mark.parametrize("followers", [1, 99, 100, 101, 350])
async def test_all_get_everything_once_in_order_and_few_writes(followers: int) -> None:
    async with crowd() as c:
        c.scene.attempt()
        there = [c.follow() for _ in range(followers)]
        await c.live(followers)
        for _ in range(20):
            c.scene.say(10)
        c.scene.end()
    expected = [event.seq for event in c.scene.disk.kept]
    for sink, serving, cursor in there:
        assert serving.result() is Why.ENDED
        assert sink.seqs == expected
        assert cursor.after == expected[-1]
        assert len(sink.writes) < 10  # of 203 events, said in one go
    assert c.fanout.followers == 0
    assert (c.fanout.delivered, c.fanout.slow) == (followers * len(expected), 0)


async def test_what_comes_while_a_pass_is_under_way_is_the_next_ones() -> None:
    async with crowd() as c:
        c.scene.attempt()
        there = [c.follow() for _ in range(250)]
        await c.live(250)
        for number in range(200):
            c.scene.say()
            if number % 3 == 0:
                await asyncio.sleep(0)  # between two slices
        c.scene.end()
    for sink, _, _ in there:
        assert sink.seqs == [event.seq for event in c.scene.disk.kept]


@pytest.mark.parametrize("passes", [0, 1, 2, 3])
async def test_who_attaches_between_two_slices_of_the_last_pass_gets_it_too(passes: int) -> None:
    async with crowd() as c:
        c.scene.attempt()
        for _ in range(350):
            c.follow()
        await c.live(350)
        await asyncio.sleep(2 * module.COALESCE_S)
        tail, late = c.scene.tail, module._Live(Cursor(0), Sink(), frame)
        assert tail is not None
        channel = c.fanout._channels[tail]
        c.scene.say()
        c.scene.end()
        for _ in range(passes):
            await asyncio.sleep(0)
        channel.attach(late)  # as one does that held the tail, and has just read what the store had
        async with asyncio.timeout(PATIENCE_S):
            assert await late.done is Why.ENDED
    assert late.cursor.after == c.scene.disk.kept[-1].seq


class Follower:
    """One that leaves and comes back with its cursor."""

    def __init__(self, c: Crowd) -> None:
        self._crowd = c
        self.seqs: list[int] = []
        self.come()

    def come(self) -> None:
        self.sink, self.serving, self.cursor = self._crowd.follow(self.seqs[-1] if self.seqs else 0)

    async def leave(self) -> None:
        self.serving.cancel()
        await asyncio.wait({self.serving})
        self.seqs += self.sink.seqs


STEPS = st.lists(
    st.sampled_from(["say", "many", "commit", "commit", "attempt", "pass", "pass", "join", "leave", "full", "room"]),
    max_size=60,
)


@settings(max_examples=200, deadline=None)
@given(STEPS, st.sampled_from([1, 1200, 100_000]))
async def test_whoever_comes_leaves_and_reads_slowly_gets_every_event_once_and_in_order(
    steps: list[str], max_bytes: int
) -> None:
    async with crowd(max_bytes) as c:
        followers = [Follower(c)]
        c.scene.attempt()
        for number, step in enumerate(steps):
            follower = followers[number % len(followers)]
            match step:
                case "say":
                    c.scene.say()
                case "many":
                    c.scene.say(7)
                case "commit":
                    c.scene.disk.commit()
                case "attempt":
                    c.scene.attempt()
                case "join":
                    followers.append(Follower(c))
                case "leave":
                    await follower.leave()
                    follower.come()
                case "full":
                    follower.sink.buffered = MAX_BUFFERED_BYTES + 1
                case "room":
                    follower.sink.buffered = 0
            for _ in range(number % 4):
                await asyncio.sleep(0)
        for follower in followers:
            follower.sink.buffered = 0
        c.scene.end()
        for follower in followers:
            async with asyncio.timeout(PATIENCE_S):
                assert await follower.serving is Why.ENDED
            follower.seqs += follower.sink.seqs
    expected = [event.seq for event in c.scene.disk.kept]
    for follower in followers:
        assert follower.seqs == expected


async def test_a_follower_that_leaves_a_hundred_times_in_2000_events_gets_the_same_as_one_that_never_did() -> None:
    async with crowd(4096) as c:
        steady, restless = Follower(c), Follower(c)
        c.scene.attempt()
        for number in range(100):
            c.scene.say(20)
            for _ in range(number % 7):
                await asyncio.sleep(0)
            c.scene.disk.commit()
            await restless.leave()
            restless.come()
        c.scene.end()
        async with asyncio.timeout(PATIENCE_S):
            assert {await steady.serving, await restless.serving} == {Why.ENDED}
        for follower in (steady, restless):
            follower.seqs += follower.sink.seqs
    assert restless.seqs == steady.seqs == [event.seq for event in c.scene.disk.kept]
    assert len(steady.seqs) > 2000


async def test_the_first_after_a_pause_is_not_kept_back() -> None:
    async with crowd() as c:
        c.scene.attempt()
        sink, _, _ = c.follow()
        await c.live(1)
        await asyncio.sleep(module.COALESCE_S * 2)
        before = len(sink.writes)
        c.scene.say()
        await asyncio.sleep(0)
        assert len(sink.writes) == before + 1
        c.scene.say()
        await asyncio.sleep(0)
        assert len(sink.writes) == before + 1  # this one goes with what follows
        c.scene.end()


async def test_a_follower_without_room_is_passed_over_and_goes_on_when_it_has_some() -> None:
    async with crowd() as c:
        c.scene.attempt()
        (slow, serving, _), (fast, _, _) = c.follow(), c.follow()
        await c.live(2)
        await asyncio.sleep(module.COALESCE_S * 2)
        slow.buffered = MAX_BUFFERED_BYTES + 1
        taken = len(slow.seqs)
        c.scene.say(50)
        await asyncio.sleep(module.COALESCE_S * 2)
        assert len(slow.seqs) == taken
        assert len(fast.seqs) >= 50
        slow.buffered = 0
        c.scene.end()
    assert serving.result() is Why.ENDED
    assert slow.seqs == fast.seqs == [event.seq for event in c.scene.disk.kept]


async def test_a_follower_that_stays_full_is_let_go_with_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    async with crowd() as c:
        c.scene.attempt()
        sink, serving, cursor = c.follow()
        await c.live(1)
        await asyncio.sleep(module.COALESCE_S * 2)
        sink.buffered = MAX_BUFFERED_BYTES + 1
        c.scene.say(5)
        async with asyncio.timeout(PATIENCE_S):
            assert await serving is Why.SLOW
        assert cursor.after == sink.seqs[-1]
        assert (c.fanout.slow, c.fanout.delivered) == (1, len(sink.seqs))
        again, serving, _ = c.follow(cursor.after)
        c.scene.end()
        async with asyncio.timeout(PATIENCE_S):
            assert await serving is Why.ENDED
    assert sink.seqs + again.seqs == [event.seq for event in c.scene.disk.kept]


async def test_a_reader_of_the_past_that_takes_nothing_is_let_go_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    async with crowd(1) as c:
        c.scene.attempt()
        c.scene.say(30)
        while c.scene.disk.commit():
            pass
        sink = Sink()
        sink.reads.clear()
        async with asyncio.timeout(PATIENCE_S):
            assert await c.fanout.serve(TASK.id, Cursor(0), sink, frame) is Why.SLOW
        c.scene.end()


async def test_a_connection_that_is_gone_is_served_no_more() -> None:
    async with crowd() as c:
        c.scene.attempt()
        sink, serving, _ = c.follow()
        await c.live(1)
        sink.buffered = -1
        c.scene.say()
        async with asyncio.timeout(PATIENCE_S):
            assert await serving is Why.GONE
        c.scene.end()


async def test_a_follower_whose_cursor_was_evicted_reads_on_in_the_store() -> None:
    async with crowd(1) as c:
        c.scene.attempt()
        sink, serving, _ = c.follow()
        await c.live(1)
        sink.buffered = MAX_BUFFERED_BYTES + 1
        for _ in range(10):
            c.scene.say(10)
            while c.scene.disk.commit():
                pass
            await asyncio.sleep(0)
        sink.buffered = 0
        c.scene.end()
    assert serving.result() is Why.ENDED
    assert sink.pieces > 0
    assert sink.seqs == [event.seq for event in c.scene.disk.kept]


async def test_in_a_drain_those_stay_whose_task_runs_here_and_at_the_end_all_get_what_there_is() -> None:
    async with crowd() as c:
        c.scene.attempt()
        sink, serving, cursor = c.follow()
        await c.live(1)
        c.fanout.begin_drain()
        await asyncio.sleep(0)
        assert not serving.done()
        c.scene.say(3)
        c.fanout.close()
        async with asyncio.timeout(PATIENCE_S):
            assert await serving is Why.DRAIN
        assert cursor.after == sink.seqs[-1] == c.scene.tail.last_seq if c.scene.tail else False
        c.runs = False
        _, late, _ = c.follow()
        async with asyncio.timeout(PATIENCE_S):
            assert await late is Why.DRAIN
        c.scene.end()


async def test_followers_of_a_task_that_waits_are_sent_elsewhere_at_once() -> None:
    async with crowd() as c:
        c.runs = False
        _, serving, _ = c.follow()
        await c.live(1)
        c.fanout.begin_drain()
        async with asyncio.timeout(PATIENCE_S):
            assert await serving is Why.DRAIN
        c.fanout.end_drain()
        _, again, _ = c.follow()
        await c.live(1)
        c.scene.attempt()
        c.scene.end()
    assert again.result() is Why.ENDED


async def test_a_task_that_is_gone_is_refused() -> None:
    async with crowd() as c:
        with pytest.raises(Refusal):
            await c.fanout.serve("task_2", Cursor(0), Sink(), frame)
