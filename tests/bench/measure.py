"""Samples, summaries, rows; and the order in which two sides of a comparison are measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Case = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured. Counts are samples per side, ``…_s`` seconds."""

    warm: int
    per_process: int
    spawned: int
    history: int
    schema: int
    direct: int
    accounting: int
    blocks: int
    block_s: float
    probes: int
    processes: int
    open_requests: int
    open_per_s: float
    closed_requests: int
    reference: int
    fanout_blocks: int
    fanout_block_s: float
    submission_blocks: int
    submission_block_s: float
    queued: int
    latency_rounds: int
    latency_events: int
    limit_s: float


FULL = Scale(
    warm=60, per_process=12, spawned=20, history=20, schema=20, direct=300, accounting=160, blocks=4, block_s=6.0,
    probes=500, processes=40, open_requests=80, open_per_s=2.0, closed_requests=100, reference=8,
    fanout_blocks=5, fanout_block_s=2.0, submission_blocks=5, submission_block_s=3.0, queued=10_000,
    latency_rounds=4, latency_events=300, limit_s=1800.0,
)  # fmt: skip
QUICK = Scale(
    warm=6, per_process=2, spawned=2, history=2, schema=2, direct=40, accounting=10, blocks=1, block_s=1.5,
    probes=100, processes=5, open_requests=8, open_per_s=2.0, closed_requests=8, reference=2,
    fanout_blocks=1, fanout_block_s=0.5, submission_blocks=1, submission_block_s=1.0, queued=1000,
    latency_rounds=1, latency_events=60, limit_s=180.0,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What is said of one side's samples, in the row's unit."""

    median: float
    p90: float
    p99: float
    n: int

    @classmethod
    def of(cls, samples: Sequence[float], scale: float = 1.0) -> Summary:
        """Of at least one sample; ``scale`` turns seconds into the row's unit."""
        return cls(
            median=percentile(samples, 50) * scale,
            p90=percentile(samples, 90) * scale,
            p99=percentile(samples, 99) * scale,
            n=len(samples),
        )

    @classmethod
    def ms(cls, seconds: Sequence[float]) -> Summary:
        return cls.of(seconds, 1000.0)


def percentile(samples: Sequence[float], percent: float) -> float:
    """The nearest rank for the tails, the mean of both middles for the median of an even number.

    >>> [percentile([4.0, 1.0, 2.0, 3.0], p) for p in (50, 90, 99)]
    [2.5, 4.0, 4.0]
    """
    ordered = sorted(samples)
    rank = math.ceil(len(ordered) * percent / 100)
    if percent == 50 and len(ordered) % 2 == 0:
        return (ordered[rank - 1] + ordered[rank]) / 2
    return ordered[rank - 1]


def interleave(rounds: int, cases: Mapping[str, Case], *, warm_up: int = 1) -> dict[str, list[float]]:
    """Each case once a round. The order turns from round to round, so that nobody always follows the same one.

    The first ``warm_up`` rounds are not counted: they make connections and fill caches.
    """
    samples: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    for at in range(-warm_up, rounds):
        shift = at % len(names)
        for name in names[shift:] + names[:shift]:
            value = cases[name]()
            if at >= 0:
                samples[name].append(value)
    return samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. ``holds`` is None for what is only reported; ``details`` go into the JSON alone."""

    what: str
    unit: str
    ours: Summary
    reference_is: str = ""
    reference: Summary | None = None
    ratio: float | None = None
    hold: str = ""
    holds: bool | None = None
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def compared(
    what: str,
    ours: Sequence[float],
    reference_is: str,
    reference: Sequence[float],
    *,
    at_most: float | None = None,
    at_most_more_ms: float | None = None,
    notes: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
) -> Row:
    """A row of times (in seconds) against their reference, with one of two kinds of bound, or none."""
    mine, theirs = Summary.ms(ours), Summary.ms(reference)
    ratio, more = mine.median / theirs.median, mine.median - theirs.median
    hold, holds = "", None
    if at_most is not None:
        hold, holds = f"≤ {at_most:g} × ", ratio <= at_most
    elif at_most_more_ms is not None:
        hold, holds = f"≤ + {at_most_more_ms:g} ms", more <= at_most_more_ms
        notes = [f"+ {more:.2f} ms", *notes]
    return Row(
        what=what,
        unit="ms",
        ours=mine,
        reference_is=reference_is,
        reference=theirs,
        ratio=ratio,
        hold=hold.strip(),
        holds=holds,
        notes=notes,
        details=dict(details or {}),
    )
