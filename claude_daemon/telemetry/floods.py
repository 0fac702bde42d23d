"""What of a flood is told: of each event a burst, then one in so many, and at the end how many were not. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

WINDOW_S: Final = 10.0
"""In which lines are counted; what was left out of it is told at its end, in one line."""
BURST: Final = 5000
"""Lines of one event that a window takes whole: 500 a second. At 10 µs each that is half a percent of a core, and more
than the busiest daemon of two cores has chats."""
SEVERE_BURST: Final = 500
"""The same for warnings and errors: whoever reads those reads fewer, and their stacks are long."""
ONE_IN: Final = 100
"""Of those beyond the burst: enough to see what goes on."""
MAX_NAMES: Final = 1024
"""Names that are counted apart: ours are a hundred, libraries' loggers as many. Beyond it all counts begin anew."""

_SEVERE: Final = frozenset({"warning", "error"})


@dataclass(frozen=True, slots=True)
class Flood:
    """So many lines of one event were not told, within :data:`WINDOW_S`."""

    name: str
    dropped: int


class _Window:
    __slots__ = ("began", "count", "dropped")

    def __init__(self, now: float) -> None:
        self.began = now
        self.count = 1
        self.dropped = 0


class Floods:
    """Counts by name. Threads may miscount a line of each other's; none is ever waited for."""

    def __init__(self) -> None:
        self.dropped = 0
        """Since the start."""
        self._windows: dict[str, _Window] = {}
        self._over: list[Flood] = []
        self._due_at = float("inf")

    def take(self, name: str, level: str, now: float) -> bool:
        """Whether this line is told; ``now`` in monotonic seconds. What is critical always is."""
        window = self._windows.get(name)
        if window is None or now - window.began >= WINDOW_S:
            self._begin(name, window, now)
            return True
        window.count += 1
        beyond = window.count - (SEVERE_BURST if level in _SEVERE else BURST)
        if beyond <= 0 or beyond % ONE_IN == 0 or level == "critical":
            return True
        window.dropped += 1
        self.dropped += 1
        self._due_at = min(self._due_at, window.began + WINDOW_S)
        return False

    def due(self, now: float) -> bool:
        """Whether :meth:`told` has something to say."""
        return now >= self._due_at

    def told(self, now: float) -> Iterator[Flood]:
        """The floods whose window is over, each once."""
        for name, window in list(self._windows.items()):
            if now - window.began >= WINDOW_S and self._windows.pop(name, None) is window:
                self._close(name, window)
        left = list(self._windows.values())
        self._due_at = min((window.began + WINDOW_S for window in left if window.dropped), default=float("inf"))
        over, self._over = self._over, []
        yield from over

    def all_told(self) -> Iterator[Flood]:
        """Those too whose window is not over: nothing more comes."""
        yield from self.told(float("inf"))

    def _begin(self, name: str, former: _Window | None, now: float) -> None:
        if former is not None:
            self._close(name, former)
        elif len(self._windows) >= MAX_NAMES:
            full, self._windows = self._windows, {}
            for other, window in list(full.items()):
                self._close(other, window)
        self._windows[name] = _Window(now)

    def _close(self, name: str, window: _Window) -> None:
        if window.dropped:
            self._over.append(Flood(name, window.dropped))
            self._due_at = float("-inf")
