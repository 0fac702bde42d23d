"""Agents' processes that are started before anybody asks: for the shapes that are seen most.

What an agent may and where it works is fixed when its process is spawned, so a spare serves only a task of the same
shape. It has served nobody before, and serves one task: nothing passes from one to the next.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from claude_daemon.core.agent import AgentSpec
from claude_daemon.engine.agent_worker import AgentWorker
from claude_daemon.engine.sandbox import Place

_REMEMBERED: Final = 32
"""Tasks whose shapes count."""
_OFTEN: Final = 2
"""Times that a shape must be among them: a process for one that does not come again is 200 MB for nothing."""

Identity = tuple[tuple[int, int], ...]
"""The directories that a process was given, by device and inode: one of the same name may be another by now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spare:
    """A process that has been told nothing yet. ``born`` in seconds of the monotonic clock."""

    worker: AgentWorker
    outline: AgentSpec
    places: Identity
    born: float

    @property
    def alive(self) -> bool:
        return self.worker.process is not None and not self.worker.process.gone

    def fits(self, places: Identity, now: float, max_age_s: float) -> bool:
        """Whether it can serve a task of its outline, whose directories are these."""
        return self.alive and self.places == places and now - self.born < max_age_s


class Wanted:
    """Which shapes deserve a spare."""

    def __init__(self) -> None:
        self._seen: deque[AgentSpec] = deque(maxlen=_REMEMBERED)

    def note(self, outline: AgentSpec) -> None:
        self._seen.append(outline)

    def most(self, number: int) -> Sequence[AgentSpec]:
        """At most so many, those seen most first; of two seen as often, the one seen last."""
        counted = Counter(reversed(self._seen))  # insertion order breaks ties
        return [outline for outline, times in counted.most_common(number) if times >= _OFTEN]


def identity(places: Sequence[Place]) -> Identity:
    """Raises OSError."""
    found = [os.fstat(place.fd) for place in places]
    return tuple((status.st_dev, status.st_ino) for status in found)
