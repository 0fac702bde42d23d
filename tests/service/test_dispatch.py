"""The dispatcher, over an engine whose places and answers are given out by hand."""

from __future__ import annotations

import asyncio

import pytest

from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.event import MESSAGE, MESSAGE_EVENT, TASK_FAILED, TASK_STARTED, TASK_SUCCEEDED, Emission
from claude_daemon.core.task import Lane, Outcome, State, Usage
from claude_daemon.ports import Ended
from tests.service.doubles import PATIENCE_S, SUCCEEDED, Desk, FakeEngine, all_of, ended, failed, text

SCHEMA = {"type": "object"}
STOP = Emission(MESSAGE_EVENT, {"type": "message_stop"})


def code_of(outcome: Outcome) -> Code | None:
    return outcome.failure.code if outcome.failure is not None else None


async def test_a_task_runs_at_once_where_there_is_a_place_and_tells_its_whole_life() -> None:
    async with Desk() as desk:
        run = desk.submit()
        lease = await desk.lease(0)
        lease.say(text("Hello"), SUCCEEDED)
        events = await all_of(run)
    assert [event.type for event in events] == [TASK_STARTED, MESSAGE_EVENT, TASK_SUCCEEDED]
    assert events[0].data == {"lane": "text", "start": "warm", "worker": "wrk_1", "attempt": 1}
    assert run.task.state is State.SUCCEEDED
    assert (run.task.created_at, run.task.started_at, run.task.finished_at) == (5000.0, 5000.0, 5000.0)
    assert (run.start, run.worker_id) == ("warm", "wrk_1")
    assert lease.released
    assert desk.settled == [run]


async def test_nothing_runs_before_the_dispatcher_does() -> None:
    desk = Desk()
    run = desk.submit()
    assert (desk.dispatcher.waiting, desk.dispatcher.running) == (1, 0)
    async with desk:
        (await desk.lease(0)).say(SUCCEEDED)
        assert await ended(run) == SUCCEEDED


async def test_places_go_round_in_order_and_nobody_overtakes() -> None:
    async with Desk() as desk:
        runs = [desk.submit(f"r{number}") for number in range(4)]
        assert (desk.dispatcher.waiting, desk.dispatcher.running) == (3, 1)
        for number, run in enumerate(runs):
            (await desk.lease(number)).say(SUCCEEDED)
            await ended(run)
        assert desk.engine.served == ["r0", "r1", "r2", "r3"]


async def test_of_a_key_no_more_run_at_once_than_may_whatever_the_lane_and_others_are_not_held_up() -> None:
    text_lane, direct = FakeEngine(3), FakeEngine(3, Lane.DIRECT)
    async with Desk(text_lane, direct) as desk:
        desk.dispatcher.concurrent = {"bound": 1}.get
        first = desk.submit("first", key_id="bound")
        second = desk.submit("second", key_id="bound", lane=Lane.DIRECT)
        other = desk.submit("other", key_id="free")
        third = desk.submit("third", key_id="bound")
        await desk.lease(1)
        assert (text_lane.served, direct.served) == (["first", "other"], [])
        left = [second, third]
        text_lane.leases[0].say(SUCCEEDED)
        await ended(first)
        while left:
            async with asyncio.timeout(PATIENCE_S):
                while desk.dispatcher.running < 2:
                    await asyncio.sleep(0)
            (run,) = [run for run in left if run.attempt is not None]
            engine = text_lane if run is third else direct
            await engine.leases[-1].began.wait()
            engine.leases[-1].say(SUCCEEDED)
            await ended(run)
            left.remove(run)
        text_lane.leases[1].say(SUCCEEDED)
        await ended(other)
        assert (text_lane.served, direct.served) == (["first", "other", "third"], ["second"])


async def test_who_comes_when_a_place_has_just_become_free_does_not_overtake_those_who_wait() -> None:
    async with Desk() as desk:
        first = desk.submit("first")
        waiting = desk.submit("waiting")
        lease = await desk.lease(0)
        lease.say(SUCCEEDED)
        await ended(first)
        late = desk.submit("late")  # in the very moment in which the place is free
        (await desk.lease(1)).say(SUCCEEDED)
        await ended(waiting)
        (await desk.lease(2)).say(SUCCEEDED)
        await ended(late)
        assert desk.engine.served == ["first", "waiting", "late"]


async def test_priority_goes_first_and_a_minute_of_waiting_makes_up_for_one() -> None:
    async with Desk() as desk:
        runs = [desk.submit("running"), desk.submit("old")]
        desk.clock.now += 61  # "old" has gained one by now, and stays older
        runs += [desk.submit("normal"), desk.submit("urgent", priority=1)]
        for number in range(4):
            (await desk.lease(number)).say(SUCCEEDED)
        for run in runs:
            await ended(run)
        assert desk.engine.served == ["running", "old", "urgent", "normal"]


async def test_the_key_with_the_least_running_goes_first_and_a_turn_that_is_over_counts_no_more() -> None:
    async with Desk(FakeEngine(places=2)) as desk:
        a1, b1 = desk.submit("a1", key_id="a"), desk.submit("b1", key_id="b")
        runs = [desk.submit("b2", key_id="b"), desk.submit("a2", key_id="a")]
        (await desk.lease(0)).say(SUCCEEDED)
        await ended(a1)  # now a has nothing running, b has one
        await desk.lease(2)
        assert desk.engine.served == ["a1", "b1", "a2"]
        for number in (1, 2):
            desk.engine.leases[number].say(SUCCEEDED)
        (await desk.lease(3)).say(SUCCEEDED)
        for run in (b1, *runs):
            await ended(run)


async def test_lanes_do_not_wait_for_each_other() -> None:
    text_lane, direct = FakeEngine(), FakeEngine(lane=Lane.DIRECT)
    async with Desk(text_lane, direct) as desk:
        desk.submit("t1")
        desk.submit("t2")
        run = desk.submit("d1", lane=Lane.DIRECT)
        assert direct.served == ["d1"]
        await asyncio.sleep(0)
        direct.leases[0].say(SUCCEEDED)
        await ended(run)
        assert desk.dispatcher.waiting == 1


async def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async with Desk(max_waiting=2) as desk:
        for number in range(3):
            desk.submit(f"r{number}")
        with pytest.raises(Refusal) as refused:
            desk.submit("r3")
        failure = refused.value.failure
        assert (failure.code, failure.retry_after_seconds) == (Code.OVERLOADED, 1.0)
        assert desk.dispatcher.waiting == 2


async def test_in_a_full_queue_a_flood_makes_way_for_another_trust_domain() -> None:
    async with Desk(max_waiting=3) as desk:
        a, b = {"key_id": "a", "trust_domain": "a"}, {"key_id": "b", "trust_domain": "b"}
        flood = [desk.submit(f"a{number}", **a) for number in range(4)]
        with pytest.raises(Refusal):
            desk.submit("a4", **a)
        other = desk.submit("b", **b)
        assert code_of(await ended(flood[3])) is Code.OVERLOADED
        with pytest.raises(Refusal, match="waiting already"):
            desk.submit("a5", **a)
        for number, run in enumerate((flood[0], other, flood[1], flood[2])):  # b has the next place
            (await desk.lease(number)).say(SUCCEEDED)
            assert (await ended(run)).state is State.SUCCEEDED
        assert desk.engine.served == ["a0", "b", "a1", "a2"]


async def test_the_longer_the_queue_the_later_to_come_back() -> None:
    async with Desk(max_waiting=64) as desk:
        for number in range(65):
            desk.submit(f"r{number}")
        with pytest.raises(Refusal) as refused:
            desk.submit("one more")
        assert refused.value.failure.retry_after_seconds == 5.0


async def test_who_waited_too_long_fails_and_never_runs_later() -> None:
    async with Desk(wait_timeout_s=0.01) as desk:
        first = desk.submit("first")
        waiting = desk.submit("waiting")
        outcome = await ended(waiting)
        assert code_of(outcome) is Code.QUEUE_TIMEOUT
        assert outcome.failure is not None and outcome.failure.retry_after_seconds
        assert waiting.task.started_at is None
        (await desk.lease(0)).say(SUCCEEDED)
        await ended(first)
        desk.engine.tell_room()
        await asyncio.sleep(0)
        assert desk.engine.served == ["first"]


async def test_who_runs_is_not_hurt_by_the_time_for_waiting() -> None:
    async with Desk(wait_timeout_s=0.01) as desk:
        run = desk.submit()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await ended(run)
        assert run.task.state is State.RUNNING


async def test_cancel_while_queued_gives_up_the_place_in_the_queue() -> None:
    async with Desk() as desk:
        first, waiting = desk.submit("first"), desk.submit("waiting")
        desk.dispatcher.cancel(waiting)
        assert code_of(await ended(waiting)) is Code.CANCELLED
        assert waiting.task.state is State.CANCELLED
        assert desk.dispatcher.waiting == 0
        (await desk.lease(0)).say(SUCCEEDED)
        await ended(first)
        assert desk.engine.served == ["first"]


async def test_cancel_while_running_ends_the_turn_and_gives_the_place_back() -> None:
    async with Desk() as desk:
        run, waiting = desk.submit("first"), desk.submit("waiting")
        lease = await desk.lease(0)
        lease.say(text("Hel"))
        desk.dispatcher.cancel(run)
        assert code_of(await ended(run)) is Code.CANCELLED
        assert lease.closed and lease.released
        (await desk.lease(1)).say(SUCCEEDED)
        await ended(waiting)


async def test_cancel_in_the_moment_of_the_start_settles_too() -> None:
    """A task that is cancelled before its first step runs no line of its own: its place was lost for ever."""
    async with Desk() as desk:
        run = desk.submit()
        assert run.task.state is State.RUNNING
        desk.dispatcher.cancel(run)
        assert code_of(await ended(run)) is Code.CANCELLED
        assert desk.dispatcher.idle
        assert desk.engine.leases[0].released
        other = desk.submit()
        (await desk.lease(1)).say(SUCCEEDED)
        await ended(other)


async def test_interrupt_all_in_the_moment_of_the_start_settles_too() -> None:
    async with Desk() as desk:
        run = desk.submit()
        desk.dispatcher.interrupt_all()
        assert code_of(await ended(run)) is Code.INTERRUPTED
        assert desk.dispatcher.idle


async def test_cancel_of_what_is_done_changes_nothing() -> None:
    async with Desk() as desk:
        run = desk.submit()
        (await desk.lease(0)).say(SUCCEEDED)
        await ended(run)
        before = run.task
        desk.dispatcher.cancel(run)
        desk.dispatcher.interrupt_all()
        await asyncio.sleep(0)
        assert run.task is before
        assert desk.settled == [run]


async def test_the_first_reason_for_an_end_stays() -> None:
    async with Desk() as desk:
        cancelled, interrupted = desk.submit("c"), desk.submit("i")
        await desk.lease(0)
        desk.dispatcher.cancel(cancelled)
        desk.dispatcher.interrupt_all()
        desk.dispatcher.cancel(interrupted)
        assert code_of(await ended(cancelled)) is Code.CANCELLED
        assert code_of(await ended(interrupted)) is Code.INTERRUPTED


async def test_interrupt_all_ends_what_waits_and_what_runs() -> None:
    async with Desk(FakeEngine(places=2)) as desk:
        runs = [desk.submit(f"r{number}") for number in range(4)]
        await desk.lease(1)
        desk.dispatcher.interrupt_all()
        for run in runs:
            outcome = await ended(run)
            assert (outcome.state, code_of(outcome)) == (State.FAILED, Code.INTERRUPTED)
        assert desk.dispatcher.idle
        assert len(desk.engine.leases) == 2


async def test_close_interrupts_and_takes_nothing_more() -> None:
    async with Desk() as desk:
        run = desk.submit()
        await desk.lease(0)
        desk.dispatcher.close()
        assert code_of(await ended(run)) is Code.INTERRUPTED
        with pytest.raises(Refusal):
            desk.submit()
        await desk.running


async def test_a_dispatcher_that_is_cancelled_settles_everything() -> None:
    desk = Desk()
    owner = asyncio.ensure_future(desk.dispatcher.run())
    await asyncio.sleep(0)
    runs = [desk.submit("running"), desk.submit("waiting")]
    owner.cancel()
    await asyncio.wait({owner})
    for run in runs:
        assert code_of(await ended(run)) is Code.INTERRUPTED


@pytest.mark.parametrize("before", [[], [text("Hel")]])
async def test_an_engine_that_raises_fails_its_task_alone(before: list[Emission]) -> None:
    async with Desk() as desk:
        run, waiting = desk.submit("first"), desk.submit("waiting")
        lease = await desk.lease(0)
        if before:
            lease.say(*before)
        error = KeyError("a bug")
        lease.throw(error)
        outcome = await ended(run)
        assert (outcome.state, code_of(outcome)) == (State.FAILED, Code.INTERNAL)
        assert outcome.failure is not None and "a bug" not in outcome.failure.message
        assert desk.broken == [error]
        (await desk.lease(1)).say(SUCCEEDED)
        assert await ended(waiting) == SUCCEEDED
        assert not desk.running.done()


async def test_an_engine_that_never_says_how_it_ended_fails_its_task_alone() -> None:
    async with Desk() as desk:
        run = desk.submit()
        (await desk.lease(0)).stop()
        assert code_of(await ended(run)) is Code.INTERNAL
        assert len(desk.broken) == 1


async def test_a_lease_that_raises_fails_who_asked_and_does_not_hold_up_those_behind() -> None:
    async with Desk() as desk:
        error = KeyError("model")
        desk.engine.broken = error
        run = desk.submit()
        assert code_of(await ended(run)) is Code.INTERNAL
        assert desk.broken == [error]
        other = desk.submit()
        (await desk.lease(0)).say(SUCCEEDED)
        assert await ended(other) == SUCCEEDED


async def test_a_lease_that_cannot_be_given_back_is_told_and_its_task_ends_all_the_same() -> None:
    async with Desk() as desk:
        error = KeyError("a bug")

        def broken(holder: object) -> None:
            raise error

        desk.engine.room.give_back = broken  # type: ignore[method-assign]
        run = desk.submit()
        desk.dispatcher.cancel(run)  # before its run has begun: only the dispatcher gives it back
        assert code_of(await ended(run)) is Code.CANCELLED
        assert desk.broken == [error]


async def test_nobody_waits_for_an_engine_that_cannot_come_up() -> None:
    async with Desk(FakeEngine(places=0)) as desk:
        waiting = desk.submit()
        desk.engine.down = Failure(code=Code.ENGINE_UNAVAILABLE, message="no CLI", retry_after_seconds=2)
        desk.engine.tell_room()
        assert (await ended(waiting)).failure is desk.engine.down
        late = desk.submit()
        assert late.task.state is State.FAILED
        assert late.expiry is None
        assert desk.dispatcher.idle


async def test_a_crash_before_a_word_was_told_is_tried_again_and_nobody_sees_it() -> None:
    async with Desk() as desk:
        run = desk.submit()
        (await desk.lease(0)).say(failed(Code.ENGINE_CRASHED))
        (await desk.lease(1)).say(text("Hello"), SUCCEEDED)
        events = await all_of(run)
    assert [event.type for event in events] == [TASK_STARTED, TASK_STARTED, MESSAGE_EVENT, TASK_SUCCEEDED]
    assert [event.data["attempt"] for event in events[:2]] == [1, 2]
    assert [event.seq for event in events] == sorted({event.seq for event in events})
    assert run.task.attempt == 2


async def test_what_failed_for_the_engines_own_reason_is_tried_again() -> None:
    async with Desk() as desk:
        run = desk.submit()
        outcome = failed(Code.UPSTREAM_INVALID_REQUEST)
        (await desk.lease(0)).say(Ended(outcome=outcome, again=True))
        (await desk.lease(1)).say(SUCCEEDED)
        assert await ended(run) == SUCCEEDED


async def test_a_task_that_crashes_its_engine_each_time_stops_after_max_attempts() -> None:
    async with Desk(max_attempts=3) as desk:
        run = desk.submit()
        for number in range(3):
            (await desk.lease(number)).say(failed(Code.ENGINE_CRASHED))
        assert code_of(await ended(run)) is Code.ENGINE_CRASHED
        assert (run.task.attempt, len(desk.engine.leases)) == (3, 3)
        assert desk.dispatcher.idle


async def test_a_crash_after_the_first_word_is_not_tried_again() -> None:
    async with Desk() as desk:
        run = desk.submit()
        (await desk.lease(0)).say(text("Hel"), failed(Code.ENGINE_CRASHED))
        assert code_of(await ended(run)) is Code.ENGINE_CRASHED
        assert len(desk.engine.leases) == 1


@pytest.mark.parametrize("code", [Code.UPSTREAM_OVERLOADED, Code.STALLED, Code.INTERNAL])
async def test_another_failure_than_a_crash_is_not_tried_again(code: Code) -> None:
    async with Desk() as desk:
        run = desk.submit()
        (await desk.lease(0)).say(failed(code))
        assert code_of(await ended(run)) is code
        assert len(desk.engine.leases) == 1


async def test_who_is_tried_again_keeps_its_age() -> None:
    async with Desk() as desk:
        run, waiting = desk.submit("first"), desk.submit("waiting")
        (await desk.lease(0)).say(failed(Code.ENGINE_CRASHED))
        (await desk.lease(1)).say(SUCCEEDED)
        await ended(run)
        (await desk.lease(2)).say(SUCCEEDED)
        await ended(waiting)
        assert desk.engine.served == ["first", "first", "waiting"]


async def test_who_is_to_be_tried_again_can_be_cancelled_and_expires() -> None:
    async with Desk(wait_timeout_s=0.01) as desk:
        run = desk.submit("cancelled")
        lease = await desk.lease(0)
        desk.engine.places = 0
        lease.say(failed(Code.ENGINE_CRASHED))
        async with asyncio.timeout(PATIENCE_S):
            while run.task.state is not State.QUEUED:
                await asyncio.sleep(0)
        assert code_of(await ended(run)) is Code.QUEUE_TIMEOUT
        desk.engine.places = 1
        desk.engine.tell_room()
        await asyncio.sleep(0)
        assert len(desk.engine.leases) == 1


async def test_the_first_delta_is_timed() -> None:
    async with Desk() as desk:
        run = desk.submit()
        lease = await desk.lease(0)
        desk.clock.now += 2
        lease.say(text("a"))
        lease.say(SUCCEEDED)
        await ended(run)
        assert run.first_delta_at == run.queued_at + 2


async def test_a_reader_that_takes_nothing_stops_the_engine_from_being_read() -> None:
    async with Desk() as desk:
        run = desk.submit()
        lease = await desk.lease(0)
        big = Emission(MESSAGE_EVENT, {}, b"x" * (9 * 1024 * 1024))
        lease.say(big)
        lease.say(text("more"))
        lease.say(SUCCEEDED)
        await asyncio.sleep(0.01)
        assert lease._said.qsize() == 2
        assert [event.type for event in await all_of(run)] == [
            TASK_STARTED, MESSAGE_EVENT, MESSAGE_EVENT, TASK_SUCCEEDED
        ]  # fmt: skip


async def test_an_outcome_keeps_its_usage_and_is_told() -> None:
    async with Desk() as desk:
        run = desk.submit()
        (await desk.lease(0)).say(Outcome(state=State.SUCCEEDED, usage=Usage(output_tokens=7), stop_reason="end_turn"))
        last = (await all_of(run))[-1]
        assert last.data["stop_reason"] == "end_turn"
        assert last.data["usage"]["output_tokens"] == 7


async def test_a_failure_is_told_with_its_code() -> None:
    async with Desk() as desk:
        run = desk.submit()
        (await desk.lease(0)).say(failed(Code.STALLED))
        last = (await all_of(run))[-1]
        assert (last.type, last.data["error"]) == (TASK_FAILED, {"code": "stalled", "message": "it is stalled"})


# with a schema


async def test_a_schema_holds_back_the_end_until_the_answer_is_judged() -> None:
    async with Desk() as desk:
        run = desk.submit(output_schema=SCHEMA)
        (await desk.lease(0)).say(text("{"), text("}"), STOP, SUCCEEDED)
        events = await all_of(run)
    assert [event.data.get("type") for event in events[1:-1]] == [
        "content_block_delta", "content_block_delta", "message_stop"
    ]  # fmt: skip
    assert desk.schemas.judged == ["{}"]


async def test_an_answer_that_breaks_its_schema_fails_and_its_end_is_never_told() -> None:
    async with Desk() as desk:
        run = desk.submit(output_schema=SCHEMA)
        delta = Emission(MESSAGE_EVENT, {"type": "message_delta", "delta": {"stop_reason": "end_turn"}})
        (await desk.lease(0)).say(text("wrong"), delta, STOP, SUCCEEDED)
        events = await all_of(run)
    assert [event.data.get("type") for event in events[1:-1]] == ["content_block_delta"]
    assert run.task.outcome is not None and code_of(run.task.outcome) is Code.SCHEMA_MISMATCH


async def test_a_whole_message_is_judged_too_and_not_told_when_it_is_wrong() -> None:
    async with Desk() as desk:
        run = desk.submit(output_schema=SCHEMA, stream=False)
        message = Emission(MESSAGE, {"content": [{"type": "text", "text": "wrong"}, {"type": "thinking"}]})
        (await desk.lease(0)).say(message, SUCCEEDED)
        assert [event.type for event in await all_of(run)] == [TASK_STARTED, TASK_FAILED]


async def test_an_answer_that_was_cut_short_is_told_as_it_is() -> None:
    async with Desk() as desk:
        run = desk.submit(output_schema=SCHEMA)
        cut = Outcome(state=State.SUCCEEDED, stop_reason="max_tokens")
        (await desk.lease(0)).say(text("wrong"), STOP, cut)
        assert (await all_of(run))[-2].data == {"type": "message_stop"}
        assert desk.schemas.judged == []


async def test_a_failed_answer_is_not_judged_and_its_end_is_not_told() -> None:
    async with Desk() as desk:
        run = desk.submit(output_schema=SCHEMA)
        (await desk.lease(0)).say(text("{"), STOP, failed(Code.STALLED))
        assert [event.data.get("type") for event in (await all_of(run))[1:-1]] == ["content_block_delta"]
        assert desk.schemas.judged == []


async def test_a_crash_with_only_the_end_held_back_is_tried_again() -> None:
    async with Desk() as desk:
        run = desk.submit(output_schema=SCHEMA, stream=False)
        message = Emission(MESSAGE, {"content": [{"type": "text", "text": "{}"}]})
        (await desk.lease(0)).say(message, failed(Code.ENGINE_CRASHED))
        (await desk.lease(1)).say(message, SUCCEEDED)
        await ended(run)
        assert desk.schemas.judged == ["{}"]  # of one attempt, not of both
