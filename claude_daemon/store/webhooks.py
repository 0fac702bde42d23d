"""Deliveries of webhooks: due until they are over."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection

from claude_daemon.ports import WebhookDelivery
from claude_daemon.store.verbs import verb


def insert(db: Connection, webhook_id: str, task_id: str, url: str, due_at: float, body: bytes | None) -> None:
    values = (webhook_id, task_id, url, due_at)
    inserted = db.execute("INSERT INTO webhooks (id, task_id, url, due_at) VALUES (?, ?, ?, ?)", values)
    if body is not None:
        db.execute("INSERT INTO webhook_bodies VALUES (?, ?)", (inserted.lastrowid, body))


def _is_over(db: Connection, webhook_id: str) -> None:
    db.execute("DELETE FROM webhook_bodies WHERE n = (SELECT n FROM webhooks WHERE id = ?)", (webhook_id,))


@verb
def delivered(db: Connection, webhook_id: str, at: float) -> None:
    db.execute(
        "UPDATE webhooks SET due_at = NULL, delivered_at = ?, attempts = attempts + 1, error = NULL "
        "WHERE id = ? AND due_at IS NOT NULL",
        (at, webhook_id),
    )
    _is_over(db, webhook_id)


@verb
def postpone(db: Connection, webhook_id: str, due_at: float, error: str) -> None:
    db.execute(
        "UPDATE webhooks SET due_at = ?, attempts = attempts + 1, error = ? WHERE id = ? AND due_at IS NOT NULL",
        (due_at, error, webhook_id),
    )


@verb
def give_up(db: Connection, webhook_id: str, at: float, error: str) -> None:
    db.execute(
        "UPDATE webhooks SET due_at = NULL, given_up_at = ?, attempts = attempts + 1, error = ? "
        "WHERE id = ? AND due_at IS NOT NULL",
        (at, error, webhook_id),
    )
    _is_over(db, webhook_id)


def drop(db: Connection, key_id: str, at: float, error: str) -> None:
    """No delivery of this key's tasks is due any more."""
    owned = "SELECT w.n FROM webhooks w JOIN tasks t ON t.id = w.task_id WHERE w.due_at IS NOT NULL AND t.key_id = ?"
    for (number,) in db.execute(owned, (key_id,)).fetchall():
        db.execute("UPDATE webhooks SET due_at = NULL, given_up_at = ?, error = ? WHERE n = ?", (at, error, number))
        db.execute("DELETE FROM webhook_bodies WHERE n = ?", (number,))


def due(db: Connection, now: float, limit: int) -> Sequence[WebhookDelivery]:
    found = db.execute(
        "SELECT w.*, b.body FROM webhooks w LEFT JOIN webhook_bodies b ON b.n = w.n "
        "WHERE due_at <= ? ORDER BY due_at, w.n LIMIT ?",
        (now, limit),
    )
    return [
        WebhookDelivery(
            id=row["id"],
            task_id=row["task_id"],
            url=row["url"],
            attempts=row["attempts"],
            due_at=row["due_at"],
            body=row["body"],
        )
        for row in found
    ]


def waiting(db: Connection) -> tuple[int, float | None]:
    number, at = db.execute("SELECT count(*), min(due_at) FROM webhooks WHERE due_at IS NOT NULL").fetchone()
    return number, at


def next_due(db: Connection) -> float | None:
    at: float | None = db.execute("SELECT min(due_at) FROM webhooks WHERE due_at IS NOT NULL").fetchone()[0]
    return at
