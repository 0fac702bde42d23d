"""Rate limits in force: of each key, and of all together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.limits import NO_RATES, Rates
from claude_daemon.core.task import State, Usage
from claude_daemon.service.limits import Limits, LimitSettings
from claude_daemon.store import SqliteStore
from tests.service.doubles import PATIENCE_S, SUCCEEDED, Clock, ended, spec
from tests.service.test_durable import ME, OTHER, WISH, Office


def limits(clock: Clock, per_key: Rates = NO_RATES, overall: Rates = NO_RATES, **fields: Any) -> Limits:
    return Limits(LimitSettings(per_key=per_key, overall=overall), monotonic=clock, **fields)


def refused(one: Limits, key_id: str, *, turn: bool = False) -> Failure | None:
    try:
        one.enter(key_id, turn=turn)
    except Refusal as refusal:
        assert refusal.failure.code is Code.RATE_LIMITED
        return refusal.failure
    return None


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_each_key_has_its_minute_and_is_told_when_to_come_back(clock: Clock) -> None:
    one = limits(clock, Rates(requests_per_minute=3))
    assert [refused(one, "a") for _ in range(3)] == [None] * 3
    failure = refused(one, "a")
    assert failure is not None and failure.retry_after_seconds == pytest.approx(20.0)
    assert refused(one, "b") is None
    clock.now += 19.9
    assert refused(one, "a") is not None
    clock.now += 0.2
    assert refused(one, "a") is None


def test_all_together_have_one_too_and_who_is_refused_has_used_nothing(clock: Clock) -> None:
    one = limits(clock, Rates(requests_per_minute=100), Rates(requests_per_minute=2))
    assert [refused(one, key) is None for key in ("a", "b", "c", "c")] == [True, True, False, False]
    clock.now += 60
    assert one.standing("c")["requests"].remaining == 2
    one.apply(LimitSettings(per_key=Rates(requests_per_minute=100)))
    assert one.standing("c")["requests"].remaining == 100


def test_tokens_are_counted_when_they_were_used_and_a_debt_is_waited_for(clock: Clock) -> None:
    one = limits(clock, Rates(tokens_per_minute=600))
    assert refused(one, "a") is None
    one.used(
        "a", Usage(input_tokens=500, output_tokens=300, cache_creation_input_tokens=100, cache_read_input_tokens=9999)
    )
    failure = refused(one, "a")
    assert failure is not None and failure.retry_after_seconds == pytest.approx(30.1)
    assert one.standing("a")["tokens"].remaining == 0
    clock.now += 30.2
    assert refused(one, "a") is None


def test_whichever_has_less_left_is_told(clock: Clock) -> None:
    one = limits(clock, Rates(requests_per_minute=5, tokens_per_minute=9), Rates(requests_per_minute=50))
    for _ in range(47):
        one.enter("others-" + str(_), turn=False)
    told = one.standing("a")
    assert (told["requests"].limit, told["requests"].remaining, told["tokens"].limit) == (50, 3, 9)


def test_without_limits_nothing_is_counted_told_or_kept(clock: Clock) -> None:
    one = limits(clock)
    for n in range(100):
        one.enter(f"key_{n}", turn=True)
        one.used(f"key_{n}", Usage(input_tokens=10**9))
    assert (one.standing("key_1"), one._buckets) == ({}, {})


def test_turns_at_once_are_bounded_by_key_and_in_all(clock: Clock) -> None:
    under_way = {"a": 1, "b": 2}
    one = limits(
        clock,
        Rates(concurrent=2),
        Rates(concurrent=4),
        turns=lambda key_id: sum(under_way.values()) if key_id is None else under_way.get(key_id, 0),
    )
    assert refused(one, "a", turn=True) is None
    assert refused(one, "b", turn=True) is not None
    assert refused(one, "b") is None, "a submission waits, and may be made"
    under_way["c"] = 1
    assert refused(one, "a", turn=True) is not None


# over the dispatcher


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore.open(tmp_path / "daemon.db")
    yield opened
    await opened.close()


async def test_tasks_of_a_key_wait_for_its_turns_and_hold_up_nobody_else(store: SqliteStore, clock: Clock) -> None:
    office = Office(store, clock, places=9, limits=limits(clock, Rates(concurrent=1)))
    async with office:
        mine = [await office.submit() for _ in range(2)]
        other, _ = await office.desk.submit(OTHER, WISH)
        await office.lease(1)
        assert [lease.spec.key_id for lease in office.engine.leases] == [ME.key.id, OTHER.key.id]
        with pytest.raises(Refusal) as told:
            office.admission.chat(spec(key_id=ME.key.id))
        assert told.value.failure.code is Code.RATE_LIMITED
        (await office.lease(0)).say(SUCCEEDED)
        assert (await office.finished(mine[0].id)).state is State.SUCCEEDED
        await office.lease(2)
        assert office.engine.leases[2].spec.key_id == ME.key.id
        office.engine.leases[1].say(SUCCEEDED)
        office.engine.leases[2].say(SUCCEEDED)
        await asyncio.gather(office.finished(mine[1].id), office.finished(other.id))


async def test_a_task_that_waits_for_turns_of_all_goes_on_when_a_chat_on_another_lane_ends(
    store: SqliteStore, clock: Clock
) -> None:
    office = Office(store, clock, places=9, limits=limits(clock, overall=Rates(concurrent=1)))
    async with office:
        chat = office.admission.chat(spec(key_id="somebody"))
        task = await office.submit(session=None)
        lease = await office.lease(0)
        async with asyncio.timeout(PATIENCE_S):
            while not office.dispatcher.waits(task.id):
                await asyncio.sleep(0)
        lease.say(SUCCEEDED)
        assert (await ended(chat.run)).state is State.SUCCEEDED
        (await office.lease(1)).say(replace(SUCCEEDED, usage=Usage(input_tokens=3, model_calls=1)))
        assert (await office.finished(task.id)).state is State.SUCCEEDED


async def test_what_a_task_has_used_counts_against_its_keys_minute(store: SqliteStore, clock: Clock) -> None:
    office = Office(store, clock, limits=limits(clock, Rates(tokens_per_minute=100)))
    async with office:
        task = await office.submit()
        (await office.lease(0)).say(replace(SUCCEEDED, usage=Usage(input_tokens=160, model_calls=1)))
        await office.finished(task.id)
        with pytest.raises(Refusal) as told:
            await office.submit()
        assert told.value.failure.retry_after_seconds == pytest.approx(36.6)
        clock.now += 37
        await office.submit()
