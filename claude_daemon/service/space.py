"""How much room the file systems have that the daemon writes to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from claude_daemon.core.lifecycle import Check, worst
from claude_daemon.ports import HealthReport
from claude_daemon.service.outside import Outside

_MIB: Final = 1024 * 1024
WARN_BYTES: Final = 1024 * _MIB
"""Some hours of a busy daemon's log and store: time to see to it."""
WARN_SHARE: Final = 0.10
"""A small file system is not short of room while so much of it is free: both must be undercut."""
FAIL_BYTES: Final = 64 * _MIB
"""The WAL alone may take so much in a moment: the next burst of work can fail."""
FAIL_SHARE: Final = 0.01
WARN_INODES: Final = 1000
"""A task's directory is some dozen files."""
FAIL_INODES: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """One file system. ``paths``: what of ours is on it; free is what this user may still use. ``inodes`` 0: it counts
    none."""

    paths: tuple[Path, ...]
    free_bytes: int
    size_bytes: int
    free_inodes: int
    inodes: int

    def judged(self) -> tuple[Check, str]:
        where = f"{', '.join(map(str, self.paths))}: "
        share = self.free_bytes / self.size_bytes if self.size_bytes else 0.0
        room = f"{self.free_bytes // _MIB} MiB free, {share:.0%}"
        if self.free_bytes < FAIL_BYTES and share < FAIL_SHARE:
            return Check.FAIL, where + room
        if self.inodes and self.free_inodes < FAIL_INODES:
            return Check.FAIL, f"{where}room for {self.free_inodes} more files"
        if self.free_bytes < WARN_BYTES and share < WARN_SHARE:
            return Check.WARN, where + room
        if self.inodes and self.free_inodes < WARN_INODES:
            return Check.WARN, f"{where}room for {self.free_inodes} more files"
        return Check.PASS, ""

    def document(self) -> Mapping[str, Any]:
        return {
            "paths": [str(path) for path in self.paths],
            "free_bytes": self.free_bytes,
            "size_bytes": self.size_bytes,
            "free_inodes": self.free_inodes if self.inodes else None,
        }


def measured(paths: Iterable[Path]) -> Sequence[Space]:
    """The file systems that these paths are on, or will be once they are made. Blocks; raises OSError."""
    by_device: dict[int, list[Path]] = {}
    for path in dict.fromkeys(paths):
        by_device.setdefault(_there(path).stat().st_dev, []).append(path)
    return [_measured(ours) for ours in by_device.values()]


def _measured(paths: Sequence[Path]) -> Space:
    found = os.statvfs(_there(paths[0]))
    return Space(
        paths=tuple(paths),
        free_bytes=found.f_bavail * found.f_frsize,
        size_bytes=found.f_blocks * found.f_frsize,
        free_inodes=found.f_favail,
        inodes=found.f_files,
    )


def _there(path: Path) -> Path:
    return next(one for one in (path, *path.parents) if one.exists())


def disk_check(outside: Outside[Sequence[Space]]) -> HealthReport:
    """From the last measurement."""
    if (stuck := outside.stuck_seconds) is not None:
        return HealthReport(status=Check.FAIL, reason=f"a file system has not answered for {stuck:.0f} s")
    if outside.latest is None:
        return HealthReport(status=Check.PASS, reason="not measured yet")
    if isinstance(outside.latest, OSError):
        return HealthReport(status=Check.FAIL, reason=f"it cannot be measured: {outside.latest}")
    judged = [space.judged() for space in outside.latest]
    return HealthReport(
        status=worst(status for status, _ in judged),
        reason="; ".join(reason for _, reason in judged if reason),
        details={"file_systems": [space.document() for space in outside.latest]},
    )
