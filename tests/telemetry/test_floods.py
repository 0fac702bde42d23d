"""Floods: a burst is told, then one in so many, and how many were not; no line of anything else is lost by it."""

from __future__ import annotations

import logging
from collections import Counter

from structlog.contextvars import bound_contextvars

from claude_daemon.telemetry import floods
from claude_daemon.telemetry.floods import BURST, MAX_NAMES, ONE_IN, SEVERE_BURST, WINDOW_S, Flood, Floods
from tests.telemetry.conftest import Start, log


def taken(counts: Floods, name: str, level: str, lines: int, now: float) -> int:
    return sum(counts.take(name, level, now) for _ in range(lines))


def test_a_burst_is_told_whole_and_of_what_is_beyond_one_in_so_many() -> None:
    counts = Floods()
    assert taken(counts, "http.access", "info", BURST, 0.0) == BURST
    assert counts.dropped == 0
    assert taken(counts, "http.access", "info", 10 * ONE_IN, 1.0) == 10
    assert counts.dropped == 10 * (ONE_IN - 1)


def test_what_was_left_out_is_told_once_when_its_window_is_over() -> None:
    counts = Floods()
    taken(counts, "a", "info", BURST + 50, 0.0)
    assert not counts.due(WINDOW_S - 0.1)
    assert counts.due(WINDOW_S)
    assert list(counts.told(WINDOW_S)) == [Flood("a", 50)]
    assert not counts.due(1e9)
    assert list(counts.told(1e9)) == []


def test_a_flood_that_goes_on_is_told_of_each_window() -> None:
    counts = Floods()
    taken(counts, "a", "info", BURST + 50, 0.0)
    assert taken(counts, "a", "info", BURST, WINDOW_S) == BURST
    assert list(counts.told(WINDOW_S)) == [Flood("a", 50)]
    taken(counts, "a", "info", 7, WINDOW_S + 1)
    assert list(counts.all_told()) == [Flood("a", 7)]


def test_warnings_and_errors_have_a_smaller_burst_and_what_is_critical_has_none() -> None:
    counts = Floods()
    assert taken(counts, "w", "warning", SEVERE_BURST + ONE_IN, 0.0) == SEVERE_BURST + 1
    assert taken(counts, "e", "error", SEVERE_BURST + ONE_IN, 0.0) == SEVERE_BURST + 1
    assert taken(counts, "c", "critical", 2 * BURST, 0.0) == 2 * BURST


def test_names_without_end_cost_no_memory_without_end() -> None:
    counts = Floods()
    taken(counts, "first", "info", BURST + 5, 0.0)
    for number in range(2 * MAX_NAMES):
        assert counts.take(f"name {number}", "info", 0.0)
    assert len(counts._windows) <= MAX_NAMES
    assert list(counts.told(0.0)) == [Flood("first", 5)]


def test_one_events_flood_takes_no_line_of_another_and_is_told_in_nobodys_name(start: Start) -> None:
    logs = start()
    with bound_contextvars(request_id="r1"):
        for number in range(BURST + 2 * ONE_IN):
            log.info("http.access", number=number)
        log.info("task.settled")
        logs.monotonic.append(WINDOW_S)
        log.info("http.access", number=-1)
    events = Counter(line["event"] for line in logs.lines())
    assert events == {"http.access": BURST + 2 + 1, "task.settled": 1, "log.sampled": 1}
    (told,) = [line for line in logs.lines() if line["event"] == "log.sampled"]
    assert (told["of"], told["dropped"], told["within_seconds"]) == ("http.access", 2 * ONE_IN - 2, WINDOW_S)
    assert "request_id" not in told
    assert logs.handle.sampled == 2 * ONE_IN - 2
    assert logs.handle.lost == 0


def test_a_flood_before_silence_is_told_by_the_watch_and_one_before_the_end_by_that(start: Start) -> None:
    logs = start()
    for _ in range(BURST + 9):
        log.info("a")
    logs.handle.look(WINDOW_S - 1)
    assert logs.lines()[-1]["event"] == "a"
    logs.handle.look(WINDOW_S)
    assert (logs.lines()[-1]["event"], logs.lines()[-1]["dropped"]) == ("log.sampled", 9)
    for _ in range(BURST + 9):
        log.info("b")
    logs.handle.close()
    assert (logs.lines()[-1]["of"], logs.lines()[-1]["dropped"]) == ("b", 9)


def test_what_a_library_says_is_counted_by_its_logger(start: Start) -> None:
    logs = start(level="info")
    for number in range(SEVERE_BURST + 1):
        logging.getLogger("noisy").error("%d", number)
    logging.getLogger("quiet").error("heard")
    assert logs.lines()[-1]["message"] == "heard"
    assert logs.handle.sampled == 1
    logs.handle.close()
    assert logs.lines()[-1]["of"] == "library.log noisy"


def test_the_bounds_are_such_that_a_busy_daemon_is_told_whole() -> None:
    """DESIGN's numbers: 300 chats a second over the direct lane, each a line of every kind."""
    assert floods.BURST / floods.WINDOW_S >= 300
