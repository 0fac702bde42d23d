"""What the kernel says about processes and about how busy the machine is with others' work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int, *, reaped_children: bool = False) -> float:
    """User and system time of a process; 0 for one that is gone. In steps of 10 ms."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11 : 15 if reaped_children else 13])) / _TICKS_PER_S


def exact_cpu_seconds(pid: int) -> tuple[float, float]:
    """Of a process's first thread, and of all that it has, by the scheduler's own account: it has no steps."""
    told = {path.parent.name: path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/schedstat")}
    used = {thread: int(line.split()[0]) / 1e9 for thread, line in told.items()}
    return used[str(pid)], sum(used.values())


def children_cpu_seconds(pid: int) -> float:
    """Of all that a process has ever started: its children that live, and those it has seen end."""
    living = sum(cpu_seconds(child, reaped_children=True) for child in descendants(pid)[1:])
    return cpu_seconds(pid, reaped_children=True) - cpu_seconds(pid) + living


def rss_mb(pid: int) -> float:
    """Resident memory, in MB of 2**20 bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def descendants(pid: int) -> list[int]:
    """The process and all below it that live."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            found += descendants(int(child))
    return found


def load_average() -> float:
    return os.getloadavg()[0]


class OthersWork:
    """``with OthersWork() as others``: then ``others.share`` is the part of all cores that others kept busy."""

    share = 0.0

    def __enter__(self) -> Self:
        self._busy, self._all = _machine_seconds()
        self._own = _own_seconds()
        return self

    def __exit__(self, *exc: object) -> None:
        busy, everything = _machine_seconds()
        others = (busy - self._busy) - (_own_seconds() - self._own)
        self.share = max(0.0, others / max(everything - self._all, 0.01))


def _machine_seconds() -> tuple[float, float]:
    fields = [int(word) / _TICKS_PER_S for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return sum(fields) - idle, sum(fields)


def _own_seconds() -> float:
    """Of this process and of all that it ever started."""
    return sum(cpu_seconds(pid, reaped_children=True) for pid in descendants(os.getpid()))
