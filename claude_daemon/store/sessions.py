"""Sessions as rows: made with their first task, used by each, gone when nobody needs them."""

from __future__ import annotations

import math
import struct
from sqlite3 import Connection, Row
from typing import Any, Final

import orjson

from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.task import State, Task
from claude_daemon.ports import AuditRecord, SessionPage, SessionRecord
from claude_daemon.store import audit as audits
from claude_daemon.store.verbs import verb

_CURSOR: Final = struct.Struct(">d")
_GONE: Final = Failure(code=Code.NOT_FOUND, message="There is no such session.", param="session")
_BUSY: Final = """
    SELECT 1 FROM tasks WHERE session_id = :id AND state IN ('queued', 'running')
    UNION ALL SELECT 1 FROM tasks WHERE fork_of = :id AND state IN ('queued', 'running') LIMIT 1
"""
_FIXED: Final = ("cwd", "add_dirs", "system", "append_system")
_NEW: Final = "new"
_BEGUN: Final = "begun"


def begin_turn(db: Connection, task: Task, made: SessionRecord | None, most: int) -> Failure | None:
    """A task is queued in its session, which is made now or is there; why it cannot be. ``most``: sessions of a key."""
    turn = task.spec.session
    if turn is None:
        return None
    known = turn.source if made is not None else turn.id
    if known is not None:
        owner = db.execute("SELECT key_id FROM sessions WHERE id = ?", (known,)).fetchone()
        if owner is None or owner["key_id"] != task.spec.key_id:
            return _GONE
    if made is None:
        db.execute("UPDATE sessions SET used_at = max(used_at, ?) WHERE id = ?", (task.created_at, turn.id))
        return None
    (number,) = db.execute("SELECT count(*) FROM sessions WHERE key_id = ?", (made.key_id,)).fetchone()
    if number >= most:
        why = f"This key has {number} sessions already, and may have {most}: delete some."
        return Failure(code=Code.CONFLICT, message=why, param="session")
    _insert(db, made)
    return None


def end_turn(db: Connection, session_id: str | None, at: float, state: State) -> None:
    """A turn has ended; one that went well has left a transcript."""
    if session_id is not None:
        begun = _BEGUN if state is State.SUCCEEDED else None
        db.execute(
            "UPDATE sessions SET used_at = max(used_at, ?), state = coalesce(?, state) WHERE id = ?",
            (at, begun, session_id),
        )


def _insert(db: Connection, made: SessionRecord) -> None:
    fixed = {name: getattr(made, name) for name in _FIXED}
    settings = orjson.dumps(fixed).decode()
    db.execute(
        "INSERT INTO sessions (id, key_id, trust_domain, state, settings, cli_session_id, created_at, used_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            made.id,
            made.key_id,
            made.trust_domain,
            _BEGUN if made.begun else _NEW,
            settings,
            made.transcript,
            made.created_at,
            made.used_at,
        ),
    )


@verb
def delete_session(db: Connection, session_id: str, audit: AuditRecord | None) -> bool | None:
    if db.execute("SELECT 1 FROM sessions WHERE id = ?", (session_id,)).fetchone() is None:
        return None
    if db.execute(_BUSY, {"id": session_id}).fetchone() is not None:
        return False
    db.execute("DELETE FROM sessions WHERE id = ?", (session_id,))
    audits.insert(db, audit)
    return True


def find(db: Connection, session_id: str) -> SessionRecord | None:
    row = db.execute("SELECT * FROM sessions WHERE id = ?", (session_id,)).fetchone()
    return None if row is None else _session_of(row)


def page(db: Connection, key_id: str | None, limit: int, after: tuple[float, str]) -> SessionPage:
    whose = "" if key_id is None else "key_id = ? AND"
    found = db.execute(
        f"SELECT * FROM sessions WHERE {whose} (created_at, id) < (?, ?) "  # noqa: S608 - one of two texts
        "ORDER BY created_at DESC, id DESC LIMIT ?",
        (*(() if key_id is None else (key_id,)), *after, limit + 1),
    ).fetchall()
    sessions = [_session_of(row) for row in found[:limit]]
    more = len(found) > limit
    return SessionPage(sessions=sessions, next=_cursor(sessions[-1]) if more else None)


def _cursor(last: SessionRecord) -> str:
    return (_CURSOR.pack(last.created_at) + last.id.encode()).hex()


def cursor_of(said: str | None) -> tuple[float, str]:
    """Where a list goes on: the time and id of the session before. Raises ValueError."""
    if said is None:
        return math.inf, ""
    try:
        packed = bytes.fromhex(said)
        (created_at,) = _CURSOR.unpack(packed[: _CURSOR.size])
        session_id = packed[_CURSOR.size :].decode()
    except (ValueError, struct.error) as error:
        raise ValueError("That is no cursor of a list.") from error
    if not math.isfinite(created_at):
        raise ValueError("That is no cursor of a list.")
    return created_at, session_id


def unused(db: Connection, before: float, limit: int) -> list[str]:
    found = db.execute("SELECT id FROM sessions WHERE used_at < ? ORDER BY used_at LIMIT ?", (before, limit))
    return [row["id"] for row in found]


def ids(db: Connection) -> frozenset[str]:
    return frozenset(row["id"] for row in db.execute("SELECT id FROM sessions"))


def _session_of(row: Row) -> SessionRecord:
    settings: dict[str, Any] = orjson.loads(row["settings"])
    return SessionRecord(
        id=row["id"],
        key_id=row["key_id"],
        trust_domain=row["trust_domain"],
        transcript=row["cli_session_id"],
        created_at=row["created_at"],
        used_at=row["used_at"],
        begun=row["state"] == _BEGUN,
        cwd=settings["cwd"],
        add_dirs=tuple(settings["add_dirs"]),
        system=settings["system"],
        append_system=settings["append_system"],
    )
