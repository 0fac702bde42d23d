"""W3C trace context: the spans of one request."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from claude_daemon.core.trace import Trace

GIVEN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def numbered() -> Callable[[int], bytes]:
    numbers = count(1)
    return lambda size: next(numbers).to_bytes(size, "big")


def test_a_span_begins_below_the_callers_and_keeps_its_flags() -> None:
    span = Trace.begin(GIVEN, numbered())
    assert span == Trace("4bf92f3577b34da6a3ce929d0e0e4736", f"{1:016x}", "00f067aa0ba902b7", "01")
    assert span.header == f"00-4bf92f3577b34da6a3ce929d0e0e4736-{1:016x}-01"
    assert span.fields == {
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "span_id": f"{1:016x}",
        "parent_span_id": "00f067aa0ba902b7",
    }


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        GIVEN.upper(),
        GIVEN[:-1],
        GIVEN + "\n",
        "ff" + GIVEN[2:],
        "00-" + "0" * 32 + GIVEN[35:],
        GIVEN[:36] + "0" * 16 + GIVEN[52:],
    ],
)
def test_a_trace_begins_here_where_none_was_told(given: str | None) -> None:
    span = Trace.begin(given, numbered())
    assert (span.trace_id, span.span_id, span.parent_id, span.flags) == (f"{1:032x}", f"{2:016x}", None, "00")
    assert "parent_span_id" not in span.fields


def test_a_span_below_another_is_read_back_from_its_header() -> None:
    above = Trace.begin(GIVEN, numbered())
    below = above.below(lambda size: b"\xab" * size)
    assert (below.trace_id, below.parent_id, below.span_id) == (above.trace_id, above.span_id, "ab" * 8)
    read = Trace.parse(below.header)
    assert read is not None and (read.trace_id, read.span_id, read.flags) == (below.trace_id, below.span_id, "01")


def test_no_id_is_all_zero_which_would_mean_none() -> None:
    made = [bytes(16), b"\x01" * 16, bytes(8), bytes(8), b"\x02" * 8]
    span = Trace.begin(None, lambda size: made.pop(0))
    assert (span.trace_id, span.span_id) == ("01" * 16, "02" * 8)
