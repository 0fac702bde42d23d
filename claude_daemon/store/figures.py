"""How the writer is doing, in numbers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

REMEMBERED: Final = 256
"""Commits that the percentiles are of: the last seconds under load, and enough for a 99th."""


class Figures:
    """Written by the writer's thread, read by any."""

    def __init__(self) -> None:
        self.commits = 0
        self._wal_bytes = 0
        self._milliseconds: deque[float] = deque(maxlen=REMEMBERED)
        self._lock = threading.Lock()

    def committed(self, seconds: float, wal_bytes: int) -> None:
        with self._lock:
            self.commits += 1
            self._wal_bytes = wal_bytes
            self._milliseconds.append(seconds * 1000)

    def read(self) -> Mapping[str, Any]:
        """``commit_ms`` is the last one's; None where there was none yet."""
        with self._lock:
            commits, wal_bytes, recent = self.commits, self._wal_bytes, list(self._milliseconds)
        ordered = sorted(recent)
        return {
            "commits": commits,
            "commit_ms": round(recent[-1], 3) if recent else None,
            "commit_p50_ms": _percentile(ordered, 50),
            "commit_p99_ms": _percentile(ordered, 99),
            "wal_bytes": wal_bytes,
        }


def _percentile(ordered: list[float], percent: int) -> float | None:
    if not ordered:
        return None
    return round(ordered[min(len(ordered) - 1, len(ordered) * percent // 100)], 3)
