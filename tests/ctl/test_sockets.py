"""Where the control socket may be, and the first that answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from claudectl import sockets
from claudectl.errors import Denied, NotRunning, TimedOut
from claudectl.sockets import SYSTEM, Deadline, candidates, connect_first


@contextmanager
def listening(path: Path, backlog: int = 8) -> Iterator[socket.socket]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(backlog)
        yield server


def reached(*paths: Path) -> str:
    path, connection = connect_first([str(path) for path in paths], Deadline(5))
    connection.close()
    return path


def test_the_places_are_tried_in_the_documented_order() -> None:
    environ = {
        "CLAUDE_DAEMON_SOCKET": "/s.sock",
        "CLAUDE_DAEMON_HOME": "/srv/cd",
        "HOME": "/home/u",
        "XDG_RUNTIME_DIR": "/run/user/7",
    }
    assert candidates(None, environ) == (
        "/s.sock",
        "/srv/cd/run/ctl.sock",
        "/home/u/.claude-daemon/run/ctl.sock",
        "/run/user/7/claude-daemon/ctl.sock",
        "/run/claude-daemon/ctl.sock",
    )


def test_unset_and_empty_variables_name_nothing() -> None:
    environ = {"HOME": "/h", "CLAUDE_DAEMON_SOCKET": "", "CLAUDE_DAEMON_HOME": "", "XDG_RUNTIME_DIR": ""}
    assert candidates(None, environ) == ("/h/.claude-daemon/run/ctl.sock", SYSTEM)


def test_without_home_the_user_database_tells_it() -> None:
    assert candidates(None, {})[0] == str(Path.home() / ".claude-daemon/run/ctl.sock")


def test_a_socket_named_by_the_flag_stands_alone() -> None:
    assert candidates("/named.sock", {"HOME": "/h", "CLAUDE_DAEMON_SOCKET": "/s.sock"}) == ("/named.sock",)


def test_the_same_place_named_twice_is_tried_once() -> None:
    assert len(candidates(None, {"HOME": "/h", "CLAUDE_DAEMON_HOME": "/h/.claude-daemon"})) == 2


def test_the_first_that_answers_is_taken(short_dir: Path) -> None:
    with listening(short_dir / "b"), listening(short_dir / "c"):
        assert reached(short_dir / "a", short_dir / "b", short_dir / "c") == str(short_dir / "b")


def test_a_stale_socket_is_passed_over(short_dir: Path) -> None:
    with listening(short_dir / "stale"):
        pass
    with listening(short_dir / "live"):
        assert reached(short_dir / "stale", short_dir / "live") == str(short_dir / "live")


def test_when_none_answers_every_try_is_named_with_its_reason(short_dir: Path) -> None:
    with listening(short_dir / "stale"):
        pass
    (short_dir / "file").touch()
    with pytest.raises(NotRunning) as raised:
        reached(short_dir / "none", short_dir / "stale", short_dir / "file" / "x", short_dir / ("long" * 40))
    said = str(raised.value)
    assert f"{short_dir}/none  (no such socket)" in said
    assert f"{short_dir}/stale  (left behind, nobody listens)" in said
    assert f"{short_dir}/file/x  (not below a directory)" in said
    assert "path too long" in said
    assert "claude-daemon run" in said


def test_a_socket_closed_to_this_user_is_a_matter_of_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, path: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(sockets.BoundedSocket, "connect_to", refuse)
    with pytest.raises(Denied, match=r"permission denied on the control socket; tried:\n  /a  \(permission denied\)"):
        reached(Path("/a"))


def test_a_daemon_that_accepts_nobody_is_not_passed_over(short_dir: Path) -> None:
    with listening(short_dir / "full", backlog=0), listening(short_dir / "other"):
        waiting = []
        with pytest.raises(TimedOut, match="backlog is full"):
            for _ in range(16):
                _, connection = connect_first([str(short_dir / "full"), str(short_dir / "other")], Deadline(5))
                waiting.append(connection)
        for connection in waiting:
            connection.close()


def test_a_deadline_that_has_passed_raises_and_says_how_long_it_was() -> None:
    with pytest.raises(TimedOut, match="timed out after 0 s"):
        Deadline(0).remaining_seconds()
    assert Deadline(None).remaining_seconds() is None
