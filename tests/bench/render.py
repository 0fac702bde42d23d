"""Rows as an aligned table for people, and as one document for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tests.bench.measure import Row

_HEADER = ("", "ours", "p90", "n", "reference", "p90", "ratio", "hold", "")
_RIGHT = frozenset({1, 2, 3, 4, 5, 6})


def table(groups: Mapping[str, Sequence[Row]]) -> str:
    """A line a row and its notes below it, group by group."""
    lines: list[tuple[Sequence[str], Sequence[str]]] = [(_HEADER, ())]
    for rows in groups.values():
        lines += [(_cells(row), [f"vs {row.reference_is}"] * bool(row.reference_is) + [*row.notes]) for row in rows]
    widths = [max(len(cells[at]) for cells, _ in lines) for at in range(len(_HEADER))]
    told = []
    for cells, notes in lines:
        padded = [
            cell.rjust(width) if at in _RIGHT else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        told.append("  ".join(padded).rstrip())
        told += [f"    {note}" for note in notes]
    return "\n".join(told)


def _cells(row: Row) -> Sequence[str]:
    verdict = {True: "holds", False: "misses", None: "reported"}[row.holds]
    theirs = row.reference
    return (
        row.what,
        f"{_number(row.ours.median)} {row.unit}",
        _number(row.ours.p90),
        str(row.ours.n),
        f"{_number(theirs.median)} {row.unit}" if theirs is not None else "-",
        _number(theirs.p90) if theirs is not None else "-",
        f"{row.ratio:.2f} ×" if row.ratio is not None else "-",
        row.hold or "-",
        verdict,
    )


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def document(groups: Mapping[str, Sequence[Row]], about: Mapping[str, Any], noise: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that was measured, with what the machine did meanwhile."""
    rows = [
        {"group": group, **asdict(row), "load": noise.get(group)}
        for group, group_rows in groups.items()
        for row in group_rows
    ]
    return {"about": dict(about), "rows": rows}
