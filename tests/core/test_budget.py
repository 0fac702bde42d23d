"""Budgets: what is left, and what an end is charged."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.core.budget import (
    ALL,
    KEPT_DAYS,
    Accounts,
    Budget,
    Cap,
    Charge,
    Owner,
    Purse,
    Reservation,
    Span,
    caps,
    charge,
    day_of,
    exhausted,
    first_day,
    owners,
    scarcest,
)
from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.price import Price
from claude_daemon.core.task import Lane, Outcome, State, Usage

PRICE = Price(input=1_000_000, output=1_000_000, cache_write=0, cache_read=0)
"""A token is a micro-USD."""
USED = Usage(input_tokens=30, output_tokens=12, model_calls=1)
KEY = Owner(Purse.KEY, "key_1")


def reservation(task_id: str, micro_usd: int, key_id: str = "key_1") -> Reservation:
    return Reservation(
        task_id=task_id, key_id=key_id, trust_domain="d", model="claude-x", lane=Lane.TEXT, micro_usd=micro_usd
    )


def cap(micro_usd: int, owner: Owner = ALL, span: Span = Span.DAY) -> Cap:
    return Cap(owner=owner, span=span, micro_usd=micro_usd)


def failed(code: Code, usage: Usage = USED) -> Outcome:
    return Outcome(state=State.FAILED, usage=usage, failure=Failure(code=code, message="no"))


def succeeded(usage: Usage) -> Outcome:
    return Outcome(state=State.SUCCEEDED, usage=usage)


def test_a_day_begins_at_midnight_where_the_budget_is() -> None:
    midnight = datetime(2026, 11, 27, 0, 30, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()
    assert day_of(midnight, ZoneInfo("Europe/Berlin")) == "2026-11-27"
    assert day_of(midnight, UTC) == "2026-11-26"


def test_a_day_of_23_and_one_of_25_hours_are_one_day_each() -> None:
    """The clocks change in spring and in autumn: the dates follow one another, none twice."""
    zone = ZoneInfo("Europe/Berlin")
    for month in (3, 10):
        start = datetime(2026, month, 20, tzinfo=zone).timestamp()
        days = [day_of(start + 1800 * n, zone) for n in range(48 * 12)]
        assert days == sorted(days)
        assert len(set(days)) in (12, 13)


def test_a_task_is_paid_out_of_three_purses() -> None:
    accounts = Accounts()
    accounts.hold(reservation("task_1", 7))
    assert [accounts.of(owner).reserved for owner in owners("key_1", "d")] == [7, 7, 7]
    assert accounts.of(Owner(Purse.KEY, "key_2")).reserved == 0
    accounts.resize("task_1", 9)
    assert accounts.of(ALL).reserved == 9
    accounts.release("task_1")
    accounts.release("task_1")
    assert [accounts.of(owner).reserved for owner in owners("key_1", "d")] == [0, 0, 0]


def test_what_is_left_is_what_is_neither_spent_nor_set_aside() -> None:
    accounts = Accounts()
    accounts.of(ALL).charge("2026-11-27", 40)
    accounts.hold(reservation("task_1", 25))
    assert scarcest(accounts.bounds([cap(100)]), "2026-11-27") == (cap(100), 35)
    assert scarcest(accounts.bounds([cap(100)]), "2026-11-28") == (cap(100), 75)
    assert scarcest(accounts.bounds([cap(50)]), "2026-11-27") == (cap(50), -15)


def test_the_month_counts_its_days_and_no_others() -> None:
    accounts = Accounts()
    for day in ("2026-10-31", "2026-11-01", "2026-11-26"):
        accounts.of(ALL).charge(day, 1)
    assert accounts.of(ALL).spent(first_day(Span.MONTH, "2026-11-26")) == 2
    assert accounts.of(ALL).spent(first_day(Span.DAY, "2026-11-26")) == 1
    assert accounts.of(ALL).spent(first_day(Span.MONTH, "2026-12-01")) == 0


@given(
    spent=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), max_size=20),
    now=st.integers(0, 60),
    back=st.integers(0, 60),
)
def test_a_clock_that_steps_back_reopens_nothing(spent: list[tuple[int, int]], now: int, back: int) -> None:
    accounts = Accounts()
    days = [day_of(86_400.0 * n, UTC) for n in range(61)]
    for n, micro_usd in spent:
        accounts.of(ALL).charge(days[n], micro_usd)
    account = accounts.of(ALL)
    for span in Span:
        earlier, later = first_day(span, days[max(0, now - back)]), first_day(span, days[now])
        assert account.spent(earlier) >= account.spent(later)


def test_the_scarcest_limit_decides() -> None:
    accounts = Accounts()
    accounts.of(KEY).charge("2026-11-01", 90)
    bounds = (cap(50), cap(100, KEY, Span.MONTH))
    assert scarcest(accounts.bounds(bounds), "2026-11-27") == (bounds[1], 10)
    assert scarcest((), "2026-11-27") is None


def test_a_purse_keeps_two_months() -> None:
    accounts = Accounts()
    for n in range(100):
        accounts.of(ALL).charge(day_of(86_400.0 * n, UTC), 1)
    assert accounts.of(ALL).spent(first_day(Span.DAY, "1970-01-01")) == KEPT_DAYS


def test_limits_that_are_none_are_no_caps() -> None:
    assert caps([(ALL, Budget()), (KEY, Budget(day_micro_usd=0, month_micro_usd=5))]) == (
        cap(0, KEY),
        cap(5, KEY, Span.MONTH),
    )


@pytest.mark.parametrize(("purse", "words"), [(ALL, "this service"), (KEY, "this key")])
def test_a_limit_tells_whose_it_is_and_no_sum(purse: Owner, words: str) -> None:
    failure = exhausted(cap(12345, purse))
    assert failure.code is Code.BUDGET_EXHAUSTED
    assert words in failure.message
    assert "12345" not in failure.message


# what an end is charged


def test_what_is_metered_is_charged_at_its_price_whatever_was_set_aside() -> None:
    assert charge(succeeded(USED), PRICE, reserved=5, told=True) == Charge(cost_micro_usd=42, micro_usd=42)


@pytest.mark.parametrize("outcome", [succeeded(USED), failed(Code.MAX_TURNS)])
def test_without_a_price_the_reservation_is_charged(outcome: Outcome) -> None:
    found = charge(outcome, None, reserved=5, told=True)
    assert (found.cost_micro_usd, found.micro_usd) == (None, 5)
    assert found.doubt is not None and "price" in found.doubt


def test_without_usage_the_reservation_is_charged() -> None:
    found = charge(succeeded(Usage(model_calls=1)), PRICE, reserved=5, told=False)
    assert (found.cost_micro_usd, found.micro_usd) == (0, 5)
    assert found.doubt is not None and "no usage" in found.doubt


@pytest.mark.parametrize(("output_tokens", "micro_usd"), [(0, 5), (12, 12)])
def test_of_doubtful_usage_the_more_is_charged(output_tokens: int, micro_usd: int) -> None:
    usage = Usage(output_tokens=output_tokens, model_calls=1, doubtful=1)
    found = charge(succeeded(usage), PRICE, reserved=5, told=True)
    assert found.micro_usd == micro_usd
    assert found.doubt is not None


@pytest.mark.parametrize(
    ("outcome", "told", "micro_usd"),
    [
        (failed(Code.UPSTREAM_OVERLOADED, Usage(model_calls=3)), False, 0),
        (failed(Code.UPSTREAM_RATE_LIMITED, Usage(model_calls=1)), False, 0),
        (failed(Code.QUEUE_TIMEOUT, Usage()), False, 0),
        (failed(Code.UPSTREAM_CUT, Usage(model_calls=1)), False, 5),
        (failed(Code.STALLED, Usage(model_calls=1)), False, 5),
        (failed(Code.INTERRUPTED, Usage(model_calls=1)), False, 5),
        (failed(Code.UPSTREAM_OVERLOADED, Usage(model_calls=1)), True, 5),
    ],
)
def test_what_must_have_used_something_is_charged_and_what_the_upstream_refused_is_not(
    outcome: Outcome, told: bool, micro_usd: int
) -> None:
    assert charge(outcome, PRICE, reserved=5, told=told).micro_usd == micro_usd
