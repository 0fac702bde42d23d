"""Sockets from one process to the next: what ``successor`` hands over, ``inherited`` takes, in real processes."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from claude_daemon.supervise.inherited import BadSockets, inherited
from claude_daemon.supervise.successor import spawn
from tests.support import BIN

CHILD = """
import json, os, sys
from claude_daemon.supervise.inherited import inherited
given = inherited(os.environ, pid=os.getpid(), takeover=True)
seen = {
    "public": [list(sock.getsockname()[:2]) for sock in given.public],
    "control": given.control and given.control.getsockname(),
    "inheritable": [os.get_inheritable(fd) for fd in range(3, 3 + len(given.public) + 2)],
    "left": [name for name in os.environ if name.startswith("LISTEN_")],
    "session": os.getsid(0) == os.getpid(),
    "open": sorted(int(fd) for fd in os.listdir("/dev/fd")),
    "stdin": os.path.realpath("/dev/fd/0"),
}
os.write(given.handover, json.dumps(seen).encode())
"""


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_a_successor_has_the_listeners_by_name_and_nothing_else(tmp_path: Path) -> None:
    path = str(tmp_path / "ctl.sock")
    hear, tell = os.pipe()
    with listener() as one, listener() as two, socket.socket(socket.AF_UNIX) as control:
        control.bind(path)
        control.listen()
        sockets = [("http", one), ("http", two), ("control", control)]
        environ = {"PATH": str(BIN), "PYTHONPATH": str(Path.cwd())}
        pid = spawn([sys.executable, "-c", CHILD], environ, sockets, tell)
        os.close(tell)
        with os.fdopen(hear, "rb") as pipe:
            seen = json.loads(pipe.read())
        assert os.waitpid(pid, 0) == (pid, 0)
        assert seen["public"] == [list(one.getsockname()), list(two.getsockname())]
    assert seen["control"] == path
    assert seen["inheritable"] == [False] * 4
    assert seen["left"] == []
    assert seen["session"] is True
    assert seen["stdin"] == "/dev/null"
    assert seen["open"][:7] == list(range(7))


def test_a_program_that_is_not_there_is_an_error_and_leaves_no_descriptor() -> None:
    before = sorted(Path("/dev/fd").iterdir())
    hear, tell = os.pipe()
    with listener() as sock, pytest.raises(FileNotFoundError):
        spawn(["/nowhere/at/all"], {}, [("http", sock)], tell)
    os.close(hear)
    os.close(tell)
    assert sorted(Path("/dev/fd").iterdir()) == before


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "http", "LISTEN_PID": "1"},
        {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "http"},
        {"LISTEN_PID": "4711"},
    ],
)
def test_what_is_not_for_us_is_not_taken_and_not_passed_on(environ: dict[str, str]) -> None:
    given = inherited(environ, pid=4711)
    assert (given.public, given.control, given.handover) == ((), None, None)
    assert environ == {}


BAD = """
import os, socket, sys
from claude_daemon.supervise.inherited import BadSockets, inherited
kind = sys.argv[1]
made = {
    "udp": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
    "silent": lambda: socket.socket(socket.AF_INET),
    "unix": lambda: socket.socket(socket.AF_UNIX),
    "file": lambda: open(os.devnull),
}
keep = made[kind]() if kind in made else None
if keep is not None and keep.fileno() != 3:
    os.dup2(keep.fileno(), 3)
environ = {"LISTEN_FDS": "1", "LISTEN_FDNAMES": sys.argv[2], "LISTEN_PID": str(os.getpid())}
try:
    inherited(environ, pid=os.getpid())
except BadSockets as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("udp", "http", "descriptor 3 (http) is AF_INET SOCK_DGRAM, and not AF_INET SOCK_STREAM"),
        ("silent", "http", "descriptor 3 (http) does not listen"),
        ("unix", "http", "descriptor 3 (http) is AF_UNIX SOCK_STREAM, and not AF_INET SOCK_STREAM"),
        ("silent", "control", "descriptor 3 (control) is AF_INET SOCK_STREAM, and not AF_UNIX SOCK_STREAM"),
        ("file", "http", "descriptor 3 (http) is not a socket"),
        ("none", "http", "descriptor 3 (http) is not open: Bad file descriptor"),
        ("silent", "https", "descriptor 3 is named 'https': http (any number), control (one) are known"),
    ],
)
def test_what_cannot_be_used_is_named(kind: str, name: str, said: str) -> None:
    hear, tell = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", BAD, kind, name],
        {"PYTHONPATH": str(Path.cwd())},
        file_actions=[(os.POSIX_SPAWN_DUP2, tell, 1), (os.POSIX_SPAWN_CLOSE, 3)],
    )
    os.close(tell)
    with os.fdopen(hear) as pipe:
        assert pipe.read() == f"{said}\n"
    assert os.waitpid(pid, 0) == (pid, 0)


@pytest.mark.parametrize(
    ("count", "names"), [("0", "http"), ("-1", "http"), ("65", "http"), ("x", "http"), ("2", "http"), ("1", "")]
)
def test_a_count_that_does_not_fit_is_refused(count: str, names: str) -> None:
    with pytest.raises(BadSockets, match="LISTEN_FDS"):
        inherited({"LISTEN_FDS": count, "LISTEN_FDNAMES": names, "LISTEN_PID": "4711"}, pid=4711)
