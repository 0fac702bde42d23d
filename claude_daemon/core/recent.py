"""How often something has happened lately. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

MAX_TIMES: Final = 256
"""Remembered; whoever asks for a rate wants to know of a few, or that there are many."""


class Recent:
    """Times, by a clock that the caller reads, within the last ``window_seconds``."""

    def __init__(self, window_seconds: float) -> None:
        self.window_seconds = window_seconds
        self._times: deque[float] = deque(maxlen=MAX_TIMES)

    def note(self, now: float) -> None:
        self._times.append(now)

    def count(self, now: float) -> int:
        """At most :data:`MAX_TIMES`.

        >>> crashes = Recent(10.0)
        >>> crashes.note(1.0), crashes.note(9.0)
        (None, None)
        >>> crashes.count(10.0), crashes.count(12.0), crashes.count(20.0)
        (2, 1, 0)
        """
        while self._times and now - self._times[0] >= self.window_seconds:
            self._times.popleft()
        return len(self._times)
