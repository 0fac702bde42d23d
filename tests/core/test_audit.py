"""The audit's chain: what a verification finds, whatever was done to the records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.core.audit import GENESIS, PRUNED, Anchor, Sealed, Verdict, Verifier, seal

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
