"""Processes that cannot be started, or die as soon as they are: when to try again, and what to say until then."""

from __future__ import annotations

from typing import Final

from claude_daemon.core.recent import Recent
from claude_daemon.core.retry import Backoff
from claude_daemon.core.worker import CRASH_WINDOW_S

# A CLI that cannot start is tried again after 0.5 to 30 s: soon enough for a mended installation, never a spin.
_BACKOFF: Final = Backoff(first_seconds=0.5, limit_seconds=30.0)
# Whoever has served a turn, or lived as long, was started well: its death is an accident and no reason to wait.
_PROVEN_S: Final = 10.0
# One failed start may be an accident too; who waits is sent away from the second on.
_GIVE_UP_AFTER: Final = 2


class Failures:
    """Deaths of unproven processes in a row. Times are monotonic seconds, told by the caller; ``random`` is in [0, 1).

    A process that was ready and dies makes us wait like one that never was, but only the latter is a reason to send
    callers away.
    """

    def __init__(self) -> None:
        self.count = 0
        self.last_error = ""
        self.last_crash_at = float("-inf")
        self.retry_at = float("-inf")
        self.recent = Recent(CRASH_WINDOW_S)
        self._starts = 0

    def failed(self, error: str, now: float, random: float) -> float:
        """A process could not be started; the seconds until the next try."""
        self._starts += 1
        return self._unproven(error, now, random)

    def crashed(self, error: str, now: float, random: float, *, lived_seconds: float, turns: int) -> float:
        """A process that was ready has died; the seconds until the next try."""
        if turns == 0 and lived_seconds < _PROVEN_S:
            return self._unproven(error, now, random)
        self.proven()
        self._note(error, now)
        return 0.0

    def _unproven(self, error: str, now: float, random: float) -> float:
        self.count += 1
        self._note(error, now)
        delay = _BACKOFF.delay(self.count - 1, random) if self.count > 1 else 0.0
        self.retry_at = now + delay
        return delay

    def _note(self, error: str, now: float) -> None:
        self.last_error, self.last_crash_at = error, now
        self.recent.note(now)

    def ready(self) -> None:
        """A process could be started."""
        self._starts = 0

    def proven(self) -> None:
        """A process has served a turn: starting works, and lasts."""
        self._starts = self.count = 0
        self.retry_at = float("-inf")

    @property
    def hopeless(self) -> bool:
        return self._starts >= _GIVE_UP_AFTER
