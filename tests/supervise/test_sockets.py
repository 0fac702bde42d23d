"""Listening sockets and the control socket's path."""

from __future__ import annotations

import os
import socket
import stat
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from claude_daemon.supervise.sockets import (
    ACCEPT_REPORT_SECONDS,
    MAX_PATH_BYTES,
    AcceptErrors,
    PathTooLong,
    SocketInUse,
    control_socket,
    inode_of,
    tcp_sockets,
    unlink_own,
)


@pytest.fixture
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("s") / "run" / "ctl.sock"


def test_the_control_socket_listens_with_its_mode_in_a_private_directory(path: Path) -> None:
    before = os.umask(0o022)
    try:
        with control_socket(path, 0o660):
            assert stat.S_IMODE(path.stat().st_mode) == 0o660
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(os.fspath(path))
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_a_live_path_is_not_stolen_and_its_owner_goes_on(path: Path) -> None:
    with control_socket(path) as live:
        inode = inode_of(path)
        with pytest.raises(SocketInUse, match="somebody listens"):
            control_socket(path)
        assert inode_of(path) == inode
        live.setblocking(True)
        live.accept()[0].close()  # the probe
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))


@pytest.mark.skipif(sys.platform != "linux", reason="macOS refuses where Linux makes a connect wait")
def test_a_path_whose_backlog_is_full_is_a_live_one(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as live, socket.socket(socket.AF_UNIX) as first:
        live.bind(os.fspath(path))
        live.listen(0)
        first.connect(os.fspath(path))
        with pytest.raises(SocketInUse):
            control_socket(path)


def test_a_stale_socket_is_replaced(path: Path) -> None:
    control_socket(path).close()
    stale = inode_of(path)
    with control_socket(path):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))
        assert not unlink_own(path, stale)


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_what_is_no_socket_is_left_alone(path: Path, kind: str) -> None:
    path.parent.mkdir()
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/nonexistent")
    with pytest.raises(SocketInUse, match="not a socket"):
        control_socket(path)
    assert path.is_symlink() or path.exists()


def test_a_path_of_108_bytes_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    fits = directory / ("x" * (MAX_PATH_BYTES - len(os.fsencode(directory)) - 1))
    with pytest.raises(PathTooLong, match=str(MAX_PATH_BYTES + 1)):
        control_socket(Path(f"{fits}x"))
    assert not directory.exists()
    control_socket(fits).close()


def test_only_our_own_socket_is_unlinked(path: Path) -> None:
    with control_socket(path):
        mine = inode_of(path)
        path.rename(path.with_name("kept"))  # so that its inode is not used again
        with socket.socket(socket.AF_UNIX) as another:
            another.bind(os.fspath(path))
            assert not unlink_own(path, mine)
            assert path.exists()
        assert unlink_own(path.with_name("kept"), mine)
        assert not unlink_own(path.with_name("kept"), mine)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "[::1]", "localhost"])
def test_a_host_is_bound_by_name_or_literal(host: str) -> None:
    try:
        listening = tcp_sockets(host, 0)
    except OSError as error:
        pytest.skip(f"no {host} here: {error}")
    try:
        assert len({sock.getsockname()[1] for sock in listening}) == 1
        for sock in listening:
            with socket.create_connection(sock.getsockname()[:2], timeout=5):
                pass
    finally:
        for sock in listening:
            sock.close()


def test_a_taken_port_is_an_error_and_leaves_nothing_open() -> None:
    (taken,) = tcp_sockets("127.0.0.1", 0)
    with taken, pytest.raises(OSError, match="in use"):
        tcp_sockets("127.0.0.1", taken.getsockname()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="Linux hands options from the listener to what it accepts")
def test_an_accepted_connection_notices_a_peer_whose_machine_is_gone() -> None:
    (listening,) = tcp_sockets("127.0.0.1", 0)
    with listening, socket.create_connection(listening.getsockname(), timeout=5):
        listening.setblocking(True)
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60


def test_a_storm_of_accept_errors_is_one_line_in_ten_seconds_with_a_count() -> None:
    now: list[float] = [100.0]
    told: list[str] = []
    errors = AcceptErrors(told.append, clock=lambda: now[0])
    context = {
        "message": "socket.accept() out of system resource",
        "exception": OSError(24, "Too many open files"),
    }
    assert all(errors.seen(context) for _ in range(5000))
    assert len(told) == 1
    now[0] += ACCEPT_REPORT_SECONDS
    assert errors.seen(context)
    assert len(told) == 2 and "5000 times" in told[1] and "Too many open files" in told[1]
    assert not errors.seen({"message": "Task exception was never retrieved"})


def test_sockets_are_made_from_any_thread(path: Path) -> None:
    made: list[socket.socket] = []
    thread = threading.Thread(target=lambda: made.append(control_socket(path)))
    thread.start()
    thread.join()
    made[0].close()
