"""Small tasks and what happens to them. Everything is given: no clock, no chance."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from claude_daemon.core.budget import Cap, Reservation
from claude_daemon.core.errors import Code, Failure, Fault
from claude_daemon.core.event import MESSAGE_EVENT, TASK_QUEUED, TASK_REQUEUED, first_seq
from claude_daemon.core.task import Kind, Lane, Outcome, State, Task, TaskSpec, Usage
from claude_daemon.ports import (
    AuditRecord,
    Idempotency,
    KeyRecord,
    LedgerEntry,
    QueueLimits,
    Requeue,
    Settlement,
    Store,
    StoredEvent,
    Submission,
)

LIMITS = QueueLimits(max_queued=10_000, max_queued_per_key=10_000)
PATIENCE_S = 20.0
LEASE_UNTIL = 5000.0

SPEC = TaskSpec(
    kind=Kind.TASK,
    lane=Lane.TEXT,
    request={"model": "claude-sonnet-5-5", "messages": [{"role": "user", "content": "how many?"}]},
    key_id="local",
    trust_domain="default",
    request_id="req_1",
)
USAGE = Usage(input_tokens=1, output_tokens=2, cache_creation_input_tokens=3, cache_read_input_tokens=4, model_calls=5)
SUCCEEDED = Outcome(state=State.SUCCEEDED, usage=USAGE, stop_reason="end_turn", text="42", cost_micro_usd=7)
FAILED = Outcome(
    state=State.FAILED,
    failure=Failure(
        code=Code.SCHEMA_MISMATCH,
        message="no",
        retry_after_seconds=1.5,
        param="output_schema",
        faults=(Fault(path="a.b", message="is missing"),),
    ),
)
CANCELLED = Outcome(state=State.CANCELLED, failure=Failure(code=Code.CANCELLED, message="as you wished"))


def task(name: str = "task_1", *, created_at: float = 1000.0, batch_id: str | None = None, **spec: Any) -> Task:
    return Task(id=name, spec=replace(SPEC, **spec), created_at=created_at, batch_id=batch_id)


def event(seq: int, type: str = MESSAGE_EVENT, size: int = 0) -> StoredEvent:
    encoded = orjson.dumps({"seq": seq, "type": type, "pad": "x" * size})
    return StoredEvent(seq=seq, type=type, encoded=encoded)


def audit(act: str, about: Task | None = None, **details: Any) -> AuditRecord:
    if about is None:
        return AuditRecord(at=1.5, act=act, details=details)
    return AuditRecord(
        at=1.5,
        act=act,
        key_id=about.spec.key_id,
        trust_domain=about.spec.trust_domain,
        task_id=about.id,
        request_id=about.spec.request_id,
        peer_uid=1000,
        details=details,
    )


def key(key_id: str = "key_1", **changes: Any) -> KeyRecord:
    made = KeyRecord(
        id=key_id,
        name=f"of-{key_id}",
        trust_domain=key_id,
        digest=key_id.encode(),
        role="standard",
        created_at=1.5,
    )
    return replace(made, **changes)


def entry(about: Task, **changes: Any) -> LedgerEntry:
    made = LedgerEntry(
        task_id=about.id,
        attempt=about.attempt,
        at=2.5,
        key_id=about.spec.key_id,
        trust_domain=about.spec.trust_domain,
        model=about.spec.model,
        lane=about.spec.lane,
        usage=USAGE,
        cost_micro_usd=7,
        day="1970-01-01",
        charged_micro_usd=7,
    )
    return replace(made, **changes)


def reservation(about: Task, micro_usd: int = 10, *bounds: Cap, day: str = "1970-01-01") -> Reservation:
    return Reservation(
        task_id=about.id,
        key_id=about.spec.key_id,
        trust_domain=about.spec.trust_domain,
        model=about.spec.model,
        lane=about.spec.lane,
        micro_usd=micro_usd,
        day=day,
        caps=bounds,
    )


def submission(asked: Task, idempotency: Idempotency | None = None, **changes: Any) -> Submission:
    return Submission(
        task=asked,
        event=event(first_seq(0), TASK_QUEUED),
        idempotency=idempotency,
        audit=audit("task.accepted", asked),
        **changes,
    )


def settlement(of: Task, outcome: Outcome = SUCCEEDED, **changes: Any) -> Settlement:
    """The end that an attempt makes, or with ``new_fence`` the one that somebody else does."""
    seq = of.last_seq + 1 if changes.get("new_fence") is None else first_seq(changes["new_fence"])
    made = Settlement(
        task_id=of.id,
        fence=of.fence,
        outcome=outcome,
        finished_at=3000.0,
        event=event(seq, f"task.{outcome.state}"),
        ledger=entry(of),
        audit=audit("task.ended", of, state=outcome.state.value),
    )
    return replace(made, **changes)


def requeue(of: Task, **changes: Any) -> Requeue:
    seq = of.last_seq + 1 if changes.get("new_fence") is None else first_seq(changes["new_fence"])
    made = Requeue(task_id=of.id, fence=of.fence, event=event(seq, TASK_REQUEUED), ledger=entry(of))
    return replace(made, **changes)


async def put(store: Store, *asked: Task) -> Sequence[Task]:
    """They are queued."""
    answers = await store.enqueue([submission(one) for one in asked], LIMITS)
    assert all(isinstance(answer, Task) for answer in answers), answers
    return [answer for answer in answers if isinstance(answer, Task)]


async def start(store: Store, asked: Task | None = None, node: str = "node_1") -> Task:
    """It is queued and claimed."""
    asked = task() if asked is None else asked
    await put(store, asked)
    claimed = await store.claim(asked.id, node, LEASE_UNTIL, 2000.0)
    assert claimed is not None
    return claimed


async def append(store: Store, task_id: str, fence: int, events: Sequence[StoredEvent]) -> bool:
    """What the caller is told."""
    told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    store.append(task_id, fence, events, told.set_result)
    async with asyncio.timeout(PATIENCE_S):
        return await told


async def found(store: Store, task_id: str = "task_1") -> Task:
    task = await store.get(task_id)
    assert task is not None
    return task


async def seqs(store: Store, task_id: str = "task_1", after: int = 0) -> list[int]:
    page = await store.events(task_id, after, 10_000, 100_000_000)
    assert page is not None and page.complete
    return [event.seq for event in page.events]
