"""Where finished lines go: a file, or a pipe, socket or terminal, none of which is ever waited for.

A write to a pipe that nobody reads would stop the event loop. ``O_NONBLOCK`` is no way out: it belongs to the
open file description, which stderr shares with the shell and whatever else writes there. So the descriptor is
asked first, and given no more at once than POSIX says it then takes without waiting. (Another process that fills
the same pipe between question and write could still make us wait.)

Where room is scarce (a disk that is full or nearly so) access lines are spared first: they are many, and say least.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TextIO

LOG_FILE_MODE = 0o600

PIPE_BYTES = 1024 * 1024
"""How far a reader may be behind before lines are lost, some 4,000; Linux lets anyone have so much."""

SCARCE_BYTES: Final = 4 * 1024 * 1024
"""Free space of the file's disk below which access lines are spared: what is left holds some 10,000 other lines."""
ENOUGH_BYTES: Final = 2 * SCARCE_BYTES
"""From which on they are written again; more than the other bound, so that it does not go back and forth."""

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What a disk says that takes no more."""


def free_bytes(fd: int) -> float:
    """Of the disk that a file is on, as far as its owner may fill it; endless for what is no file."""
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return float("inf")
        found = os.fstatvfs(fd)
    except OSError:
        return float("inf")
    return found.f_bavail * found.f_frsize


class Sink:
    """Where finished lines go. Never raises: what cannot be written is counted in ``lost``."""

    def __init__(
        self, fd: int | None, stream: TextIO | None = None, *, free: Callable[[int], float] = free_bytes
    ) -> None:
        self.lost = 0
        self.spared = 0
        """Access lines that were not written for want of room."""
        self.scarce: str | None = None
        """Why access lines are spared now; None while they are not."""
        self._free = free
        self._full = False  # since the last line that it took
        self._fd = fd
        self._room = None if fd is None else _room_in(fd)
        self._stream = stream
        self._torn = False
        # Re-entrant: a finaliser that warns may run while its own thread holds it.
        self._lock = threading.RLock()

    @classmethod
    def of(cls, stream: TextIO) -> Sink:
        """To the stream's descriptor where it has one: no buffer to lose."""
        try:
            stream.flush()
            return cls(stream.fileno())
        except (OSError, ValueError):
            return cls(None, stream)

    def write(self, line: bytes, *, access: bool = False) -> None:
        """``access``: a line that is the first to be spared."""
        if access and self.scarce is not None:
            self.spared += 1
            return
        with self._lock:
            try:
                self._put(line + b"\n")
                self._full = False
            except (OSError, ValueError) as error:
                self.lost += 1
                if isinstance(error, OSError) and error.errno in FULL:
                    self._full = True
                    self.scarce = error.strerror

    def look(self) -> None:
        """Looks whether room has become scarce. Costs a call of the system."""
        if self.scarce is None and self._fd is not None and (free := self._free(self._fd)) < SCARCE_BYTES:
            self.scarce = f"the disk has {free // 1024:.0f} KiB left"

    def may_have_room(self) -> bool:
        """Whether a line that is written now would show that room is scarce no longer."""
        return self._fd is not None and self._free(self._fd) >= ENOUGH_BYTES

    def has_room(self) -> bool:
        """Whether it has taken the last line; then access lines are written again."""
        if not self._full:
            self.scarce = None
        return not self._full

    def _put(self, line: bytes) -> None:
        if self._fd is None:
            if self._stream is None:
                raise ValueError("closed")
            self._stream.write(line.decode())
            self._stream.flush()
            return
        if self._torn:  # a full disk or pipe took half of an earlier line
            line = b"\n" + line
        while line:
            part = line
            if self._room is not None:
                if not self._room.poll(0):
                    raise BlockingIOError(errno.EAGAIN, "nobody reads")
                part = line[: select.PIPE_BUF]
            line = line[os.write(self._fd, part) :]
            self._torn = bool(line)

    def replace(self, fd: int) -> None:
        """Goes on with another descriptor and closes the old one."""
        with self._lock:
            self.close()
            self._fd, self._room, self._torn, self._full = fd, _room_in(fd), False, False

    def close(self) -> None:
        with self._lock:
            old, self._fd = self._fd, None
            if old is not None:
                os.close(old)


def _room_in(fd: int) -> select.poll | None:
    """Polls whether a write to the descriptor would wait; None for a file, which always takes it."""
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return None
    if sys.platform == "linux" and stat.S_ISFIFO(mode):
        with suppress(OSError):  # not allowed so much, or it holds more already
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, max(PIPE_BYTES, fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)))
    room = select.poll()
    room.register(fd, select.POLLOUT)
    return room


def open_log(path: Path) -> int:
    """A descriptor that appends to the file, which then is 0600. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, LOG_FILE_MODE)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and stat.S_IMODE(status.st_mode) != LOG_FILE_MODE:
        os.fchmod(fd, LOG_FILE_MODE)
    return fd
