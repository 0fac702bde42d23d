"""Rate limits: how much may be asked for in a minute. Pure: the monotonic clock is an argument."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

MINUTE_S: Final = 60.0


@dataclass(slots=True, eq=False)
class Bucket:
    """A token bucket: ``most`` at once, refilled evenly within a minute. ``level``, which whoever takes from it lowers,
    may be a debt: what was used is often known only afterwards. ``at`` is monotonic seconds: when it was last refilled,
    which is for :func:`refill` to do before anything is asked or taken."""

    most: int
    level: float
    at: float

    @classmethod
    def full(cls, most: int, now: float) -> Bucket:
        return cls(most, float(most), now)

    def wait(self, amount: float) -> float:
        """Seconds until so much is there; 0 when it is."""
        return max(0.0, (amount - self.level) * MINUTE_S / self.most)

    def resize(self, most: int) -> None:
        """Another limit from now on: what was used of the old one stays used."""
        self.level += most - self.most
        self.most = most

    def standing(self) -> Standing:
        most, level = self.most, self.level
        return Standing(most, int(level) if level > 0 else 0, (most - level) * MINUTE_S / most)


def refill(buckets: Iterable[Bucket], now: float) -> None:
    """With what has come since they were last refilled. A clock that stands still or steps back brings nothing."""
    for bucket in buckets:
        elapsed = now - bucket.at
        if elapsed > 0:
            level = bucket.level + elapsed * bucket.most / MINUTE_S
            bucket.level = level if level < bucket.most else float(bucket.most)
            bucket.at = now


class Standing(NamedTuple):
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
