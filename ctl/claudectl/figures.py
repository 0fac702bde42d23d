"""Numbers as people read them at a glance. Pure."""

from __future__ import annotations

from math import isfinite


def count(value: object) -> str:
    """
    >>> [count(n) for n in (0, 999, 1_000, 12_345, 3_400_000, None)]
    ['0', '999', '1.0k', '12.3k', '3.4M', '-']
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "-"
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"


def brief(seconds: object) -> str:
    """A time in one number and one unit; '-' for none.

    >>> [brief(s) for s in (0, 0.0312, 0.98, 1.25, 59, 61, 3_700, 200_000, None)]
    ['0 ms', '31 ms', '980 ms', '1.2 s', '59 s', '1 min', '1.0 h', '2.3 d', '-']
    """
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not isfinite(seconds):
        return "-"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 86_400 else f"{seconds / 86_400:.1f} d"
