"""What runs, how it went lately, and those who are told of it."""

from __future__ import annotations

import doctest

import pytest

from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.event import MESSAGE_EVENT, TASK_SUCCEEDED
from claude_daemon.core.task import Outcome, State, Usage
from claude_daemon.service import activity
from claude_daemon.service.activity import LOST, MAX_READERS, MAX_UNREAD, RATE_S, RECENT_S, Activity, Happenings, Meter
from tests.service.doubles import SUCCEEDED, Clock, Desk, ended, failed, text


def test_the_examples_in_docstrings_hold() -> None:
    assert doctest.testmod(activity).failed == 0


# rates


def test_a_rate_is_that_of_the_last_whole_seconds() -> None:
    clock = Clock()
    meter = Meter(clock)
    meter.add(30)
    assert meter.per_second == 0  # the second that has just begun
    clock.now += 1
    meter.add(20)
    assert (meter.per_second, meter.total) == (30 / RATE_S, 50)
    clock.now += 1
    assert meter.per_second == 50 / RATE_S
    clock.now += RATE_S - 1
    assert meter.per_second == 20 / RATE_S
    clock.now += 1
    assert (meter.per_second, meter.total) == (0, 50)


def test_a_meter_that_slept_has_forgotten() -> None:
    clock = Clock()
    meter = Meter(clock)
    for _ in range(3 * RATE_S):
        meter.add(7)
        clock.now += 1
    assert meter.per_second == 7
    clock.now += 1000 * (RATE_S + 1)  # the same places again
    assert meter.per_second == 0


# what runs


async def test_what_runs_is_told_with_its_ages_and_what_ended_with_its_times() -> None:
    async with Desk() as desk:
        watched = Activity(lambda: desk.dispatcher.under_way, monotonic=desk.clock)
        run, waiting = desk.submit("first", key_id="alice"), desk.submit("second")
        lease = await desk.lease(0)
        desk.clock.now += 2
        lease.usage = Usage(input_tokens=5, cache_read_input_tokens=2, output_tokens=3, model_calls=1)
        lease.say(text("a"), text("b"))
        async for events in (following := run.follow()):
            if events[-1].type == MESSAGE_EVENT:
                break
        desk.clock.now += 1
        (told,) = watched.document()["tasks"]
        assert told | {"id": "", "model": ""} == {
            "id": "",
            "kind": "chat",
            "lane": "text",
            "model": "",
            "key_id": "alice",
            "session_id": None,
            "worker_id": "wrk_1",
            "start": "warm",
            "attempt": 1,
            "age_seconds": 3.0,
            "waited_seconds": 0.0,
            "first_delta_seconds": 2.0,
            "input_tokens": 7,
            "output_tokens": 3,
            "model_calls": 1,
        }
        lease.say(Outcome(state=State.SUCCEEDED, usage=Usage(output_tokens=9)))
        assert [events[-1].type async for events in following] == [TASK_SUCCEEDED]
        watched.settled(run)
        (await desk.lease(1)).say(failed(Code.UPSTREAM_ERROR))
        await ended(waiting)
        watched.settled(waiting)
        document = watched.document()
        assert (document["tasks"], document["more"]) == ([], 0)
        assert document["recent"] == {
            "seconds": RECENT_S,
            "ended": 2,
            "failed": 1,
            "cancelled": 0,
            "output_tokens": 9,
            "waited_seconds": {"p50": 0.0, "p95": 3.0, "max": 3.0},
            "first_delta_seconds": {"p50": 2.0, "p95": 2.0, "max": 2.0},
            "turn_seconds": {"p50": 0.0, "p95": 3.0, "max": 3.0},
        }
        desk.clock.now += RECENT_S + 1
        assert watched.document()["recent"] | {"seconds": 0} == {
            "seconds": 0,
            "ended": 0,
            "failed": 0,
            "cancelled": 0,
            "output_tokens": 0,
            "waited_seconds": None,
            "first_delta_seconds": None,
            "turn_seconds": None,
        }


async def test_only_so_many_tasks_are_told_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "MAX_TOLD", 1)
    async with Desk() as desk:
        run = desk.submit("only")
        await desk.lease(0)
        watched = Activity(lambda: [run, run, run], monotonic=desk.clock)
        document = watched.document()
        assert (len(document["tasks"]), document["more"]) == (1, 2)
        desk.engine.leases[0].say(SUCCEEDED)
        await ended(run)


# those who are told


def test_nothing_is_kept_for_those_who_come_later() -> None:
    happenings = Happenings(lambda: 5.0)
    happenings.tell("daemon.state", {"new": "ready"})
    with happenings.reader() as reader:
        assert reader.take() == []
        happenings.tell("daemon.state", {"new": "draining"})
        assert reader.unread == 1
        assert reader.take() == [{"type": "daemon.state", "at": 5.0, "data": {"new": "draining"}}]
        assert reader.take() == []


def test_a_reader_who_is_busy_loses_the_oldest_and_is_told_how_many() -> None:
    happenings = Happenings(lambda: 5.0)
    with happenings.reader() as slow, happenings.reader() as quick:
        for number in range(MAX_UNREAD + 3):
            happenings.tell("task.settled", {"n": number})
            quick.take()
        first, second, *rest = slow.take()
        assert first == {"type": LOST, "at": 5.0, "data": {"count": 3}}
        assert (second["data"], len(rest)) == ({"n": 3}, MAX_UNREAD - 1)
        happenings.tell("task.settled", {"n": -1})
        assert [line["data"] for line in slow.take()] == [{"n": -1}]


def test_there_are_only_so_many_readers_and_one_that_leaves_makes_room() -> None:
    happenings = Happenings(lambda: 0.0)
    readers = [happenings.reader() for _ in range(MAX_READERS)]
    for reader in readers:
        reader.__enter__()
    with pytest.raises(Refusal) as refused, happenings.reader():
        pass
    assert refused.value.failure.code is Code.OVERLOADED
    readers[0].__exit__(None, None, None)
    with happenings.reader():
        pass
    for reader in readers[1:]:
        reader.__exit__(None, None, None)


async def test_the_end_wakes_those_who_wait() -> None:
    happenings = Happenings(lambda: 0.0)
    with happenings.reader() as reader:
        happenings.close()
        assert await reader.stirred.wait(0.0) is False  # who looks first sees it closed
        assert happenings.closed
