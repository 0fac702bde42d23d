"""How far a daemon that starts is, told to whoever started it: a ``start`` command, or the daemon that it replaces.

The child writes one line of JSON for each stage into a pipe. The end of the pipe is the end of the story: the child
has closed it, or has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

MAX_LINE_BYTES: Final = 64 * 1024
"""A pipe holds as much, so that the child never waits for its reader; a fault of a configuration takes some hundred."""
_READ_BYTES: Final = 4096


class Stage(StrEnum):
    CHECKED = "checked"  # the configuration is good, the code is loaded
    WAITING = "waiting"  # for the lock of the daemon before
    LISTENING = "listening"  # sockets and store are open
    READY = "ready"  # start-up is over
    FAILED = "failed"  # it will not come to that


@dataclass(frozen=True, slots=True)
class Told:
    """``fields`` always hold the child's ``pid``."""

    stage: Stage
    fields: Mapping[str, Any]


class Teller:
    """The child's side. Silent without a pipe; never raises and never waits."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)

    def tell(self, stage: Stage, **fields: Any) -> None:
        if self._fd is None:
            return
        line = json.dumps({"stage": stage, "pid": os.getpid(), **fields}).encode()
        if len(line) >= MAX_LINE_BYTES:
            line = json.dumps({"stage": stage, "pid": os.getpid(), "message": "too long to tell"}).encode()
        with contextlib.suppress(OSError):  # whoever started us has gone, or does not listen: we go on
            os.write(self._fd, line + b"\n")

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def fileno(self) -> int | None:
        return self._fd


class Listener:
    """The other side; it owns the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unread = b""

    def wait(self, timeout_seconds: float) -> Told | None:
        """The next stage; None at the end of the pipe, and at the timeout. Blocks."""
        until = time.monotonic() + timeout_seconds
        while (told := self._next()) is None:
            left = max(0.0, until - time.monotonic())
            if not select.select([self._fd], [], [], left)[0] or not self._read():
                return None
        return told

    async def next(self, timeout_seconds: float) -> Told | None:
        """The same for an event loop."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while (told := self._next()) is None:
                    await self._readable()
                    if not self._read():
                        return None
        except TimeoutError:
            return None
        return told

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        there = asyncio.Event()
        loop.add_reader(self._fd, there.set)
        try:
            await there.wait()
        finally:
            loop.remove_reader(self._fd)

    def _read(self) -> bool:
        """False at the end, and where a line has no end."""
        piece = os.read(self._fd, _READ_BYTES)
        self._unread += piece
        return bool(piece) and len(self._unread) <= MAX_LINE_BYTES

    def _next(self) -> Told | None:
        line, end, rest = self._unread.partition(b"\n")
        if not end:
            return None
        self._unread = rest
        fields = json.loads(line)
        return Told(Stage(fields.pop("stage")), fields)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
