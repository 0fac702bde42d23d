"""What a line of the log says, and how it is shown. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from claudectl.render import Document, documents, mapping

LEVELS: Final = ("debug", "info", "warning", "error", "critical")
_HEAD: Final = frozenset({"ts", "level", "event", "logger", "exception"})
_FOR_MACHINES: Final = frozenset({"trust_domain", "trace_id", "span_id", "parent_span_id"})
"""Told with --json alone: they are long, and of no use to an eye."""
_OURS: Final = "claude_daemon"
_WIDTH: Final = 16
_MAX_DEPTH: Final = 8

_COLOURS: Final[Mapping[str, str]] = {
    "debug": "\x1b[2m",
    "info": "\x1b[32m",
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[1;31m",
}
_RESET: Final = "\x1b[0m"


def parsed(raw: bytes) -> dict[str, Any] | None:
    """The line, None for one that is not of our form: of a console, or cut."""
    if not raw.startswith(b"{"):
        return None
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    return line if isinstance(line, dict) and "event" in line else None


def severe(line: Document, level: str | None) -> bool:
    """Whether it is at least of this level."""
    if level is None:
        return True
    told = line.get("level")
    return told in LEVELS and LEVELS.index(told) >= LEVELS.index(level)


def moment(line: Document) -> float | None:
    """When it was written, in seconds since the epoch."""
    try:
        return datetime.fromisoformat(str(line.get("ts"))).timestamp()
    except (ValueError, OverflowError):
        return None


def shown(
    line: Document,
    *,
    coloured: bool,
    without: frozenset[str] = frozenset(),
    at: float | None = None,
    part: str = "",
) -> str:
    """For people, on one line and those of its traceback. ``without``: fields that are told elsewhere; ``at``: another
    moment than that of the line; ``part``: of what it tells."""
    told = moment(line) if at is None else at
    when = escaped(line.get("ts")) if told is None else _local(told)
    level = escaped(line.get("level"))
    word = level.ljust(8)
    if coloured and level in _COLOURS:
        word = f"{_COLOURS[level]}{word}{_RESET}"
    head = f"{when} {word} {part}{escaped(line.get('event')).ljust(_WIDTH)}"
    return "\n    | ".join([f"{head} {_fields(line, without)}".rstrip(), *_traceback(mapping(line.get("exception")))])


def escaped(value: object) -> str:
    """As text that moves no cursor, ends no line and turns no reading direction: what would is told, and not done.

    >>> escaped("a\\nb\\x1b[31m")
    'a\\\\nb\\\\x1b[31m'
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _local(at: float) -> str:
    """In this machine's time, to the millisecond."""
    try:
        return datetime.fromtimestamp(at).astimezone().isoformat(" ", "milliseconds")[:23]
    except (ValueError, OverflowError, OSError):
        return "-"


def _fields(line: Document, without: frozenset[str]) -> str:
    hidden = _HEAD | _FOR_MACHINES | without
    told = [(name, value) for name, value in line.items() if name not in hidden and value is not None]
    if not str(line.get("logger")).startswith(_OURS):
        told.insert(0, ("logger", line.get("logger")))
    return " ".join(f"{escaped(name)}={_value(value)}" for name, value in told)


def _value(value: object) -> str:
    """A text with blanks in quotes, so that none of it can pass for a field."""
    if isinstance(value, Mapping | list):
        return escaped(json.dumps(value, ensure_ascii=False))
    if isinstance(value, bool):
        return "true" if value else "false"
    text = escaped(value)
    return json.dumps(text, ensure_ascii=False) if not text or " " in text or "=" in text or '"' in text else text


def _traceback(exception: Document, why: str = "", depth: int = 0) -> Iterator[str]:
    if not exception or depth > _MAX_DEPTH:
        return
    yield f"{why}{escaped(exception.get('type'))}: {escaped(exception.get('message'))}"
    stack = exception.get("stack")
    yield from (f"  {escaped(frame)}" for frame in (stack if isinstance(stack, list) else ()))
    yield from _traceback(mapping(exception.get("cause")), "because of ", depth + 1)
    for inner in documents(exception.get("exceptions")):
        yield from _traceback(inner, "including ", depth + 1)
