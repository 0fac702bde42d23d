"""What was done."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection, Row

import orjson

from claude_daemon.ports import AuditRecord
from claude_daemon.store import rows
from claude_daemon.store.verbs import verb


def insert(db: Connection, audit: AuditRecord | None) -> None:
    """Where a record is about a task, the trust domain is that task's."""
    if audit is None:
        return
    db.execute(
        "INSERT INTO audit (at, act, key_id, trust_domain, task_id, request_id, peer_uid, details) "
        "VALUES (?, ?, ?, (SELECT trust_domain FROM tasks WHERE id = ?), ?, ?, ?, ?)",
        (
            audit.at,
            audit.act,
            audit.key_id,
            audit.task_id,
            audit.task_id,
            audit.request_id,
            audit.peer_uid,
            rows.dump(audit.details).decode(),
        ),
    )


@verb
def record(db: Connection, audit: AuditRecord) -> None:
    insert(db, audit)


def read(db: Connection, after: int, limit: int) -> Sequence[tuple[int, AuditRecord]]:
    found = db.execute("SELECT * FROM audit WHERE n > ? ORDER BY n LIMIT ?", (after, limit))
    return [(row["n"], _record_of(row)) for row in found]


def _record_of(row: Row) -> AuditRecord:
    return AuditRecord(
        at=row["at"],
        act=row["act"],
        key_id=row["key_id"],
        task_id=row["task_id"],
        request_id=row["request_id"],
        peer_uid=row["peer_uid"],
        details=orjson.loads(row["details"]),
    )
