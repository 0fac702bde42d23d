"""The store itself: who has joined it, whether its queue is paused, whether it can be written."""

from __future__ import annotations

from sqlite3 import Connection
from typing import Final

from claude_daemon.store.verbs import verb

MAX_NODES: Final = 100
"""Every start is a node: as many as anybody would look back through."""


@verb
def join(db: Connection, node: str, at: float) -> None:
    """Nodes of long ago are forgotten; leases name theirs themselves."""
    db.execute("INSERT OR REPLACE INTO nodes (id, joined_at) VALUES (?, ?)", (node, at))
    db.execute("DELETE FROM nodes WHERE id NOT IN (SELECT id FROM nodes ORDER BY joined_at DESC LIMIT ?)", (MAX_NODES,))


@verb
def pause(db: Connection, paused: bool) -> None:
    db.execute("INSERT OR REPLACE INTO meta VALUES ('paused', ?)", (int(paused),))


def paused(db: Connection) -> bool:
    row = db.execute("SELECT value FROM meta WHERE key = 'paused'").fetchone()
    return row is not None and bool(row["value"])


@verb
def backed_up(db: Connection, at: float) -> None:
    db.execute("INSERT OR REPLACE INTO meta VALUES ('backed_up_at', ?)", (int(at),))


def backed_up_at(db: Connection) -> float | None:
    """Seconds since the epoch; None for never."""
    row = db.execute("SELECT value FROM meta WHERE key = 'backed_up_at'").fetchone()
    return None if row is None else float(row["value"])


@verb
def check(db: Connection) -> None:
    """Writes something: a number that counts how often this was asked."""
    db.execute("INSERT OR IGNORE INTO meta VALUES ('checks', 0)")
    db.execute("UPDATE meta SET value = value + 1 WHERE key = 'checks'")
