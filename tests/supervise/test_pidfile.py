"""The pid file: the lock decides, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from claude_daemon.supervise.pidfile import AlreadyRunning, PidFile, running

HOLDER = """
import sys
from pathlib import Path
from claude_daemon.supervise.pidfile import PidFile
held = PidFile(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
held.close()
"""


class Holder:
    """Another process that holds the file until it is let go or killed."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None and self.process.stdout.readline() == "held\n"

    def end(self, *, kill: bool = False) -> None:
        if kill:
            self.process.kill()
        self.process.communicate()


def test_it_holds_our_pid_with_mode_0600_and_is_gone_after_close(tmp_path: Path) -> None:
    path = tmp_path / "daemon.pid"
    with PidFile(path) as held:
        assert path.read_text() == f"{os.getpid()}\n"
        assert path.stat().st_mode & 0o777 == 0o600
        assert not os.get_inheritable(held.fileno())
        assert running(path) == os.getpid()
    assert not path.exists() and running(path) is None
    held.close()


def test_a_second_one_is_refused_and_names_the_first(tmp_path: Path) -> None:
    path = tmp_path / "daemon.pid"
    holder = Holder(path)
    try:
        with pytest.raises(AlreadyRunning) as refused:
            PidFile(path)
        assert refused.value.pid == holder.process.pid == running(path)
        assert path.read_text() == f"{holder.process.pid}\n"
    finally:
        holder.end()


def test_the_file_of_a_killed_daemon_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "daemon.pid"
    holder = Holder(path)
    holder.end(kill=True)
    assert path.exists() and running(path) is None
    with PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("content", ["1\n", "99999999999999999999999\n", "not a pid", "", "1" * 100_000])
def test_neither_a_recycled_pid_nor_nonsense_in_it_is_an_obstacle(tmp_path: Path, content: str) -> None:
    path = tmp_path / "daemon.pid"
    path.write_text(content)
    path.chmod(0o644)
    with PidFile(path):
        assert path.read_text() == f"{os.getpid()}\n"
        assert path.stat().st_mode & 0o777 == 0o600


def test_only_our_own_file_is_unlinked(tmp_path: Path) -> None:
    path = tmp_path / "daemon.pid"
    held = PidFile(path)
    path.unlink()
    path.write_text("another's")
    held.close()
    assert path.read_text() == "another's"


def test_a_symlink_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("do not touch")
    path = tmp_path / "daemon.pid"
    path.symlink_to(target)
    with pytest.raises(OSError, match=r"symbolic|loop|Too many"):
        PidFile(path)
    assert target.read_text() == "do not touch"


def test_waiting_gets_the_file_when_its_holder_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "daemon.pid"
    holder = Holder(path)
    got: list[PidFile] = []
    waiter = threading.Thread(target=lambda: got.append(PidFile(path, wait=True)))
    waiter.start()
    holder.end()
    waiter.join(10)
    assert got and path.read_text() == f"{os.getpid()}\n" and running(path) == os.getpid()
    got[0].close()


def test_after_a_fork_the_child_keeps_the_lock_and_writes_its_own_pid(tmp_path: Path) -> None:
    path = tmp_path / "daemon.pid"
    script = """
import os, sys
from pathlib import Path
from claude_daemon.supervise.pidfile import PidFile
held = PidFile(Path(sys.argv[1]))
if os.fork():
    held.release()
    os._exit(0)
held.rewrite()
print(os.getpid(), flush=True)
sys.stdin.read()
held.close()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdin is not None
    child = int(process.stdout.readline())
    assert process.wait(10) == 0
    assert running(path) == child != process.pid
    process.stdin.close()
    assert process.stdout.read() == ""
    process.stdout.close()
    assert not path.exists()
