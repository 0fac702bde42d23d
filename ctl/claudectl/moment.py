"""Ages and dates as people write them. Pure, but for the time zone, which is this machine's."""

from __future__ import annotations

import re
from datetime import datetime

_UNIT_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}
_AGE = re.compile(r"([0-9]{1,9})(s|min|m|h|d|w)", re.ASCII)


def before(text: str, now: float) -> float:
    """The moment that an age (``30d``, ``12h``) or an ISO date or time means, in seconds since the epoch.

    A date without a zone is this machine's. Raises ValueError for what is neither.

    >>> before("2h", 10_000.0)
    2800.0
    >>> before("1970-01-02T00:00:00Z", 0)
    86400.0
    """
    if (age := _seconds(text)) is not None:
        return max(0.0, now - age)
    return _date(text, "an age")


def after(text: str, now: float) -> float:
    """The moment that a time from now (``30d``, ``12h``) or an ISO date or time means, as :func:`before` has it.

    >>> after("2h", 10_000.0)
    17200.0
    """
    if (left := _seconds(text)) is not None:
        return now + left
    return _date(text, "a time")


def length(text: str) -> int:
    """How many seconds a time such as ``30d`` or ``12h`` is. Raises ValueError for what is none.

    >>> length("2h")
    7200
    """
    if (seconds := _seconds(text)) is None:
        raise ValueError(f"{text!r} is no time such as 30d or 12h")
    return seconds


def _seconds(text: str) -> int | None:
    age = _AGE.fullmatch(text)
    return int(age[1]) * _UNIT_SECONDS[age[2]] if age is not None else None


def _date(text: str, other: str) -> float:
    """Raises ValueError; ``other``: what else it could have been."""
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is neither {other} like 30d or 12h nor a date like 2026-01-31") from None


def clock(at: object) -> str:
    """The time of day of a moment here; "" for what is none."""
    return told(at)[11:19]


def told(at: object) -> str:
    """A moment in this machine's time, as people read it; '-' for what is none."""
    if not isinstance(at, int | float) or isinstance(at, bool):
        return "-"
    try:
        return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    except (ValueError, OverflowError, OSError):
        return "-"
