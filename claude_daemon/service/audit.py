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

from claude_daemon.core.audit import Anchor, Sealed, Verdict, Verifier
from claude_daemon.core.lifecycle import Check
from claude_daemon.core.recent import Recent
from claude_daemon.ports import Audit, AuditRecord, Clock, HealthReport, StoreUnavailable

ANCHOR_S: Final = 60.0
PAGE_RECORDS: Final = 2000
"""Verified in one step: some ten milliseconds of a thread, between which others have their turn."""
PRUNE_AT_ONCE: Final = 5000
"""Records deleted in one commit."""
LOOK_RECORDS: Final = 200
"""Looked at when the daemon starts, the last ones, and each minute, those since the head that was told: under a
millisecond."""
ANCHOR_LATE_S: Final = 3 * ANCHOR_S
"""By then the head should have been told twice more: what is in the store alone can be cut off unseen."""
UNWRITTEN_S: Final = 600.0
"""So long a record that could not be written is worth a warning, though others can be again."""
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
        self._unwritten = Recent(UNWRITTEN_S)
        self._strange: int | None = None
        self._whole = asyncio.Lock()  # what is pruned while it is verified would look like taken out
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
            for n, _ in await self._store.audit_latest(1):
                await self._look(max(0, n - LOOK_RECORDS))

    async def _look_since_the_head(self) -> None:
        """Whether the record that was told as the head is there still, as it was, and is gone on with: whoever works on
        the file of a running daemon touches it, unless he leaves all that was told in its place. Raises
        StoreUnavailable."""
        head = self._head
        if head is not None and await self._look(head.n - 1, head) != head.n:
            self._is_strange(head.n)  # it is gone

    async def _look(self, after: int, head: Anchor | None = None) -> int | None:
        """At the records that follow; the number of the first, None where there is none. Raises StoreUnavailable."""
        page = await self._store.audit_sealed(after, LOOK_RECORDS)
        verifier = Verifier(self._key, head)
        await asyncio.to_thread(_add, verifier, page)
        if verifier.broken:
            self._is_strange(verifier.verdict().at)
        return page[0].n if page else None

    def _is_strange(self, n: int | None) -> None:
        """Told once: what is broken stays so. ``n``: from which record on; None where that cannot be said."""
        if not self.strange:
            self._strange = n or 0
            self._told("audit.strange", {"record": n})

    async def tell_head(self) -> None:
        """Into the journal, if it is not there yet; the one before is looked at first. Raises StoreUnavailable."""
        await self._look_since_the_head()
        head = await self._store.audit_head()
        if head is not None and head != self._head:
            self._head = head
            self._told("audit.head", {"head": str(head)})
        self._anchored_at = self._monotonic()

    async def record(self, record: AuditRecord) -> bool:
        """Writes what somebody did; False where the store takes nothing, and the check says so for a while."""
        try:
            await self._store.record(record)
        except StoreUnavailable:
            self._unwritten.note(self._monotonic())
            return False
        return True

    async def _prune_daily(self) -> None:
        """By whole days: else each look would find some more, and leave a record of it."""
        today = self._now() // _DAY_S * _DAY_S
        if today != self._pruned_on:
            await self.prune(today - self.retention_days * _DAY_S)
            self._pruned_on = today

    async def prune(self, before: float) -> int:
        """Deletes the records from before then; how many. Raises StoreUnavailable."""
        total = 0
        async with self._whole:
            while pruned := await self._store.prune_audit(before, self._now(), PRUNE_AT_ONCE):
                total += pruned
                self._head = None  # it may be among them
            if total:
                self._told("audit.pruned", {"records": total})
                await self.tell_head()
        return total

    async def verify(self, anchor: Anchor | None = None) -> Verdict:
        """Reads it all, up to what is written meanwhile; the head that was told last is an anchor too. What is found
        broken is in health from then on, unless it is the caller's anchor alone that says so. Raises
        StoreUnavailable."""
        async with self._whole:
            verdict = await self._verify(anchor, self._head)
            ours = verdict if anchor is None or verdict.broken is None else await self._verify(self._head)
        if ours.broken is not None:
            self._is_strange(ours.at)
        return verdict

    async def _verify(self, *anchors: Anchor | None) -> Verdict:
        verifier, after = Verifier(self._key, *anchors), 0
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
        """Whether the chain was found broken, or does not go on with our key."""
        return self._strange is not None

    def check(self, store_error: str | None = None) -> dict[str, HealthReport]:
        """The audit's share of health. ``store_error``: why nothing can be written now."""
        now = self._monotonic()
        age, unwritten = now - self._anchored_at, self._unwritten.count(now)
        details = {
            "head": None if self._head is None else str(self._head),
            "anchor_age_seconds": round(age, 3),
            "unwritten_10min": unwritten,
        }
        status, why = Check.PASS, ""
        if self._strange is not None:
            status = Check.FAIL
            which = f"record {self._strange}" if self._strange else "the chain"
            why = f"{which} is not as it was sealed with this audit.key: claudectl audit verify"
        elif store_error is not None:
            status, why = Check.FAIL, f"nothing can be recorded: {store_error}"
        elif unwritten:
            status, why = Check.WARN, f"{unwritten} records of the last 10 min could not be written; the log has them"
        elif age >= ANCHOR_LATE_S:
            status, why = Check.WARN, f"the head has not been told to the log for {age:.0f} s"
        return {"audit": HealthReport(status=status, reason=why, details=details)}


def _add(verifier: Verifier, page: Sequence[Sealed]) -> None:
    for record in page:
        verifier.add(record)
