"""Ages and dates as people write them."""

from __future__ import annotations

import doctest
import time
from collections.abc import Iterator

import pytest

from claudectl import moment

NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def east_of_greenwich(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A zone without summer time."""
    monkeypatch.setenv("TZ", "EAST-02")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_the_examples_in_the_docstrings_hold() -> None:
    assert doctest.testmod(moment).failed == 0


@pytest.mark.parametrize(
    ("age", "seconds"), [("0s", 0), ("90s", 90), ("5m", 300), ("5min", 300), ("12h", 43_200), ("30d", 2_592_000)]
)
def test_an_age_counts_back_from_now(age: str, seconds: int) -> None:
    assert moment.before(age, NOW) == NOW - seconds


def test_an_age_beyond_the_epoch_is_the_epoch() -> None:
    assert moment.before("999999999w", NOW) == 0


@pytest.mark.parametrize(
    ("date", "at"),
    [
        ("1970-01-02", 86_400 - 7200),
        ("1970-01-02T12:00", 86_400 + 43_200 - 7200),
        ("1970-01-02T00:00:00+01:00", 86_400 - 3600),
        ("1970-01-02 00:00Z", 86_400),
    ],
)
def test_a_date_without_a_zone_is_in_this_machines(date: str, at: float) -> None:
    assert moment.before(date, NOW) == at


def test_a_time_from_now_counts_forward_and_a_date_is_the_same_date() -> None:
    assert moment.after("30d", NOW) == NOW + 2_592_000
    assert moment.after("1970-01-02 00:00Z", NOW) == 86_400
    with pytest.raises(ValueError, match="neither a time"):
        moment.after("soon", NOW)


@pytest.mark.parametrize("text", ["", "soon", "30", "-1d", "1.5h", "1 d", "2026-13-01", "٣d", "0001-01-01T00:00+23:00"])
def test_what_is_neither_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="neither an age"):
        moment.before(text, NOW)


def test_a_moment_is_told_in_this_machines_time() -> None:
    assert moment.told(86_400.5) == "1970-01-02 02:00:00 EAST"


@pytest.mark.parametrize("junk", [None, "x", True, float("nan"), float("inf"), 1e300, -1e300, []])
def test_what_is_no_moment_is_told_as_none(junk: object) -> None:
    assert moment.told(junk) == "-"
