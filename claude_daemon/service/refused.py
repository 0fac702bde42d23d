"""Who was refused, as the audit is told of it: few records, whatever comes."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final

from claude_daemon.ports import AuditRecord, Clock
from claude_daemon.service.hint import Hint

EVERY_S: Final = 60.0
"""At most one record for each peer and reason in this time: the first at once, the rest as a number."""
MAX_PEERS: Final = 1000
"""Peers and reasons that are told apart; what more there are at once are one. A record is 200 bytes, so the worst flood
writes 0.2 MB a minute."""
MAX_KEYS: Final = 16
"""Keys that one record names."""
OTHERS: Final = "others"


class Refused:
    """``act`` is that of the records. ``now`` is seconds since the epoch, ``monotonic`` for durations. Nothing is
    written down but by :meth:`run`."""

    def __init__(self, act: str, *, now: Clock, monotonic: Clock) -> None:
        self._act = act
        self._now = now
        self._monotonic = monotonic
        self._counts: dict[tuple[str, str], _Count] = {}
        self._due: deque[AuditRecord] = deque()
        self._hint = Hint()
        self._sweep_at = 0.0

    def note(self, peer: str | None, why: str, key_id: str | None = None) -> None:
        """``peer``: its address, None where it is not known; ``key_id``: of the key whose secret was right."""
        place = (peer or "unknown", why)
        if place not in self._counts and len(self._counts) >= MAX_PEERS:
            place = (OTHERS, why)
        count = self._counts.get(place)
        if count is None:
            count = self._counts[place] = _Count(self._monotonic())
            count.add(key_id)
            self._tell(place, count)
        else:
            count.add(key_id)

    async def run(self, record: Callable[[AuditRecord], Awaitable[None]]) -> None:
        """Never ends; when it is cancelled, it tells what it has not told yet."""
        try:
            while True:
                await self._write(record)
                await self._hint.wait(EVERY_S / 4)
                self.sweep()
        finally:
            for place, count in self._counts.items():
                if count.number:
                    self._tell(place, count)
            await self._write(record)

    async def _write(self, record: Callable[[AuditRecord], Awaitable[None]]) -> None:
        while self._due:
            await record(self._due[0])
            self._due.popleft()

    def sweep(self) -> None:
        """Tells what has come since the last record of each, where that is long enough ago; forgets the quiet ones."""
        now = self._monotonic()
        if now < self._sweep_at:
            return
        self._sweep_at = now + EVERY_S / 4
        for place, count in list(self._counts.items()):
            if now - count.since < EVERY_S:
                continue
            if count.number:
                self._tell(place, count)
                count.since = now
            else:
                del self._counts[place]

    def _tell(self, place: tuple[str, str], count: _Count) -> None:
        peer, why = place
        details: dict[str, Any] = {"peer": peer, "reason": why, "count": count.number}
        if len(count.keys) > 1:
            details["keys"] = sorted(count.keys)
        key_id = next(iter(count.keys)) if len(count.keys) == 1 else None
        self._due.append(AuditRecord(at=self._now(), act=self._act, key_id=key_id, details=details))
        self._hint.give()
        count.number = 0
        count.keys.clear()


class _Count:
    """How many since the last record, and of which keys. ``since``: when that was."""

    __slots__ = ("keys", "number", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.number = 0
        self.keys: set[str] = set()

    def add(self, key_id: str | None) -> None:
        self.number += 1
        if key_id is not None and len(self.keys) < MAX_KEYS:
            self.keys.add(key_id)
