"""Deliveries of webhooks: due until they are over."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection

from claude_daemon.ports import WebhookDelivery
from claude_daemon.store.verbs import verb


def insert(db: Connection, webhook_id: str, task_id: str, url: str, due_at: float) -> None:
    values = (webhook_id, task_id, url, due_at)
    db.execute("INSERT INTO webhooks (id, task_id, url, due_at) VALUES (?, ?, ?, ?)", values)


@verb
def delivered(db: Connection, webhook_id: str, at: float) -> None:
    db.execute(
        "UPDATE webhooks SET due_at = NULL, delivered_at = ?, attempts = attempts + 1, error = NULL "
        "WHERE id = ? AND due_at IS NOT NULL",
        (at, webhook_id),
    )


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


def due(db: Connection, now: float, limit: int) -> Sequence[WebhookDelivery]:
    found = db.execute("SELECT * FROM webhooks WHERE due_at <= ? ORDER BY due_at, n LIMIT ?", (now, limit))
    return [
        WebhookDelivery(
            id=row["id"], task_id=row["task_id"], url=row["url"], attempts=row["attempts"], due_at=row["due_at"]
        )
        for row in found
    ]


def next_due(db: Connection) -> float | None:
    at: float | None = db.execute("SELECT min(due_at) FROM webhooks WHERE due_at IS NOT NULL").fetchone()[0]
    return at
