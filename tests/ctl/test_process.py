"""claudectl as a real process: exit codes, imports, signals, pipes, terminals."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.ctl.conftest import PATIENCE_SECONDS, Ctl, Daemon, Reply, Spawn
from tests.ctl.test_commands import PASSES
from tests.ctl.test_run import STARTED, SUCCEEDED, text

# Each of these alone costs more than the whole of `claudectl health` may.
HEAVY = {"asyncio", "aiohttp", "httpx", "rich", "pydantic", "orjson", "ssl", "claude_daemon.config"}


def test_health_imports_nothing_heavy_and_no_other_command(daemon: Daemon, environ: dict[str, str]) -> None:
    daemon.says("GET", "health", PASSES)
    loaded = _loaded(daemon, environ, "health")
    assert not HEAVY & loaded
    assert {name for name in loaded if name.startswith("claudectl.commands.")} == {"claudectl.commands.health"}
    assert {name for name in loaded if name.startswith("claude_daemon")} <= {"claude_daemon"}


@pytest.mark.parametrize(
    ("method", "path", "module", "arguments"),
    [
        ("POST", "reload", "reload", ["reload"]),
        ("POST", "stop", "stop", ["stop", "--no-wait"]),
        ("POST", "drain", "drain", ["drain", "--no-wait"]),
        ("POST", "panic", "panic", ["panic"]),
        ("GET", "log-level", "log_level", ["log-level"]),
        ("GET", "connections", "connections", ["connections"]),
        ("GET", "stacks", "stacks", ["stacks"]),
        ("GET", "keys", "keys", ["keys", "list"]),
        ("GET", "config", "config", ["config"]),
        ("GET", "status", "status", ["status", "--json"]),
        ("POST", "workers/recycle", "workers", ["workers", "recycle"]),
    ],
    ids=[
        "reload",
        "stop",
        "drain",
        "panic",
        "log-level",
        "connections",
        "stacks",
        "keys",
        "config",
        "status",
        "workers",
    ],
)
def test_operators_commands_import_nothing_heavy_and_no_other_command(
    daemon: Daemon, environ: dict[str, str], method: str, path: str, module: str, arguments: list[str]
) -> None:
    daemon.says(method, path, {})
    loaded = _loaded(daemon, environ, *arguments)
    assert not HEAVY & loaded
    assert {name for name in loaded if name.startswith("claudectl.commands.")} == {f"claudectl.commands.{module}"}
    assert {name for name in loaded if name.startswith("claude_daemon")} <= {"claude_daemon"}


def test_tasks_imports_nothing_heavy_and_no_other_command(daemon: Daemon, environ: dict[str, str]) -> None:
    daemon.says("GET", "tasks", {"data": [], "next": None})
    loaded = _loaded(daemon, environ, "tasks", "list")
    assert not HEAVY & loaded
    assert {name for name in loaded if name.startswith("claudectl.commands.")} == {"claudectl.commands.tasks"}
    ours = {name for name in loaded if name.startswith("claude_daemon.")}
    assert all(name.startswith("claude_daemon.core") for name in ours)


def _loaded(daemon: Daemon, environ: dict[str, str], *arguments: str) -> set[str]:
    """The modules that a run of claudectl has imported."""
    script = "import sys, atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); "
    script += "from claudectl.main import main; main()"
    argv = [sys.executable, "-c", script, "--socket", str(daemon.path), *arguments]
    done = subprocess.run(argv, env=_uncovered(environ), capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0
    return set(done.stderr.split())


def _uncovered(environ: dict[str, str]) -> dict[str, str]:
    """Without coverage's own start in the process: its imports are not ours."""
    return {name: value for name, value in environ.items() if not name.startswith("COV")}


def test_importing_claudectl_leaves_http_client_whole(environ: dict[str, str]) -> None:
    script = "import claudectl.main, claudectl.client, http.client; http.client.HTTPSConnection"
    assert subprocess.run([sys.executable, "-c", script], env=environ).returncode == 0


def test_without_a_daemon_every_place_that_was_tried_is_named(ctl: Ctl, environ: dict[str, str]) -> None:
    if Path("/run/claude-daemon/ctl.sock").exists():
        pytest.skip("a daemon of this machine listens on its system socket")
    ended = ctl("health", env={"XDG_RUNTIME_DIR": "/nowhere/run"})
    assert (ended.code, ended.out) == (4, "")
    home = environ["HOME"]
    assert ended.err == (
        "error: claude-daemon is not running: no control socket answers; tried:\n"
        f"  {home}/.claude-daemon/run/ctl.sock  (no such socket)\n"
        "  /nowhere/run/claude-daemon/ctl.sock  (no such socket)\n"
        "  /run/claude-daemon/ctl.sock  (no such socket)\n"
        "Start it with: claude-daemon run\n"
    )


def test_the_environment_names_the_socket(daemon: Daemon, ctl: Ctl) -> None:
    daemon.says("GET", "health", PASSES)
    ended = ctl("health", env={"CLAUDE_DAEMON_SOCKET": str(daemon.path)})
    assert (ended.code, ended.err) == (0, "")


def test_passing_over_the_daemon_that_was_named_is_said(daemon: Daemon, ctl: Ctl, short_dir: Path) -> None:
    daemon.says("GET", "health", PASSES)
    (short_dir / "run").mkdir()
    (short_dir / "run" / "ctl.sock").symlink_to(daemon.path)
    ended = ctl("health", env={"CLAUDE_DAEMON_SOCKET": "/dead.sock", "CLAUDE_DAEMON_HOME": str(short_dir)})
    assert ended.code == 0
    assert ended.err == f"note: /dead.sock does not answer; using {short_dir}/run/ctl.sock\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become another user")
def test_a_socket_of_another_user_is_a_matter_of_permission(daemon: Daemon) -> None:
    daemon.path.chmod(0o600)
    daemon.path.parent.chmod(0o755)
    # The interpreter may lie below root's home: all imports come before the process becomes nobody.
    script = "import json, locale, os, claudectl.client, claudectl.commands.health; "
    script += "from claudectl.main import main; os.setuid(65534); main()"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "HOME": "/"}
    argv = [sys.executable, "-c", script, "--socket", str(daemon.path), "health"]
    done = subprocess.run(argv, env=_uncovered(environ), capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert (done.returncode, "(permission denied)" in done.stderr) == (5, True), done.stderr


def test_ready_wait_sees_a_daemon_that_starts_later(spawn: Spawn, short_dir: Path) -> None:
    process = spawn("--socket", str(short_dir / "late.sock"), "ready", "--wait", "60")
    late = Daemon(short_dir / "late.sock")
    late.says("GET", "ready", {"status": "pass", "state": "ready"})
    late.begin()
    out, _ = process.communicate(timeout=PATIENCE_SECONDS)
    late.leave()
    assert (process.returncode, out) == (0, b"ready\n")


def _interrupted(daemon: Daemon, spawn: Spawn, *lines: object) -> subprocess.Popen[bytes]:
    """A run that has printed "par", and is then interrupted."""

    def stream(reply: Reply) -> None:
        reply.begin_stream()
        for line in lines:
            reply.line(line)
        reply.wait_for_hangup()

    daemon.on("POST", "tasks", stream)
    process = spawn("--socket", str(daemon.path), "run", "hi")
    assert process.stdout is not None
    assert process.stdout.read(3) == b"par"
    process.send_signal(signal.SIGINT)
    return process


@pytest.mark.parametrize(
    ("state", "said"),
    [("cancelled", "is cancelled"), ("running", "is cancelled"), ("succeeded", "had succeeded already")],
)
def test_ctrl_c_cancels_the_task(daemon: Daemon, spawn: Spawn, state: str, said: str) -> None:
    daemon.says("POST", "tasks/task_1/cancel", {"id": "task_1", "state": state})
    process = _interrupted(daemon, spawn, text("par"))
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out, err.decode()) == (130, b"\n", f"error: interrupted: the task {said}\n")
    assert (daemon.last.path, daemon.last.body) == ("tasks/task_1/cancel", {})


def test_ctrl_c_says_so_when_the_task_could_not_be_cancelled(daemon: Daemon, spawn: Spawn) -> None:
    daemon.refuses("POST", "tasks/task_1/cancel", 503, "store_unavailable", "Nothing can be stored now.")
    _, err = (process := _interrupted(daemon, spawn, text("par"))).communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert b"the task could not be cancelled: store_unavailable: Nothing can be stored now." in err


def test_ctrl_c_before_the_first_event_does_not_claim_to_know(daemon: Daemon, spawn: Spawn) -> None:
    asked = threading.Event()

    def hang(reply: Reply) -> None:
        asked.set()
        reply.wait_for_hangup()

    daemon.on("POST", "tasks", hang)
    process = spawn("--socket", str(daemon.path), "run", "hi")
    assert asked.wait(PATIENCE_SECONDS)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert err == b"error: interrupted: the daemon may have accepted the task (see: claudectl tasks list)\n"


def test_a_second_ctrl_c_leaves_at_once(daemon: Daemon, spawn: Spawn) -> None:
    asked = threading.Event()

    def hang(reply: Reply) -> None:
        asked.set()
        reply.wait_for_hangup()

    daemon.on("POST", "tasks/task_1/cancel", hang)
    process = _interrupted(daemon, spawn, text("par"))
    assert asked.wait(PATIENCE_SECONDS)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert err == b"error: interrupted: the task may go on (see: claudectl tasks show task_1)\n"


def test_ctrl_c_ends_an_ordinary_command_without_a_traceback(daemon: Daemon, spawn: Spawn) -> None:
    asked = threading.Event()

    def hang(reply: Reply) -> None:
        asked.set()
        reply.wait_for_hangup()

    daemon.on("GET", "health", hang)
    process = spawn("--socket", str(daemon.path), "health")
    assert asked.wait(PATIENCE_SECONDS)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out, err) == (130, b"", b"")


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_reader_that_leaves_ends_the_run_quietly(daemon: Daemon, spawn: Spawn, flags: list[str]) -> None:
    reader_left, hung_up = threading.Event(), threading.Event()

    def stream(reply: Reply) -> None:
        reply.begin_stream()
        reply.line(text("first\n"))
        assert reader_left.wait(PATIENCE_SECONDS)
        reply.line(text("second\n"))
        if reply.wait_for_hangup():
            hung_up.set()

    daemon.on("POST", "tasks", stream)
    process = spawn("--socket", str(daemon.path), "run", "hi", *flags)
    assert process.stdout is not None
    assert b"first" in process.stdout.readline()
    process.stdout.close()
    reader_left.set()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(PATIENCE_SECONDS) == 0
    assert hung_up.wait(PATIENCE_SECONDS)


def test_text_comes_as_it_is_made(daemon: Daemon, spawn: Spawn) -> None:
    seen = threading.Event()

    def stream(reply: Reply) -> None:
        reply.begin_stream()
        reply.line(text("one "))
        assert seen.wait(PATIENCE_SECONDS)
        reply.line(text("two"))
        reply.line(SUCCEEDED)
        reply.end_stream()

    daemon.on("POST", "tasks", stream)
    process = spawn("--socket", str(daemon.path), "run", "hi")
    assert process.stdout is not None
    assert process.stdout.read(4) == b"one "
    seen.set()
    assert process.stdout.read() == b"two\n"


def test_text_that_the_encoding_lacks_is_replaced(daemon: Daemon, ctl: Ctl) -> None:
    daemon.tells("POST", "tasks", text("caf\u00e9 \U0001f642 \ud800"), SUCCEEDED)
    ended = ctl("--socket", str(daemon.path), "run", "hi", env={"PYTHONIOENCODING": "ascii"})
    assert (ended.code, ended.out) == (0, "caf? ? ?\n")


class Screen:
    """The end of a pseudo-terminal that a person would look at."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.seen = b""

    def wait_for(self, wanted: bytes) -> None:
        """Reads on until ``wanted`` has been shown since the last call."""
        while wanted not in self.seen:
            self._read(wanted)
        self.seen = self.seen.partition(wanted)[2]

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def rest(self) -> bytes:
        """What is shown until the last process has left the terminal."""
        with suppress(OSError):  # how Linux says that nobody has it open any more
            while data := os.read(self._fd, 65536):
                self.seen += data
        return self.seen

    def _read(self, wanted: bytes) -> None:
        assert select.select([self._fd], [], [], PATIENCE_SECONDS)[0], f"{wanted!r} not in {self.seen!r}"
        self.seen += os.read(self._fd, 65536)


@contextmanager
def terminal() -> Iterator[tuple[Screen, int]]:
    """A screen and the descriptor of the terminal behind it."""
    ours, theirs = pty.openpty()
    try:
        yield Screen(ours), theirs
    finally:
        os.close(ours)
        with suppress(OSError):
            os.close(theirs)


def staged(steps: dict[str, threading.Event]) -> Callable[[Reply], None]:
    def stream(reply: Reply) -> None:
        reply.begin_stream()
        assert steps["start"].wait(PATIENCE_SECONDS)
        reply.line(STARTED)
        assert steps["text"].wait(PATIENCE_SECONDS)
        reply.line(text("answer"))
        assert steps["end"].wait(PATIENCE_SECONDS)
        reply.line(SUCCEEDED)
        reply.end_stream()

    return stream


def test_a_terminal_shows_one_line_until_the_first_token(daemon: Daemon, spawn: Spawn) -> None:
    steps = {name: threading.Event() for name in ("start", "text", "end")}
    daemon.on("POST", "tasks", staged(steps))
    with terminal() as (screen, tty):
        process = spawn("--socket", str(daemon.path), "run", "hi", stderr=tty)
        os.close(tty)
        screen.wait_for(b"\r\x1b[2Kwaiting \xc2\xb7 0.1 s \xc2\xb7 queued")
        steps["start"].set()
        screen.wait_for(b"\xc2\xb7 running warm")
        steps["text"].set()
        assert process.stdout is not None
        assert process.stdout.read(6) == b"answer"
        steps["end"].set()
        shown = screen.rest()
        assert process.wait(PATIENCE_SECONDS) == 0
    assert shown.endswith(b"\r\x1b[2K")
    assert b"\n" not in shown


def test_the_line_is_cut_to_the_width_of_the_terminal(daemon: Daemon, spawn: Spawn) -> None:
    steps = {name: threading.Event() for name in ("start", "text", "end")}
    daemon.on("POST", "tasks", staged(steps))
    with terminal() as (screen, tty):
        fcntl.ioctl(tty, termios.TIOCSWINSZ, b"\x18\x00\x0a\x00\x00\x00\x00\x00")
        process = spawn("--socket", str(daemon.path), "run", "hi", stderr=tty)
        os.close(tty)
        screen.wait_for(b"\r\x1b[2Kwaiting \xc2\xb7\r\x1b[2K")
        for step in steps.values():
            step.set()
        screen.rest()
        assert process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {}], ids=["dumb", "json"])
def test_a_dumb_terminal_and_json_show_no_line(daemon: Daemon, spawn: Spawn, env: dict[str, str]) -> None:
    daemon.tells("POST", "tasks", STARTED, text("answer"), SUCCEEDED)
    flags = [] if env else ["--json"]
    with terminal() as (screen, tty):
        process = spawn("--socket", str(daemon.path), "run", "hi", *flags, env=env, stderr=tty)
        os.close(tty)
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert screen.rest() == b""
    assert b"answer" in out


def test_no_prompt_on_a_terminal_is_usage(daemon: Daemon, spawn: Spawn) -> None:
    with terminal() as (_, tty):
        process = spawn("--socket", str(daemon.path), "run", stdin=tty)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2
    assert b"no prompt" in err


@pytest.mark.parametrize(("env", "colour"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colour_is_for_terminals_that_want_it(daemon: Daemon, spawn: Spawn, env: dict[str, str], colour: bool) -> None:
    daemon.says("GET", "health", PASSES)
    with terminal() as (screen, tty):
        process = spawn("--socket", str(daemon.path), "health", env=env, stdout=tty)
        os.close(tty)
        shown = screen.rest()
        assert process.wait(PATIENCE_SECONDS) == 0
    assert (b"\x1b[32mpass\x1b[0m" in shown) is colour


def test_a_drain_shows_its_progress_on_one_line(daemon: Daemon, spawn: Spawn) -> None:
    seen = threading.Event()

    def drain(reply: Reply) -> None:
        reply.begin_stream()
        reply.line({"state": "draining", "running": 2, "queued": 0, "connections": 3, "remaining_s": 60})
        assert seen.wait(PATIENCE_SECONDS)
        reply.line({"state": "drained", "saved": True})
        reply.end_stream()

    daemon.on("POST", "drain", drain)
    with terminal() as (screen, tty):
        process = spawn("--socket", str(daemon.path), "drain", stderr=tty)
        os.close(tty)
        screen.wait_for("draining · 2 running · 0 queued · 3 connections · 1 min left".encode())
        seen.set()
        assert screen.rest().endswith(b"\r\x1b[2K")
        assert process.stdout is not None
        assert process.stdout.read() == b"drained\n"


def test_json_of_a_real_process_is_one_document(daemon: Daemon, ctl: Ctl) -> None:
    daemon.says("GET", "status", {"state": "ready"})
    ended = ctl("status", "--socket", str(daemon.path), "--json")
    assert (ended.code, json.loads(ended.out)) == (0, {"state": "ready"})


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [(b"y\n", 0, b""), (b"n\n", 1, b"nothing was deleted"), (b"\x04", 130, b"nothing was deleted")],
    ids=["yes", "no", "end"],
)
def test_purge_asks_first_on_a_terminal(daemon: Daemon, spawn: Spawn, typed: bytes, code: int, said: bytes) -> None:
    daemon.says("POST", "tasks/purge", {"purged": 3})
    with terminal() as (screen, tty):
        process = spawn("--socket", str(daemon.path), "tasks", "purge", "--before", "1d", stdin=tty, stderr=tty)
        os.close(tty)
        screen.wait_for(b"Delete all tasks that ended before ")
        screen.wait_for(b"[y/N]: ")
        screen.type(typed)
        shown = screen.rest()
        assert process.wait(PATIENCE_SECONDS) == code
    assert said in shown
    assert len(daemon.requests) == (code == 0)


def test_purge_with_yes_does_not_ask_on_a_terminal(daemon: Daemon, spawn: Spawn) -> None:
    daemon.says("POST", "tasks/purge", {"purged": 3})
    with terminal() as (screen, tty):
        arguments = ("tasks", "purge", "--before", "1d", "--yes")
        process = spawn("--socket", str(daemon.path), *arguments, stdin=tty, stdout=tty, stderr=tty)
        os.close(tty)
        assert screen.rest() == b"3 tasks deleted\r\n"
        assert process.wait(PATIENCE_SECONDS) == 0


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [(b"y\n", 0, b""), (b"\n", 1, b"nothing was cut"), (b"\x04", 130, b"nothing was cut")],
    ids=["yes", "enter", "end"],
)
def test_panic_asks_first_on_a_terminal(daemon: Daemon, spawn: Spawn, typed: bytes, code: int, said: bytes) -> None:
    daemon.says("POST", "panic", {"killed": [], "paused": True, "state": "drained"})
    with terminal() as (screen, tty):
        process = spawn("--socket", str(daemon.path), "panic", stdin=tty, stderr=tty)
        os.close(tty)
        screen.wait_for(b"Cut everything that runs")
        screen.wait_for(b"[y/N]: ")
        screen.type(typed)
        shown = screen.rest()
        assert process.wait(PATIENCE_SECONDS) == code
    assert said in shown
    assert len(daemon.requests) == (code == 0)


def test_panic_with_yes_does_not_ask_on_a_terminal(daemon: Daemon, spawn: Spawn) -> None:
    daemon.says("POST", "panic", {"killed": [], "paused": True, "state": "drained"})
    with terminal() as (screen, tty):
        process = spawn("--socket", str(daemon.path), "panic", "--yes", stdin=tty, stdout=tty, stderr=tty)
        os.close(tty)
        assert screen.rest().startswith("\x1b[33mdrained\x1b[0m · 0 workers killed".encode())
        assert process.wait(PATIENCE_SECONDS) == 0


def test_ctrl_c_stops_following_and_leaves_the_task_alone(daemon: Daemon, spawn: Spawn) -> None:
    def stream(reply: Reply) -> None:
        reply.begin_stream()
        reply.line(text("par") | {"seq": 10})
        reply.wait_for_hangup()

    daemon.on("GET", "tasks/task_1/events", stream)
    process = spawn("--socket", str(daemon.path), "tasks", "follow", "task_1")
    assert process.stdout is not None
    assert process.stdout.read(3) == b"par"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, out) == (130, b"\n")
    assert err.decode() == ("error: detached; the task goes on\nGo on with: claudectl tasks follow task_1 --after 10\n")
    assert len(daemon.requests) == 1


@pytest.mark.parametrize("answer", [None, "half a line"])
def test_a_terminal_shows_that_the_daemon_went_away(daemon: Daemon, spawn: Spawn, answer: str | None) -> None:
    """In the line of progress while there is no answer yet; afterwards on a line of its own, not in the answer's."""

    def leave(reply: Reply) -> None:
        reply.begin_stream()
        reply.line(STARTED if answer is None else text(answer))
        daemon.leave()
        reply.close_connection = True

    daemon.on("GET", "tasks/task_1/events", leave)
    with terminal() as (screen, tty):
        process = spawn("--socket", str(daemon.path), "tasks", "follow", "task_1", stdout=tty, stderr=tty)
        os.close(tty)
        screen.wait_for(b" s \xc2\xb7 the daemon went" if answer is None else b"half a line\r\nnote: the daemon went")
        screen.wait_for(b" away; waiting for it to come back")
        process.send_signal(signal.SIGINT)
        screen.rest()
        assert process.wait(PATIENCE_SECONDS) == 130
