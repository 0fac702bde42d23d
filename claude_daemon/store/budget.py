"""What was charged, and what is set aside: checked once more where a task is queued."""

from __future__ import annotations

from collections.abc import Sequence
from sqlite3 import Connection, Row
from typing import Final

from claude_daemon.core.budget import Cap, Owner, Purse, Reservation, exhausted, first_day
from claude_daemon.core.errors import Failure
from claude_daemon.core.task import Lane
from claude_daemon.ports import Spent, UsageGroup, UsageRow
from claude_daemon.store.verbs import verb, write_behind

_LEFT_BEHIND: Final = """
    FROM reservations WHERE NOT EXISTS (
        SELECT 1 FROM tasks WHERE tasks.id = reservations.task_id AND tasks.state IN ('queued', 'running')
    )
"""
_GROUPS: Final = {UsageGroup.DAY: "day", UsageGroup.KEY: "key_id", UsageGroup.MODEL: "model"}


def refuses(db: Connection, wish: Reservation | None) -> Failure | None:
    """The limit that has no room for it, of those that it names."""
    if wish is None:
        return None
    for cap in wish.caps:
        if _spent(db, cap, wish.day) + _reserved(db, cap.owner) + wish.micro_usd > cap.micro_usd:
            return exhausted(cap)
    return None


def _spent(db: Connection, cap: Cap, day: str) -> int:
    row = db.execute(
        "SELECT coalesce(sum(micro_usd), 0) FROM spending WHERE purse = ? AND name = ? AND day >= ?",
        (cap.owner.purse.value, cap.owner.name, first_day(cap.span, day)),
    ).fetchone()
    return int(row[0])


def _reserved(db: Connection, owner: Owner) -> int:
    row = db.execute(
        "SELECT micro_usd FROM reserved WHERE purse = ? AND name = ?", (owner.purse.value, owner.name)
    ).fetchone()
    return 0 if row is None else int(row[0])


def insert(db: Connection, wish: Reservation | None) -> None:
    """In the place of what the task had before."""
    if wish is not None:
        release(db, wish.task_id)
        db.execute(
            "INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?)",
            (wish.task_id, wish.key_id, wish.trust_domain, wish.model, wish.lane.value, wish.micro_usd),
        )


def release(db: Connection, task_id: str) -> None:
    db.execute("DELETE FROM reservations WHERE task_id = ?", (task_id,))


@write_behind
def reserve(db: Connection, wish: Reservation) -> None:
    insert(db, wish)


@verb
def charge_left_behind(db: Connection, day: str, at: float) -> int:
    left = db.execute(f"SELECT count(*) {_LEFT_BEHIND}").fetchone()[0]
    if left:
        db.execute(
            "INSERT INTO ledger (at, task_id, attempt, key_id, trust_domain, model, lane, input_tokens, output_tokens, "
            "cache_creation_input_tokens, cache_read_input_tokens, model_calls, day, charged_micro_usd) "
            f"SELECT ?, task_id, 1, key_id, trust_domain, model, lane, 0, 0, 0, 0, 0, ?, micro_usd {_LEFT_BEHIND}",
            (at, day),
        )
        db.execute(f"DELETE {_LEFT_BEHIND}")
    return int(left)


def reservations(db: Connection) -> Sequence[Reservation]:
    return [_reservation_of(row) for row in db.execute("SELECT * FROM reservations")]


def _reservation_of(row: Row) -> Reservation:
    return Reservation(
        task_id=row["task_id"],
        key_id=row["key_id"],
        trust_domain=row["trust_domain"],
        model=row["model"],
        lane=Lane(row["lane"]),
        micro_usd=row["micro_usd"],
    )


def spending(db: Connection, since: str) -> Sequence[Spent]:
    found = db.execute("SELECT purse, name, day, micro_usd FROM spending WHERE day >= ?", (since,))
    return [Spent(Owner(Purse(purse), name), day, micro_usd) for purse, name, day, micro_usd in found]


def usage(db: Connection, by: UsageGroup, since: str, key_id: str | None) -> Sequence[UsageRow]:
    column, whose = _GROUPS[by], "" if key_id is None else "AND key_id = ?"
    found = db.execute(
        f"SELECT {column} AS name, count(DISTINCT task_id) AS tasks, sum(input_tokens) AS input_tokens, "  # noqa: S608
        "sum(output_tokens) AS output_tokens, sum(cache_creation_input_tokens) AS cache_creation_input_tokens, "
        "sum(cache_read_input_tokens) AS cache_read_input_tokens, sum(model_calls) AS model_calls, "
        "coalesce(sum(cost_micro_usd), 0) AS cost_micro_usd, sum(charged_micro_usd) AS charged_micro_usd, "
        "sum(cost_micro_usd IS NULL AND model_calls > 0) AS unpriced "
        f"FROM ledger WHERE day >= ? {whose} GROUP BY {column} ORDER BY {column}",
        (since,) if key_id is None else (since, key_id),
    )
    return [UsageRow(**dict(row)) for row in found]
