"""Where finished lines go: a file, or a pipe, socket or terminal, none of which is ever waited for.

A write to a pipe that nobody reads would stop the event loop. ``O_NONBLOCK`` is no way out: it belongs to the
open file description, which stderr shares with the shell and whatever else writes there. So the descriptor is
asked first, and given no more at once than POSIX says it then takes without waiting. (Another process that fills
the same pipe between question and write could still make us wait.)
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import stat
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TextIO

LOG_FILE_MODE = 0o600

PIPE_BYTES = 1024 * 1024
"""How far a reader may be behind before lines are lost, some 4,000; Linux lets anyone have so much."""

# The only escape sequences in a finished line are the console renderer's own.
_COLOUR = re.compile(rb"\x1b\[[0-9;]*m")


class Sink:
    """Where finished lines go. Never raises: what cannot be written is counted in ``lost``."""

    def __init__(self, fd: int | None, stream: TextIO | None = None, *, uncoloured: bool = False) -> None:
        self.lost = 0
        self._uncoloured = uncoloured
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

    def write(self, line: bytes) -> None:
        if self._uncoloured:
            line = _COLOUR.sub(b"", line)
        with self._lock:
            try:
                self._put(line + b"\n")
            except (OSError, ValueError):
                self.lost += 1

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
            self._fd, self._room, self._torn = fd, _room_in(fd), False

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
