"""Token buckets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.core.limits import Bucket, refill


def at(bucket: Bucket, now: float) -> Bucket:
    refill([bucket], now)
    return bucket


def test_a_full_bucket_gives_all_it_has_and_then_tells_how_long_to_wait() -> None:
    bucket = Bucket.full(60, 0.0)
    for _ in range(60):
        assert bucket.wait(1) == 0
        bucket.level -= 1
    assert bucket.wait(1) == pytest.approx(1.0)
    assert at(bucket, 0.5).wait(1) == pytest.approx(0.5)
    assert at(bucket, 1.0).wait(1) == pytest.approx(0.0)


def test_it_is_never_fuller_than_full() -> None:
    bucket = at(Bucket.full(60, 0.0), 3600.0)
    bucket.level -= 1
    assert bucket.standing().remaining == 59


def test_a_debt_is_waited_for() -> None:
    bucket = Bucket.full(60, 0.0)
    bucket.level -= 90
    standing = bucket.standing()
    assert (standing.limit, standing.remaining, standing.reset_seconds) == (60, 0, 90.0)
    assert bucket.wait(1) == pytest.approx(31.0)


def test_another_limit_leaves_what_was_used_used() -> None:
    bucket = Bucket.full(60, 0.0)
    bucket.level -= 50
    bucket.resize(40)
    assert bucket.standing().remaining == 0
    bucket.resize(100)
    assert bucket.standing().remaining == 50


def test_a_clock_that_steps_back_refills_nothing() -> None:
    bucket = Bucket.full(60, 10.0)
    bucket.level -= 60
    assert at(bucket, 5.0).wait(1) == pytest.approx(1.0)
    assert at(bucket, 10.5).wait(1) == pytest.approx(0.5)


@given(most=st.integers(1, 1000), steps=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50)), max_size=40))
def test_in_any_time_no_more_is_given_than_a_full_bucket_and_what_has_come_since(
    most: int, steps: list[tuple[float, int]]
) -> None:
    bucket, now, given_out = Bucket.full(most, 0.0), 0.0, 0
    for elapsed, amount in steps:
        now += elapsed
        if at(bucket, now).wait(amount) == 0:
            bucket.level -= amount
            given_out += amount
    assert given_out <= most + now * most / 60 + 1e-6
