"""The drain, over a dispatcher with a fake engine."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.lifecycle import DaemonState
from claude_daemon.service.drain import (
    FIRST_WORDS_SECONDS,
    MAX_DEADLINE_SECONDS,
    SETTLE_SECONDS,
    Drain,
    DrainSettings,
    Edge,
)
from claude_daemon.service.health import Health
from claude_daemon.service.hint import Hint
from tests.service.doubles import PATIENCE_S, SUCCEEDED, Clock, Desk, FakeEngine, ended

S = DaemonState


class Setting:
    """A drain that runs for as long as the ``async with`` lasts. Its clock stands still unless a test moves it."""

    def __init__(
        self, state: DaemonState = S.READY, *, grace_seconds: float = 5.0, lame_duck_seconds: float = 0.0
    ) -> None:
        self.clock = Clock()
        self.desk = Desk(FakeEngine(places=1))
        self.health = Health(version="1", monotonic=self.clock)
        if state is not S.STARTING:
            self.health.move(state)
        self.told: list[str] = []
        self.unanswered = self.silent = 0
        edge = Edge(
            begin=lambda handed_over: self.told.append("handed over" if handed_over else "begin"),
            end=lambda: self.told.append("end"),
            leave=lambda: self.told.append("leave"),
            connections=lambda: 7,
            unanswered=lambda: self.unanswered,
            silent=lambda: self.silent,
            notices=lambda: 3,
            refuse=self.refuse,
        )
        settings = DrainSettings(lame_duck_s=lame_duck_seconds, grace_s=grace_seconds)
        self.drain = Drain(self.health, self.desk.dispatcher, edge, self.clock, settings=settings)

    def refuse(self) -> None:
        self.told.append("refuse")
        asyncio.get_running_loop().call_soon(self._answered)

    def _answered(self) -> None:
        self.unanswered = 0
        self.drain.note()

    async def __aenter__(self) -> Setting:
        await self.desk.__aenter__()
        self.running = asyncio.ensure_future(self.drain.run())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc: Any) -> None:
        self.running.cancel()
        await asyncio.wait({self.running})
        await self.desk.__aexit__()

    async def reaches(self, state: DaemonState) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.health.state is not state:
                await self.drain.changed(0.05)

    async def stays(self, state: DaemonState) -> None:
        for _ in range(10):
            await asyncio.sleep(0)
        assert self.health.state is state


async def test_a_drain_with_nothing_running_is_drained_at_once_and_the_daemon_stays() -> None:
    async with Setting() as setting:
        setting.drain.begin(60, stop=False)
        assert setting.health.state is S.DRAINING
        await setting.reaches(S.DRAINED)
        assert setting.told == ["begin"]
        assert not setting.running.done()


async def test_a_drain_waits_for_what_runs_and_for_what_waits() -> None:
    async with Setting() as setting:
        first, second = setting.desk.submit("first"), setting.desk.submit("second")
        setting.drain.begin(60, stop=False)
        (await setting.desk.lease(0)).say(SUCCEEDED)
        assert await ended(first) == SUCCEEDED
        await setting.stays(S.DRAINING)
        (await setting.desk.lease(1)).say(SUCCEEDED)
        assert await ended(second) == SUCCEEDED
        await setting.reaches(S.DRAINED)


@pytest.mark.parametrize("deadline", [0.0, 0.02])
async def test_at_the_deadline_what_runs_is_interrupted(deadline: float) -> None:
    setting = Setting()
    setting.drain._monotonic = asyncio.get_running_loop().time
    async with setting:
        runs = [setting.desk.submit("running"), setting.desk.submit("waiting")]
        setting.drain.begin(deadline, stop=False)
        for run in runs:
            outcome = await ended(run)
            assert outcome.failure is not None and outcome.failure.code is Code.INTERRUPTED
        await setting.reaches(S.DRAINED)


async def test_hurry_wakes_a_drain_that_waits_for_its_deadline() -> None:
    async with Setting() as setting:
        run = setting.desk.submit()
        setting.drain.begin(3600, stop=True)
        await setting.stays(S.DRAINING)
        setting.drain.hurry()
        outcome = await ended(run)
        assert outcome.failure is not None and outcome.failure.code is Code.INTERRUPTED
        await setting.reaches(S.DRAINED)
        assert setting.drain.hurried


async def test_a_second_drain_can_shorten_the_deadline_and_never_lengthen_it() -> None:
    async with Setting() as setting:
        run = setting.desk.submit()
        setting.drain.begin(100, stop=False)
        setting.drain.begin(1000, stop=False)
        assert setting.drain.progress()["remaining_s"] == 100
        setting.drain.begin(10, stop=False)
        assert setting.drain.progress()["remaining_s"] == 10
        assert setting.told == ["begin"]
        setting.drain.begin(0, stop=False)
        await ended(run)
        await setting.reaches(S.DRAINED)


async def test_a_second_drain_can_make_it_a_stop_and_never_the_reverse() -> None:
    async with Setting() as setting:
        setting.desk.submit()
        setting.drain.begin(100, stop=True)
        setting.drain.begin(100, stop=False)
        assert setting.drain.stopping
        with pytest.raises(Refusal) as refused:
            setting.drain.undo()
        assert refused.value.failure.code is Code.CONFLICT


async def test_undo_takes_work_again_and_another_drain_begins_afresh() -> None:
    async with Setting() as setting:
        run = setting.desk.submit()
        setting.drain.begin(1, stop=False)
        setting.drain.undo()
        assert setting.health.state is S.READY
        assert setting.told == ["begin", "end"]
        setting.clock.now += 100  # the first deadline passes and hurts nobody
        await setting.stays(S.READY)
        setting.drain.begin(60, stop=False)
        assert setting.drain.progress()["remaining_s"] == 60
        (await setting.desk.lease(0)).say(SUCCEEDED)
        assert await ended(run) == SUCCEEDED
        await setting.reaches(S.DRAINED)
        setting.drain.undo()
        assert setting.health.state is S.READY
        setting.drain.begin(60, stop=False)
        await setting.reaches(S.DRAINED)


async def test_undo_without_a_drain_is_a_conflict() -> None:
    async with Setting() as setting:
        with pytest.raises(Refusal) as refused:
            setting.drain.undo()
        assert refused.value.failure.code is Code.CONFLICT
        assert setting.told == []


async def test_a_drain_after_a_drain_stays_drained_and_a_stop_after_it_ends() -> None:
    async with Setting() as setting:
        setting.drain.begin(60, stop=False)
        await setting.reaches(S.DRAINED)
        setting.drain.begin(60, stop=False)
        await setting.stays(S.DRAINED)
        setting.drain.begin(60, stop=True)
        async with asyncio.timeout(PATIENCE_S):
            await setting.running
        assert setting.health.state is S.DRAINED


async def test_run_ends_after_a_drain_that_stops() -> None:
    async with Setting() as setting:
        run = setting.desk.submit()
        setting.drain.begin(60, stop=True)
        await setting.stays(S.DRAINING)
        assert not setting.running.done()
        (await setting.desk.lease(0)).say(SUCCEEDED)
        async with asyncio.timeout(PATIENCE_S):
            await setting.running
        assert await ended(run) == SUCCEEDED
        assert setting.health.state is S.DRAINED


async def test_a_stop_while_starting_stops_at_once() -> None:
    async with Setting(S.STARTING) as setting:
        setting.drain.begin(60, stop=True)
        assert setting.health.state is S.STOPPING
        async with asyncio.timeout(PATIENCE_S):
            await setting.running


async def test_a_drain_without_a_stop_is_refused_while_starting() -> None:
    async with Setting(S.STARTING) as setting:
        with pytest.raises(Refusal) as refused:
            setting.drain.begin(60, stop=False)
        assert refused.value.failure.code is Code.NOT_READY
        assert (setting.health.state, setting.drain.stopping, setting.told) == (S.STARTING, False, [])


async def test_what_does_not_end_when_interrupted_is_waited_for_no_longer_than_the_grace() -> None:
    setting = Setting(grace_seconds=0.05)
    setting.drain._monotonic = asyncio.get_running_loop().time
    async with setting:
        run = setting.desk.submit()
        lease = await setting.desk.lease(0)
        lease.may_end.clear()
        setting.drain.begin(0, stop=False)
        await setting.reaches(S.DRAINED)
        assert setting.desk.dispatcher.running == 1
        lease.may_end.set()
        await ended(run)


async def test_a_deadline_of_a_thousand_years_is_a_day() -> None:
    async with Setting() as setting:
        setting.desk.submit()
        setting.drain.begin(1e300, stop=False)
        assert setting.drain.progress()["remaining_s"] == MAX_DEADLINE_SECONDS
        await setting.stays(S.DRAINING)


async def test_progress_tells_how_far_it_is() -> None:
    async with Setting() as setting:
        setting.desk.submit("first")
        setting.desk.submit("second")
        setting.drain.begin(60, stop=False)
        assert setting.drain.progress() == {
            "state": "draining",
            "running": 1,
            "waiting": 1,
            "queued": 0,
            "connections": 7,
            "notices": 3,
            "remaining_s": 60.0,
        }
        setting.drain.begin(0, stop=False)
        await setting.reaches(S.DRAINED)
        last = setting.drain.progress()
        assert (last["state"], last["running"], last["waiting"], last["saved"]) == ("drained", 0, 0, True)


async def test_changed_waits_for_a_change_and_does_not_spin() -> None:
    async with Setting() as setting:
        setting.desk.submit()
        setting.drain.begin(60, stop=False)
        setting.drain.begin(50, stop=False)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await setting.drain.changed(0.05)
        assert loop.time() - began >= 0.04


async def test_a_hint_wakes_all_who_wait_now_and_nobody_later() -> None:
    hint = Hint()
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        waits = [group.create_task(hint.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        hint.give()
    assert [wait.result() for wait in waits] == [True] * 3
    assert await hint.wait(0.01) is False


async def test_a_lame_duck_works_on_until_its_time_is_over() -> None:
    async with Setting(lame_duck_seconds=10) as setting:
        setting.drain.begin(60, stop=False)
        assert setting.health.state is S.DRAINING
        assert setting.health.lenient and not setting.health.ready().ok
        assert setting.drain.progress()["remaining_s"] == 70
        await setting.stays(S.DRAINING)
        assert setting.told == []
        setting.clock.now += 10
        setting.drain.note()
        await setting.reaches(S.DRAINED)
        assert setting.told == ["begin"]
        assert not setting.health.lenient


async def test_a_lame_duck_that_is_undone_was_never_held_back() -> None:
    async with Setting(lame_duck_seconds=10) as setting:
        setting.drain.begin(60, stop=False)
        setting.drain.undo()
        assert (setting.health.state, setting.health.lenient, setting.told) == (S.READY, False, [])
        setting.clock.now += 100
        await setting.stays(S.READY)


async def test_hurry_ends_a_lame_duck() -> None:
    async with Setting(lame_duck_seconds=3600) as setting:
        setting.drain.begin(60, stop=True)
        setting.drain.hurry()
        assert (setting.told, setting.health.lenient) == (["begin"], False)
        await setting.reaches(S.DRAINED)
        assert setting.told == ["begin"]


async def test_a_lame_duck_that_is_skipped_takes_nothing_more_at_once_and_brings_the_deadline_forward() -> None:
    async with Setting(lame_duck_seconds=10) as setting:
        run = setting.desk.submit()
        setting.drain.begin(60, stop=False)
        setting.clock.now += 4
        setting.drain.skip_lame_duck()
        assert (setting.told, setting.health.lenient) == (["begin"], False)  # nobody is admitted in between
        assert setting.drain.progress()["remaining_s"] == 60
        setting.drain.skip_lame_duck()
        assert setting.drain.progress()["remaining_s"] == 60
        (await setting.desk.lease(0)).say(SUCCEEDED)
        assert await ended(run) == SUCCEEDED
        await setting.reaches(S.DRAINED)
        assert setting.told == ["begin"]


async def test_what_runs_in_a_lame_duck_that_is_skipped_is_interrupted_at_its_deadline() -> None:
    async with Setting(lame_duck_seconds=10) as setting:
        run = setting.desk.submit()
        setting.drain.begin(0, stop=False)
        setting.drain.skip_lame_duck()
        outcome = await ended(run)
        assert outcome.failure is not None and outcome.failure.code is Code.INTERRUPTED
        await setting.reaches(S.DRAINED)


async def test_where_nothing_drains_no_lame_duck_is_skipped() -> None:
    async with Setting(lame_duck_seconds=10) as setting:
        setting.drain.begin(60, stop=False)
        setting.drain.undo()
        setting.drain.skip_lame_duck()
        assert (setting.health.state, setting.told) == (S.READY, [])


async def test_a_hand_over_accepts_nobody_and_serves_whoever_was_accepted() -> None:
    async with Setting(lame_duck_seconds=10) as setting:
        setting.unanswered = 1
        setting.drain.begin(60, stop=True, handed_over=True)
        assert setting.told == ["leave", "handed over"]  # no lame duck: whoever comes now waits for the successor
        assert setting.health.lenient
        setting.clock.now += FIRST_WORDS_SECONDS
        setting.drain.note()
        await setting.stays(S.DRAINING)
        setting.unanswered = 0
        setting.drain.note()
        await setting.reaches(S.DRAINED)


@pytest.mark.parametrize(("silent", "patience"), [(0, SETTLE_SECONDS), (1, FIRST_WORDS_SECONDS)])
async def test_a_hand_over_gives_those_who_just_connected_time_to_speak(silent: int, patience: float) -> None:
    async with Setting() as setting:
        setting.silent = silent
        setting.drain.begin(60, stop=True, handed_over=True)
        setting.clock.now += patience * 0.99
        setting.drain.note()
        await setting.stays(S.DRAINING)
        setting.clock.now += patience * 0.02
        setting.drain.note()
        await setting.reaches(S.DRAINED)


async def test_a_stop_that_hands_over_after_a_drain_leaves_the_listener_to_its_successor() -> None:
    async with Setting() as setting:
        setting.drain.begin(60, stop=False)
        await setting.reaches(S.DRAINED)
        setting.drain.begin(60, stop=True, handed_over=True)
        assert setting.told == ["begin", "leave", "handed over"]
        async with asyncio.timeout(PATIENCE_S):
            await setting.running


async def test_a_drain_waits_for_requests_that_are_not_answered_yet() -> None:
    async with Setting() as setting:
        setting.unanswered = 1
        setting.drain.begin(60, stop=False)
        await setting.stays(S.DRAINING)
        setting.unanswered = 0
        setting.drain.note()
        await setting.reaches(S.DRAINED)


async def test_who_has_sent_half_a_request_is_refused_at_the_deadline_and_answered_before_it_is_drained() -> None:
    setting = Setting()
    setting.drain._monotonic = asyncio.get_running_loop().time
    async with setting:
        setting.unanswered = 1
        setting.drain.begin(0.02, stop=False)
        await setting.stays(S.DRAINING)
        assert setting.told == ["begin"]
        await setting.reaches(S.DRAINED)
        assert (setting.told, setting.unanswered) == (["begin", "refuse"], 0)
