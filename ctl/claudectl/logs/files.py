"""A log file and its rotated neighbours, as lines: from the oldest on, the last of them, or for as long as it grows."""

from __future__ import annotations

import os
import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from claudectl.errors import ControlError, Denied

PAUSE_SECONDS: Final = 0.2
"""Between two looks at a file that grows: as often as a reader's eye."""
_BLOCK_BYTES: Final = 64 * 1024
_PACKED: Final = {".gz": "gzip", ".xz": "lzma", ".bz2": "bz2"}

Wanted = Callable[[bytes], bool]


def neighbours(path: Path, since: float | None = None) -> list[Path]:
    """The file and what it was before its rotations (``daemon.log.1``, ``daemon.log-20260131.gz``), the oldest first.

    ``since``, seconds since the epoch: without those that were written to for the last time before.
    """
    name = re.escape(path.name)
    rotated = re.compile(rf"{name}[.-][0-9][0-9.T_-]*({'|'.join(map(re.escape, _PACKED))})?")
    try:
        entries = [entry for entry in path.parent.iterdir() if rotated.fullmatch(entry.name)]
        found = sorted((entry.stat().st_mtime, entry) for entry in entries)
    except OSError as error:
        raise _unreadable(path.parent, error) from error
    ordered = [entry for written, entry in found if since is None or written >= since]
    return [*ordered, path]


def lines(paths: list[Path], wanted: Wanted = lambda line: True, *, end: int | None = None) -> Iterator[bytes]:
    """Every line that is wanted, without its end; of the last file up to its byte ``end``. Raises ControlError."""
    for path in paths:
        left = end if end is not None and path is paths[-1] else sys.maxsize
        with _opened(path) as file:
            try:
                for raw in file:
                    left -= len(raw)
                    if left < 0:
                        break
                    if (line := raw.rstrip(b"\r\n")) and wanted(line):
                        yield line
            except (OSError, EOFError, ValueError) as error:
                raise ControlError(f"{path} cannot be read: {error}") from error


def last(paths: list[Path], count: int, wanted: Wanted | None = None, *, end: int | None = None) -> list[bytes]:
    """The last so many lines (that are wanted), the oldest first; ``end`` as in :func:`lines`. Without a wish nothing
    else is read."""
    found: deque[bytes] = deque()
    for path in reversed(paths):
        left = count - len(found)
        if left <= 0:
            break
        if wanted is None and path.suffix not in _PACKED:
            some = _tail(path, left, end if path is paths[-1] else None)
        else:
            until = end if path is paths[-1] else None
            some = list(deque(lines([path], wanted or (lambda line: True), end=until), maxlen=left))
        found.extendleft(reversed(some))
    return list(found)


class Growing:
    """A file that is written to, followed over its rotations. It begins behind what it holds now: at ``begins``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] = _opened(path)
        self._held = b""
        self.begins = self._file.seek(0, os.SEEK_END)

    def lines(self, pause: Callable[[], None] = lambda: time.sleep(PAUSE_SECONDS)) -> Iterator[bytes]:
        """Never ends by itself; ``pause`` is called when there is nothing new, and may raise. Closed at the end."""
        try:
            while True:
                yield from self._new()
                if self._rotated():
                    yield from self._new()  # what came between the two looks
                    self.close()
                    self._file, self._held = _opened(self._path), b""
                else:
                    pause()
        finally:
            self.close()

    def close(self) -> None:
        self._file.close()

    def _new(self) -> Iterator[bytes]:
        if self._file.tell() > os.fstat(self._file.fileno()).st_size:  # truncated in place
            self._file.seek(0)
            self._held = b""
        while piece := self._file.read(_BLOCK_BYTES):
            *complete, self._held = (self._held + piece).split(b"\n")
            yield from filter(None, complete)

    def _rotated(self) -> bool:
        """Whether another file has our name now. While there is none, the daemon writes to the old one still."""
        try:
            found = self._path.stat()
        except OSError:
            return False
        own = os.fstat(self._file.fileno())
        return (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino)


def _tail(path: Path, count: int, end: int | None) -> list[bytes]:
    """Read backwards: a log may be large."""
    with _opened(path) as file:
        at, held = file.seek(0, os.SEEK_END) if end is None else end, b""
        while at > 0 and held.count(b"\n") <= count:
            size = min(at, _BLOCK_BYTES)
            at -= size
            file.seek(at)
            held = file.read(size) + held
    whole = held.split(b"\n")[1 if at > 0 else 0 :]
    return [line.rstrip(b"\r") for line in whole if line][-count:]


def _opened(path: Path) -> IO[bytes]:
    try:
        if (module := _PACKED.get(path.suffix)) is not None:
            import importlib

            packed: Any = importlib.import_module(module)
            return packed.open(path, "rb")  # type: ignore[no-any-return]
        return path.open("rb")
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> ControlError:
    if isinstance(error, PermissionError):
        return Denied(f"{path}: permission denied; use the daemon's user, or root")
    return ControlError(f"{path}: {error.strerror}")
