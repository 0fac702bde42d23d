"""A daemon in the background, started by a real program that may lack its standard streams, or be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 30.0

STARTER = """
import json, os, signal, subprocess, sys
from claude_daemon.supervise.detach import detached
from claude_daemon.supervise.stages import Stage

kind, heard, *paths = sys.argv[1:]


def describe(teller):
    starved = "import os; [os.fstat(fd) for fd in range(3)]"
    seen = {
        "session": os.getsid(0),
        "parent": os.getppid(),
        "directory": os.getcwd(),
        "umask": os.umask(0),
        "streams": [os.path.realpath(f"/dev/fd/{fd}") for fd in range(3)],
        "open": sorted(int(fd) for fd in os.listdir("/dev/fd")),
        "child": subprocess.run([sys.executable, "-c", starved]).returncode,
        "default": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
    }
    print("to nowhere", flush=True)
    teller.tell(Stage.READY, seen=json.dumps(seen))
    return 0


def goes_on(teller):
    with open(paths[0]) as gate:
        gate.read()
    teller.tell(Stage.LISTENING, url="nobody hears it")
    teller.tell(Stage.READY)
    with open(paths[1], "w") as out:
        out.write("went on")
    return 0


def says_so_itself(teller):
    teller.tell(Stage.FAILED, status=78, message="bad configuration")
    return 78


def breaks_later(teller):
    teller.tell(Stage.READY)
    raise RuntimeError("boom")


def breaks(teller):
    raise RuntimeError("boom")


runs = {
    "describe": describe,
    "goes on": goes_on,
    "says so itself": says_so_itself,
    "breaks": breaks,
    "breaks later": breaks_later,
    "returns": lambda teller: 73,
    "exits": lambda teller: sys.exit(69),
    "exits with words": lambda teller: sys.exit("words"),
    "lacks python-daemon": describe,
    "interrupted": lambda teller: signal.raise_signal(signal.SIGINT),
    "leaves": lambda teller: sys.exit(),
    "killed": lambda teller: os.kill(os.getpid(), signal.SIGKILL),
}
os.open(os.devnull, os.O_RDONLY)  # must not be open in the daemon
if kind == "lacks python-daemon":
    sys.modules["daemon"] = None
listener = detached(runs[kind]).listener
lines = [{"starter": os.getpid()}]
with open(heard, "w") as out:
    while not listener.ended:
        if (told := listener.wait(30)) is not None:
            lines.append({"stage": told.stage, **told.fields})
    json.dump(lines, out)
"""


def argv(kind: str, heard: Path, *paths: Path) -> list[str]:
    return [sys.executable, "-W", "error", "-c", STARTER, kind, str(heard), *map(str, paths)]


def environ() -> dict[str, str]:
    return {"PATH": os.defpath, "PYTHONPATH": str(Path.cwd())}


def started(kind: str, tmp_path: Path, redirections: str = "") -> list[dict[str, Any]]:
    """The starter's pid, and what it heard until the end of the pipe."""
    heard = tmp_path / "heard"
    shell = ["/bin/sh", "-c", f'exec "$@" {redirections}', "sh", *argv(kind, heard)]
    done = subprocess.run(shell, env=environ(), capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    lines: list[dict[str, Any]] = json.loads(heard.read_text())
    return lines


@pytest.mark.parametrize("redirections", ["", "<&-", ">&-", "2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_it_is_a_daemon_whichever_streams_its_starter_lacks(tmp_path: Path, redirections: str) -> None:
    starter, told = started("describe", tmp_path, redirections)
    seen = json.loads(told["seen"])
    assert told["stage"] == "ready"
    assert seen["session"] not in (told["pid"], starter["starter"], os.getsid(0))  # it leads none: no terminal can come
    assert seen["parent"] != starter["starter"]
    assert (seen["directory"], seen["umask"], seen["default"]) == ("/", 0o077, True)
    assert seen["streams"] == [os.devnull] * 3
    assert len(seen["open"]) == 5  # the streams, the pipe, and the directory that was looked at
    assert seen["child"] == 0


@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [
        ("returns", 73, "it ended with status 73"),
        ("exits", 69, "it ended with status 69"),
        ("exits with words", 1, "it ended with status 1"),
        ("breaks", 1, "RuntimeError: boom"),
        ("interrupted", 1, "KeyboardInterrupt: "),
        ("lacks python-daemon", 1, "ModuleNotFoundError: import of daemon halted; None in sys.modules"),
        ("says so itself", 78, "bad configuration"),
    ],
)
def test_an_end_before_it_is_ready_is_told_once_with_its_status(
    tmp_path: Path, kind: str, status: int, message: str
) -> None:
    _, told = started(kind, tmp_path)
    assert (told["stage"], told["status"], told["message"]) == ("failed", status, message)


@pytest.mark.parametrize("kind", ["killed", "leaves"])
def test_one_that_says_nothing_is_the_end_of_the_pipe(tmp_path: Path, kind: str) -> None:
    assert len(started(kind, tmp_path)) == 1


def test_what_comes_after_ready_is_no_failed_start(tmp_path: Path) -> None:
    _, told = started("breaks later", tmp_path)
    assert told["stage"] == "ready"


def test_it_goes_on_when_its_starter_is_killed(tmp_path: Path) -> None:
    gate, out = tmp_path / "gate", tmp_path / "out"
    os.mkfifo(gate)
    os.mkfifo(out)
    starter = subprocess.Popen(argv("goes on", tmp_path / "heard", gate, out), env=environ())
    with gate.open("w"):  # opens when the daemon is there; closed, it goes on
        starter.kill()
        assert starter.wait(PATIENCE_S) == -signal.SIGKILL
    assert out.read_text() == "went on"


ANOTHER_CHILD = """
import os, subprocess, sys
from claude_daemon.supervise.detach import detached
other = os.posix_spawn(sys.executable, [sys.executable, "-c", "raise SystemExit(7)"], {})
os.waitid(os.P_PID, other, os.WEXITED | os.WNOWAIT)
detached(lambda teller: 0)
print(os.waitstatus_to_exitcode(os.waitpid(other, 0)[1]))
"""


def test_another_child_of_the_starter_is_left_to_it() -> None:
    command = [sys.executable, "-W", "error", "-c", ANOTHER_CHILD]
    done = subprocess.run(command, env=environ(), capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_who_starts_nothing_does_not_import_python_daemon() -> None:
    code = "import sys, claude_daemon.supervise.detach; print('daemon' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environ(), capture_output=True, text=True)
    assert done.stdout == "False\n"
