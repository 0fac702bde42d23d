"""Of all lines those of one request, or of one task: its own, its tasks', its workers' and their model calls'.

A request id may come from a client, and two clients may choose the same: what is told goes by key, too, and by task.
Lines of a worker that name no request are told with every request that it has served: that it came up, and how it went.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

from claudectl.logs import lines
from claudectl.render import Document, documents, mapping

MAX_LINES: Final = 10_000
"""Of one story. A batch has a thousand tasks of some ten lines each."""
AUDIT: Final = "audit"

_BEGAN: Final = frozenset({"http.access", "control.access", "model_call"})
"""Written when it is over; it began as long before as it took."""
_PARTS: Final = {
    **dict.fromkeys(("http", "control", "ws"), "edge"),
    **dict.fromkeys(("task", "webhook"), "task"),
    **dict.fromkeys(("worker", "pool", "agent", "agents", "mcp"), "worker"),
    "model_call": "broker",
    AUDIT: "audit",
}
_PART_WIDTH: Final = 7

_TOLD_ONCE: Final = ("request_id", "key_id")


class Story:
    """Give :meth:`learn` every line that :meth:`may_be` one of it, and then ask :meth:`wants` of each. With both ids:
    what is of the task and of the request."""

    def __init__(self, request_id: str | None, task_id: str | None) -> None:
        self._request_id = request_id
        self._only = task_id
        self._tasks: set[str] = set() if task_id is None else {task_id}
        self._workers: set[str] = set()
        self._requests: set[str] = set() if request_id is None else {request_id}
        self._ids = self._all_ids()

    def may_be(self, raw: bytes) -> bool:
        """Whether it is worth to read a line: none of it is without one of these ids."""
        return any(one in raw for one in self._ids)

    def _all_ids(self) -> tuple[bytes, ...]:
        return tuple(one.encode() for one in (*self._requests, *self._tasks, *self._workers))

    def learn(self, line: Document) -> None:
        """What else belongs to it."""
        request, task, worker = (_text(line.get(name)) for name in ("request_id", "task_id", "worker_id"))
        if not self._own(request, task):
            return
        if task is not None:
            self._tasks.add(task)
        if worker is not None:
            self._workers.add(worker)
        if self._request_id is None and request is not None:
            self._requests.add(request)  # the one that the task came with: its edge
        if len(self._ids) != len(self._requests) + len(self._tasks) + len(self._workers):
            self._ids = self._all_ids()

    def wants(self, line: Document) -> bool:
        request, task, worker = (_text(line.get(name)) for name in ("request_id", "task_id", "worker_id"))
        if self._own(request, task):
            return True
        if request is None and task is None:
            return worker in self._workers
        return task is None and self._request_id is None and request in self._requests

    def _own(self, request: str | None, task: str | None) -> bool:
        if self._only is not None:
            return task == self._only and (self._request_id is None or request in (None, self._request_id))
        return request == self._request_id if request is not None else task is not None and task in self._tasks


def record(document: Document) -> dict[str, Any]:
    """A record of the audit in the form of a line."""
    at = document.get("at")
    fields = {name: document.get(name) for name in ("n", "act", "key_id", "task_id", "request_id", "peer_uid")}
    when = None if not isinstance(at, int | float) else datetime.fromtimestamp(at, UTC).isoformat("T", "microseconds")
    head = {"ts": when, "level": "info", "event": AUDIT, "logger": "claude_daemon"}
    return {**mapping(document.get("details")), **fields, **head}


def records(document: Document) -> list[dict[str, Any]]:
    return [record(one) for one in documents(document.get("data"))]


def told(found: Iterable[Document], *, coloured: bool) -> Iterator[str]:
    """For people: a heading for each key, and what happened in the order in which it began."""
    by_key: dict[str, list[Document]] = {}
    ours = list(found)
    owners = {task: key for line in ours if (key := _text(line.get("key_id"))) and (task := _text(line.get("task_id")))}
    usual = next(iter(owners.values()), "")
    for line in ours:
        own = _text(line.get("key_id")) or owners.get(str(line.get("task_id"))) or ""
        if not own and line.get("request_id") is None:
            own = usual  # a worker's
        by_key.setdefault(own, []).append(line)
    for key, some in by_key.items():
        yield _heading(key, some)
        alone = len({line.get("task_id") for line in some} - {None}) <= 1
        without = frozenset((*_TOLD_ONCE, *(("task_id",) if alone else ())))
        for line in sorted(some, key=_began):
            part = _part(line).ljust(_PART_WIDTH)
            yield lines.shown(line, coloured=coloured, without=without, at=_began(line) or None, part=part)


def _part(line: Document) -> str:
    """Where in the daemon it was written."""
    event = str(line.get("event"))
    return _PARTS.get(event.partition(".")[0], "daemon")


def _began(line: Document) -> float:
    """Seconds since the epoch."""
    written = lines.moment(line) or 0.0
    took = line.get("seconds")
    if line.get("event") in _BEGAN and isinstance(took, int | float):
        return written - took
    return written


def _heading(key: str, some: list[Document]) -> str:
    """What all of these lines have in common."""
    parts = [f"key {lines.escaped(key)}" if key else "no key"]
    for name, word in (("request_id", "request"), ("task_id", "task"), ("lane", "lane"), ("trace_id", "trace")):
        values = list(dict.fromkeys(lines.escaped(line[name]) for line in some if line.get(name) is not None))
        if len(values) == 1:
            parts.append(f"{word} {values[0]}")
        elif values:
            parts.append(f"{len(values)} {word}s")
    return " · ".join(parts)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
