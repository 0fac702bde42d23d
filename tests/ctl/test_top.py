"""``claudectl top`` and ``claudectl events``: pictures, keys, and every way to leave."""

from __future__ import annotations

import doctest
import json
import os
import pty
import re
import signal
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from subprocess import Popen
from typing import Any

import pytest

from claudectl import board, figures
from claudectl.board import Board
from tests.ctl.conftest import PATIENCE_SECONDS, Daemon, Invoke, Reply, Spawn
from tests.ctl.test_status import STATUS, drawn, picture

AT = 1_795_800_125.5
TASKS = [
    {
        "id": "task_01kbr2x7q9w3e5t7y9u1i3o5p7",
        "kind": "task",
        "lane": "agent",
        "model": "claude-sonnet-5-5",
        "key_id": "key_01kb",
        "session_id": None,
        "worker_id": "w_9",
        "start": "spare",
        "attempt": 1,
        "age_seconds": 754.2,
        "waited_seconds": 0.004,
        "first_delta_seconds": 1.31,
        "input_tokens": 48_211,
        "output_tokens": 3_207,
        "model_calls": 12,
    },
    {
        "id": "task_01kbr2zz00000000000000000a",
        "kind": "chat",
        "lane": "direct",
        "model": "claude-haiku-5-5",
        "key_id": "local",
        "worker_id": None,
        "start": "direct",
        "age_seconds": 0.7,
        "waited_seconds": 0.0,
        "first_delta_seconds": None,
        "input_tokens": 0,
        "output_tokens": 0,
    },
]
WORKERS = [
    {
        "id": "w_9",
        "pid": 4301,
        "state": "busy",
        "lane": "agent",
        "turns": 0,
        "age_seconds": 761,
        "rss_mb": 301.5,
        "task_id": TASKS[0]["id"],
    },
    {"id": "w_2", "pid": 4250, "state": "idle", "lane": "text", "turns": 57, "age_seconds": 3400, "rss_mb": 288.1},
]
SNAPSHOT = {
    "type": "snapshot",
    "at": AT,
    "data": {
        "status": STATUS,
        "workers": WORKERS,
        "tasks": TASKS,
        "more": 0,
        "recent": {
            "seconds": 60.0,
            "ended": 212,
            "failed": 1,
            "cancelled": 0,
            "output_tokens": 40_812,
            "waited_seconds": {"p50": 0.0, "p95": 0.002, "max": 0.1},
            "first_delta_seconds": {"p50": 0.031, "p95": 0.12, "max": 1.4},
            "turn_seconds": {"p50": 1.2, "p95": 9.8, "max": 40.0},
        },
        "events": {"total": 90_000, "per_second": 61.4},
    },
}
STOPPING = {"type": "daemon.state", "at": AT, "data": {"old": "ready", "new": "stopping"}}
SETTLED = {
    "type": "task.settled",
    "at": AT,
    "data": {"task_id": "task_01", "lane": "text", "worker_id": None, "state": "failed", "code": "upstream_error"},
}


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


# pictures


@pytest.mark.parametrize("module", [board, figures], ids=lambda module: module.__name__)
def test_the_examples_in_the_docstrings_hold(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("columns", [80, 200])
def test_top_is_one_picture(columns: int) -> None:
    assert drawn(Board(SNAPSHOT, [SETTLED], live=True), columns) == picture(f"top-{columns}")


@pytest.mark.parametrize("height", [10, 14, 24, 40])
@pytest.mark.parametrize("columns", [40, 80, 200])
def test_it_is_no_larger_than_the_terminal_and_tells_what_it_leaves_out(columns: int, height: int) -> None:
    data = {**SNAPSHOT["data"], "tasks": TASKS * 20, "more": 7, "workers": WORKERS * 20}  # type: ignore[dict-item]
    lines = drawn(Board({**SNAPSHOT, "data": data}, [SETTLED] * 20, live=True), columns, height=height).splitlines()
    assert max(map(len, lines)) <= columns
    if height >= 24 and columns >= 80:
        assert len(lines) <= height
        workers = lines[next(at for at, line in enumerate(lines) if line.startswith("Workers")) :]
        shown = sum("  w_" in line for line in workers)
        assert f"Workers: 40  ({40 - shown} not shown)" in lines
        assert any(line.startswith("Tasks that run: 47  (") for line in lines)
        assert lines[-1] == "q quits"


def test_once_it_is_as_long_as_it_needs() -> None:
    data = {**SNAPSHOT["data"], "tasks": TASKS * 20, "workers": WORKERS * 20}  # type: ignore[dict-item]
    shown = drawn(Board({**SNAPSHOT, "data": data}), 120)
    assert "not shown" not in shown
    assert sum("  w_" in line for line in shown.partition("Workers")[2].splitlines()) == 40
    assert "q quits" not in shown


@pytest.mark.parametrize("junk", [None, 7, "text", [], {}, [1], {"x": 1}, True, -1, float("nan"), 1e300])
def test_nothing_unexpected_breaks_it(junk: object) -> None:
    drawn(Board({"type": "snapshot", "at": junk, "data": junk}, [{"at": junk, "type": junk, "data": junk}]), 80)
    for key, value in SNAPSHOT["data"].items():  # type: ignore[attr-defined]
        drawn(Board({**SNAPSHOT, "data": {**SNAPSHOT["data"], key: junk}}, live=True), 80)  # type: ignore[dict-item]
        for inner in value if isinstance(value, dict) else ():
            changed = {**SNAPSHOT["data"], key: {**value, inner: junk}}  # type: ignore[dict-item]
            drawn(Board({**SNAPSHOT, "data": changed}, live=True), 80)
    for name in TASKS[0]:
        drawn(Board({**SNAPSHOT, "data": {"tasks": [{**TASKS[0], name: junk}]}}), 200)


def test_names_cannot_steer_the_terminal() -> None:
    task = {"id": "task\x1b[2J", "model": "\x9b31m[red]", "lane": "\r\n"}
    line = {"type": "\x1b]0;owned\x07x", "at": AT, "data": {"\x1b[A": "\x1b[31m"}}
    shown = drawn(Board({**SNAPSHOT, "data": {"tasks": [task]}}, [line], live=True), 200)
    assert shown.replace("\n", "").isprintable()
    assert "[red]" in shown


# once, and as lines


def streams(daemon: Daemon, *lines: object, path: str = "events") -> None:
    daemon.tells("GET", path, *lines)


@pytest.mark.parametrize("args", [["--once"], []])
def test_where_there_is_no_terminal_one_picture_is_all(daemon: Daemon, invoke: Invoke, args: list[str]) -> None:
    streams(daemon, SETTLED, SNAPSHOT, SNAPSHOT)
    result = invoke("top", *args, "--interval", "2.5")
    assert (result.exit_code, daemon.last.query) == (0, "interval_s=2.5")
    assert result.stdout.startswith("● ready  claude-daemon 0.1.0")
    assert result.stdout.count("● ready") == 1
    assert "\x1b" not in result.stdout


def test_once_as_json_is_one_document(daemon: Daemon, invoke: Invoke) -> None:
    streams(daemon, SETTLED, SNAPSHOT, SNAPSHOT)
    assert json.loads(invoke("top", "--once", "--json").stdout) == SNAPSHOT


@pytest.mark.parametrize("command", ["top", "events"])
def test_as_json_every_line_is_passed_on_until_the_daemon_stops(daemon: Daemon, invoke: Invoke, command: str) -> None:
    streams(daemon, SNAPSHOT, SETTLED, STOPPING)
    result = invoke(command, "--json")
    assert result.exit_code == 0
    assert [json.loads(line) for line in result.stdout.splitlines()] == [SNAPSHOT, SETTLED, STOPPING]


@pytest.mark.parametrize("args", [["top", "--json"], ["events"], ["events", "--json"]])
def test_a_daemon_that_goes_away_meanwhile_is_not_running(daemon: Daemon, invoke: Invoke, args: list[str]) -> None:
    def cut(reply: Reply) -> None:
        reply.begin_stream()
        reply.line(SETTLED)
        reply.close_connection = True

    daemon.on("GET", "events", cut)
    result = invoke(*args)
    assert (result.exit_code, result.stderr) == (4, "error: the daemon went away\n")


def test_a_stream_without_a_snapshot_is_a_mismatch(daemon: Daemon, invoke: Invoke) -> None:
    streams(daemon, SETTLED, STOPPING)
    assert invoke("top", "--once").exit_code == 6


@pytest.mark.parametrize("interval", ["0", "0.09", "3601", "often", "nan"])
def test_an_interval_that_the_daemon_would_refuse_is_usage(daemon: Daemon, invoke: Invoke, interval: str) -> None:
    assert invoke("top", "--interval", interval).exit_code == 2
    assert daemon.requests == []


def test_events_are_a_line_each_without_what_is_not_known(daemon: Daemon, invoke: Invoke) -> None:
    evil = {"type": "x\x1b[2J", "at": None, "data": {"a": "\x1b[31mred"}}
    streams(daemon, SETTLED, evil, {}, STOPPING)
    assert invoke("events").stdout == (
        "17:22:05  task.settled  task_id=task_01  lane=text  state=failed  code=upstream_error\n"
        "-  x  a=red\n"
        "-  -\n"
        "17:22:05  daemon.state  old=ready  new=stopping\n"
    )


# live, on a real terminal


class Terminal:
    """claudectl on a terminal of its own."""

    def __init__(self, spawn: Spawn, *args: str, rows: int = 30, columns: int = 100, term: str = "xterm") -> None:
        self._ours, theirs = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(theirs)
        self._theirs = theirs
        self.process: Popen[bytes] = spawn(
            *args, stdin=theirs, stdout=theirs, env={"LANG": "C.UTF-8", "TERM": term, "PYTHONUTF8": "1"}
        )
        self.shown = b""
        self._more = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                piece = os.read(self._ours, 65536)
            except OSError:
                return
            with self._more:
                self.shown += piece
                self._more.notify_all()

    def resize(self, rows: int, columns: int) -> None:
        ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait_for(self, seen: Callable[[bytes], object]) -> None:
        with self._more:
            assert self._more.wait_for(lambda: seen(self.shown), PATIENCE_SECONDS), self.shown

    def press(self, key: bytes) -> None:
        os.write(self._ours, key)

    def ended(self) -> int:
        """How it ended; the terminal is as it was, the picture gone and the cursor back."""
        code = self.process.wait(PATIENCE_SECONDS)
        self.wait_for(lambda shown: b"\x1b[?1049l" in shown and b"\x1b[?25h" in shown)
        assert termios.tcgetattr(self._theirs) == self.before
        os.close(self._theirs)
        return code


def _drawn(shown: bytes) -> bool:
    return b"ready" in shown and b"q quits" in shown


@pytest.fixture
def watched(daemon: Daemon) -> Iterator[Daemon]:
    """Tells a snapshot and then nothing, until the client leaves."""

    def tell(reply: Reply) -> None:
        reply.begin_stream()
        reply.line(SETTLED)
        reply.line(SNAPSHOT)
        reply.wait_for_hangup()

    daemon.on("GET", "events", tell)
    yield daemon


@pytest.mark.parametrize(
    ("leave", "code"),
    [
        (lambda terminal: terminal.press(b"q"), 0),
        (lambda terminal: terminal.process.send_signal(signal.SIGINT), 130),
        (lambda terminal: terminal.process.send_signal(signal.SIGTERM), 143),
    ],
    ids=["q", "Ctrl-C", "SIGTERM"],
)
def test_it_can_be_left_and_leaves_the_terminal_as_it_was(
    watched: Daemon, spawn: Spawn, leave: Callable[[Terminal], None], code: int
) -> None:
    terminal = Terminal(spawn, "--socket", str(watched.path), "top")
    terminal.wait_for(_drawn)
    terminal.press(b"x")  # which means nothing
    leave(terminal)
    assert terminal.ended() == code


def test_another_size_is_drawn_at_once(watched: Daemon, spawn: Spawn) -> None:
    terminal = Terminal(spawn, "--socket", str(watched.path), "top", columns=80)
    terminal.wait_for(_drawn)
    assert b"WORKER  " not in re.sub(rb"\x1b\[[0-9;]*m", b"", terminal.shown).partition(b"Workers")[0]
    terminal.resize(40, 200)
    terminal.process.send_signal(signal.SIGWINCH)  # as the terminal's own driver does for its foreground group
    terminal.wait_for(lambda shown: b"claude-haiku-5-5" in shown)  # a column for wide ones
    terminal.press(b"q")
    assert terminal.ended() == 0


def test_it_ends_with_the_daemon_and_says_so(daemon: Daemon, spawn: Spawn) -> None:
    stopping = {**SNAPSHOT, "data": {**SNAPSHOT["data"], "status": {**STATUS, "state": "stopping"}}}  # type: ignore[dict-item]
    streams(daemon, SNAPSHOT, stopping)
    terminal = Terminal(spawn, "--socket", str(daemon.path), "top")
    assert terminal.ended() == 0
    assert terminal.process.stderr is not None
    assert terminal.process.stderr.read() == b"note: the daemon is stopping\n"


def test_a_daemon_that_is_cut_off_ends_it_with_an_error(daemon: Daemon, spawn: Spawn) -> None:
    def cut(reply: Reply) -> None:
        reply.begin_stream()
        reply.line(SNAPSHOT)
        reply.close_connection = True

    daemon.on("GET", "events", cut)
    terminal = Terminal(spawn, "--socket", str(daemon.path), "top")
    assert terminal.ended() == 4
    assert terminal.process.stderr is not None
    assert terminal.process.stderr.read() == b"error: the daemon went away\n"


def test_a_terminal_that_cannot_go_back_is_told_one_picture(watched: Daemon, spawn: Spawn) -> None:
    terminal = Terminal(spawn, "--socket", str(watched.path), "top", term="dumb")
    assert terminal.process.wait(PATIENCE_SECONDS) == 0
    terminal.wait_for(lambda shown: b"Workers" in shown)
    assert b"\x1b" not in terminal.shown
    assert b"q quits" not in terminal.shown


def test_no_colour_is_none(watched: Daemon, spawn: Spawn, environ: dict[str, str]) -> None:
    environ["NO_COLOR"] = "1"
    terminal = Terminal(spawn, "--socket", str(watched.path), "top")
    terminal.wait_for(_drawn)
    assert not re.search(rb"\x1b\[[0-9;]*3[0-7]m", terminal.shown)
    terminal.press(b"q")
    assert terminal.ended() == 0
