"""The durable half of the daemon: the store, the tasks in it, and whoever follows them; built here, and run."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from claude_daemon import assembly, journal
from claude_daemon.config import Settings
from claude_daemon.core.budget import NO_BUDGET, Budget
from claude_daemon.core.task import Task
from claude_daemon.engine.session import SessionLane
from claude_daemon.meters import Meters
from claude_daemon.ports import (
    AuditRecord,
    Engine,
    HealthReport,
    QueueLimits,
    Schemas,
    Store,
    StoreUnavailable,
    WebhookDelivery,
)
from claude_daemon.service import rules
from claude_daemon.service.activity import Activity, settled
from claude_daemon.service.admit import Admission
from claude_daemon.service.audit import AuditDesk
from claude_daemon.service.book import Book
from claude_daemon.service.budget import Budgets
from claude_daemon.service.credential import CredentialStanding
from claude_daemon.service.dispatch import Dispatcher, DispatchSettings, Run
from claude_daemon.service.follow import Follow, StoreKeeper, Tails
from claude_daemon.service.health import Health
from claude_daemon.service.keys import KeyDesk
from claude_daemon.service.limits import Limits
from claude_daemon.service.recover import Recovery
from claude_daemon.service.refused import Refused
from claude_daemon.service.sessions import SessionDesk
from claude_daemon.service.tasks import TaskDesk
from claude_daemon.service.upkeep import Upkeep
from claude_daemon.service.webhooks import WebhookLoop
from claude_daemon.telemetry.metrics import Metrics
from claude_daemon.upstream.webhook import WebhookClient
from claude_daemon.usable import validate
from claude_daemon.wire import events as wire_events
from claude_daemon.wire.tasks import task_document

RECOVER_AGAIN_S: Final = 2.0
"""How often a store that takes nothing at the start is tried: a disk that has room again is noticed by then."""


@dataclass(frozen=True, slots=True)
class Webhooks:
    """The way out to receivers, where a secret is configured to sign with."""

    client: WebhookClient
    loop: WebhookLoop


class Durable:
    """Everything between the store and the routes. ``webhooks`` None: no secret is configured."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        engines: Sequence[Engine],
        homes: SessionLane,
        schemas: Schemas,
        *,
        audit_key: bytes,
        meters: Meters | None = None,
        budget_of: Callable[[str], Budget] = lambda key_id: NO_BUDGET,
        happened: Callable[[str, Mapping[str, Any]], None] = lambda name, data: None,
    ) -> None:
        """``homes``: the one of the engines that knows where sessions live. ``audit_key``: what the store seals its
        audit with. ``meters`` count what happens. ``budget_of``: a key's own, by its id. ``happened`` hears of every
        end. Raises BadSetting."""
        self.meters = meters = meters or Meters(Metrics(), monotonic=time.monotonic)
        self._homes = homes
        self._happened = happened
        self.store = store
        self.settings = settings
        self._group: asyncio.TaskGroup | None = None
        self._recovered = False
        self.tails = Tails(lambda task_id: StoreKeeper(task_id, store, wire_events.encoded, time.time))
        self.credential = CredentialStanding(monotonic=time.monotonic)
        self._note_health: Callable[[], None] = lambda: None
        self.limits = Limits(assembly.limit_settings(settings), monotonic=time.monotonic)
        self.budgets = Budgets(
            store, assembly.budget_settings(settings), now=time.time, budget_of=budget_of, told=meters.told
        )
        self.book = Book(
            store,
            self.tails,
            node=f"node_{secrets.token_hex(8)}",
            encode=wire_events.encoded,
            now=time.time,
            ids=assembly.ids,
            price=assembly.price_of(settings),
            budgets=self.budgets,
            used=self.limits.used,
            paid=meters.paid,
            told_by_webhook=_told_by_webhook,
            ended=self._ended,
        )
        self.activity = Activity(lambda: self.dispatcher.under_way, monotonic=time.monotonic)
        self.dispatcher = Dispatcher(
            engines,
            _dispatch_settings(settings),
            schemas=schemas,
            now=time.time,
            monotonic=time.monotonic,
            ids=assembly.ids,
            book=self.book,
            parts=wire_events.parts,
            said=homes.said,
            may_begin=self.limits.may_begin,
            begins=self._begins,
            settled=self._settled,
            broken=journal.task_broken,
            told=self.activity.told.add,
        )
        self.limits.turns = self.dispatcher.turns_of
        self.follow = Follow(store, self.tails)
        self.control_refused = Refused("control.refused", now=time.time, monotonic=time.monotonic)
        days = settings.audit.retention_days
        self.audit = AuditDesk(store, audit_key, retention_days=days, now=time.time, told=meters.told)
        self.webhooks = self._webhooks()

    def serve(
        self,
        admission: Admission,
        health: Health,
        *,
        draining: Callable[[], bool],
        keys: KeyDesk,
    ) -> None:
        """What needs the rest of the daemon."""
        self.budgets.changed = self._note_health = health.note
        self._keys = keys
        queue = self.settings.queue
        self.sessions = SessionDesk(
            self.store,
            self.dispatcher,
            self._homes,
            now=time.time,
            ids=assembly.ids,
            uuids=lambda: str(uuid.uuid4()),
            role_of=keys.role_of,
        )
        self.desk = TaskDesk(
            admission,
            self.dispatcher,
            self.book,
            self.sessions,
            limits=_queue_limits(self.settings),
            monotonic=time.monotonic,
            ids=assembly.ids,
            check_webhook=self._check_webhook,
            role_of=keys.role_of,
            check_key=keys.check,
            is_revoked=keys.revoked,
            accepted=journal.task_accepted,
        )
        keys.work = self.desk
        self.dispatcher.concurrent = keys.concurrent
        self.recovery = Recovery(
            self.dispatcher,
            self.book,
            monotonic=time.monotonic,
            max_attempts=queue.max_attempts,
            told=self.meters.told,
        )
        self.upkeep = Upkeep(
            self.store,
            self.dispatcher,
            now=time.time,
            retention_days=queue.retention_days,
            draining=draining,
            changed=health.note,
            sweep_sessions=self.sessions.sweep,
            told=self.meters.told,
        )

    def apply(self, settings: Settings) -> None:
        """What a reload may change of it; ``settings`` have passed :func:`~claude_daemon.usable.validate`."""
        self.settings = settings
        self.dispatcher.apply(_dispatch_settings(settings))
        self.book.price = assembly.price_of(settings)
        self.budgets.apply(assembly.budget_settings(settings))
        self.limits.apply(assembly.limit_settings(settings))
        self.desk.limits = _queue_limits(settings)
        self.recovery.max_attempts = settings.queue.max_attempts
        self.upkeep.retention_days = settings.queue.retention_days
        self.audit.retention_days = settings.audit.retention_days
        configured = settings.webhooks
        if self.webhooks is not None and configured.secret is not None:
            secret = configured.secret.reveal()
            self.webhooks.client.apply(secret, timeout_s=configured.timeout_s, allow_private=configured.allow_private)

    async def start(self) -> None:
        """Finds what the daemon before has left, if the store takes anything now; else :meth:`run` goes on trying."""
        if self.webhooks is not None:
            await self.webhooks.client.start()
        self.upkeep.await_store()
        self._recovered = await self._recover()

    async def _recover(self) -> bool:
        try:
            known = await self.store.session_ids()
            if strange := await asyncio.to_thread(self._homes.keep_only, known):  # of sessions deleted in between
                self.meters.told("sessions.swept", {"sessions": len(strange)})
            await self.budgets.load()
            await self.recovery.start()
            self.upkeep.begin(paused=await self.store.paused())
        except StoreUnavailable:  # its status says so, and with it readiness
            return False
        return True

    async def _recovering(self) -> None:
        """Then leases, and what was missed; never ends."""
        while not self._recovered:
            await asyncio.sleep(RECOVER_AGAIN_S)
            self._recovered = await self._recover()
        await self.recovery.run()

    async def run(self) -> None:
        """Leases, retention, the store's own health, webhooks; until it is cancelled."""
        async with asyncio.TaskGroup() as self._group:
            group = self._group
            group.create_task(self._recovering())
            group.create_task(self.upkeep.sweep())
            group.create_task(self.upkeep.watch())
            group.create_task(self.audit.run())
            for refused in (self._keys.refused, self.control_refused):
                group.create_task(refused.run(self.record))
            if self.webhooks is not None:
                group.create_task(self.webhooks.loop.run())

    async def close(self) -> None:
        """Nothing is written any more."""
        with contextlib.suppress(StoreUnavailable):
            await self.audit.tell_head()
        if self.webhooks is not None:
            await self.webhooks.client.close()

    def note(self, audit: AuditRecord) -> None:
        """The same for whoever cannot wait; while :meth:`run` is running."""
        assert self._group is not None
        self._group.create_task(self.record(audit))

    async def record(self, audit: AuditRecord) -> None:
        """What an operator did; where the store takes nothing, the log alone has it."""
        if not await self.audit.record(audit):
            self.meters.told("audit.unwritten", {"act": audit.act, "peer_uid": audit.peer_uid, **audit.details})

    def check(self) -> dict[str, HealthReport]:
        """The share of health of the store, and of what is kept in it."""
        status = self.store.status()
        return {"store": rules.store(status, stall_s=self.settings.store.stall_s), **self.audit.check(status.error)}

    def queue(self) -> rules.Queue:
        """What waits for a place."""
        dispatcher = self.dispatcher
        return rules.Queue(
            waiting=dispatcher.waiting,
            queued=dispatcher.queued,
            max_queued=self.settings.queue.max_queued,
            oldest_seconds=dispatcher.oldest_seconds,
            held=dispatcher.held,
        )

    # ends

    def _begins(self, run: Run) -> None:
        journal.attempt_begins(run)
        self.meters.begins(run)

    def _settled(self, run: Run) -> None:
        self.meters.settled(run)
        self.activity.settled(run)
        self._happened("task.settled", settled(run))
        assert run.task.outcome is not None
        if self.credential.ended(run.task.outcome):
            self._note_health()
        if not run.durable:
            self.book.chat_ended(run)
        journal.task_settled(run)

    def _ended(self, task: Task) -> None:
        if task.spec.webhook is not None and self.webhooks is not None:
            self.webhooks.loop.wake()

    # webhooks

    def _webhooks(self) -> Webhooks | None:
        configured = self.settings.webhooks
        if configured.secret is None:
            return None
        validate(self.settings)
        client = WebhookClient(
            configured.secret.reveal(),
            timeout_s=configured.timeout_s,
            allow_private=configured.allow_private,
            now=time.time,
        )
        loop = WebhookLoop(self.store, client, self._body, now=time.time, random=random.random, told=self.meters.told)
        return Webhooks(client, loop)

    def _check_webhook(self, url: str) -> str | None:
        if self.webhooks is None:
            return "webhooks are signed, and webhooks.secret is not set."
        return self.webhooks.client.check(url)

    async def _body(self, delivery: WebhookDelivery) -> bytes | None:
        task = await self.store.get(delivery.task_id)
        return None if task is None or not task.state.terminal else _told_by_webhook(task)


def _told_by_webhook(task: Task) -> bytes:
    """As Standard Webhooks has it; ``data`` is the task as every route tells it."""
    assert task.finished_at is not None
    at = datetime.fromtimestamp(task.finished_at, UTC).isoformat()
    return orjson.dumps({"type": f"task.{task.state}", "timestamp": at, "data": task_document(task)})


def _dispatch_settings(settings: Settings) -> DispatchSettings:
    return DispatchSettings(
        max_waiting=settings.http.max_waiting,
        wait_timeout_s=settings.queue.wait_timeout_s,
        max_attempts=settings.queue.max_attempts,
        stall_s=settings.store.stall_s,
        approval_timeout_s=settings.engine.approval_timeout_s,
    )


def _queue_limits(settings: Settings) -> QueueLimits:
    queue = settings.queue
    return QueueLimits(
        max_queued=queue.max_queued,
        max_queued_per_key=queue.max_queued_per_key,
        max_sessions_per_key=settings.limits.sessions,
    )
