"""Cgroups of a test's own, for root where the kernel's file system of them is mounted."""

from __future__ import annotations

import contextlib
import os
from functools import cache
from pathlib import Path

import pytest

CONTROLLERS = {"memory", "pids"}


@cache
def mounted() -> Path | None:
    """Where cgroup v2 is mounted and can be written."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, where, kind, options, *_ = line.split()
            if kind == "cgroup2" and "ro" not in options.split(","):
                return Path(where)
    return None


def cgroup2() -> Path:
    found = mounted()
    assert found is not None
    return found


def _no_root() -> str:
    if os.geteuid() != 0:
        return "only root may make cgroups: sudo make test-system"
    return "" if mounted() is not None else "no cgroup2 is mounted"


def _no_controllers() -> str:
    """Also where another hierarchy has them: those of the old kind."""
    if (why := _no_root()) != "":
        return why
    lacks = CONTROLLERS - set((cgroup2() / "cgroup.subtree_control").read_text().split())
    return f"cgroup2 hands down no controller for {' and '.join(sorted(lacks))} here" if lacks else ""


without_root = pytest.mark.skipif(_no_root() != "", reason=_no_root())
"""Skips a test where no cgroup can be made."""
without_controllers = pytest.mark.skipif(_no_controllers() != "", reason=_no_controllers())
"""Skips a test where one can have no limits."""


def remove_cgroup(path: Path) -> None:
    """With all that is in it and beneath; without effect where it is gone."""
    if not path.exists():
        return
    (path / "cgroup.kill").write_text("1")
    while any((one / "cgroup.procs").read_text() for one in (path, *path.rglob("*/"))):
        os.sched_yield()  # what was killed takes a moment to go
    for one in (*sorted(path.rglob("*/"), key=lambda one: len(one.parts), reverse=True), path):
        one.rmdir()
