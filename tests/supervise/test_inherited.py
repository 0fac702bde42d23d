"""Sockets from a service manager, in a real process: descriptors from 3 on, by name."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from claude_daemon.supervise.inherited import inherited

SERVICE = """
import json, os, socket, sys
from claude_daemon.supervise.inherited import BadSockets, inherited

os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_PIDFDID="1", LISTEN_FDNAMES=sys.argv[1])
os.environ["LISTEN_FDS"] = str(len(sys.argv[1].split(":")))
try:
    given = inherited(os.environ, pid=os.getpid())
except BadSockets as error:
    seen = {"error": str(error)}
else:
    every = [*given.public, *([given.control] if given.control else [])]
    seen = {
        "public": [sock.getsockname()[1] for sock in given.public],
        "control": given.control and given.control.getsockname(),
        "blocking": [sock.getblocking() for sock in every],
        "inheritable": [sock.get_inheritable() for sock in every],
        "keepalive": [sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) != 0 for sock in given.public],
    }
seen["left"] = [name for name in os.environ if name.startswith("LISTEN_")]
print(json.dumps(seen))
"""


def served(names: str, sockets: Sequence[socket.socket]) -> dict[str, object]:
    """What a service sees that was started with these at its descriptors 3, 4, …."""
    hear, tell = os.pipe()
    copies = [os.dup(sock.fileno()) for sock in sockets]
    # none of ours stands where another is to be put: pytest has had the low ones long since
    assert min(copies, default=99) > 2 + len(copies)
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", SERVICE, names],
        {"PYTHONPATH": str(Path.cwd())},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, tell, 1),
            *((os.POSIX_SPAWN_DUP2, fd, 3 + place) for place, fd in enumerate(copies)),
        ],
    )
    for fd in (tell, *copies):
        os.close(fd)
    with os.fdopen(hear) as pipe:
        seen: dict[str, object] = json.loads(pipe.read())
    assert os.waitpid(pid, 0) == (pid, 0)
    return seen


def test_listeners_are_taken_by_name_in_whatever_order_they_come(tmp_path: Path) -> None:
    path = str(tmp_path / "ctl.sock")
    with (
        socket.socket(socket.AF_UNIX) as control,
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("127.0.0.1", 0)) as two,
    ):
        control.bind(path)
        control.listen()
        seen = served("http:control:http", [one, control, two])
        assert seen == {
            "public": [one.getsockname()[1], two.getsockname()[1]],
            "control": path,
            "blocking": [False] * 3,
            "inheritable": [False] * 3,
            "keepalive": [True] * 2,
            "left": [],
        }


def test_two_control_sockets_are_refused_and_the_variables_are_gone_all_the_same(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        for place, sock in enumerate((one, two)):
            sock.bind(str(tmp_path / f"{place}.sock"))
            sock.listen()
        seen = served("control:control", [one, two])
    assert seen == {
        "error": "descriptor 4 is named 'control': http (any number), control (one) are known",
        "left": [],
    }


@pytest.mark.parametrize("takeover", [False, True])
def test_without_a_number_of_descriptors_there_is_nothing_to_take(takeover: bool) -> None:
    environ = {"LISTEN_FDNAMES": "http", "LISTEN_PIDFDID": "1", "PATH": "/bin"}
    given = inherited(environ, pid=4711, takeover=takeover)
    assert (given.public, given.control, given.handover) == ((), None, None)
    assert environ == {"PATH": "/bin"}
