"""The store of one daemon: a SQLite file (DESIGN.md, "Store")."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from sqlite3 import Connection
from types import ModuleType
from typing import Final

from claude_daemon.core.audit import Anchor, Sealed
from claude_daemon.core.budget import Reservation
from claude_daemon.core.errors import Failure
from claude_daemon.core.task import Task, Usage
from claude_daemon.ports import (
    AuditRecord,
    Batch,
    BatchState,
    EventPage,
    KeyRecord,
    LedgerEntry,
    QueuedTask,
    QueueLimits,
    Requeue,
    RunningTask,
    SessionPage,
    SessionRecord,
    Settlement,
    Spent,
    StoredEvent,
    StoreStatus,
    StoreUnavailable,
    Submission,
    TaskFilter,
    TaskPage,
    UsageGroup,
    UsageRow,
    WebhookDelivery,
)
from claude_daemon.store import audit as audits
from claude_daemon.store import budget, copies, keys, meta, queries, retention, rows, sessions, tasks, webhooks
from claude_daemon.store import ledger as ledgers
from claude_daemon.store.connection import connect_reader, opening
from claude_daemon.store.readers import Readers
from claude_daemon.store.schema import known_migrations, open_current
from claude_daemon.store.verbs import Verb
from claude_daemon.store.writer import Committed, Observer, Writer

_NOUNS: Final[Sequence[ModuleType]] = (tasks, ledgers, budget, audits, webhooks, keys, sessions, meta, retention)
VERBS: Final = tuple(
    sorted({found.name for noun in _NOUNS for found in vars(noun).values() if isinstance(found, Verb)})
)
"""The names of all that write."""


class SqliteStore:
    """Implements :class:`~claude_daemon.ports.Store`, whose docstrings say what each verb promises."""

    def __init__(
        self,
        path: Path,
        writing: Connection,
        readers: Readers,
        schema_version: int,
        observer: Observer | None,
        committed: Committed,
    ) -> None:
        """For :meth:`open`, which makes sure of the file."""
        self.path = path
        self._schema_version = schema_version
        self._readers = readers
        self._copying = ThreadPoolExecutor(1, thread_name_prefix="store-copy")
        self._closing = False
        self._backed_up_at = meta.backed_up_at(writing)
        self._writer = Writer(writing, path, observer, committed)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        audit_key: bytes = b"",
        observer: Observer | None = None,
        committed: Committed = lambda seconds, items: None,
    ) -> SqliteStore:
        """Checks the file, migrates or makes it. Blocks; the directory exists, and nobody else has the file open.

        ``audit_key`` seals the audit. Without one its chain tells accidents and no forgery. ``committed`` is told each
        commit, on the writer's thread.

        Raises StoreBroken for a file that is corrupt, newer than this code or not ours; StoreUnavailable for what may
        pass, such as a full disk.
        """
        migrations = known_migrations()
        with ExitStack() as stack, opening(path):
            writing = stack.enter_context(closing(open_current(path, migrations)))
            audits.keep_sealed(writing, audit_key)
            readers = stack.enter_context(closing(Readers(path)))
            store = cls(path, writing, readers, len(migrations), observer, committed)
            stack.pop_all()
            return store

    async def close(self) -> bool:
        """Saves what waits, ends all threads; whether all was saved. Every verb raises StoreUnavailable afterwards."""
        self._closing = True
        return await asyncio.to_thread(self._close)

    def _close(self) -> bool:
        self._copying.shutdown()
        self._readers.close()
        return self._writer.close()  # the last connection: it empties the WAL into the file

    # tasks

    async def enqueue(
        self, submissions: Sequence[Submission], limits: QueueLimits, batch: Batch | None = None
    ) -> Sequence[Task | Failure]:
        prepared = tasks.prepare(submissions, batch)
        size = sum(len(one.spec) + len(one.submission.event.encoded) for one in prepared)
        return await self._writer.do(tasks.enqueue.bind(prepared, limits, batch), size)

    async def claim(self, task_id: str, node: str, lease_until: float, at: float) -> Task | None:
        return await self._writer.do(tasks.claim.bind(task_id, node, lease_until, at))

    async def renew(self, node: str, task_ids: Sequence[str], lease_until: float) -> frozenset[str]:
        return await self._writer.do(tasks.renew.bind(node, task_ids, lease_until))

    def append(self, task_id: str, fence: int, events: Sequence[StoredEvent], told: Callable[[bool], None]) -> None:
        size = sum(len(event.encoded) for event in events)
        self._writer.tell(tasks.append.bind(task_id, fence, tuple(events)), size, told, failed=False)

    def spent(self, task_id: str, fence: int, usage: Usage) -> None:
        self._writer.tell(tasks.spent.bind(task_id, fence, rows.dump(usage)), 0, lambda _: None, failed=False)

    async def set_effects(self, task_id: str, fence: int) -> bool:
        return await self._writer.do(tasks.set_effects.bind(task_id, fence))

    async def settle(self, settlement: Settlement) -> bool:
        outcome = rows.dump(settlement.outcome)
        size = len(outcome) + len(settlement.event.encoded)
        return await self._writer.do(tasks.settle.bind(settlement, outcome), size)

    async def requeue(self, requeue: Requeue) -> bool:
        return await self._writer.do(tasks.requeue.bind(requeue), len(requeue.event.encoded))

    async def request_cancel(self, task_id: str, at: float, audit: AuditRecord | None = None) -> Task | None:
        return await self._writer.do(tasks.request_cancel.bind(task_id, at, audit))

    async def retry(
        self,
        task_id: str,
        event: StoredEvent,
        limits: QueueLimits,
        audit: AuditRecord | None = None,
        reservation: Reservation | None = None,
    ) -> Task | Failure | None:
        return await self._writer.do(tasks.retry.bind(task_id, event, limits, audit, reservation), len(event.encoded))

    async def get(self, task_id: str) -> Task | None:
        return await self._readers.read(rows.find_task, task_id)

    async def list(self, wanted: TaskFilter, limit: int, cursor: str | None = None) -> TaskPage:
        return await self._readers.read(queries.list_tasks, wanted, limit, queries.cursor_of(cursor))

    async def events(self, task_id: str, after: int, max_events: int, max_bytes: int) -> EventPage | None:
        return await self._readers.read(queries.events, task_id, after, max_events, max_bytes)

    async def queued(self) -> Sequence[QueuedTask]:
        return await self._readers.read(queries.queued)

    async def running(self) -> Sequence[RunningTask]:
        return await self._readers.read(queries.running)

    async def batch(self, batch_id: str) -> BatchState | None:
        return await self._readers.read(queries.batch, batch_id)

    async def purge(self, before: float, limit: int) -> int:
        return await self._writer.do(retention.purge.bind(before, limit))

    # ledger

    def record_chat(self, task: Task, ledger: LedgerEntry | None, audit: AuditRecord | None = None) -> None:
        self._writer.leave(ledgers.record_chat.bind(rows.wordless(task), ledger, audit))

    async def ledger(self, task_id: str) -> Sequence[LedgerEntry]:
        return await self._readers.read(ledgers.read, task_id)

    async def usage(self, by: UsageGroup, since: str, key_id: str | None) -> Sequence[UsageRow]:
        return await self._readers.read(budget.usage, by, since, key_id)

    # budgets

    def reserve(self, reservation: Reservation) -> None:
        self._writer.leave(budget.reserve.bind(reservation))

    async def charge_left_behind(self, day: str, at: float) -> int:
        return await self._writer.do(budget.charge_left_behind.bind(day, at))

    async def reservations(self) -> Sequence[Reservation]:
        return await self._readers.read(budget.reservations)

    async def spending(self, since: str) -> Sequence[Spent]:
        return await self._readers.read(budget.spending, since)

    # audit

    async def record(self, audit: AuditRecord) -> None:
        await self._writer.do(audits.record.bind(audit))

    async def audit(self, after: int, limit: int) -> Sequence[tuple[int, AuditRecord]]:
        return await self._readers.read(audits.read, after, limit)

    async def audit_latest(
        self,
        limit: int,
        act: str | None = None,
        since: float | None = None,
        *,
        request_id: str | None = None,
        task_id: str | None = None,
    ) -> Sequence[tuple[int, AuditRecord]]:
        return await self._readers.read(audits.latest, limit, act, since, request_id, task_id)

    async def audit_head(self) -> Anchor | None:
        return await self._readers.read(audits.head)

    async def audit_sealed(self, after: int, limit: int) -> Sequence[Sealed]:
        return await self._readers.read(audits.sealed, after, limit)

    async def prune_audit(self, before: float, at: float, limit: int) -> int:
        return await self._writer.do(audits.prune_audit.bind(before, at, limit))

    # webhooks

    async def due(self, now: float, limit: int) -> Sequence[WebhookDelivery]:
        return await self._readers.read(webhooks.due, now, limit)

    async def next_due(self) -> float | None:
        return await self._readers.read(webhooks.next_due)

    async def webhooks_waiting(self) -> tuple[int, float | None]:
        return await self._readers.read(webhooks.waiting)

    async def delivered(self, webhook_id: str, at: float) -> None:
        await self._writer.do(webhooks.delivered.bind(webhook_id, at))

    async def postpone(self, webhook_id: str, due_at: float, error: str) -> None:
        await self._writer.do(webhooks.postpone.bind(webhook_id, due_at, error))

    async def give_up(self, webhook_id: str, at: float, error: str) -> None:
        await self._writer.do(webhooks.give_up.bind(webhook_id, at, error))

    # keys

    async def create_key(self, key: KeyRecord, audit: AuditRecord) -> None:
        await self._writer.do(keys.create_key.bind(key, audit))

    async def rotate_key(self, key_id: str, digest: bytes, previous_until: float, audit: AuditRecord) -> bool:
        return await self._writer.do(keys.rotate_key.bind(key_id, digest, previous_until, audit))

    async def suspend_key(self, key_id: str, at: float | None, audit: AuditRecord) -> bool:
        return await self._writer.do(keys.suspend_key.bind(key_id, at, audit))

    async def revoke_key(self, key_id: str, at: float, audit: AuditRecord) -> Sequence[str] | None:
        return await self._writer.do(keys.revoke_key.bind(key_id, at, audit))

    def key_used(self, key_id: str, at: float) -> None:
        self._writer.leave(keys.key_used.bind(key_id, at))

    async def keys(self) -> Sequence[KeyRecord]:
        return await self._readers.read(keys.read)

    # sessions

    async def session(self, session_id: str) -> SessionRecord | None:
        return await self._readers.read(sessions.find, session_id)

    async def sessions(self, key_id: str | None, limit: int, cursor: str | None = None) -> SessionPage:
        return await self._readers.read(sessions.page, key_id, limit, sessions.cursor_of(cursor))

    async def delete_session(self, session_id: str, audit: AuditRecord | None = None) -> bool | None:
        return await self._writer.do(sessions.delete_session.bind(session_id, audit))

    async def unused_sessions(self, before: float, limit: int) -> Sequence[str]:
        return await self._readers.read(sessions.unused, before, limit)

    async def session_ids(self) -> frozenset[str]:
        return await self._readers.read(sessions.ids)

    # administration

    async def join(self, node: str, at: float) -> None:
        await self._writer.do(meta.join.bind(node, at))

    async def paused(self) -> bool:
        return await self._readers.read(meta.paused)

    async def pause(self, paused: bool) -> None:
        await self._writer.do(meta.pause.bind(paused))

    async def backup(self, to: Path) -> int:
        """InterruptedError when the store is closed before it is complete."""
        return await asyncio.get_running_loop().run_in_executor(self._copying, self._copy, to)

    async def backed_up(self, at: float) -> None:
        await self._writer.do(meta.backed_up.bind(at))
        self._backed_up_at = at

    def _copy(self, to: Path) -> int:
        with closing(connect_reader(self.path)) as db:
            return copies.copy(db, to, overwrite=False, going_on=lambda: not self._closing)

    async def check(self) -> bool:
        self._writer.hurry()
        try:
            await self._writer.do(meta.check.bind())
            await self._readers.read(meta.paused)
        except StoreUnavailable:
            return False
        return True

    def status(self) -> StoreStatus:
        return StoreStatus(
            error=self._writer.error or self._readers.error,
            backlog=self._writer.backlog,
            details={
                **self._writer.figures.read(),
                "schema_version": self._schema_version,
                "backed_up_at": self._backed_up_at,
            },
        )
