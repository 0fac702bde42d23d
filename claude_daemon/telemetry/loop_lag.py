"""How late the event loop is: a timer that should fire at a known moment, and when it does.

Whatever keeps the loop busy, or the process from running at all, makes everybody wait for just so long.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

TICK_S: Final = 0.1
"""Between two looks. A stall of any length is seen whole by the timer that it delays; ten wake-ups a second cost less
than a thousandth of a core."""
RECENT_S: Final = 10.0
"""How far back :attr:`LoopLag.recent_seconds` looks."""


class LoopLag:
    """Runs between :meth:`start` and :meth:`stop`, in the loop that it was started in."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._worst: deque[tuple[float, float]] = deque()
        """When, and how late: of the last :data:`RECENT_S` those that none after them exceeds, so the first is the
        worst."""

    def start(self) -> None:
        """Raises RuntimeError where no loop runs."""
        self._again(asyncio.get_running_loop())

    def stop(self) -> None:
        """Again it does nothing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def recent_seconds(self) -> float:
        """The worst lag of the last ten seconds; one that is not over yet counts as far as it has come."""
        now = self._monotonic()
        self._forget(now)
        worst = self._worst[0][1] if self._worst else 0.0
        return max(worst, now - self._due) if self._timer is not None else worst

    def _again(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = self._monotonic() + TICK_S
        self._timer = loop.call_later(TICK_S, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = self._monotonic()
        lag = max(0.0, now - self._due)
        self._forget(now)
        while self._worst and self._worst[-1][1] <= lag:
            self._worst.pop()
        self._worst.append((now, lag))
        self._again(loop)

    def _forget(self, now: float) -> None:
        while self._worst and now - self._worst[0][0] > RECENT_S:
            self._worst.popleft()
