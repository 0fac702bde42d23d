"""Rendering: one line an event, whatever it carries; JSON for machines, aligned for people."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.contextvars import bound_contextvars

from claude_daemon.config import Log
from claude_daemon.telemetry import rendering
from claude_daemon.telemetry.logging import configure
from tests.telemetry.conftest import Start, log

NASTY = 'x\n{"level":"critical"}\r\x1b[2J\x85\u2028\u2029\u202e\x00\x7f\ud800'


@pytest.mark.parametrize("format", ["json", "console"])
def test_no_value_can_begin_a_line_or_move_the_cursor(start: Start, format: str) -> None:
    logs = start(format=format)
    with bound_contextvars(request_id=NASTY):
        log.warning(NASTY, value=NASTY, **{NASTY: [NASTY, {NASTY: NASTY}]}, exc_info=ValueError(NASTY))
        logging.getLogger(NASTY).warning(NASTY)
    lines = logs.text().split("\n")
    assert all(line.startswith(("{", "2023-", "    | ")) for line in lines[:-1])
    assert sum(line.startswith(("{", "2023-")) for line in lines) == 2
    text = logs.text().replace("\n", "")
    assert not rendering._UNPRINTABLE.search(text)
    assert logs.handle.lost == 0
    written = logs.path.read_bytes().decode()
    assert not rendering._UNPRINTABLE.search(written.replace("\n", ""))
    assert [json.loads(line)["level"] for line in written.splitlines()] == ["warning", "warning"]


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.text(st.characters()),
    st.recursive(st.none() | st.integers() | st.floats() | st.text(st.characters()), st.lists),
)
def test_any_event_and_value_is_exactly_one_line_of_json(start: Start, event: str, value: Any) -> None:
    logs = start()
    log.info(event, value=value)
    (line,) = logs.lines()
    assert line["logger"] == "claude_daemon.tests"
    assert logs.handle.lost == 0


def test_console_lines_are_for_people_without_colours_where_there_is_no_terminal(start: Start) -> None:
    logs = start(format="console")
    log.info("worker.started", pid=7, name="a b=c")
    try:
        raise ValueError("odd\nmessage")
    except ValueError:
        log.exception("turn.failed")
    first, second, *exception = logs.text().splitlines()
    assert re.fullmatch(
        r"2023-11-14T22:13:20\.125000Z \[info +\] worker\.started +\[claude_daemon\.tests\] pid=7 name='a b=c'",
        first,
    )
    assert "turn.failed" in second
    assert exception[0] == r"    | ValueError: odd\nmessage"
    assert exception[1].startswith("    |   ")
    assert "\x1b" not in logs.text()


def test_an_exception_deep_down_is_told_in_lines_and_not_in_characters(start: Start) -> None:
    logs = start(format="console")
    try:
        try:
            raise ExceptionGroup("a", [ExceptionGroup("b", [ExceptionGroup("c", [ValueError("innermost")])])])
        except ExceptionGroup as group:
            raise RuntimeError("outermost") from group
    except RuntimeError:
        log.exception("turn.failed")
    lines = logs.text().splitlines()
    assert len(lines) < 30
    assert not any(len(line.strip("| ")) == 1 for line in lines)


def test_console_lines_have_colours_on_a_terminal_and_the_file_has_json(tmp_path: Path) -> None:
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as terminal:
        handle = configure(Log(format="console"), stream=terminal, path=tmp_path / "a.log")
        log.info("hello", text="\x1b[31m")
        handle.close()
        assert b"\x1b[" in os.read(leader, 1000)
    os.close(leader)
    (line,) = (tmp_path / "a.log").read_text().splitlines()
    assert json.loads(line)["text"] == "\x1b[31m"
    assert "\x1b" not in line
