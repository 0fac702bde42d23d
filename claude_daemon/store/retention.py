"""What is deleted, and when."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection, Row
from typing import Final

from claude_daemon.store.verbs import verb

MAX_EVENTS: Final = 20_000
"""In one call, roughly: some tens of milliseconds that others wait. A task's go together, however many."""

_ENDED: Final = """
    SELECT n, id FROM tasks WHERE finished_at < ? AND NOT EXISTS (
        SELECT 1 FROM webhooks WHERE webhooks.task_id = tasks.id AND webhooks.due_at IS NOT NULL
    ) ORDER BY finished_at LIMIT ?
"""
_OF_A_TASK: Final = (
    "DELETE FROM attempts WHERE task_id = ?",
    "DELETE FROM approvals WHERE task_id = ?",
    "DELETE FROM webhooks WHERE task_id = ?",
    "DELETE FROM batch_tasks WHERE task_id = ?",
)
_EMPTY_BATCHES: Final = """
    DELETE FROM batches WHERE id IN (
        SELECT id FROM batches WHERE created_at < ?
        AND NOT EXISTS (SELECT 1 FROM batch_tasks WHERE batch_tasks.batch_id = batches.id)
        ORDER BY created_at LIMIT ?
    )
"""


@verb
def purge(db: Connection, before: float, limit: int) -> int:
    """A call that deletes a lot of events ends before its limit."""
    ended: Sequence[Row] = db.execute(_ENDED, (before, limit)).fetchall()
    purged = 0
    events = 0
    for n, task_id in ended:
        events += _delete(db, n, task_id)
        purged += 1
        if events >= MAX_EVENTS:
            break
    db.execute(_EMPTY_BATCHES, (before, limit))
    return purged


def _delete(db: Connection, n: int, task_id: str) -> int:
    """One task with all that belongs to it; how many events those were."""
    events = db.execute("DELETE FROM events WHERE task_id = ?", (task_id,)).rowcount
    for statement in _OF_A_TASK:
        db.execute(statement, (task_id,))
    db.execute("DELETE FROM specs WHERE n = ?", (n,))
    db.execute("DELETE FROM tasks WHERE n = ?", (n,))
    return events
