"""What was looked at and how it was: a line each, of ``doctor`` and ``engine check``. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from claudectl.render import Document, Paint, known, plain

STATUSES = ("pass", "warn", "fail")


def line(found: Document, paint: Paint) -> str:
    """``pass  name``, and behind it why it is not so, or what is worth knowing; below it what to do."""
    told = [f"{paint(plain(found.get('status')).ljust(4))}  {plain(found.get('name'))}"]
    if reason := known(found.get("reason") or None):
        told[0] += f" · {reason}"
    if todo := known(found.get("todo") or None):
        told.append(f"      → {todo}")
    return "\n".join(told)


def summed_up(found: Iterable[Document]) -> str:
    """
    >>> summed_up([{"status": "pass"}, {"status": "warn"}, {"status": "pass"}])
    '2 pass · 1 warn'
    """
    statuses = [one.get("status") for one in found]
    return " · ".join(f"{statuses.count(status)} {status}" for status in STATUSES if status in statuses)
