"""Rate limits: how much may be asked for in a minute. Pure: the monotonic clock is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MINUTE_S: Final = 60.0


@dataclass(slots=True)
class Bucket:
    """A token bucket: ``most`` at once, refilled evenly within a minute. It may be in debt: what was used is often
    known only afterwards. ``at`` is monotonic seconds; a clock that stands still or steps back refills nothing."""

    most: int
    level: float
    at: float

    @classmethod
    def full(cls, most: int, now: float) -> Bucket:
        return cls(most, float(most), now)

    def take(self, amount: float, now: float) -> None:
        """Whether it is there or not."""
        self._refill(now)
        self.level -= amount

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much is there; 0 when it is."""
        self._refill(now)
        return max(0.0, (amount - self.level) * MINUTE_S / self.most)

    def resize(self, most: int, now: float) -> None:
        """Another limit from now on: what was used of the old one stays used."""
        self._refill(now)
        self.level += most - self.most
        self.most = most

    def _refill(self, now: float) -> None:
        elapsed = now - self.at
        if elapsed > 0:
            self.level = min(float(self.most), self.level + elapsed * self.most / MINUTE_S)
            self.at = now

    def left(self, now: float) -> float:
        """What is there; negative in debt."""
        self._refill(now)
        return self.level

    def standing(self, now: float) -> Standing:
        self._refill(now)
        return Standing(
            limit=self.most,
            remaining=max(0, int(self.level)),
            reset_seconds=(self.most - self.level) * MINUTE_S / self.most,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One limit as its clients are told it. ``reset_seconds``: until all of it is there again."""

    limit: int
    remaining: int
    reset_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What may be asked for; None is no limit. ``concurrent``: turns at once."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None


NO_RATES: Final = Rates()
