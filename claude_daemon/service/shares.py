"""Fair shares: what runs of each key and each trust domain, and whose turn it was last."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from itertools import count
from typing import Final, Protocol, TypeVar

DOMAINS_REMEMBERED: Final = 1024
"""Trust domains whose last turn is remembered: one that is forgotten was served long ago, and counts as never."""


class Owned(Protocol):
    """Whose it is. ``queued_at`` is monotonic seconds."""

    queued_at: float

    @property
    def trust_domain(self) -> str: ...


W = TypeVar("W", bound=Owned)


class Shares:
    """Turns under way, of all lanes together."""

    def __init__(self) -> None:
        self._of_key: Counter[str] = Counter()
        self._of_domain: Counter[str] = Counter()
        self._last: OrderedDict[str, int] = OrderedDict()
        self._numbers = count(1)

    def begin(self, key_id: str, trust_domain: str) -> None:
        self._of_key[key_id] += 1
        self._of_domain[trust_domain] += 1
        self._last[trust_domain] = next(self._numbers)
        self._last.move_to_end(trust_domain)
        if len(self._last) > DOMAINS_REMEMBERED:
            self._last.popitem(last=False)

    def end(self, key_id: str, trust_domain: str) -> None:
        """What :meth:`begin` was told of is over."""
        for counter, name in ((self._of_key, key_id), (self._of_domain, trust_domain)):
            counter[name] -= 1
            if not counter[name]:
                del counter[name]

    def of_key(self, key_id: str) -> int:
        return self._of_key[key_id]

    def of_domain(self, trust_domain: str) -> int:
        return self._of_domain[trust_domain]

    def last(self, trust_domain: str) -> int:
        """The longer ago a turn of it began, the smaller; 0 for one that has had none."""
        return self._last.get(trust_domain, 0)


def makes_way(waiting: Iterable[W], newcomer: str) -> W | None:
    """Who of a full waiting room goes where one of the trust domain ``newcomer`` comes: the last one of the domain that
    has the most there. None where that is the newcomer's own, or has no more than it would have then."""
    all_of_them = list(waiting)
    counts = Counter(one.trust_domain for one in all_of_them)
    if not counts:
        return None
    most, number = counts.most_common(1)[0]
    if number <= counts[newcomer] + 1:
        return None
    return max((one for one in reversed(all_of_them) if one.trust_domain == most), key=lambda one: one.queued_at)
