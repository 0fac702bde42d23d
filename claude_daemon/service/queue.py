"""Who is next: the order of everything that waits for a place on one lane."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Generic, Protocol, TypeVar

AGEING_SECONDS: Final = 60.0
"""What waits gains one priority in this time."""


class Waiting(Protocol):
    """What the order looks at. ``queued_at`` is monotonic seconds."""

    queued_at: float

    @property
    def priority(self) -> int: ...

    @property
    def key_id(self) -> str: ...


W = TypeVar("W", bound=Waiting)


class ReadyQueue(Generic[W]):
    """The highest priority first, then the key with the least running, then the one that has waited longest."""

    def __init__(self, running: Callable[[str], int]) -> None:
        self._running = running
        self._waiting: list[W] = []

    def add(self, item: W, *, first: bool = False) -> None:
        """``first``: among equals it goes before those that are there."""
        self._waiting.insert(0 if first else len(self._waiting), item)

    def discard(self, item: W) -> None:
        if item in self._waiting:
            self._waiting.remove(item)

    def next(self, now: float) -> W:
        """Who is next; it stays in the queue. Raises ValueError when nobody waits."""
        if len(self._waiting) == 1:
            return self._waiting[0]
        return min(self._waiting, key=lambda item: self._rank(item, now))

    def _rank(self, item: W, now: float) -> tuple[float, int, float]:
        priority = item.priority + (now - item.queued_at) // AGEING_SECONDS
        return -priority, self._running(item.key_id), item.queued_at

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[W]:
        return iter(tuple(self._waiting))
