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

# What a reader should see at a glance: a status, or a state of the daemon, a worker or a task.
_GOOD, _DOUBTFUL, _BAD = "\x1b[32m", "\x1b[33m", "\x1b[31m"
_COLOURS = {
    **dict.fromkeys(("pass", "ready", "idle", "busy", "running", "succeeded"), _GOOD),
    **dict.fromkeys(("warn", "degraded", "starting", "recycling", "draining", "drained", "cancelled"), _DOUBTFUL),
    **dict.fromkeys(("fail", "stopping", "retiring", "gone", "failed"), _BAD),
}
_RESET = "\x1b[0m"


def coloured(word: str) -> str:
    """A status or state in its colour, where it has one."""
    colour = _COLOURS.get(word.strip())
    return f"{colour}{word}{_RESET}" if colour else word


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
        yield f"  {name.ljust(width)}  {paint(status.ljust(4))}  {_reason(check)}".rstrip()


def _reason(check: Document) -> str:
    """Why it does not pass; the configuration's check tells which one that is, and with it why."""
    if "hash" in check:
        return _config(check)
    return known(check.get("reason") or None)


def ready(document: Document, paint: Paint) -> str:
    """``ready``, or why not."""
    state = plain(document.get("state"))
    if document.get("status") == "pass":
        return paint(state)
    reason = document.get("reason")
    return f"not ready · {paint(state)}" + (f" · {plain(reason)}" if reason else "")


def status(document: Document, paint: Paint) -> str:
    """The whole daemon on one screen."""
    return screen(_title(document, paint), _facts(document, paint))


def screen(title: str, facts: Iterable[tuple[str, str]]) -> str:
    """A title and below it a line for each fact that has a text."""
    told = [(name, text) for name, text in facts if text]
    width = max((len(name) for name, _ in told), default=0)
    return "\n".join([title, *(f"  {name.ljust(width)}  {text}" for name, text in told)])


def _title(document: Document, paint: Paint) -> str:
    parts = [f"claude-daemon {plain(document.get('version'))}", paint(plain(document.get("state")))]
    if "uptime_seconds" in document:
        parts.append(f"up {duration(document['uptime_seconds'])}")
    parts += [f"{name} {plain(document[name])}" for name in ("pid", "profile") if name in document]
    return " · ".join(parts)


def _facts(document: Document, paint: Paint) -> Iterator[tuple[str, str]]:
    for key, name in (("supervisor", "supervisor"), ("url", "url"), ("home", "home"), ("key_file", "key")):
        yield name, known(document.get(key))
    yield "config", _config(mapping(document.get("config")))
    yield "upstream", joined(" at ", document.get("upstream"), document.get("base_url"))
    if "credential" in document:
        credential = mapping(document["credential"])
        yield "credential", joined(" from ", credential.get("kind"), credential.get("origin")) or "none"
    cli = mapping(document.get("cli"))
    yield "cli", joined(" at ", cli.get("version"), cli.get("path"))
    yield "lanes", ", ".join(texts(document.get("lanes")))
    yield "turns", _turns(mapping(document.get("turns")))
    yield "workers", _workers(mapping(document.get("workers")))
    yield "agents", _agents(mapping(document.get("agents")))
    yield "sessions", _counts(_numbers(mapping(document.get("sessions"))))
    yield "queue", _queue(mapping(document.get("queue")))
    yield "starts", _counts(mapping(document.get("starts")))
    yield "checks", _summary(mapping(document.get("checks")), paint)


def _config(config: Document) -> str:
    """Which configuration is in force, and what is not in force yet."""
    parts = [plain(config[key]) if config[key] is not None else "(none)" for key in ("file", "hash") if key in config]
    if "age_seconds" in config:
        parts.append(f"{duration(config['age_seconds'])} old")
    if config.get("changed_on_disk"):
        parts.append("changed on disk: claudectl reload")
    if waiting := texts(config.get("needs_restart")):
        parts.append(f"in force after a restart: {', '.join(waiting)}")
    return " · ".join(parts)


def _turns(turns: Document) -> str:
    """Of all lanes that run the CLI."""
    return f"{plain(turns.get('running'))} of {plain(turns['limit'])} running" if "limit" in turns else ""


def _numbers(counts: Document) -> Document:
    return {name: count for name, count in counts.items() if isinstance(count, int) and not isinstance(count, bool)}


def _workers(workers: Document) -> str:
    """Of the text lane."""
    live = [f"{plain(workers['live'])} live"] if "live" in workers else []
    if live and "limit" in workers:
        live = [f"{live[0]} of {plain(workers['limit'])}"]
    rest = {name: workers[name] for name in ("busy", "idle", "starting", "spares") if name in workers}
    return " · ".join([*live, *([_counts(rest)] if rest else [])])


def _agents(agents: Document) -> str:
    """How many there are, and what holds them."""
    parts = [counted] if (counted := _counts(_numbers(agents))) else []
    if "sandboxed" in agents:
        parts.append("sandboxed" if agents["sandboxed"] else "no sandbox")
    held = {"cgroup": "limits for all processes of one", "rlimit": "limits for each process", "none": "no limits"}
    if "limits" in agents:
        parts.append(held.get(plain(agents["limits"]), plain(agents["limits"])))
    return " · ".join(parts)


def _queue(queue: Document) -> str:
    """``waiting`` are chats, ``queued`` durable tasks, ``running`` both."""
    counts = {name: count for name, count in queue.items() if name != "paused"}
    return " · ".join(part for part in (_counts(counts), "paused" if queue.get("paused") else "") if part)


def _counts(counts: Document) -> str:
    return " · ".join(f"{plain(count)} {plain(name)}" for name, count in counts.items())


def _summary(checks: Document, paint: Paint) -> str:
    """All checks in a line, those that do not pass with their reasons."""
    parts = []
    for name, check in checks.items():
        found = mapping(check)
        word = plain(found.get("status"))
        reason = found.get("reason") if word != "pass" else None
        parts.append(f"{plain(name)} {paint(word)}" + (f" ({plain(reason)})" if reason else ""))
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
