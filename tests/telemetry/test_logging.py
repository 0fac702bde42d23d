"""Logs: form, masking, forging, levels, rotation, losses; on real files and descriptors."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import stat
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from structlog.contextvars import bound_contextvars

from claude_daemon.config import Log, Secret
from claude_daemon.telemetry import logging as telemetry
from claude_daemon.telemetry.logging import LogHandle, configure, get_logger

log = get_logger("claude_daemon.tests")
"""Made at import, before anything is configured, as all modules do."""

NOON = 1_700_000_000.1239


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    handle: LogHandle
    stream: io.StringIO
    path: Path

    def text(self) -> str:
        return self.stream.getvalue()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


Start = Callable[..., Logs]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    handles: list[LogHandle] = []

    def started(*, secrets: tuple[Secret, ...] = (), **settings: Any) -> Logs:
        stream, path = io.StringIO(), tmp_path / "daemon.log"
        handles.append(configure(Log(**settings), stream=stream, path=path, secrets=secrets, clock=lambda: NOON))
        return Logs(handle=handles[-1], stream=stream, path=path)

    yield started
    for handle in handles:
        handle.close()


def test_an_event_is_one_json_object_on_one_line_in_stream_and_file(start: Start) -> None:
    logs = start()
    log.info("worker.started", pid=7, path=Path("/x"), ratio=0.5, ok=True, nothing=None, tags=("a", "b"))
    assert logs.text() == (
        '{"ts":"2023-11-14T22:13:20.123Z","level":"info","event":"worker.started",'
        '"logger":"claude_daemon.tests","pid":7,"path":"/x","ratio":0.5,"ok":true,"nothing":null,'
        '"tags":["a","b"]}\n'
    )
    assert logs.path.read_text() == logs.text()
    assert logs.handle.lost == 0


def test_what_the_context_has_bound_stands_on_every_line_and_fields_win_over_it(start: Start) -> None:
    logs = start()
    with bound_contextvars(request_id="r1", lane="text"):
        log.info("a", lane="direct")
        logging.getLogger("aiohttp").warning("b")
    log.bind(worker_id="w").info("c")
    first, second, third = logs.lines()
    assert (first["request_id"], first["lane"]) == ("r1", "direct")
    assert (second["request_id"], second["lane"]) == ("r1", "text")
    assert third["worker_id"] == "w"
    assert "request_id" not in third


def test_fields_cannot_replace_the_head_of_a_line(start: Start) -> None:
    logs = start()
    with bound_contextvars(level="x"):
        log.info("real", **{"event": "forged", "ts": 1, "level": "critical", "logger": "other"})
    (line,) = logs.lines()
    assert (line["event"], line["level"], line["logger"]) == ("real", "info", "claude_daemon.tests")
    assert (line["event_"], line["ts_"], line["level_"], line["logger_"]) == (
        "forged",
        1,
        "critical",
        "other",
    )


def test_the_standard_library_and_warnings_go_the_same_way(start: Start) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs = start()
        logging.getLogger("asyncio").error("slow %s", "callback")
        warnings.warn("careful", stacklevel=1)
        logs.handle.close()
    slow, careful = logs.lines()
    assert (slow["logger"], slow["level"], slow["event"]) == ("asyncio", "error", "slow callback")
    assert careful["logger"] == "py.warnings"
    assert "UserWarning: careful" in careful["event"]


def test_a_record_whose_arguments_do_not_fit_is_told_without_them(start: Start) -> None:
    logs = start()
    (bridge,) = (handler for handler in logging.root.handlers if isinstance(handler, telemetry.Bridge))
    bridge.handle(logging.LogRecord("x", logging.ERROR, "f.py", 1, "wrong %d", ("y",), None))
    assert logs.lines()[0]["event"] == "wrong %d"


def test_exceptions_are_fields_with_their_causes_and_groups(start: Start) -> None:
    logs = start()
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ExceptionGroup("both", [ValueError("one"), OSError(2, "two")]) from error
    except ExceptionGroup:
        log.exception("turn.failed", task_id="t")
    (line,) = logs.lines()
    assert (line["level"], line["task_id"]) == ("error", "t")
    exception = line["exception"]
    assert (exception["type"], exception["message"]) == ("ExceptionGroup", "both (2 sub-exceptions)")
    (frame,) = exception["stack"]
    assert re.fullmatch(r".*/test_logging\.py:\d+ in test_exceptions_are_.*", frame)
    assert exception["cause"]["type"] == "KeyError"
    assert [inner["message"] for inner in exception["exceptions"]] == ["one", "[Errno 2] two"]


def test_an_exception_may_be_given_as_itself_or_as_the_tuple_of_the_standard_library(start: Start) -> None:
    logs = start()
    error = ValueError("x")
    log.warning("a", exc_info=error)
    log.warning("b", exc_info=None)
    log.warning("c", exc_info=True)
    logging.getLogger("x").error("d", exc_info=(ValueError, error, None))
    a, b, c, d = logs.lines()
    assert a["exception"] == d["exception"] == {"type": "ValueError", "message": "x", "stack": []}
    assert "exception" not in b
    assert "exception" not in c


# Secrets


SECRET_NAMES = ["authorization", "Authorization", "x-api-key", "api_key", "apikey", "token", "secret", "key"]
SECRET_NAMES += ["password", "auth_token", "webhook_secret", "Set-Cookie"]


@pytest.mark.parametrize("name", SECRET_NAMES)
def test_fields_named_for_secrets_are_masked_at_every_depth(start: Start, name: str) -> None:
    logs = start()
    log.info("a", **{name: "hunter22"}, deep=[{"headers": {name: ["hunter22"]}}])
    assert "hunter22" not in logs.text()
    assert logs.lines()[0][name] == "***"


@pytest.mark.parametrize("name", ["key_id", "max_tokens", "input_tokens", "tokens", "monkey", "keys", "secrets_count"])
def test_fields_that_only_sound_like_secrets_are_shown(start: Start, name: str) -> None:
    logs = start()
    log.info("a", **{name: "shown"})
    assert logs.lines()[0][name] == "shown"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("key sk-ant-api03-AbC_9 used", "key sk-*** used"),
        ("cd_0123456789abcdef", "cd_***"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("bearer x", "bearer ***"),
        ("redis://user:pw@host:6379/0", "redis://***@host:6379/0"),
        ("http://host:80/a@b", "http://host:80/a@b"),
        ("task-12345678 disk-usage abcd_12345678", "task-12345678 disk-usage abcd_12345678"),
        ("the known s3cret-value, here", "the known ***, here"),
        ("a short pin 1234", "a short pin 1234"),
    ],
)
def test_what_looks_like_a_secret_or_is_known_as_one_is_masked_everywhere(start: Start, text: str, masked: str) -> None:
    logs = start(secrets=(Secret("s3cret-value"), Secret("1234")))
    log.info(text, value=text, exc_info=ValueError(text), items=[text], table={text: 1}, other=Exception(text))
    logging.getLogger("x").warning(text)
    first, second = logs.lines()
    assert first["event"] == first["value"] == first["exception"]["message"] == first["other"] == masked
    assert (first["items"], first["table"], second["event"]) == ([masked], {masked: 1}, masked)


def test_a_secret_object_is_masked_by_itself(start: Start) -> None:
    logs = start()
    log.info("a", value=Secret("hunter22"))
    assert logs.lines()[0]["value"] == "***"


# Forging

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
    assert not telemetry._UNPRINTABLE.search(text)
    assert logs.handle.lost == 0
    assert logs.path.read_bytes().decode() == logs.text()


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
        r"2023-11-14T22:13:20\.123Z \[info +\] worker\.started +\[claude_daemon\.tests\] pid=7 name='a b=c'",
        first,
    )
    assert "turn.failed" in second
    assert exception[0] == r"    | ValueError: odd\nmessage"
    assert exception[1].startswith("    |   ")
    assert "\x1b" not in logs.text()


def test_console_lines_have_colours_on_a_terminal_and_none_in_the_file(tmp_path: Path) -> None:
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as terminal:
        handle = configure(Log(format="console"), stream=terminal, path=tmp_path / "a.log")
        log.info("hello", text="\x1b[31m")
        handle.close()
        assert b"\x1b[" in os.read(leader, 1000)
    os.close(leader)
    assert "hello" in (tmp_path / "a.log").read_text()
    assert "\x1b" not in (tmp_path / "a.log").read_text()


# Bounds


def test_long_texts_lists_and_deep_tables_are_cut(start: Start) -> None:
    logs = start()
    cycle: dict[str, Any] = {}
    cycle["again"] = cycle
    log.info("a", text="x" * 10_000, items=list(range(1000)), cycle=cycle, huge=10**400, nan=float("nan"))
    (line,) = logs.lines()
    assert line["text"].endswith("x… (10000 characters)")
    assert len(line["text"]) < telemetry.MAX_TEXT_CHARS + 100
    assert len(line["items"]) == telemetry.MAX_ITEMS
    assert len(line["huge"]) <= telemetry.MAX_ITEMS
    assert line["nan"] == "nan"


def test_of_a_line_that_is_too_long_the_head_remains(start: Start) -> None:
    logs = start()
    log.info("a", **{f"field_{number}": "x" * 8000 for number in range(20)})
    (line,) = logs.lines()
    assert set(line) == {"ts", "level", "event", "logger", "cut_bytes"}
    assert line["cut_bytes"] > telemetry.MAX_LINE_BYTES


# Levels


def test_levels_are_by_module_and_cover_its_children(start: Start) -> None:
    logs = start(level="warning", levels={"claude_daemon.engine": "debug", "aiohttp": "critical"})
    get_logger("claude_daemon.engine.pool").debug("shown")
    get_logger("claude_daemon.api").info("hidden")
    logging.getLogger("aiohttp.server").error("hidden")
    get_logger("claude_daemon.api").warning("shown")
    assert [line["event"] for line in logs.lines()] == ["shown", "shown"]


def test_levels_change_at_run_time_and_a_reload_forgets_what_was_set_by_hand(start: Start) -> None:
    logs = start()
    log.debug("hidden")
    logs.handle.set_level("debug", "claude_daemon")
    log.debug("one")
    assert logs.handle.levels == {"": "info", "claude_daemon": "debug"}
    logs.handle.set_level(None, "claude_daemon")
    log.debug("hidden")
    logs.handle.set_level("debug", "claude_daemon")
    logs.handle.apply(Log(level="error"), secrets=(Secret("new-s3cret"),))
    log.warning("hidden")
    log.critical("two new-s3cret")
    assert [line["event"] for line in logs.lines()] == ["one", "two ***"]
    assert logs.handle.levels == {"": "error"}


def test_a_name_that_is_no_level_changes_nothing(start: Start) -> None:
    logs = start()
    with pytest.raises(ValueError, match="no such level"):
        logs.handle.set_level("loud")  # type: ignore[arg-type]
    assert logs.handle.levels == {"": "info"}


# The file


def test_the_file_is_the_owners_alone_even_where_it_was_not(start: Start, tmp_path: Path) -> None:
    (tmp_path / "daemon.log").touch(mode=0o644)
    (tmp_path / "daemon.log").chmod(0o644)
    logs = start()
    assert stat.S_IMODE(logs.path.stat().st_mode) == 0o600


def test_after_a_rotation_the_new_file_is_written_to(start: Start) -> None:
    logs = start()
    log.info("one")
    old = logs.path.rename(logs.path.with_suffix(".1"))
    log.info("two")
    assert logs.handle.reopen()
    log.info("three")
    assert [json.loads(line)["event"] for line in old.read_text().splitlines()] == ["one", "two"]
    assert json.loads(logs.path.read_text())["event"] == "three"
    assert stat.S_IMODE(logs.path.stat().st_mode) == 0o600


def test_where_reopening_fails_the_old_file_goes_on_and_the_log_says_so(start: Start) -> None:
    logs = start()
    old = logs.path.rename(logs.path.with_suffix(".1"))
    logs.path.mkdir()
    assert not logs.handle.reopen()
    log.info("after")
    events = [json.loads(line)["event"] for line in old.read_text().splitlines()]
    assert events == ["log.reopen_failed", "after"]


def test_a_hundred_reopenings_leak_no_descriptor(start: Start) -> None:
    logs = start()
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(100):
        logs.handle.reopen()
    assert len(list(Path("/dev/fd").iterdir())) == before


def test_a_file_that_cannot_be_opened_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        configure(Log(), stream=io.StringIO(), path=tmp_path / "missing" / "daemon.log")


# Losses


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_raises_nothing_and_lines_are_counted() -> None:
    stream = io.StringIO()
    handle = configure(Log(), stream=stream, path=Path("/dev/full"))
    for number in range(3):
        log.info("a", number=number)
    assert handle.lost == 3
    assert len(stream.getvalue().splitlines()) == 3
    handle.close()


def test_a_stream_that_is_closed_or_broken_raises_nothing(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as pipe:
        handle = configure(Log(), stream=pipe, path=tmp_path / "a.log")
        os.close(reader)
        log.info("a")
        assert handle.lost == 1
        handle.close()
    stream = io.StringIO()
    handle = configure(Log(), stream=stream, path=tmp_path / "a.log")
    stream.close()
    log.info("b")
    assert handle.lost == 1
    assert len((tmp_path / "a.log").read_text().splitlines()) == 2
    handle.close()


def test_a_line_torn_by_a_full_disk_does_not_swallow_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.log"
    sink = telemetry.Sink(telemetry.open_log(path))
    write, room = os.write, [3, 0]

    def scarce(fd: int, data: bytes) -> int:
        size = room.pop(0) if room else len(data)
        if not size:
            raise OSError(errno.ENOSPC, "full")
        return write(fd, data[:size])

    monkeypatch.setattr(os, "write", scarce)
    sink.write(b"first")
    sink.write(b"second")
    assert (path.read_bytes(), sink.lost) == (b"fir\nsecond\n", 1)
    sink.close()
    sink.write(b"third")
    assert sink.lost == 2


def test_a_value_that_cannot_be_shown_costs_neither_the_line_nor_the_caller(start: Start) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    class Sly(dict[str, int]):
        def items(self) -> Any:
            raise RuntimeError("no")

    logs = start()
    log.info("a", value=Odd(), exc_info=Odd())
    log.info("b", value=Sly())
    (line,) = logs.lines()
    assert (line["value"], line["exception"]["message"]) == ("<unprintable Odd>", "<unprintable Odd>")
    assert logs.handle.lost == 1


def test_lines_of_many_threads_are_never_mixed(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    handle = configure(Log(), stream=io.StringIO(), path=path)

    def chatter() -> None:
        for _ in range(200):
            log.info("a", text="x" * 500)

    threads = [threading.Thread(target=chatter) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.close()
    lines = path.read_text().splitlines()
    assert len(lines) == 1600
    assert all(len(json.loads(line)["text"]) == 500 for line in lines)


# Life


def test_before_and_after_events_go_nowhere(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    log.critical("before")
    logs = start()
    logs.handle.close()
    logs.handle.close()
    log.critical("after")
    assert logs.text() == logs.path.read_text() == ""
    assert capfd.readouterr() == ("", "")


def test_a_second_configuration_replaces_the_first(start: Start) -> None:
    first = start(levels={"claude_daemon": "debug"})
    second = start()
    log.debug("hidden")
    logging.getLogger("x").warning("once")
    first.handle.close()
    log.info("still")
    assert first.text() == ""
    assert [line["event"] for line in second.lines()] == ["once", "still"]


def test_closing_gives_the_standard_library_back(start: Start) -> None:
    before = (list(logging.root.handlers), logging.root.level, warnings.showwarning)
    logs = start(level="debug", levels={"aiohttp": "error"})
    logs.handle.close()
    assert (list(logging.root.handlers), logging.root.level, warnings.showwarning) == before
    assert logging.getLogger("aiohttp").level == logging.NOTSET


def test_tests_can_capture_events(start: Start) -> None:
    start()
    with structlog.testing.capture_logs() as events:
        log.info("seen", x=1)
    assert events == [{"event": "seen", "logger": "claude_daemon.tests", "x": 1, "log_level": "info"}]


def test_loggers_of_structlog_itself_go_the_same_way(start: Start) -> None:
    logs = start()
    structlog.get_logger("other").warning("a")
    assert logs.lines()[0]["logger"] == "other"


def test_the_real_stderr_is_written_to_directly(capfd: pytest.CaptureFixture[str]) -> None:
    with os.fdopen(os.dup(2), "w") as stderr:
        handle = configure(Log(), stream=stderr, path=None)
        log.info("a")
        handle.close()
    assert json.loads(capfd.readouterr().err)["event"] == "a"
    assert sys.stderr.writable()
