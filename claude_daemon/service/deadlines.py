"""When the time of durable tasks is over: one timer for all of them, however many wait."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from typing import Final

_SLACK: Final = 64
"""Entries of those that are gone, beyond as many as are there, before they are swept out."""


class Deadlines:
    """Calls ``over(task_id)`` in the running loop when a task's time is over, once, wherever the task is by then."""

    def __init__(self, over: Callable[[str], None]) -> None:
        self._over = over
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, task_id: str, left_s: float) -> None:
        """It has so long from now. One that is kept already stays as it is."""
        if task_id not in self._at:
            at = self._at[task_id] = asyncio.get_running_loop().time() + max(0.0, left_s)
            heapq.heappush(self._heap, (at, task_id))
            self._set()

    def discard(self, task_id: str) -> None:
        if self._at.pop(task_id, None) is not None and len(self._heap) > 2 * len(self._at) + _SLACK:
            self._heap = [entry for entry in self._heap if self._is_here(entry)]
            heapq.heapify(self._heap)
            self._set()

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._at

    def __len__(self) -> int:
        return len(self._at)

    def _is_here(self, entry: tuple[float, str]) -> bool:
        return self._at.get(entry[1]) == entry[0]

    def _set(self) -> None:
        """The timer stands at the first entry."""
        while self._heap and not self._is_here(self._heap[0]):
            heapq.heappop(self._heap)
        first = self._heap[0][0] if self._heap else None
        if self._timer is not None:
            if self._timer.when() == first:
                return
            self._timer.cancel()
        self._timer = None if first is None else asyncio.get_running_loop().call_at(first, self._fire)

    def _fire(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        over = []
        while self._heap and (self._heap[0][0] <= now or not self._is_here(self._heap[0])):
            entry = heapq.heappop(self._heap)
            if self._is_here(entry):
                del self._at[entry[1]]
                over.append(entry[1])
        self._set()
        for task_id in over:
            self._over(task_id)
