"""Who is next: the order of everything that waits for a place, whatever its lane."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from itertools import count
from typing import Final, Generic, Protocol, TypeVar

from claude_daemon.core.task import Lane
from claude_daemon.service.shares import Shares

AGEING_SECONDS: Final = 60.0
"""What waits gains one priority in this time."""

CHAT_PRIORITY: Final = 10
"""Somebody sits and waits for a chat. Ten minutes of ageing are more than any chat waits, so no batch of tasks starves
chats. Nothing stands higher: a task that has waited for so long is a chat's equal, so chats do not starve tasks, and a
flood of tasks that have waited for longer still starves nobody."""

_SLACK: Final = 64
"""Entries of those that are gone, beyond as many as are there, before they are swept out."""


class Waiting(Protocol):
    """What the order looks at. ``queued_at`` is monotonic seconds. Told apart by identity."""

    queued_at: float

    @property
    def lane(self) -> Lane: ...

    @property
    def priority(self) -> int: ...

    @property
    def key_id(self) -> str: ...

    @property
    def trust_domain(self) -> str: ...


W = TypeVar("W", bound=Waiting)
_Entry = tuple[float, int, W]


class ReadyQueue(Generic[W]):
    """The trust domain with the least running is first, and of two that have as much the one with the highest priority,
    then the one whose last turn began longest ago. Within a domain it is the highest priority, then the key with the
    least running, then the one that has waited longest. So whatever one domain asks for, and how urgent it says that
    is, another one has the next place until both have as many.

    One heap for each lane and key: within it, the order of any two never changes, since both age alike. So adding costs
    the logarithm of a key's own queue, and choosing the number of keys, however many wait. ``may``: whether one that is
    at the head of its key's queue may be next now; where it may not, its key is passed over.
    """

    def __init__(self, shares: Shares, may: Callable[[W], bool] = lambda item: True) -> None:
        """``shares``: what runs now."""
        self._shares = shares
        self._may = may
        self._heaps: dict[tuple[Lane, str], list[_Entry[W]]] = {}
        self._numbers: dict[W, int] = {}
        self._in_lane: Counter[Lane] = Counter()
        self._aside: list[_Entry[W]] = []
        self._gone = 0
        self._last = count(1)
        self._first = count(-1, -1)

    def add(self, item: W, *, first: bool = False) -> None:
        """``first``: among equals it goes before those that are there."""
        number = next(self._first if first else self._last)
        self._in_lane[item.lane] += item not in self._numbers
        self._numbers[item] = number
        # two that differ by one priority are as far apart as two that differ by a minute's wait
        age = item.queued_at - item.priority * AGEING_SECONDS
        self._push((age, number, item))

    def _push(self, entry: _Entry[W]) -> None:
        heapq.heappush(self._heaps.setdefault((entry[2].lane, entry[2].key_id), []), entry)

    def discard(self, item: W) -> None:
        if self._numbers.pop(item, None) is not None:
            self._in_lane[item.lane] -= 1
            self._gone += 1
            if self._gone > len(self._numbers) + _SLACK:
                self._sweep()

    def next(self, now: float, lanes: Collection[Lane]) -> W | None:
        """Who is next of these lanes, None when nobody is who may be; it stays in the queue."""
        keys = [key for key in self._heaps if key[0] in lanes]
        heads = [head for key in keys if (head := self._head(key)) is not None and self._may(head[2])]
        return min(heads, key=lambda entry: self._rank(entry, now))[2] if heads else None

    def pass_over(self, item: W) -> None:
        """The one that is next is not, until :meth:`restore`; it stays in the queue."""
        self._aside.append(heapq.heappop(self._heaps[item.lane, item.key_id]))
        assert self._aside[-1][2] is item

    def restore(self) -> None:
        """Whoever was passed over stands where it stood."""
        for entry in self._aside:
            self._push(entry)
        self._aside.clear()

    def waiting(self, lane: Lane) -> int:
        return self._in_lane[lane]

    def of(self, lane: Lane) -> list[W]:
        """All of a lane, in no order."""
        return [item for item in self._numbers if item.lane is lane]

    def _head(self, key: tuple[Lane, str]) -> _Entry[W] | None:
        heap = self._heaps[key]
        while heap and not self._is_here(heap[0]):
            heapq.heappop(heap)
            self._gone -= 1
        if not heap:
            del self._heaps[key]
            return None
        return heap[0]

    def _is_here(self, entry: _Entry[W]) -> bool:
        return self._numbers.get(entry[2]) == entry[1]

    def _rank(self, entry: _Entry[W], now: float) -> tuple[int, float, int, int, float, int]:
        age, number, item = entry
        domain, shares = item.trust_domain, self._shares
        priority = min((now - age) // AGEING_SECONDS, CHAT_PRIORITY)
        among_domains = shares.of_domain(domain), -priority, shares.last(domain)
        return *among_domains, shares.of_key(item.key_id), item.queued_at, number

    def _sweep(self) -> None:
        for key, heap in list(self._heaps.items()):
            kept = [entry for entry in heap if self._is_here(entry)]
            heapq.heapify(kept)
            if kept:
                self._heaps[key] = kept
            else:
                del self._heaps[key]
        self._aside = [entry for entry in self._aside if self._is_here(entry)]
        self._gone = 0

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, item: object) -> bool:
        return item in self._numbers

    def __iter__(self) -> Iterator[W]:
        return iter(tuple(self._numbers))
