"""What was done: a chain of sealed records (:mod:`claude_daemon.core.audit`)."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection, Row
from typing import Any, Final

import orjson

from claude_daemon.core.audit import GENESIS, PRUNED, Anchor, Sealed, seal
from claude_daemon.ports import AuditRecord
from claude_daemon.store import rows
from claude_daemon.store.verbs import verb

_FIELDS: Final = ("n", "at", "act", "key_id", "trust_domain", "task_id", "request_id", "peer_uid", "details")
"""Of which a record's content is made: all but the seals."""
_INSERT: Final = (
    f"INSERT INTO audit ({', '.join(_FIELDS)}, prev_hash, hash) "  # noqa: S608 - names of our own
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, audit_seal(?, ?))"
)
_LAST: Final = "SELECT n, hash FROM audit ORDER BY n DESC LIMIT 1"


def keep_sealed(db: Connection, key: bytes) -> None:
    """Records that this connection inserts are sealed with the key; one that was not given any cannot insert."""
    db.create_function("audit_seal", 2, lambda before, content: seal(key, before, content))


def insert(db: Connection, audit: AuditRecord | None) -> None:
    """Where a record is about a task, the trust domain is that task's. Whoever has taken the last one's seal away stops
    no record: it is written, and a verification names the one before."""
    if audit is None:
        return
    last = db.execute(_LAST).fetchone()
    n, before = (0, GENESIS) if last is None else (last["n"], _seal_of(last["hash"]) or GENESIS)
    domain = audit.trust_domain
    if domain is None and audit.task_id is not None:
        task = db.execute("SELECT trust_domain FROM tasks WHERE id = ?", (audit.task_id,)).fetchone()
        domain = None if task is None else task["trust_domain"]
    values = (
        n + 1,
        float(audit.at),
        audit.act,
        audit.key_id,
        domain,
        audit.task_id,
        audit.request_id,
        audit.peer_uid,
        rows.dump(audit.details).decode(),
    )
    db.execute(_INSERT, (*values, before, before, _content(values)))


def _content(values: Sequence[Any]) -> bytes:
    return orjson.dumps(values)


@verb
def record(db: Connection, audit: AuditRecord) -> None:
    insert(db, audit)


@verb
def prune_audit(db: Connection, before: float, at: float, limit: int) -> int:
    """Records are pruned from the oldest on, up to the first that is young enough: so they stay a chain, whatever the
    clock has done."""
    first = db.execute("SELECT n, at FROM audit ORDER BY n LIMIT 1").fetchone()
    if first is None or first["at"] >= before:
        return 0
    young = db.execute("SELECT n FROM audit WHERE at >= ? ORDER BY n LIMIT 1", (before,)).fetchone()
    last = db.execute(_LAST).fetchone()["n"]
    old = (last + 1 if young is None else young["n"]) - 1
    through = min(first["n"] + limit - 1, old)
    if db.execute("SELECT 1 FROM audit WHERE n <= ? AND hash IS NULL LIMIT 1", (through,)).fetchone() is not None:
        return 0  # somebody has been at it: what he left stays, to be looked at
    cut = db.execute("SELECT hash FROM audit WHERE n = ?", (through,)).fetchone()["hash"]
    details = {"records": through - first["n"] + 1, "through": through, "seal": cut.hex()}
    insert(db, AuditRecord(at=at, act=PRUNED, details=details))
    return db.execute("DELETE FROM audit WHERE n <= ?", (through,)).rowcount


def read(db: Connection, after: int, limit: int) -> Sequence[tuple[int, AuditRecord]]:
    found = db.execute("SELECT * FROM audit WHERE n > ? ORDER BY n LIMIT ?", (after, limit))
    return [(row["n"], _record_of(row)) for row in found]


def latest(
    db: Connection,
    limit: int,
    act: str | None,
    since: float | None,
    request_id: str | None,
    task_id: str | None,
) -> Sequence[tuple[int, AuditRecord]]:
    """Oldest first. ``act``: a whole one, or the part before its dot."""
    found = db.execute(
        "SELECT * FROM audit WHERE (? IS NULL OR act = ? OR substr(act, 1, length(?) + 1) = ? || '.') "
        "AND (? IS NULL OR at >= ?) AND (? IS NULL OR request_id = ?) AND (? IS NULL OR task_id = ?) "
        "ORDER BY n DESC LIMIT ?",
        (act, act, act, act, since, since, request_id, request_id, task_id, task_id, limit),
    ).fetchall()
    return [(row["n"], _record_of(row)) for row in reversed(found)]


def head(db: Connection) -> Anchor | None:
    """The last record; None where none is sealed."""
    last = db.execute(_LAST).fetchone()
    return None if last is None or last["hash"] is None else Anchor(last["n"], last["hash"])


def sealed(db: Connection, after: int, limit: int) -> Sequence[Sealed]:
    return [_sealed_of(row) for row in db.execute("SELECT * FROM audit WHERE n > ? ORDER BY n LIMIT ?", (after, limit))]


def _sealed_of(row: Row) -> Sealed:
    """What is no JSON was not written by us, and is told by its seal."""
    details: Any = None
    if row["act"] == PRUNED:
        try:
            details = orjson.loads(row["details"])
        except (orjson.JSONDecodeError, TypeError):
            details = None
    return Sealed(
        n=row["n"],
        act=str(row["act"]),
        details=details if isinstance(details, dict) else {},
        content=_strange_content(tuple(row[name] for name in _FIELDS)),
        before=_seal_of(row["prev_hash"]),
        seal=_seal_of(row["hash"]),
    )


def _strange_content(values: Sequence[Any]) -> bytes:
    """Of a record that somebody has changed into what has no JSON: another content than any of ours."""
    try:
        return _content(values)
    except TypeError:
        return repr(values).encode()


def _seal_of(value: Any) -> bytes | None:
    """Anything but bytes was not written by us, and is no seal that could hold."""
    return value if value is None or isinstance(value, bytes) else str(value).encode()


def _record_of(row: Row) -> AuditRecord:
    return AuditRecord(
        at=row["at"],
        act=row["act"],
        key_id=row["key_id"],
        trust_domain=row["trust_domain"],
        task_id=row["task_id"],
        request_id=row["request_id"],
        peer_uid=row["peer_uid"],
        details=orjson.loads(row["details"]),
    )
