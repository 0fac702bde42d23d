"""The audit from outside the store: verified, pruned, its head written where whoever has the database cannot reach.

The journal gets the head each minute, if there is a new one, and at the end. A copy of it somewhere else is an anchor:
``claudectl audit verify --anchor`` finds out whether what came before it is there still, as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from claude_daemon.core.audit import Anchor, Sealed, Verdict, Verifier, holds
from claude_daemon.core.lifecycle import Check
from claude_daemon.ports import Audit, Clock, HealthReport, StoreUnavailable

ANCHOR_S: Final = 60.0
PAGE_RECORDS: Final = 2000
"""Verified in one step: some ten milliseconds of a thread, between which others have their turn."""
PRUNE_AT_ONCE: Final = 5000
"""Records deleted in one commit."""
_DAY_S: Final = 24 * 3600.0


class AuditDesk:
    """``key`` is what the store seals with. ``told`` what is worth a log line."""

    def __init__(
        self,
        store: Audit,
        key: bytes,
        *,
        retention_days: int,
        now: Clock,
        told: Callable[[str, dict[str, Any]], None],
        monotonic: Clock = time.monotonic,
    ) -> None:
        self.retention_days = retention_days
        self._store = store
        self._key = key
        self._now = now
        self._told = told
        self._monotonic = monotonic
        self._head: Anchor | None = None
        self._anchored_at = monotonic()
        self._strange: int | None = None
        self._pruned_on: float | None = None

    async def run(self) -> None:
        """Tells the head, and prunes once a day; never ends."""
        await self._look_at_the_last()
        while True:
            with contextlib.suppress(StoreUnavailable):  # next time
                await self.tell_head()
                await self._prune_daily()
            await asyncio.sleep(ANCHOR_S)

    async def _look_at_the_last(self) -> None:
        """Whether the chain is one that this key goes on with. To look at all of it would cost a start too much."""
        with contextlib.suppress(StoreUnavailable):
            head = await self._store.audit_head()
            if head is None:
                return
            for record in await self._store.audit_sealed(head.n - 1, 1):
                if not holds(self._key, record):
                    self._strange = record.n
                    self._told("audit.strange", {"record": record.n})

    async def tell_head(self) -> None:
        """Into the journal, if it is not there yet. Raises StoreUnavailable."""
        head = await self._store.audit_head()
        if head is not None and head != self._head:
            self._head = head
            self._told("audit.head", {"head": str(head)})
        self._anchored_at = self._monotonic()

    async def _prune_daily(self) -> None:
        """By whole days: else each look would find some more, and leave a record of it."""
        today = self._now() // _DAY_S * _DAY_S
        if today != self._pruned_on:
            await self.prune(today - self.retention_days * _DAY_S)
            self._pruned_on = today

    async def prune(self, before: float) -> int:
        """Deletes the records from before then; how many. Raises StoreUnavailable."""
        total = 0
        while pruned := await self._store.prune_audit(before, self._now(), PRUNE_AT_ONCE):
            total += pruned
        if total:
            self._told("audit.pruned", {"records": total})
        return total

    async def verify(self, anchor: Anchor | None = None) -> Verdict:
        """Reads it all, up to what is written meanwhile. Raises StoreUnavailable."""
        verifier, after = Verifier(self._key, anchor), 0
        while page := await self._store.audit_sealed(after, PAGE_RECORDS):
            await asyncio.to_thread(_add, verifier, page)
            after = page[-1].n
            if verifier.broken or len(page) < PAGE_RECORDS:
                break
        return verifier.verdict()

    @property
    def anchored(self) -> int:
        """The number of the newest record that was told as the head; 0 before the first."""
        return 0 if self._head is None else self._head.n

    @property
    def anchor_age_seconds(self) -> float:
        """Since the head was last looked at, and told if it was new."""
        return self._monotonic() - self._anchored_at

    @property
    def strange(self) -> bool:
        """Whether the chain does not go on with our key."""
        return self._strange is not None

    def check(self) -> dict[str, HealthReport]:
        """The audit's share of health."""
        details = {"head": None if self._head is None else str(self._head)}
        if self._strange is None:
            return {"audit": HealthReport(status=Check.PASS, details=details)}
        why = f"record {self._strange} is not sealed with this audit.key: claudectl audit verify"
        return {"audit": HealthReport(status=Check.WARN, reason=why, details=details)}


def _add(verifier: Verifier, page: Sequence[Sealed]) -> None:
    for record in page:
        verifier.add(record)
