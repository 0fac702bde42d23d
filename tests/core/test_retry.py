"""Backing off."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.core.retry import Backoff

BACKOFF = Backoff(first_seconds=0.5, limit_seconds=30.0)


@pytest.mark.parametrize(
    ("failures", "ceiling"), [(1, 0.5), (2, 1.0), (3, 2.0), (6, 16.0), (7, 30.0), (8, 30.0), (10**6, 30.0)]
)
def test_the_ceiling_doubles_up_to_the_limit(failures: int, ceiling: float) -> None:
    assert BACKOFF.delay(failures, 1.0) == ceiling
    assert BACKOFF.delay(failures, 0.0) == ceiling / 2


@given(st.integers(1, 10**9), st.floats(0, 1, exclude_max=True))
def test_a_delay_is_never_nothing_and_never_over_the_limit(failures: int, random: float) -> None:
    assert 0.25 <= BACKOFF.delay(failures, random) <= 30.0
