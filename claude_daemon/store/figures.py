"""How the writer is doing, in numbers."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

REMEMBERED: Final = 256
"""Commits that the percentiles are of: the last seconds under load, and enough for a 99th."""
WORST_S: Final = 60.0
"""How far back the worst commit is told of."""


class Figures:
    """Written by the writer's thread, read by any."""

    def __init__(self, monotonic: Callable[[], float] = time.perf_counter) -> None:
        self.commits = 0
        self._monotonic = monotonic
        self._wal_bytes = 0
        self._milliseconds: deque[float] = deque(maxlen=REMEMBERED)
        self._worst: deque[tuple[float, float]] = deque()
        """When, and how many milliseconds: of the last :data:`WORST_S` those that none after them exceeds."""
        self._began_at: float | None = None
        self._lock = threading.Lock()

    def began(self) -> None:
        """A commit is under way, until :meth:`committed` or :meth:`failed`."""
        with self._lock:
            self._began_at = self._monotonic()

    def committed(self, wal_bytes: int) -> float:
        """How many seconds it took."""
        with self._lock:
            assert self._began_at is not None
            now = self._monotonic()
            seconds, self._began_at = now - self._began_at, None
            taken = seconds * 1000
            self.commits += 1
            self._wal_bytes = wal_bytes
            self._milliseconds.append(taken)
            while self._worst and self._worst[-1][1] <= taken:
                self._worst.pop()
            self._worst.append((now, taken))
            self._forget(now)
        return seconds

    def failed(self) -> None:
        with self._lock:
            self._began_at = None

    def read(self) -> Mapping[str, Any]:
        """``commit_ms`` is the last one's; None where there was none yet. ``commit_under_way_seconds``: for how long
        one has been; None for none."""
        with self._lock:
            now = self._monotonic()
            self._forget(now)
            commits, wal_bytes, recent = self.commits, self._wal_bytes, list(self._milliseconds)
            worst = self._worst[0][1] if self._worst else None
            under_way = None if self._began_at is None else now - self._began_at
        ordered = sorted(recent)
        return {
            "commits": commits,
            "commit_ms": round(recent[-1], 3) if recent else None,
            "commit_p50_ms": _percentile(ordered, 50),
            "commit_p99_ms": _percentile(ordered, 99),
            "commit_max_60s_ms": None if worst is None else round(worst, 3),
            "commit_under_way_seconds": None if under_way is None else round(under_way, 6),
            "wal_bytes": wal_bytes,
        }

    def _forget(self, now: float) -> None:
        while self._worst and now - self._worst[0][0] > WORST_S:
            self._worst.popleft()


def _percentile(ordered: list[float], percent: int) -> float | None:
    if not ordered:
        return None
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 3)
