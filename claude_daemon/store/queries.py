"""What is read of tasks, each in one snapshot."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from itertools import product
from sqlite3 import Connection, Row
from typing import Any, Final

import orjson

from claude_daemon.core.task import Kind, Lane, State, Task
from claude_daemon.ports import Batch, BatchState, EventPage, QueuedTask, RunningTask, StoredEvent, TaskFilter, TaskPage
from claude_daemon.store import rows

MAX_PAGE_BYTES: Final = 8 * 1024 * 1024
"""Of specs and outcomes in one page of a list: one with ten megabytes of answers each ends early, and says so."""
_MAX_SEQ: Final = 2**63 - 1
_CURSOR: Final = struct.Struct(">dq")

_RANGE: Final = """
    SELECT * FROM (
        SELECT n, created_at FROM tasks WHERE kind = ? AND state = ? AND (created_at, n) < (?, ?)
        ORDER BY created_at DESC, n DESC LIMIT ?
    )
"""
_RANGE_OF_KEY: Final = _RANGE.replace("WHERE", "WHERE key_id = ? AND")
_EVENTS: Final = "SELECT seq, type, encoded FROM events WHERE task_id = ? AND seq > ? ORDER BY seq LIMIT ?"


def list_tasks(db: Connection, wanted: TaskFilter, limit: int, after: tuple[float, int]) -> TaskPage:
    """Merged from one range of an index for each kind and state, so a rare state costs no walk through the others."""
    kinds = tuple(Kind) if wanted.kind is None else (wanted.kind,)
    states = tuple(State) if wanted.states is None else tuple(wanted.states)
    key = () if wanted.key_id is None else (wanted.key_id,)
    parameters: list[Any] = []
    for kind, state in product(kinds, states):
        parameters += [*key, kind.value, state.value, *after, limit + 1]
    if not parameters:
        return TaskPage(tasks=[])
    ranges = " UNION ALL ".join([_RANGE_OF_KEY if key else _RANGE] * (len(kinds) * len(states)))
    query = ranges + " ORDER BY created_at DESC, n DESC LIMIT ?"
    found = db.execute(query, [*parameters, limit + 1]).fetchall()
    return _page(db, found, limit)


def _page(db: Connection, found: Sequence[Row], limit: int) -> TaskPage:
    tasks: list[Task] = []
    size = 0
    for position, (n, created_at) in enumerate(found[:limit]):
        row = db.execute(rows.SELECT_TASK + "WHERE t.n = ?", (n,)).fetchone()
        tasks.append(rows.task_of(row))
        size += len(row["spec"]) + len(row["outcome"] or b"")
        full = position + 1 == limit or size >= MAX_PAGE_BYTES
        if full and position + 1 < len(found):
            return TaskPage(tasks=tasks, next=_CURSOR.pack(created_at, n).hex())
    return TaskPage(tasks=tasks)


def cursor_of(said: str | None) -> tuple[float, int]:
    """Where a list goes on: the time and number of the task before. Raises ValueError."""
    if said is None:
        return math.inf, _MAX_SEQ
    try:
        created_at, n = _CURSOR.unpack(bytes.fromhex(said))
    except (ValueError, struct.error) as error:
        raise ValueError("That is no cursor of a list.") from error
    if not math.isfinite(created_at):
        raise ValueError("That is no cursor of a list.")
    return created_at, n


def events(db: Connection, task_id: str, after: int, max_events: int, max_bytes: int) -> EventPage | None:
    row = db.execute("SELECT state FROM tasks WHERE id = ?", (task_id,)).fetchone()
    if row is None:
        return None
    terminal = State(row["state"]).terminal
    found: list[StoredEvent] = []
    size = 0
    for seq, kind, encoded in db.execute(_EVENTS, (task_id, min(after, _MAX_SEQ), max(1, max_events) + 1)):
        size += len(encoded)
        if found and (len(found) >= max_events or size > max_bytes):
            return EventPage(terminal=terminal, events=found, complete=False)
        found.append(StoredEvent(seq=seq, type=kind, encoded=encoded))
    return EventPage(terminal=terminal, events=found, complete=True)


def queued(db: Connection) -> Sequence[QueuedTask]:
    found = db.execute(
        "SELECT id, lane, key_id, trust_domain, priority, coalesce(queued_at, created_at) AS queued_at, deadline_at, "
        "cancel_requested_at, session_id, fork_of FROM tasks "
        "WHERE kind = 'task' AND state = 'queued' ORDER BY created_at, n"
    )
    return [
        QueuedTask(
            id=row["id"],
            lane=Lane(row["lane"]),
            key_id=row["key_id"],
            trust_domain=row["trust_domain"],
            priority=row["priority"],
            queued_at=row["queued_at"],
            deadline_at=row["deadline_at"],
            cancelled=row["cancel_requested_at"] is not None,
            sessions=tuple(row[name] for name in ("session_id", "fork_of") if row[name] is not None),
        )
        for row in found
    ]


def running(db: Connection) -> Sequence[RunningTask]:
    found = db.execute(
        "SELECT t.*, s.spec, a.usage FROM tasks t JOIN specs s ON s.n = t.n "
        "LEFT JOIN attempts a ON a.task_id = t.id AND a.fence = t.fence "
        "WHERE t.kind = 'task' AND t.state = 'running' ORDER BY t.created_at, t.n"
    )
    return [
        RunningTask(
            task=rows.task_of(row),
            node=row["node"],
            lease_until=row["lease_until"],
            usage=rows.usage_of(row["usage"]),
        )
        for row in found
    ]


def batch(db: Connection, batch_id: str) -> BatchState | None:
    row = db.execute("SELECT * FROM batches WHERE id = ?", (batch_id,)).fetchone()
    if row is None:
        return None
    refused = {int(position): rows.failure_of(said) for position, said in orjson.loads(row["refused"]).items()}
    found = db.execute(
        "SELECT b.position, t.*, s.spec FROM batch_tasks b JOIN tasks t ON t.id = b.task_id JOIN specs s ON s.n = t.n "
        "WHERE b.batch_id = ? ORDER BY b.position",
        (batch_id,),
    )
    return BatchState(
        batch=Batch(
            id=row["id"], key_id=row["key_id"], created_at=row["created_at"], size=row["size"], refused=refused
        ),
        tasks={task["position"]: rows.task_of(task) for task in found},
    )
