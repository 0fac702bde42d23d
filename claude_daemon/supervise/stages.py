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
"""A pipe holds as much. Three fields of :data:`MAX_FIELD_CHARS` fit in, escaped as they may have to be."""
MAX_FIELD_CHARS: Final = 1500
"""A fault of a configuration takes some hundred; whoever has a dozen of them reads the first ones first."""
_READ_BYTES: Final = 4096


class Stage(StrEnum):
    CHECKED = "checked"  # the configuration is good, the code is loaded
    WAITING = "waiting"  # for the lock of the daemon before
    LISTENING = "listening"  # sockets and store are open
    READY = "ready"  # start-up is over
    FAILED = "failed"  # it will not come to that


_LAST: Final = frozenset({Stage.READY, Stage.FAILED})


@dataclass(frozen=True, slots=True)
class Told:
    """``fields`` always hold the child's ``pid``."""

    stage: Stage
    fields: Mapping[str, Any]


class Teller:
    """The child's side. Silent without a pipe, and after its last word, READY or FAILED. Never raises and never
    waits."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        if fd is not None:
            os.set_blocking(fd, False)
            os.set_inheritable(fd, False)

    def tell(self, stage: Stage, **fields: str | int | None) -> None:
        """Texts are cut to :data:`MAX_FIELD_CHARS`."""
        if self._fd is None:
            return
        cut = {name: value[:MAX_FIELD_CHARS] if isinstance(value, str) else value for name, value in fields.items()}
        line = json.dumps({"stage": stage, "pid": os.getpid(), **cut}).encode() + b"\n"
        spoilt = False
        with contextlib.suppress(OSError):  # whoever started us has gone, or does not listen: we go on
            spoilt = os.write(self._fd, line) < len(line)  # the next line would go on where this one was cut
        if spoilt or stage in _LAST:
            self.close()

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class Listener:
    """The other side; it owns the descriptor.

    What is no stage that we know is passed over: a successor may be of a newer version.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unread = b""
        self.ended = False
        """Nothing more will be told: None was not the timeout."""

    def wait(self, timeout_seconds: float) -> Told | None:
        """The next stage; None at the end of the pipe, and at the timeout. Blocks."""
        until = time.monotonic() + timeout_seconds
        readable = select.poll()
        readable.register(self._fd, select.POLLIN)
        while (told := self._next()) is None:
            left = max(0.0, until - time.monotonic())
            if not readable.poll(left * 1000) or not self._read():
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
        if self.ended:
            return False
        piece = os.read(self._fd, _READ_BYTES)
        self._unread += piece
        endless = len(self._unread) > MAX_LINE_BYTES and b"\n" not in self._unread
        self.ended = not piece or endless
        return not self.ended

    def _next(self) -> Told | None:
        while b"\n" in self._unread:
            line, _, self._unread = self._unread.partition(b"\n")
            if (told := _told(line)) is not None:
                return told
        return None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _told(line: bytes) -> Told | None:
    try:
        fields = json.loads(line)
        return Told(Stage(fields.pop("stage")), fields)
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
