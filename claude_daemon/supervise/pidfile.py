"""The pid file: one daemon per home. The lock decides, the number in it is only for people.

A pid can be recycled and a file can outlive its daemon; a lock of ``flock`` does neither. It goes with the
process, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import threading
from pathlib import Path
from types import TracebackType

MODE = 0o600
_MAX_BYTES = 32  # a pid and a line break; whatever else is in the file is not ours to read


class AlreadyRunning(Exception):
    """Another process holds the pid file; ``pid`` is what it wrote there, None if it has not yet."""

    def __init__(self, path: Path, pid: int | None) -> None:
        super().__init__(f"already running (pid {pid or 'unknown'}, {path})")
        self.path = path
        self.pid = pid


class PidFile:
    """Holds the lock from construction until :meth:`close`.

    Raises AlreadyRunning if another process holds it, OSError if the file cannot be created. With ``wait``
    the constructor blocks until the holder is gone (run it in a thread; LIFECYCLE.md, "Hot restart").
    """

    def __init__(self, path: Path, *, wait: bool = False) -> None:
        self.path = path
        self._fd = _lock(path, wait=wait)
        self._write(os.getpid())

    def close(self) -> None:
        """Unlinks the file if it is still ours, and lets go of the lock. Again: nothing."""
        if self._fd < 0:
            return
        if _same_file(self._fd, self.path):
            self.path.unlink()  # before the lock goes: who waits for that sees its file gone, and opens anew
        self.release()

    def release(self) -> None:
        """Lets go of the lock and leaves the file: for the parent of a daemon that has forked."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """The locked descriptor, for a DaemonContext that would close it."""
        return self._fd

    def rewrite(self) -> None:
        """Writes the pid of this process: the lock survives a fork, the number does not."""
        self._write(os.getpid())

    def _write(self, pid: int) -> None:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{pid}\n".encode("ascii"), 0)

    def __enter__(self) -> PidFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


async def taken_over(path: Path) -> PidFile:
    """The pid file, when whoever holds it is gone. A thread waits, since the kernel's lock has no other way to."""
    loop = asyncio.get_running_loop()
    taken: asyncio.Future[PidFile] = loop.create_future()

    def settle(pid_file: PidFile) -> None:
        if not taken.done():
            taken.set_result(pid_file)

    def take() -> None:
        pid_file = PidFile(path, wait=True)
        with contextlib.suppress(RuntimeError):  # the loop is closed: we wait no longer
            loop.call_soon_threadsafe(settle, pid_file)

    threading.Thread(target=take, name="lock", daemon=True).start()  # it ends with us, should we not wait so long
    return await taken


def running(path: Path) -> int | None:
    """The pid of the daemon that holds this file now; None if none does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid_in(fd)
    else:
        return None
    finally:
        os.close(fd)


def wait_until_free(path: Path) -> None:
    """Returns when no daemon holds this file; blocks until then."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _lock(path: Path, *, wait: bool) -> int:
    operation = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, MODE)
        try:
            fcntl.flock(fd, operation)
            if _same_file(fd, path):
                os.fchmod(fd, MODE)
                return fd
        except BlockingIOError:
            holder = AlreadyRunning(path, _pid_in(fd))
            os.close(fd)
            raise holder from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)  # its holder unlinked it between our open and our lock


def _same_file(fd: int, path: Path) -> bool:
    try:
        there = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


def _pid_in(fd: int) -> int | None:
    text = os.pread(fd, _MAX_BYTES, 0).strip()
    return int(text) if text.isdigit() else None
