"""Backing off: how long to wait after the n-th failure in a row."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential delays, each between half of its ceiling and all of it: many who wait do not return at once."""

    first_seconds: float
    limit_seconds: float

    def delay(self, failures: int, random: float) -> float:
        """Seconds to wait after ``failures`` (≥ 1) failures in a row; ``random`` is uniform in [0, 1)."""
        ceiling = min(self.limit_seconds, self.first_seconds * 2.0 ** min(failures - 1, 30))
        return ceiling * (0.5 + 0.5 * random)
