"""What the service needs kept: the store, composed of one protocol for each noun.

Rules that every store keeps, and ``tests/store/contract.py`` holds it to:

- A verb is atomic, and durable when it returns. :meth:`Tasks.append` returns at once and tells later,
  :meth:`Tasks.spent`, :meth:`Ledger.record_chat`, :meth:`Budgets.reserve` and :meth:`Keys.key_used` return at once.
- Verbs are applied in the order in which they were called.
- A *fence* decides who may change a running task: a verb that names an older one changes nothing and says so.
- A verb that cannot be made durable raises :class:`StoreUnavailable`, and then nothing of it has happened. Exempt is
  what has happened outside already (:meth:`append`, :meth:`spent`, :meth:`settle`, :meth:`requeue`,
  :meth:`set_effects`, :meth:`record_chat`, :meth:`reserve`, :meth:`key_used`): it is kept in order and tried again
  until the store recovers or is closed.
- No clock, no ids: times are seconds since the epoch, given by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from claude_daemon.core.audit import Anchor, Sealed
from claude_daemon.core.budget import NO_BUDGET, Budget, Owner, Reservation
from claude_daemon.core.errors import Failure
from claude_daemon.core.task import Kind, Lane, Outcome, State, Task, Usage


class StoreUnavailable(Exception):
    """Nothing can be made durable, or read, now (the disk is full, the file is gone); ``str()`` says why."""


class StoreBroken(Exception):
    """The store cannot be opened: corrupt, newer than this code, or not ours. For people; no secrets in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """One event as its followers are told it. ``encoded`` is the whole of it as JSON, task, seq and time included."""

    seq: int
    type: str
    encoded: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One security-relevant act. ``details`` are JSON values: never a secret, never a prompt.

    ``peer_uid`` is set for what came over the control socket. ``trust_domain`` None: where the record is about a task,
    the store takes the task's.
    """

    at: float
    act: str
    key_id: str | None = None
    trust_domain: str | None = None
    task_id: str | None = None
    request_id: str | None = None
    peer_uid: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """What one attempt used. ``cost_micro_usd`` None: the model's price is not known. ``day``: its date, by the
    calendar of the budgets; empty for that of UTC. ``charged_micro_usd`` is taken out of budgets."""

    task_id: str
    attempt: int
    at: float
    key_id: str
    trust_domain: str
    model: str
    lane: Lane
    usage: Usage
    cost_micro_usd: int | None = None
    day: str = ""
    charged_micro_usd: int = 0


class Spent(NamedTuple):
    """What a purse was charged on one day."""

    owner: Owner
    day: str
    micro_usd: int


class UsageGroup(StrEnum):
    """What usage is added up by."""

    KEY = "key"
    MODEL = "model"
    DAY = "day"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRow:
    """What tasks of one key, of one model or of one day have used: ``name`` says which. ``unpriced``: attempts whose
    cost is not known; it is not in ``cost_micro_usd``."""

    name: str
    tasks: int
    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    model_calls: int
    cost_micro_usd: int
    charged_micro_usd: int
    unpriced: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Idempotency:
    """A client's ``Idempotency-Key`` and the digest of what it was sent with. Keys of two API keys never meet."""

    key: str
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRecord:
    """A session as it is kept: whose it is, and what stays as its first turn has asked for it.

    ``transcript``: Claude Code's own name for the conversation. ``begun``: a turn of it went well. ``used_at``: when
    a turn of it was last asked for, or ended.
    """

    id: str
    key_id: str
    trust_domain: str
    transcript: str
    created_at: float
    used_at: float
    begun: bool = False
    cwd: str | None = None
    add_dirs: tuple[str, ...] = ()
    system: str = field(default="", repr=False)
    append_system: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPage:
    """Newest first. ``next`` is the cursor of the following page, None at the end."""

    sessions: Sequence[SessionRecord]
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A task to be queued (state ``queued``, fence 0) and its first event, which becomes its ``last_seq``.

    ``session``: the one that it begins, made with it. ``reservation``: what it sets aside, if its budgets have room.
    ``refused``: why it is not queued, unless its idempotency key was used before."""

    task: Task
    event: StoredEvent
    idempotency: Idempotency | None = None
    audit: AuditRecord | None = None
    session: SessionRecord | None = None
    reservation: Reservation | None = None
    refused: Failure | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """How many tasks may be queued, in all and of one key, and how many sessions a key has, forks among them."""

    max_queued: int
    max_queued_per_key: int
    max_sessions_per_key: int = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Tasks that were submitted together. ``refused``: what was turned away, by its position in the submission."""

    id: str
    key_id: str
    created_at: float
    size: int
    refused: Mapping[int, Failure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchState:
    """A batch now: its tasks by their position, without those that were refused or are purged."""

    batch: Batch
    tasks: Mapping[int, Task]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The end of a task.

    An attempt ends its own task with ``new_fence`` None. Whoever ends a task from outside (a cancelled one that is
    queued, one whose daemon is gone) names the fence that it saw and takes the next one, ``fence + 1``.
    ``webhook_id`` is set where the task has a webhook: its delivery is due from now on, with ``webhook_body``.
    """

    task_id: str
    fence: int
    outcome: Outcome
    finished_at: float
    event: StoredEvent
    new_fence: int | None = None
    ledger: LedgerEntry | None = None
    audit: AuditRecord | None = None
    webhook_id: str | None = None
    webhook_body: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requeue:
    """A running task goes back to the queue, from its attempt (``new_fence`` None) or from outside (``fence + 1``)."""

    task_id: str
    fence: int
    event: StoredEvent
    new_fence: int | None = None
    ledger: LedgerEntry | None = None
    audit: AuditRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedTask:
    """What the ready queue holds of a task: enough to decide who is next."""

    id: str
    lane: Lane
    key_id: str
    trust_domain: str
    priority: int
    queued_at: float
    deadline_at: float | None = None
    cancelled: bool = False
    """Somebody wishes its end, and nobody has brought that about yet."""
    sessions: tuple[str, ...] = ()
    """Those that it has to itself when it begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningTask:
    """A task with its attempt: who has it, until when without a sign of life, and what it is known to have used."""

    task: Task
    node: str
    lease_until: float
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFilter:
    """Which tasks a list shows; None means any."""

    key_id: str | None = None
    kind: Kind | None = None
    states: frozenset[State] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskPage:
    """Newest first. ``next`` is the cursor of the following page, None at the end."""

    tasks: Sequence[Task]
    next: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """A task's events after a cursor, read at one moment. ``terminal``: it has ended; ``complete``: that is all."""

    terminal: bool
    events: Sequence[StoredEvent]
    complete: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDelivery:
    """One webhook that is due. ``attempts``: how often it was tried before. ``body``: what is sent, the same each time;
    None in what an older version has kept."""

    id: str
    task_id: str
    url: str
    attempts: int
    due_at: float
    body: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key as it is kept: of its secret only the digest. ``expires_at`` None: never; ``revoked_at``, ``used_at`` None:
    not yet; ``suspended_at`` None: it is not. ``previous_digest``: of its secret before the last rotation, which is
    good until ``previous_until``. ``budget``: what it may spend."""

    id: str
    name: str
    trust_domain: str
    digest: bytes = field(repr=False)
    role: str
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    used_at: float | None = None
    suspended_at: float | None = None
    previous_digest: bytes | None = field(default=None, repr=False)
    previous_until: float | None = None
    budget: Budget = NO_BUDGET


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStatus:
    """How the store is. ``error``: why it cannot be written, or read, now. ``backlog``: verbs not yet durable."""

    error: str | None
    backlog: int
    details: Mapping[str, Any] = field(default_factory=dict)


class Tasks(Protocol):
    """Tasks, their attempts and their events."""

    async def enqueue(
        self, submissions: Sequence[Submission], limits: QueueLimits, batch: Batch | None = None
    ) -> Sequence[Task | Failure]:
        """Each as it was queued; the first task where its idempotency key was used before with the same digest; or
        the failure: ``idempotency_conflict``, ``queue_full`` (the key's), ``conflict`` (it has all its sessions),
        ``overloaded`` (all), ``budget_exhausted`` (its reservation has no room) or ``not_found`` (its session is not
        there, or not its key's). With a batch, it is kept with those accepted and those refused. All or nothing is
        durable; raises StoreUnavailable.
        """

    async def claim(self, task_id: str, node: str, lease_until: float, at: float) -> Task | None:
        """The task, running: ``attempt`` and ``fence`` are one more, ``effects`` none, ``started_at`` set once.

        None when it is not queued any more, or somebody has cancelled it. Raises StoreUnavailable.
        """

    async def renew(self, node: str, task_ids: Sequence[str], lease_until: float) -> frozenset[str]:
        """Prolongs this node's leases; the ids that it still holds. Raises StoreUnavailable."""

    def append(self, task_id: str, fence: int, events: Sequence[StoredEvent], told: Callable[[bool], None]) -> None:
        """Keeps events of a running task. ``told`` is called in the caller's loop once they are durable (True), or when
        the fence was stale and nothing was kept (False)."""

    def spent(self, task_id: str, fence: int, usage: Usage) -> None:
        """What a running attempt has used so far, for whoever ends it if it cannot. Nobody waits for it; a stale fence
        changes nothing."""

    async def set_effects(self, task_id: str, fence: int) -> bool:
        """``effects = possible``, durable; False when the fence is stale."""

    async def settle(self, settlement: Settlement) -> bool:
        """State, outcome, ledger, audit, webhook and last event, all or nothing, and the reservation is given back;
        False when the fence is stale or the task has ended already."""

    async def requeue(self, requeue: Requeue) -> bool:
        """Back to queued; False when the fence is stale, the task is not running, or somebody has cancelled it."""

    async def request_cancel(self, task_id: str, at: float, audit: AuditRecord | None = None) -> Task | None:
        """Notes the wish on a task that has not ended (the first time counts); the task as it is now, None if there is
        none. Raises StoreUnavailable."""

    async def retry(
        self,
        task_id: str,
        event: StoredEvent,
        limits: QueueLimits,
        audit: AuditRecord | None = None,
        reservation: Reservation | None = None,
    ) -> Task | Failure | None:
        """A task that failed or was cancelled is queued again: fence + 1, attempt 0, outcome, start and cancel request
        gone; or the failure, as for :meth:`enqueue`.
        ``event``'s number is the first of ``fence + 1``. None when it is not in such a state or its fence is not the
        one that the event's number says. Raises StoreUnavailable."""

    async def get(self, task_id: str) -> Task | None: ...

    async def list(self, wanted: TaskFilter, limit: int, cursor: str | None = None) -> TaskPage:
        """Raises ValueError for a cursor that is none."""

    async def events(self, task_id: str, after: int, max_events: int, max_bytes: int) -> EventPage | None:
        """In one read; at least one event where there is any. None if there is no such task."""

    async def queued(self) -> Sequence[QueuedTask]:
        """Every queued task, oldest first."""

    async def running(self) -> Sequence[RunningTask]:
        """Every running task, oldest first."""

    async def batch(self, batch_id: str) -> BatchState | None: ...

    async def purge(self, before: float, limit: int) -> int:
        """Deletes up to ``limit`` tasks that ended before then, with all that belongs to them but ledger and audit; how
        many. Webhooks that are still due keep their task."""


class Ledger(Protocol):
    """What was used, and by whom. Rows are only ever added."""

    def record_chat(self, task: Task, ledger: LedgerEntry | None, audit: AuditRecord | None = None) -> None:
        """A chat that has ended: who, model, tokens, cost and outcome, never its words; its reservation is given back.
        Nobody waits for it."""

    async def ledger(self, task_id: str) -> Sequence[LedgerEntry]: ...

    async def usage(self, by: UsageGroup, since: str, key_id: str | None) -> Sequence[UsageRow]:
        """What was used from that day on, of one key or of all, in the order of the rows' names. Raises
        StoreUnavailable."""


class Budgets(Protocol):
    """What the ledger has charged, and what is set aside besides."""

    def reserve(self, reservation: Reservation) -> None:
        """A chat's. Nobody waits for it."""

    async def charge_left_behind(self, day: str, at: float) -> int:
        """Charges the reservations of chats that were under way when a daemon was killed, whole; how many. Before any
        chat of this one. Raises StoreUnavailable."""

    async def reservations(self) -> Sequence[Reservation]:
        """Every one."""

    async def spending(self, since: str) -> Sequence[Spent]:
        """Of every purse, from that day on."""


class Audit(Protocol):
    """What was done: records are added, each sealed with the one before (:mod:`claude_daemon.core.audit`), and pruned
    from the oldest on. Every one of these raises StoreUnavailable."""

    async def record(self, audit: AuditRecord) -> None: ...

    async def audit(self, after: int, limit: int) -> Sequence[tuple[int, AuditRecord]]:
        """Records with their numbers, in order."""

    async def audit_latest(
        self,
        limit: int,
        act: str | None = None,
        since: float | None = None,
        *,
        request_id: str | None = None,
        task_id: str | None = None,
    ) -> Sequence[tuple[int, AuditRecord]]:
        """The last so many, in order. ``act``: of this kind (``key.created``), or of this noun (``key``); ``since``:
        seconds since the epoch; ``request_id`` and ``task_id``: about these. Reads through all of them, if need be."""

    async def audit_head(self) -> Anchor | None:
        """The last record; None before the first."""

    async def audit_sealed(self, after: int, limit: int) -> Sequence[Sealed]:
        """As they are stored, in order."""

    async def prune_audit(self, before: float, at: float, limit: int) -> int:
        """Deletes up to ``limit`` of the oldest records from before then, and seals a record of that; how many."""


class Webhooks(Protocol):
    """Deliveries that are due: written by :meth:`Tasks.settle`, ended here."""

    async def due(self, now: float, limit: int) -> Sequence[WebhookDelivery]:
        """Those due by ``now``, the longest due first."""

    async def next_due(self) -> float | None:
        """When the next one is due; None when none is left."""

    async def webhooks_waiting(self) -> tuple[int, float | None]:
        """How many are not over, and when the first of them is, or was, due."""

    async def delivered(self, webhook_id: str, at: float) -> None: ...

    async def postpone(self, webhook_id: str, due_at: float, error: str) -> None:
        """One more attempt has failed; the next is due then."""

    async def give_up(self, webhook_id: str, at: float, error: str) -> None:
        """No attempt is left."""


class Keys(Protocol):
    """The keys that were made, those that are good no more among them."""

    async def create_key(self, key: KeyRecord, audit: AuditRecord) -> None:
        """Key and audit, all or nothing. Raises ValueError when a key that is not revoked has this name;
        StoreUnavailable."""

    async def rotate_key(self, key_id: str, digest: bytes, previous_until: float, audit: AuditRecord) -> bool:
        """A new secret; the one until now becomes the previous one. False for a key that is not there or is revoked.
        Raises StoreUnavailable."""

    async def suspend_key(self, key_id: str, at: float | None, audit: AuditRecord) -> bool:
        """Since ``at``, None: not any more. False for a key that is not there or is revoked. Raises
        StoreUnavailable."""

    async def revoke_key(self, key_id: str, at: float, audit: AuditRecord) -> Sequence[str] | None:
        """The key is good no more, its tasks that have not ended are wished to end, and of its webhooks none is due
        and none will be: all or nothing. The ids of those tasks, oldest first; None for a key that is not there or is
        revoked already. Raises StoreUnavailable."""

    def key_used(self, key_id: str, at: float) -> None:
        """Nobody waits for it. Raises StoreUnavailable when the store is closed."""

    async def keys(self) -> Sequence[KeyRecord]:
        """Every key, oldest first. Raises StoreUnavailable."""


class Sessions(Protocol):
    """Sessions: made and used by :meth:`Tasks.enqueue`, used by :meth:`Tasks.settle` and :meth:`Ledger.record_chat`."""

    async def session(self, session_id: str) -> SessionRecord | None: ...

    async def sessions(self, key_id: str | None, limit: int, cursor: str | None = None) -> SessionPage:
        """Of one key, or of all. Raises ValueError for a cursor that is none."""

    async def delete_session(self, session_id: str, audit: AuditRecord | None = None) -> bool | None:
        """Whether it is gone: not while a task of it, or one that forks it, is queued or running. None if there is no
        such session. Raises StoreUnavailable."""

    async def unused_sessions(self, before: float, limit: int) -> Sequence[str]:
        """Those that nobody has used since then, the longest unused first."""

    async def session_ids(self) -> frozenset[str]:
        """Every one."""


class Administration(Protocol):
    """The store itself."""

    async def join(self, node: str, at: float) -> None:
        """This daemon is there. Raises StoreUnavailable."""

    async def paused(self) -> bool:
        """Whether the queue is paused: a restored backup begins so."""

    async def pause(self, paused: bool) -> None: ...

    async def backup(self, to: Path) -> int:
        """A copy of the store as it is now, complete, 0600; its size in bytes. Raises FileExistsError, OSError."""

    async def backed_up(self, at: float) -> None:
        """A copy was made, and kept, at that time in seconds since the epoch: :meth:`status` tells of the last one.
        Raises StoreUnavailable."""

    async def check(self) -> bool:
        """Tries to write and to read; whether both worked. Never raises."""

    def status(self) -> StoreStatus:
        """From RAM, at once."""


class Store(Tasks, Ledger, Budgets, Audit, Webhooks, Keys, Sessions, Administration, Protocol):
    """All of it."""
