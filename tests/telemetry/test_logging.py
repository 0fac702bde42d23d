"""Events: form, context, levels, the standard library; configuring and closing."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
import structlog
from structlog.contextvars import bound_contextvars

from claude_daemon.config import Log, Secret
from claude_daemon.telemetry import pipeline
from claude_daemon.telemetry.logging import configure, get_logger
from tests.telemetry.conftest import Start, log


def test_an_event_is_one_json_object_on_one_line_in_stream_and_file(start: Start) -> None:
    logs = start()
    log.info("worker.started", pid=7, path=Path("/x"), ratio=0.5, ok=True, nothing=None, tags=("a", "b"))
    assert logs.text() == (
        '{"ts":"2023-11-14T22:13:20.125000Z","level":"info","event":"worker.started",'
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
    assert slow["event"] == careful["event"] == "library.log"
    assert (slow["logger"], slow["level"], slow["message"]) == ("asyncio", "error", "slow callback")
    assert careful["logger"] == "py.warnings"
    assert "UserWarning: careful" in careful["message"]


def test_a_record_whose_arguments_do_not_fit_is_told_without_them(start: Start) -> None:
    logs = start()
    (bridge,) = (handler for handler in logging.root.handlers if isinstance(handler, pipeline.Bridge))
    bridge.handle(logging.LogRecord("x", logging.ERROR, "f.py", 1, "wrong %d", ("y",), None))
    assert logs.lines()[0]["message"] == "wrong %d"


def test_a_librarys_own_levels_become_the_nearest_of_ours_below(start: Start) -> None:
    logs = start(level="debug")
    for number in (5, 15, 25, 35, 45, 55):
        logging.getLogger("x").handle(logging.LogRecord("x", number, "f.py", 1, "a", (), None))
    assert [line["level"] for line in logs.lines()] == ["debug", "debug", "info", "warning", "error", "critical"]


def test_what_ends_a_thread_or_comes_from_a_finaliser_is_a_line_with_its_traceback(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    class Odd:
        def __del__(self) -> None:
            raise OSError("in a finaliser")

    def fail() -> None:
        raise ValueError("in a thread")

    logs = start()
    with bound_contextvars(request_id="r1"):
        thread = threading.Thread(target=fail, name="odd one")
        thread.start()
        thread.join()
        Odd()
        sys.excepthook(KeyError, KeyError("at the end"), None)
        sys.excepthook(SystemExit, SystemExit(0), None)
    first, second, third = logs.lines()
    assert first["event"] == second["event"] == third["event"] == "library.uncaught"
    assert (first["where"], first["exception"]["message"]) == ("odd one", "in a thread")
    assert (second["exception"]["message"], third["level"]) == ("in a finaliser", "critical")
    assert "request_id" not in second
    assert capfd.readouterr() == ("", "")


def test_of_a_line_that_is_too_long_the_head_remains(start: Start) -> None:
    logs = start()
    log.info("a", **{f"field_{number}": "x" * 8000 for number in range(20)})
    (line,) = logs.lines()
    assert set(line) == {"ts", "level", "event", "logger", "cut_bytes"}
    assert line["cut_bytes"] > pipeline.MAX_LINE_BYTES


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
    assert [line.get("message", line["event"]) for line in second.lines()] == ["once", "still"]


def test_closing_gives_the_standard_library_back(start: Start) -> None:
    hooks = (sys.excepthook, sys.unraisablehook, threading.excepthook)
    before = (list(logging.root.handlers), logging.root.level, warnings.showwarning)
    logs = start(level="debug", levels={"aiohttp": "error"})
    logs.handle.close()
    assert (list(logging.root.handlers), logging.root.level, warnings.showwarning) == before
    assert logging.getLogger("aiohttp").level == logging.NOTSET
    assert (sys.excepthook, sys.unraisablehook, threading.excepthook) == hooks


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


def test_rich_is_not_imported_for_structlog_and_can_be_later() -> None:
    code = "import sys, claude_daemon.telemetry.logging; assert 'rich' not in sys.modules; import rich.console"
    subprocess.run([sys.executable, "-c", code], check=True)
