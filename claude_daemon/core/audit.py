"""The audit's chain: each record is sealed together with the seal of the one before.

A seal is an HMAC under a key that the store does not hold (``audit.key`` in the home). So nobody who can write the
database, but cannot read that key, changes, inserts, removes or reorders records without being found out. What he can
do is cut off the end; an *anchor*, which is the number and the seal of a record that somebody else has written down
(the journal has one a minute), finds that too.

Records are never changed. Pruning deletes the oldest and leaves a record of it, sealed like any other.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

SEAL_BYTES: Final = 32
GENESIS: Final = bytes(SEAL_BYTES)
"""Stands before the first record."""
PRUNED: Final = "audit.pruned"
"""``records`` up to number ``through`` are gone; ``seal`` is that of the last of them."""
_ANCHOR: Final = re.compile(r"(?P<n>[1-9][0-9]{0,17}):(?P<seal>[0-9a-f]{64})", re.ASCII)


def seal(key: bytes, before: bytes, content: bytes) -> bytes:
    """Of a record with this content (its number included) that follows one with the seal ``before``."""
    return hmac.digest(key, before + content, "sha256")


@dataclass(frozen=True, slots=True)
class Anchor:
    """One record, named beyond doubt."""

    n: int
    seal: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError."""
        match = _ANCHOR.fullmatch(text.strip())
        if match is None:
            raise ValueError("an anchor is a record's number, a colon, and 64 hexadecimal digits")
        return cls(int(match["n"]), bytes.fromhex(match["seal"]))

    def __str__(self) -> str:
        return f"{self.n}:{self.seal.hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A record as it is stored. ``content``: all of it but the seals, as :func:`seal` takes it. ``seal`` and
    ``before`` None: somebody has taken them away."""

    n: int
    act: str
    details: Mapping[str, Any]
    content: bytes
    before: bytes | None
    seal: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What came of a verification. ``broken`` None: the chain holds; else why it does not, and ``at`` which record.

    ``records``: how many were looked at; ``pruned``: up to which number they are gone, by the chain's own word.
    """

    records: int
    head: Anchor | None
    pruned: int
    broken: str | None = None
    at: int | None = None


def holds(key: bytes, record: Sealed) -> bool:
    """Whether the record is as it was sealed with this key; where it stands is another matter."""
    if record.before is None or record.seal is None:
        return False
    return hmac.compare_digest(seal(key, record.before, record.content), record.seal)


class Verifier:
    """Takes every record, in order, and says whether they are what was written, all of it and nothing else."""

    def __init__(self, key: bytes, *anchors: Anchor | None) -> None:
        """None of the ``anchors`` is none."""
        self._key = key
        self._anchors = [anchor for anchor in anchors if anchor is not None]
        self._records = 0
        self._last = 0
        self._head: Anchor | None = None
        self._owed: tuple[int, bytes] | None = None  # that it was pruned up to there is still to be shown
        self._pruned = 0
        self._broken: tuple[int | None, str] | None = None

    @property
    def broken(self) -> bool:
        """Whether there is nothing more to find out."""
        return self._broken is not None

    def add(self, record: Sealed) -> None:
        if self._broken is None:
            why = self._fault(record)
            if why is not None:
                self._broken = record.n, why
        self._records += 1

    def verdict(self) -> Verdict:
        """Once all records were added."""
        at, why = self._broken or (None, self._missing())
        return Verdict(
            records=self._records,
            head=self._head,
            pruned=self._pruned,
            broken=why,
            at=at,
        )

    def _fault(self, record: Sealed) -> str | None:
        first, expected = self._last == 0, self._last + 1
        self._last = record.n
        if not first and record.n != expected:
            return f"records {expected} to {record.n - 1} are missing"
        if record.before is None or record.seal is None:
            return "it has no seal"
        why: str | None = "it was changed, or sealed with another audit.key"
        if holds(self._key, record):
            why = self._place_fault(record, record.before, first)
        self._head = Anchor(record.n, record.seal)
        return why or self._anchor_fault(record.n, record.seal)

    def _place_fault(self, record: Sealed, before: bytes, first: bool) -> str | None:
        """Whether it stands where it says."""
        if self._head is not None:
            if not hmac.compare_digest(before, self._head.seal):
                return "it does not follow the record before"
            return self._pruning_fault(record)
        if first and record.n > 1 and before != GENESIS:
            self._owed = record.n - 1, before
            return self._pruning_fault(record)
        if record.n != 1 or before != GENESIS:
            return f"records 1 to {record.n - 1} are missing"
        return None

    def _pruning_fault(self, record: Sealed) -> str | None:
        """A later record says what was pruned; that of the last pruning is what the first record here must follow."""
        if record.act != PRUNED or self._owed is None:
            return None
        through, last = self._owed
        if record.details.get("through") == through and record.details.get("seal") == last.hex():
            self._pruned, self._owed = through, None
        return None

    def _anchor_fault(self, n: int, found: bytes) -> str | None:
        here = [anchor for anchor in self._anchors if anchor.n == n]
        self._anchors = [anchor for anchor in self._anchors if anchor.n != n]
        if all(hmac.compare_digest(anchor.seal, found) for anchor in here):
            return None
        return "it is another one than the anchor says"

    def _missing(self) -> str | None:
        """What only the end can tell."""
        if self._owed is not None:
            return f"records 1 to {self._owed[0]} are missing, and nothing here says that they were pruned"
        if not self._anchors:
            return None
        first = min(anchor.n for anchor in self._anchors)
        if first <= self._pruned:
            return f"record {first} was pruned: take a later anchor"
        return f"the audit ends at record {self._last}, before the anchor: its end was cut off, or a backup restored"
