"""The daemon's answers as plain, aligned text. Pure; absent keys are skipped, unknown ones ignored.

What comes from the daemon goes through :func:`plain`: names and reasons may hold anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any

from claudectl.clean import clean_line

Document = Mapping[str, Any]
Paint = Callable[[str], str]

GOOD, DOUBTFUL, BAD = "green", "yellow", "red"
# What a reader should see at a glance: a status, or a state of the daemon, a worker or a task.
COLOURS = {
    **dict.fromkeys(("pass", "ready", "idle", "busy", "running", "succeeded", "ok"), GOOD),
    **dict.fromkeys(("warn", "degraded", "starting", "recycling", "draining", "drained"), DOUBTFUL),
    **dict.fromkeys(("cancelled", "skipped"), DOUBTFUL),
    **dict.fromkeys(("fail", "stopping", "retiring", "gone", "failed"), BAD),
}
_ESCAPES = {GOOD: "\x1b[32m", DOUBTFUL: "\x1b[33m", BAD: "\x1b[31m"}
_RESET = "\x1b[0m"


def coloured(word: str) -> str:
    """A status or state in its colour, where it has one."""
    colour = COLOURS.get(word.strip())
    return f"{_ESCAPES[colour]}{word}{_RESET}" if colour else word


def colourless(word: str) -> str:
    return word


def plain(value: object) -> str:
    """A value of the daemon's on one line, as people write it; '-' for none."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return clean_line(str(value))


def duration(seconds: object) -> str:
    """
    >>> [duration(s) for s in (0.4, 59.9, 61, 3_700, 90_061)]
    ['0 s', '59 s', '1 min 1 s', '1 h 1 min', '1 d 1 h']
    """
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not isfinite(seconds):
        return "-"
    whole = int(seconds)
    units = (("d", whole // 86_400), ("h", whole // 3_600 % 24), ("min", whole // 60 % 60), ("s", whole % 60))
    first = next((at for at, (_, count) in enumerate(units) if count), len(units) - 1)
    return " ".join(f"{count} {unit}" for unit, count in units[first : first + 2] if count) or "0 s"


def size(count: object) -> str:
    """
    >>> [size(n) for n in (0, 1023, 1024, 52_428_800, None)]
    ['0 B', '1023 B', '1.0 KiB', '50.0 MiB', '-']
    """
    if not isinstance(count, int | float) or isinstance(count, bool):
        return "-"
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], paint: Paint, *, right: frozenset[str]) -> str:
    """Aligned columns; those named in ``right`` hold numbers and are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [_row(header, header, widths, right, colourless)]
    lines += [_row(row, header, widths, right, paint) for row in rows]
    return "\n".join(lines)


def _row(
    cells: Sequence[str], header: Sequence[str], widths: Sequence[int], right: frozenset[str], paint: Paint
) -> str:
    padded = (
        cell.rjust(width) if name in right else cell.ljust(width)
        for cell, name, width in zip(cells, header, widths, strict=True)
    )
    return "  ".join(paint(cell) for cell in padded).rstrip()


def health(document: Document, paint: Paint) -> str:
    """The status, and a line for each check with its reason."""
    head = [paint(plain(document.get("status")))]
    if "state" in document:
        head.append(paint(plain(document["state"])))
    if "uptime_seconds" in document:
        head.append(f"up {duration(document['uptime_seconds'])}")
    if "version" in document:
        head.append(f"version {plain(document['version'])}")
    if "supervisor" in document:
        head.append(f"supervisor {plain(document['supervisor'])}")
    return "\n".join([" · ".join(head), *_checks(document.get("checks"), paint)])


def _checks(checks: object, paint: Paint) -> Iterator[str]:
    found = {plain(name): check for name, check in mapping(checks).items() if isinstance(check, Mapping)}
    width = max(map(len, found), default=0)
    for name, check in found.items():
        status = plain(check.get("status"))
        yield f"  {name.ljust(width)}  {paint(status.ljust(4))}  {reason(check)}".rstrip()


def reason(check: Document) -> str:
    """Why it does not pass; the configuration's check tells which one that is, and with it why."""
    if "hash" in check:
        return config(check)
    return known(check.get("reason") or None)


def ready(document: Document, paint: Paint) -> str:
    """``ready``, or why not."""
    state = plain(document.get("state"))
    if document.get("status") == "pass":
        return paint(state)
    reason = document.get("reason")
    return f"not ready · {paint(state)}" + (f" · {plain(reason)}" if reason else "")


def screen(title: str, facts: Iterable[tuple[str, str]]) -> str:
    """A title and below it a line for each fact that has a text."""
    told = [(name, text) for name, text in facts if text]
    width = max((len(name) for name, _ in told), default=0)
    return "\n".join([title, *(f"  {name.ljust(width)}  {text}" for name, text in told)])


def config(told: Document) -> str:
    """Which configuration is in force, and what is not in force yet."""
    parts = [plain(told[key]) if told[key] is not None else "(none)" for key in ("file", "hash") if key in told]
    if "age_seconds" in told:
        parts.append(f"{duration(told['age_seconds'])} old")
    if told.get("changed_on_disk"):
        parts.append("changed on disk: claudectl reload")
    if waiting := texts(told.get("needs_restart")):
        parts.append(f"in force after a restart: {', '.join(waiting)}")
    return " · ".join(parts)


def workers(document: Document, paint: Paint) -> str:
    """A line a worker."""
    rows = [_worker(worker) for worker in documents(document.get("workers"))]
    if not rows:
        return "no workers"
    return table(_WORKER_HEADER, rows, paint, right=frozenset({"PID", "TURNS", "RSS MB"}))


_WORKER_HEADER = ("ID", "PID", "STATE", "LANE", "BOUND", "TURNS", "AGE", "RSS MB", "MODEL", "START", "TASK", "SESSION")


def _worker(worker: Document) -> list[str]:
    plain_cells = [plain(worker.get(key)) for key in ("id", "pid", "state", "lane", "bound", "turns")]
    return [
        *plain_cells,
        duration(worker.get("age_seconds")),
        plain(worker.get("rss_mb")),
        *(plain(worker.get(key)) for key in ("model", "start", "task_id", "session_id")),
    ]


def state(document: Document, paint: Paint) -> str:
    """The daemon's state, alone."""
    return paint(plain(document.get("state")))


def drain(document: Document) -> str:
    """A drain's progress on one line."""
    parts = [plain(document.get("state"))]
    counted = ("running", "waiting", "queued", "connections", "notices")
    parts += [f"{plain(document[name])} {name}" for name in counted if name in document]
    left = document.get("remaining_s")
    if left is not None:
        parts.append(f"{duration(left)} left")
    return " · ".join(parts)


def mapping(value: object) -> Document:
    return value if isinstance(value, Mapping) else {}


def documents(value: object) -> list[Document]:
    """The objects among the entries of a list."""
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def texts(value: object) -> list[str]:
    """The entries of a list, each on one line."""
    return [plain(entry) for entry in value] if isinstance(value, list) else []


def known(value: object) -> str:
    return "" if value is None else plain(value)


def joined(by: str, *values: object) -> str:
    return by.join(plain(value) for value in values if value)
