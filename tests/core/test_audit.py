"""The audit's chain: what a verification finds, whatever was done to the records."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.core.audit import CHAIN_BEGUN, GENESIS, PRUNED, Anchor, Sealed, Verdict, Verifier, seal

KEY = b"k" * 32


def chain(count: int, *, start: int = 1, before: bytes = GENESIS, key: bytes = KEY) -> list[Sealed]:
    records = []
    for n in range(start, start + count):
        records.append(record(n, before, key=key))
        before = seal_of(records[-1])
    return records


def record(n: int, before: bytes, act: str = "act", key: bytes = KEY, **details: Any) -> Sealed:
    content = f"{n} {act} {details}".encode()
    return Sealed(n=n, act=act, details=details, content=content, before=before, seal=seal(key, before, content))


def seal_of(record: Sealed) -> bytes:
    assert record.seal is not None
    return record.seal


def pruning(after: Sequence[Sealed], through: int) -> Sealed:
    """What is sealed when the records up to there are deleted."""
    last = after[-1]
    return record(last.n + 1, seal_of(last), PRUNED, through=through, seal=seal_of(after[through - 1]).hex())


def verdict(records: Sequence[Sealed], anchor: Anchor | None = None, key: bytes = KEY) -> Verdict:
    verifier = Verifier(key, anchor)
    for one in records:
        verifier.add(one)
    return verifier.verdict()


def test_a_whole_chain_holds_and_tells_its_head() -> None:
    records = chain(5)
    found = verdict(records)
    assert (found.records, found.broken, found.head) == (5, None, Anchor(5, seal_of(records[-1])))
    assert verdict([]) == Verdict(records=0, head=None, pruned=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"content": b"other"}, "changed"),
        ({"seal": b"x" * 32}, "changed"),
        ({"before": b"x" * 32}, "changed"),
        ({"seal": None}, "no seal"),
        ({"before": None}, "no seal"),
    ],
)
def test_a_record_that_was_changed_is_named(change: dict[str, Any], said: str) -> None:
    records = chain(5)
    records[2] = replace(records[2], **change)
    found = verdict(records)
    assert found.at == 3 and found.broken is not None and said in found.broken


@given(count=st.integers(2, 12), data=st.data())
def test_whatever_is_taken_out_moved_doubled_or_brought_from_elsewhere_is_found(count: int, data: Any) -> None:
    records = chain(count)
    at = data.draw(st.integers(0, count - 2))  # the last one's absence is for an anchor to find
    kind = data.draw(st.sampled_from(["out", "moved", "doubled", "foreign", "renumbered"]))
    if kind == "out":
        del records[at]
    elif kind == "moved":
        records[at], records[at + 1] = records[at + 1], records[at]
    elif kind == "doubled":
        records.insert(at, records[at])
    elif kind == "foreign":
        records[at] = chain(count, key=b"another")[at]
    else:
        del records[at]
        records[at:] = [replace(one, n=one.n - 1, content=one.content) for one in records[at:]]
    assert verdict(records).broken is not None


def test_another_key_proves_nothing() -> None:
    found = verdict(chain(3), key=b"other")
    assert found.at == 1 and "another audit.key" in str(found.broken)


class TestAnchor:
    def test_it_is_written_and_read(self) -> None:
        anchor = Anchor(12, bytes(range(32)))
        assert Anchor.parse(f" {anchor}\n") == anchor

    @pytest.mark.parametrize("text", ["", "12", "0:" + "0" * 64, "12:" + "0" * 63, "12:" + "G" * 64, "x:" + "0" * 64])
    def test_what_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match="an anchor is"):
            Anchor.parse(text)

    def test_a_cut_end_is_found_with_it_alone(self) -> None:
        records = chain(5)
        anchor = Anchor(4, seal_of(records[3]))
        assert verdict(records[:3]).broken is None
        assert "before the anchor" in str(verdict(records[:3], anchor).broken)
        assert verdict(records, anchor).broken is None

    def test_a_chain_made_anew_with_the_key_is_found_with_it(self) -> None:
        """Somebody has both database and key, but not the journal."""
        anchor = Anchor(3, seal_of(chain(5)[2]))
        forged = [record(1, GENESIS, "other")]
        forged += chain(4, start=2, before=seal_of(forged[0]))
        found = verdict(forged, anchor)
        assert found.at == 3 and "another one than the anchor says" in str(found.broken)

    @pytest.mark.parametrize("cut", [1, 3, 5])
    def test_of_several_each_must_hold(self, cut: int) -> None:
        records = chain(6)
        anchors = [Anchor(n, seal_of(records[n - 1])) for n in (2, 4, 6)]
        whole, short = Verifier(KEY, *anchors, None), Verifier(KEY, *anchors)
        for one in records:
            whole.add(one)
        for one in records[:cut]:
            short.add(one)
        assert whole.verdict().broken is None
        assert "before the anchor" in str(short.verdict().broken)

    def test_one_that_was_pruned_says_so(self) -> None:
        records = chain(5)
        kept = [*records, pruning(records, 3)][3:]
        assert "take a later anchor" in str(verdict(kept, Anchor(2, seal_of(records[1]))).broken)
        assert verdict(kept, Anchor(4, seal_of(records[3]))).broken is None


class TestPruning:
    def test_its_record_says_where_the_chain_goes_on(self) -> None:
        records = chain(5)
        found = verdict([*records, pruning(records, 3)][3:])
        assert (found.broken, found.pruned, found.records) == (None, 3, 3)

    def test_once_more_and_the_later_one_counts(self) -> None:
        records = chain(6)
        records.append(pruning(records, 2))
        records.append(pruning(records, 5))
        assert verdict(records[5:]).broken is None
        assert verdict(records[6:]).broken is not None  # one more than that is gone

    def test_a_beginning_that_nobody_pruned_is_missing(self) -> None:
        found = verdict(chain(5)[2:])
        assert found.at is None and "records 1 to 2 are missing" in str(found.broken)

    def test_more_than_was_pruned_is_missing(self) -> None:
        records = chain(5)
        assert verdict([*records, pruning(records, 2)][3:]).broken is not None


class TestBefore:
    """Records from before there was a chain."""

    @staticmethod
    def old(count: int) -> list[Sealed]:
        return [
            Sealed(n=n, act="old", details={}, content=f"old {n}".encode(), before=None, seal=None)
            for n in range(1, count + 1)
        ]

    def begun(self, old: Sequence[Sealed]) -> Sealed:
        digest = hashlib.sha256(b"".join(one.content for one in old)).hexdigest()
        count = len(old)
        return record(count + 1, GENESIS, CHAIN_BEGUN, records=count, through=count, digest=digest)

    def test_they_are_covered_by_the_first_sealed_one(self) -> None:
        old = self.old(3)
        first = self.begun(old)
        assert verdict([*old, first, *chain(2, start=5, before=seal_of(first))]).broken is None

    def test_they_are_counted_and_an_anchor_on_one_of_them_tells_that_it_had_a_seal(self) -> None:
        old = self.old(3)
        records = [*old, self.begun(old)]
        assert (verdict(records).broken, verdict(records).unsealed) == (None, 3)
        assert "record 2 has no seal" in str(verdict(records, Anchor(2, bytes(32))).broken)

    def test_changed_they_are_found(self) -> None:
        old = self.old(3)
        first = self.begun(old)
        old[1] = replace(old[1], content=b"other")
        assert "have no seals, were changed" in str(verdict([*old, first]).broken)
        assert verdict([*self.old(2), first]).broken is not None
        assert verdict([first]).broken is not None

    def test_a_sealed_one_that_does_not_tell_of_them_is_none(self) -> None:
        assert "does not tell of" in str(verdict([*self.old(2), record(3, GENESIS)]).broken)

    def test_alone_they_prove_nothing_and_break_nothing(self) -> None:
        assert verdict(self.old(2)).broken is None
        assert "no record here is sealed" in str(verdict(self.old(2), Anchor(1, bytes(32))).broken)
        assert "records 1 to 1 are missing" in str(verdict(self.old(2)[1:]).broken)
