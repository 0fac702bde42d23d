"""What was used, and by whom."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from sqlite3 import Connection, Row

from claude_daemon.core.budget import day_of
from claude_daemon.core.task import Kind, Lane, Task, Usage
from claude_daemon.ports import AuditRecord, LedgerEntry
from claude_daemon.store import audit as audits
from claude_daemon.store import budget, rows, sessions
from claude_daemon.store.verbs import exempt


def insert(db: Connection, entry: LedgerEntry | None) -> None:
    if entry is None:
        return
    usage = entry.usage
    db.execute(
        "INSERT INTO ledger (at, task_id, attempt, key_id, trust_domain, model, lane, input_tokens, output_tokens, "
        "cache_creation_input_tokens, cache_read_input_tokens, model_calls, cost_micro_usd, day, charged_micro_usd) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            entry.at,
            entry.task_id,
            entry.attempt,
            entry.key_id,
            entry.trust_domain,
            entry.model,
            entry.lane.value,
            usage.input_tokens,
            usage.output_tokens,
            usage.cache_creation_input_tokens,
            usage.cache_read_input_tokens,
            usage.model_calls,
            entry.cost_micro_usd,
            entry.day or day_of(entry.at, UTC),
            entry.charged_micro_usd,
        ),
    )


@exempt
def record_chat(db: Connection, task: Task, entry: LedgerEntry | None, audit: AuditRecord | None) -> None:
    """``task`` is :func:`~claude_daemon.store.rows.wordless`. Raises ValueError for one that is no chat that ended."""
    if task.spec.kind is not Kind.CHAT or task.outcome is None:
        raise ValueError(f"{task.id} is no chat that has ended")
    rows.insert_task(db, task, spec=rows.dump(task.spec), outcome=rows.dump(task.outcome))
    insert(db, entry)
    budget.release(db, task.id)
    audits.insert(db, audit)
    if task.spec.session is not None and task.finished_at is not None:
        sessions.end_turn(db, task.spec.session.id, task.finished_at, task.outcome.state)


def read(db: Connection, task_id: str) -> Sequence[LedgerEntry]:
    found = db.execute("SELECT * FROM ledger WHERE task_id = ? ORDER BY n", (task_id,))
    return [_entry_of(row) for row in found]


def _entry_of(row: Row) -> LedgerEntry:
    return LedgerEntry(
        task_id=row["task_id"],
        attempt=row["attempt"],
        at=row["at"],
        key_id=row["key_id"],
        trust_domain=row["trust_domain"],
        model=row["model"],
        lane=Lane(row["lane"]),
        usage=Usage(
            input_tokens=row["input_tokens"],
            output_tokens=row["output_tokens"],
            cache_creation_input_tokens=row["cache_creation_input_tokens"],
            cache_read_input_tokens=row["cache_read_input_tokens"],
            model_calls=row["model_calls"],
        ),
        cost_micro_usd=row["cost_micro_usd"],
        day=row["day"],
        charged_micro_usd=row["charged_micro_usd"],
    )
