"""Whether the configuration's file is still the one that was read."""

from __future__ import annotations

import hashlib
from pathlib import Path

from claude_daemon.layers.sources import MAX_CONFIG_BYTES, opened

Stamp = tuple[int, int, int]


def file_digest(path: Path) -> str | None:
    """SHA-256 in hex of the file; None where it cannot be read."""
    try:
        with opened(path) as stream:
            return hashlib.sha256(stream.read(MAX_CONFIG_BYTES + 1)).hexdigest()
    except OSError:
        return None


class FileWatch:
    """Compares a file with what it was. It is read again only when its stamp changes: a probe may ask each second."""

    def __init__(self, path: Path, digest: str | None) -> None:
        self._path = path
        self._digest = digest
        self._stamp = _stamp(path)
        self._differs = file_digest(path) != digest

    def differs(self) -> bool:
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            self._differs = file_digest(self._path) != self._digest
        return self._differs


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
