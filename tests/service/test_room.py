"""Lanes that share their places: who is next is next over all of them."""

from __future__ import annotations

import asyncio
from typing import Any

from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.room import Room
from claude_daemon.core.task import Lane, State
from claude_daemon.service.queue import CHAT_PRIORITY
from claude_daemon.service.run import Run
from tests.service.doubles import PATIENCE_S, SUCCEEDED, Desk, FakeEngine, ended
from tests.service.test_dispatch import code_of

AGED_S = CHAT_PRIORITY * 60.0 + 1
"""By then a task goes before chats that have just come."""


class Shop:
    """Text, agents and sessions in one room. What is an agent's is a chat too here, with a task's priority."""

    def __init__(self, places: int = 1, **settings: Any) -> None:
        self.room = Room(places)
        self.text, self.agents, self.sessions = (
            FakeEngine(lane=lane, room=self.room) for lane in (Lane.TEXT, Lane.AGENT, Lane.SESSION)
        )
        self.desk = Desk(self.text, self.agents, self.sessions, **settings)

    async def __aenter__(self) -> Shop:
        await self.desk.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self.desk.__aexit__(*exc)

    def chat(self, name: str, **changes: Any) -> Run:
        return self.desk.submit(name, **changes)

    def agent(self, name: str, **changes: Any) -> Run:
        return self.desk.submit(name, lane=Lane.AGENT, priority=-CHAT_PRIORITY, **changes)

    async def end(self, run: Run) -> None:
        """Its turn ends well, once it has one, and what that makes room for has begun."""
        async with asyncio.timeout(PATIENCE_S):
            while run.task.state is State.QUEUED:
                await asyncio.sleep(0)
        engine = next(engine for engine in (self.text, self.agents, self.sessions) if engine.lane is run.lane)
        next(lease for lease in engine.leases if lease.spec is run.task.spec).say(SUCCEEDED)
        await ended(run)
        await self.settled()

    async def settled(self) -> None:
        """Whoever can begin has begun."""
        async with asyncio.timeout(PATIENCE_S):
            while self.desk.dispatcher._pumps:
                await asyncio.sleep(0)

    def running(self) -> set[str]:
        return {run.task.spec.request_id for run in self.desk.dispatcher._running}


async def test_there_are_so_many_turns_over_all_lanes_together() -> None:
    async with Shop(places=2) as shop:
        runs = [shop.chat("t"), shop.agent("a"), shop.chat("s", lane=Lane.SESSION)]
        assert shop.running() == {"t", "a"}
        await shop.end(runs[0])
        await shop.settled()
        assert (shop.running(), shop.room.taken) == ({"a", "s"}, 2)


async def test_a_place_that_becomes_free_goes_to_who_is_first_whatever_the_lane() -> None:
    async with Shop() as shop:
        names = ["t1", "a1", "s1", "t2", "a2"]
        lanes = {"t": Lane.TEXT, "a": Lane.AGENT, "s": Lane.SESSION}
        runs = []
        for name in names:
            runs.append(shop.chat(name, lane=lanes[name[0]]))
            shop.desk.clock.now += 1
        order: list[str] = []
        for run in runs:
            order += shop.running()
            await shop.end(run)
        assert order == names


async def test_a_steady_stream_of_chats_does_not_starve_an_agent() -> None:
    async with Shop(places=2) as shop:
        chats = [shop.chat("c0"), shop.chat("c1")]
        waiting = shop.agent("agent")
        number = 2
        while shop.room.taken and waiting.task.state is State.QUEUED and number < 50:
            chats.append(shop.chat(f"c{number}"))  # there is always one that waits
            number += 1
            shop.desk.clock.now += AGED_S / 10
            await shop.end(chats.pop(0))
        assert waiting.task.state is State.RUNNING
        assert number < 20  # it went before chats that had waited for less long than it
        await shop.end(waiting)
        for chat in chats:
            await shop.end(chat)


async def test_a_steady_stream_of_agents_does_not_starve_a_chat() -> None:
    async with Shop(places=2) as shop:
        agents = [shop.agent(f"a{number}") for number in range(20)]
        shop.desk.clock.now += 60  # they have waited, and the chat has not
        chat = shop.chat("chat")
        assert chat.task.state is State.QUEUED
        await shop.end(agents[0])
        assert shop.running() == {"a1", "chat"}
        await shop.end(chat)
        await shop.end(agents[1])


async def test_turns_of_all_lanes_count_where_keys_take_turns() -> None:
    async with Shop(places=2) as shop:
        runs = [shop.chat("a1", key_id="a", lane=Lane.AGENT), shop.chat("b1", key_id="b")]
        shop.desk.clock.now += 1
        shop.chat("b2", key_id="b", lane=Lane.AGENT)
        shop.desk.clock.now += 1
        shop.chat("a2", key_id="a")
        await shop.end(runs[0])
        assert shop.running() == {"b1", "a2"}


async def test_a_place_is_kept_for_who_is_first_and_waits_for_a_process() -> None:
    async with Shop(places=1) as shop:
        shop.text.ready = False
        chat, agent = shop.chat("chat"), shop.agent("agent")
        assert shop.running() == set()
        shop.text.ready = True
        shop.room.tell()
        await shop.settled()
        await shop.end(chat)
        await shop.end(agent)


async def test_what_is_free_beside_the_kept_place_goes_to_the_next_of_another_lane() -> None:
    async with Shop(places=2) as shop:
        shop.text.ready = False
        chat, behind = shop.chat("chat"), shop.chat("behind")
        agents = [shop.agent("a1"), shop.agent("a2")]
        assert shop.running() == {"a1"}
        shop.text.ready = True
        shop.room.tell()
        await shop.settled()
        assert shop.running() == {"a1", "chat"}
        for run in (chat, behind, *agents):
            await shop.end(run)


async def test_no_place_is_kept_in_a_lane_that_cannot_come_up() -> None:
    async with Shop() as shop:
        shop.text.ready = False
        shop.text.down = Failure(code=Code.ENGINE_UNAVAILABLE, message="no CLI", retry_after_seconds=2)
        chat, agent = shop.chat("chat"), shop.agent("agent")
        assert code_of(await ended(chat)) is Code.ENGINE_UNAVAILABLE
        assert shop.running() == {"agent"}
        await shop.end(agent)


async def test_who_waits_for_a_lane_that_cannot_come_up_is_told_while_others_have_every_place() -> None:
    async with Shop() as shop:
        agent, chat = shop.agent("agent"), shop.chat("chat")
        shop.text.down = Failure(code=Code.ENGINE_UNAVAILABLE, message="no CLI", retry_after_seconds=2)
        shop.room.tell()
        assert code_of(await ended(chat)) is Code.ENGINE_UNAVAILABLE
        await shop.end(agent)


async def test_who_waits_for_something_of_its_own_holds_up_nobody_and_is_first_when_it_may() -> None:
    async with Shop() as shop:
        shop.sessions.not_yet = {"s1"}
        runs = [shop.chat("s1", lane=Lane.SESSION)]
        shop.desk.clock.now += 1
        runs += [shop.chat("s2", lane=Lane.SESSION), shop.chat("s3", lane=Lane.SESSION)]
        assert shop.running() == {"s2"}
        shop.sessions.not_yet.clear()
        await shop.end(runs[1])
        assert shop.running() == {"s1"}
        await shop.end(runs[0])
        await shop.end(runs[2])


async def test_who_waits_for_something_of_its_own_is_cancelled_as_anybody_is() -> None:
    async with Shop() as shop:
        shop.sessions.not_yet = {"s1"}
        run = shop.chat("s1", lane=Lane.SESSION)
        shop.desk.dispatcher.cancel(run)
        assert code_of(await ended(run)) is Code.CANCELLED
        shop.sessions.not_yet.clear()
        shop.room.tell()
        assert (shop.sessions.leases, shop.desk.dispatcher.idle) == ([], True)


async def test_a_turn_that_asks_the_daemon_and_waits_ends_by_the_time_for_waiting() -> None:
    """It has the only place itself, so what it asks for can never begin."""
    async with Shop(wait_timeout_s=0.01) as shop:
        agent = shop.agent("agent")
        asked = shop.chat("asked by the agent")
        assert code_of(await ended(asked)) is Code.QUEUE_TIMEOUT
        assert shop.running() == {"agent"}
        await shop.end(agent)


async def test_more_room_is_used_at_once() -> None:
    async with Shop() as shop:
        runs = [shop.chat("chat"), shop.agent("agent")]
        shop.room.resize(2)
        await shop.settled()
        for run in runs:
            await shop.end(run)
