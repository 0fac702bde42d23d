"""The keys that were made."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection, Row

import orjson

from claude_daemon.core.budget import Budget
from claude_daemon.ports import AuditRecord, KeyRecord
from claude_daemon.store import audit as audits
from claude_daemon.store import rows, webhooks
from claude_daemon.store.verbs import verb, write_behind


@verb
def create_key(db: Connection, key: KeyRecord, audit: AuditRecord) -> None:
    taken = db.execute("SELECT 1 FROM keys WHERE name = ? AND revoked_at IS NULL", (key.name,)).fetchone()
    if taken is not None:
        raise ValueError(f"there is a key named {key.name} already")
    db.execute(
        "INSERT INTO keys (id, trust_domain, name, digest, role, limits, created_at, expires_at, revoked_at, used_at, "
        "suspended_at, previous_digest, previous_until) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            key.id,
            key.trust_domain,
            key.name,
            key.digest,
            key.role,
            rows.dump({"budget": key.budget}).decode(),
            key.created_at,
            key.expires_at,
            key.revoked_at,
            key.used_at,
            key.suspended_at,
            key.previous_digest,
            key.previous_until,
        ),
    )
    audits.insert(db, audit)


@verb
def rotate_key(db: Connection, key_id: str, digest: bytes, previous_until: float, audit: AuditRecord) -> bool:
    changed = db.execute(
        "UPDATE keys SET previous_digest = digest, previous_until = ?, digest = ? WHERE id = ? AND revoked_at IS NULL",
        (previous_until, digest, key_id),
    )
    return _audited(db, changed.rowcount, audit)


@verb
def suspend_key(db: Connection, key_id: str, at: float | None, audit: AuditRecord) -> bool:
    changed = db.execute("UPDATE keys SET suspended_at = ? WHERE id = ? AND revoked_at IS NULL", (at, key_id))
    return _audited(db, changed.rowcount, audit)


@verb
def revoke_key(db: Connection, key_id: str, at: float, audit: AuditRecord) -> Sequence[str] | None:
    changed = db.execute("UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (at, key_id))
    if not _audited(db, changed.rowcount, audit):
        return None
    webhooks.drop(db, key_id, at, "its key was revoked")
    db.execute(
        "UPDATE tasks SET cancel_requested_at = coalesce(cancel_requested_at, ?), webhook = NULL "
        "WHERE key_id = ? AND kind = 'task' AND state IN ('queued', 'running')",
        (at, key_id),
    )
    left = db.execute(
        "SELECT id FROM tasks WHERE key_id = ? AND kind = 'task' AND state IN ('queued', 'running') ORDER BY n",
        (key_id,),
    )
    return [row["id"] for row in left]


def _audited(db: Connection, changed: int, audit: AuditRecord) -> bool:
    if changed:
        audits.insert(db, audit)
    return changed > 0


@write_behind
def key_used(db: Connection, key_id: str, at: float) -> None:
    db.execute("UPDATE keys SET used_at = ? WHERE id = ?", (at, key_id))


def read(db: Connection) -> Sequence[KeyRecord]:
    return [_key_of(row) for row in db.execute("SELECT * FROM keys ORDER BY created_at, id")]


def _key_of(row: Row) -> KeyRecord:
    return KeyRecord(
        id=row["id"],
        name=row["name"],
        trust_domain=row["trust_domain"],
        digest=row["digest"],
        role=row["role"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
        used_at=row["used_at"],
        suspended_at=row["suspended_at"],
        previous_digest=row["previous_digest"],
        previous_until=row["previous_until"],
        budget=Budget(**orjson.loads(row["limits"]).get("budget", {})),
    )
