"""Identifiers."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.core.ids import new_id

FORM = re.compile(r"task_[0-9a-hjkmnp-tv-z]{26}")


def test_an_id_has_its_prefix_and_26_characters() -> None:
    made = new_id("task", milliseconds=1_700_000_000_000, randbytes=lambda size: b"\xff" * size)
    assert made == "task_01hf7yat00zzzzzzzzzzzzzzzz"


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_every_id_has_the_form_that_headers_and_paths_allow(milliseconds: int, random: bytes) -> None:
    assert FORM.fullmatch(new_id("task", milliseconds=milliseconds, randbytes=lambda size: random))


@given(st.integers(0, 2**48 - 2), st.integers(1, 2**20), st.binary(min_size=20, max_size=20))
def test_ids_sort_by_time(milliseconds: int, later: int, random: bytes) -> None:
    first = new_id("t", milliseconds=milliseconds, randbytes=lambda size: random[:10])
    second = new_id("t", milliseconds=min(milliseconds + later, 2**48 - 1), randbytes=lambda size: random[10:])
    assert first < second


def test_a_time_out_of_range_is_cut_to_its_48_bits_and_breaks_nothing() -> None:
    assert FORM.fullmatch(new_id("task", milliseconds=-1, randbytes=bytes))
    assert FORM.fullmatch(new_id("task", milliseconds=2**60, randbytes=bytes))
