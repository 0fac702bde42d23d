"""The keys that were made."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection, Row

from claude_daemon.ports import AuditRecord, KeyRecord
from claude_daemon.store import audit as audits
from claude_daemon.store.verbs import verb


@verb
def create_key(db: Connection, key: KeyRecord, audit: AuditRecord) -> None:
    taken = db.execute("SELECT 1 FROM keys WHERE name = ? AND revoked_at IS NULL", (key.name,)).fetchone()
    if taken is not None:
        raise ValueError(f"there is a key named {key.name} already")
    db.execute(
        "INSERT INTO keys (id, trust_domain, name, digest, role, created_at, expires_at, revoked_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            key.id,
            key.trust_domain,
            key.name,
            key.digest,
            key.role,
            key.created_at,
            key.expires_at,
            key.revoked_at,
        ),
    )
    audits.insert(db, audit)


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
    )
