"""What changes a task. A verb that comes with an older fence changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from sqlite3 import Connection, Row
from typing import Final

from claude_daemon.core.budget import Reservation
from claude_daemon.core.errors import Code, Failure, IllegalMove
from claude_daemon.core.event import first_seq
from claude_daemon.core.task import MOVES, Effects, Kind, State, Task, advance, evolve
from claude_daemon.ports import (
    AuditRecord,
    Batch,
    QueueLimits,
    Requeue,
    Settlement,
    StoredEvent,
    Submission,
)
from claude_daemon.store import audit as audits
from claude_daemon.store import budget, ledger, rows, sessions, webhooks
from claude_daemon.store.verbs import exempt, verb, write_behind

_CONFLICT: Final = Failure(
    code=Code.IDEMPOTENCY_CONFLICT, message="This idempotency key was used before, with another request."
)
_QUEUE_FULL: Final = Failure(code=Code.QUEUE_FULL, message="Too many of this key's tasks are queued.")
_OVERLOADED: Final = Failure(code=Code.OVERLOADED, message="Too many tasks are queued.")


# into the queue


@dataclass(frozen=True, slots=True)
class Prepared:
    """A submission with its spec encoded; ``position`` is its place in the batch."""

    submission: Submission
    spec: bytes
    position: int


def prepare(submissions: Sequence[Submission], batch: Batch | None) -> Sequence[Prepared]:
    """Encodes them. With a batch, they are those of its positions that are not refused yet, in order."""
    refused = {} if batch is None else batch.refused
    size = len(submissions) if batch is None else batch.size
    positions = [position for position in range(size) if position not in refused]
    return [
        Prepared(submission, rows.dump(submission.task.spec), position)
        for submission, position in zip(submissions, positions, strict=True)
    ]


@verb
def enqueue(
    db: Connection, prepared: Sequence[Prepared], limits: QueueLimits, batch: Batch | None
) -> Sequence[Task | Failure]:
    answers = [_enqueue_one(db, one, limits) for one in prepared]
    if batch is not None:
        _insert_batch(db, batch, prepared, answers)
    return answers


def _enqueue_one(db: Connection, one: Prepared, limits: QueueLimits) -> Task | Failure:
    submission = one.submission
    known = _known(db, submission)
    if known is not None:
        return known
    if submission.refused is not None:
        return submission.refused
    task = replace(submission.task, last_seq=submission.event.seq)
    full = _full(db, task.spec.key_id, limits) or budget.refuses(db, submission.reservation)
    if full is not None:
        return full
    gone = sessions.begin_turn(db, task, submission.session, limits.max_sessions_per_key)
    if gone is not None:
        return gone
    rows.insert_task(db, task, spec=one.spec, idempotency=submission.idempotency)
    rows.insert_events(db, task.id, [submission.event])
    budget.insert(db, submission.reservation)
    audits.insert(db, submission.audit)
    return task


def _known(db: Connection, submission: Submission) -> Task | Failure | None:
    """What the idempotency key was used for before."""
    if submission.idempotency is None:
        return None
    row = db.execute(
        rows.SELECT_TASK + "WHERE t.key_id = ? AND t.idempotency_key = ?",
        (submission.task.spec.key_id, submission.idempotency.key),
    ).fetchone()
    if row is None:
        return None
    return rows.task_of(row) if row["idempotency_digest"] == submission.idempotency.digest else _CONFLICT


def _full(db: Connection, key_id: str, limits: QueueLimits) -> Failure | None:
    depth = dict(db.execute("SELECT key_id, tasks FROM queue_depth WHERE key_id IN ('', ?)", (key_id,)).fetchall())
    if depth.get(key_id, 0) >= limits.max_queued_per_key:
        return _QUEUE_FULL
    return _OVERLOADED if depth[""] >= limits.max_queued else None


def _insert_batch(
    db: Connection, batch: Batch, prepared: Sequence[Prepared], answers: Sequence[Task | Failure]
) -> None:
    refused = dict(batch.refused)
    for one, answer in zip(prepared, answers, strict=True):
        if isinstance(answer, Failure):
            refused[one.position] = answer
        else:
            db.execute("INSERT INTO batch_tasks VALUES (?, ?, ?)", (batch.id, one.position, answer.id))
    encoded = rows.dump({str(position): failure for position, failure in refused.items()}).decode()
    db.execute(
        "INSERT INTO batches VALUES (?, ?, ?, ?, ?)", (batch.id, batch.key_id, batch.created_at, batch.size, encoded)
    )


@verb
def retry(
    db: Connection,
    task_id: str,
    event: StoredEvent,
    limits: QueueLimits,
    audit: AuditRecord | None,
    reservation: Reservation | None,
) -> Task | Failure | None:
    """The time that it may take counts anew, from the audit's ``at``: without one it is not known, and not bounded."""
    task = rows.find_task(db, task_id)
    if task is None or task.spec.kind is not Kind.TASK or task.state not in (State.FAILED, State.CANCELLED):
        return None
    if event.seq != first_seq(task.fence + 1):
        return None
    if (full := _full(db, task.spec.key_id, limits) or budget.refuses(db, reservation)) is not None:
        return full
    db.execute(
        "UPDATE tasks SET state = 'queued', attempt = 0, fence = ?, effects = 'none', last_seq = ?, deadline_at = ?, "
        "queued_at = ?, started_at = NULL, finished_at = NULL, cancel_requested_at = NULL, outcome = NULL WHERE id = ?",
        (
            task.fence + 1,
            event.seq,
            None if audit is None else rows.deadline(audit.at, task.spec.timeout_seconds),
            None if audit is None else audit.at,
            task_id,
        ),
    )
    rows.insert_events(db, task_id, [event])
    budget.insert(db, reservation)
    audits.insert(db, audit)
    return rows.find_task(db, task_id)


# attempts


@verb
def claim(db: Connection, task_id: str, node: str, lease_until: float, at: float) -> Task | None:
    task = rows.find_task(db, task_id)
    if task is None or task.state is not State.QUEUED or task.cancel_requested_at is not None:
        return None
    task = advance(
        task,
        State.RUNNING,
        attempt=task.attempt + 1,
        fence=task.fence + 1,
        effects=Effects.NONE,
        started_at=at if task.started_at is None else task.started_at,
    )
    db.execute(
        "UPDATE tasks SET state = 'running', attempt = ?, fence = ?, effects = 'none', started_at = ?, node = ?, "
        "lease_until = ? WHERE id = ?",
        (task.attempt, task.fence, task.started_at, node, lease_until, task_id),
    )
    db.execute(
        "INSERT INTO attempts (task_id, fence, attempt, node, started_at) VALUES (?, ?, ?, ?, ?)",
        (task_id, task.fence, task.attempt, node, at),
    )
    return task


@verb
def renew(db: Connection, node: str, task_ids: Sequence[str], lease_until: float) -> frozenset[str]:
    update = "UPDATE tasks SET lease_until = ? WHERE id = ? AND node = ? AND state = 'running'"
    return frozenset(task_id for task_id in task_ids if db.execute(update, (lease_until, task_id, node)).rowcount)


@write_behind
def append(db: Connection, task_id: str, fence: int, events: Sequence[StoredEvent]) -> bool:
    row = _small_row(db, task_id)
    if row is None or row["fence"] != fence or row["state"] != State.RUNNING:
        return False
    if events:
        rows.insert_events(db, task_id, events)
        db.execute("UPDATE tasks SET last_seq = ? WHERE id = ?", (events[-1].seq, task_id))
    return True


@write_behind
def spent(db: Connection, task_id: str, fence: int, usage: bytes) -> bool:
    row = _small_row(db, task_id)
    if row is None or row["fence"] != fence or row["state"] != State.RUNNING:
        return False
    db.execute("UPDATE attempts SET usage = ? WHERE task_id = ? AND fence = ?", (usage, task_id, fence))
    return True


@exempt
def set_effects(db: Connection, task_id: str, fence: int) -> bool:
    row = _small_row(db, task_id)
    if row is None or row["fence"] != fence or row["state"] != State.RUNNING:
        return False
    db.execute("UPDATE tasks SET effects = 'possible' WHERE id = ?", (task_id,))
    db.execute("UPDATE attempts SET effects = 'possible' WHERE task_id = ? AND fence = ?", (task_id, fence))
    return True


@exempt
def requeue(db: Connection, asked: Requeue) -> bool:
    row = _small_row(db, asked.task_id)
    if row is None or row["fence"] != asked.fence or row["state"] != State.RUNNING:
        return False
    if row["cancel_requested_at"] is not None:
        return False
    db.execute(
        "UPDATE tasks SET state = 'queued', fence = ?, last_seq = ?, node = NULL, lease_until = NULL WHERE id = ?",
        (_next_fence(asked), asked.event.seq, asked.task_id),
    )
    _end_attempt(db, asked.task_id, asked.fence, "requeued")
    rows.insert_events(db, asked.task_id, [asked.event])
    ledger.insert(db, asked.ledger)
    audits.insert(db, asked.audit)
    return True


@exempt
def settle(db: Connection, end: Settlement, outcome: bytes) -> bool:
    """``outcome`` is the settlement's, encoded. An attempt ends running tasks only. Raises IllegalMove."""
    row = _small_row(db, end.task_id)
    if row is None or row["fence"] != end.fence or State(row["state"]).terminal:
        return False
    if end.new_fence is None and row["state"] != State.RUNNING:
        return False
    if end.outcome.state not in MOVES[State(row["state"])]:
        raise IllegalMove(f"task {end.task_id}: {row['state']} -> {end.outcome.state}")
    db.execute(
        "UPDATE tasks SET state = ?, fence = ?, last_seq = ?, finished_at = ?, node = NULL, lease_until = NULL, "
        "outcome = ? WHERE id = ?",
        (end.outcome.state.value, _next_fence(end), end.event.seq, end.finished_at, outcome, end.task_id),
    )
    _end_attempt(db, end.task_id, end.fence, end.outcome.state.value)
    rows.insert_events(db, end.task_id, [end.event])
    ledger.insert(db, end.ledger)
    budget.release(db, end.task_id)
    audits.insert(db, end.audit)
    sessions.end_turn(db, row["session_id"], end.finished_at, end.outcome.state)
    if end.webhook_id is not None and row["webhook"] is not None:
        webhooks.insert(db, end.webhook_id, end.task_id, row["webhook"], end.finished_at, end.webhook_body)
    return True


@verb
def request_cancel(db: Connection, task_id: str, at: float, audit: AuditRecord | None) -> Task | None:
    """The audit tells of the first wish only, and of none that comes after the end."""
    task = rows.find_task(db, task_id)
    if task is None or task.state.terminal or task.cancel_requested_at is not None:
        return task
    db.execute("UPDATE tasks SET cancel_requested_at = ? WHERE id = ?", (at, task_id))
    audits.insert(db, audit)
    return evolve(task, cancel_requested_at=at)


# parts


def _small_row(db: Connection, task_id: str) -> Row | None:
    """What decides whether a verb may change a task, without what was asked."""
    row: Row | None = db.execute(
        "SELECT state, fence, webhook, cancel_requested_at, session_id FROM tasks WHERE id = ?", (task_id,)
    ).fetchone()
    return row


def _next_fence(asked: Settlement | Requeue) -> int:
    """Raises ValueError for a new fence that is not the next one."""
    if asked.new_fence is None:
        return asked.fence
    if asked.new_fence != asked.fence + 1:
        raise ValueError(f"task {asked.task_id}: after fence {asked.fence} comes no {asked.new_fence}")
    return asked.new_fence


def _end_attempt(db: Connection, task_id: str, fence: int, ended: str) -> None:
    db.execute("UPDATE attempts SET ended = ? WHERE task_id = ? AND fence = ?", (ended, task_id, fence))
