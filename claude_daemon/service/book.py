"""The durable side of a task: what the store is told of it, and what its followers are told once the store has it.

Who ends a task, from wherever, ends it here: state, outcome, ledger, audit, webhook and last event are one
settlement, and the last event is told after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC
from typing import Any, Final

from claude_daemon.core.agent import READ_ONLY, STARTS_AGENTS
from claude_daemon.core.budget import Charge, charge, day_of
from claude_daemon.core.errors import Failure
from claude_daemon.core.event import TASK_QUEUED, TASK_REQUEUED, Emission, Event, first_seq
from claude_daemon.core.price import Price, dearest
from claude_daemon.core.task import Effects, Outcome, State, Task, TaskSpec, Usage
from claude_daemon.core.trace import Trace
from claude_daemon.ports import (
    AuditRecord,
    Clock,
    Ids,
    LedgerEntry,
    Requeue,
    Settlement,
    Store,
    StoredEvent,
)
from claude_daemon.service.budget import Budgets
from claude_daemon.service.follow import Encoder, Tails
from claude_daemon.service.judge import structured
from claude_daemon.service.run import CANCELLED, Run, ended_with, last_event

LEASE_S: Final = 60.0
"""How long a claim holds without being renewed: a daemon that is silent for so long is taken for gone."""

_HARMLESS: Final = READ_ONLY | {STARTS_AGENTS}
"""A subagent changes nothing by being started: its own calls are seen like all others."""
_TOLD_OF_CALLS: Final = ("subagent_type", "command", "file_path", "notebook_path", "path", "pattern")
_MAX_TOLD: Final = 2000
"""Characters of each: a longer command is a script, whose beginning says enough."""

MAX_STRUCTURED_BYTES: Final = 8 * 1024 * 1024
"""Larger answers are told as text only: as much as a schema is judged on."""


class Book:
    """``node`` is this daemon's name in leases. ``price``: model → its price, None where it is not known.

    ``ended`` hears of every end of a durable task, once it is durable; ``told_by_webhook`` makes of one what its
    receiver is told. ``budgets`` None: nothing bounds what is spent. ``used`` hears what each key has used, ``paid``
    what each attempt has used and what that costs.
    """

    def __init__(
        self,
        store: Store,
        tails: Tails,
        *,
        node: str,
        encode: Encoder,
        now: Clock,
        ids: Ids,
        price: Callable[[str], Price | None] = lambda model: None,
        budgets: Budgets | None = None,
        used: Callable[[str, Usage], None] = lambda key_id, usage: None,
        paid: Callable[[Task, Outcome, Charge], None] = lambda task, outcome, bill: None,
        told_by_webhook: Callable[[Task], bytes | None] = lambda task: None,
        ended: Callable[[Task], None] = lambda task: None,
    ) -> None:
        self.store = store
        self.tails = tails
        self.node = node
        self.now = now
        self._encode = encode
        self._ids = ids
        self.price = price
        self.budgets = budgets
        self._used = used
        self._told_paid = paid
        self._told_by_webhook = told_by_webhook
        self._ended = ended

    def event(self, task_id: str, seq: int, emission: Emission) -> StoredEvent:
        """An event of our own, which always has a public form."""
        told = self._encode(task_id, seq, self.now(), emission)
        assert told is not None, emission.type
        return StoredEvent(seq=seq, type=told[0], encoded=told[1])

    def queued_event(self, task_id: str, fence: int = 0) -> StoredEvent:
        """The first event of a task, or of its next life."""
        return self.event(task_id, first_seq(fence), Emission(TASK_QUEUED, {}))

    # from the attempt

    async def claim(self, run: Run) -> bool:
        """Takes the task for an attempt; False when it is not queued any more. Raises StoreUnavailable."""
        at = self.now()
        claimed = await self.store.claim(run.task.id, self.node, at + LEASE_S, at)
        if claimed is None:
            await self.end_unwanted(run.task.id)
            return False
        run.task = claimed
        run.tail.begin(claimed.fence, after=claimed.last_seq)
        run.claimed = True
        return True

    def spent(self, run: Run, usage: Usage) -> None:
        """Keeps what the attempt has used so far: the ledger's word for it, should nobody be left to tell its end."""
        if usage != run.spent:
            run.spent = usage
            self.store.spent(run.task.id, run.task.fence, usage)
            if self.budgets is not None:
                self.budgets.used(run.task.id, usage, self._price_of(run.task))

    def may_call(self, run: Run, usage: Usage) -> Failure | None:
        """Before a model call of the attempt, which has used so much: why there is to be none."""
        return None if self.budgets is None else self.budgets.may_call(run.task, usage, self._price_of(run.task))

    async def tool_called(self, run: Run, tool: str, given: Mapping[str, Any], *, asked: bool) -> str | None:
        """Keeps that a tool is called, and what :meth:`before_tool` does unless somebody is ``asked`` before it runs;
        why it must not run. Raises StoreUnavailable."""
        why = None if asked else await self.before_tool(run, tool)
        if why is None:
            await self.store.record(self.audit("tool.called", run.task, tool=tool, call=_in_short(given)))
        return why

    async def tool_denied(self, run: Run, denied: Mapping[str, Any]) -> None:
        """Keeps that a call was not made. ``denied``: the event's data. Raises StoreUnavailable."""
        why = str(denied.get("message"))[:_MAX_TOLD]
        await self.store.record(self.audit("tool.denied", run.task, tool=denied.get("name"), why=why))

    async def before_tool(self, run: Run, tool: str) -> str | None:
        """Keeps that the attempt may change something, unless the tool only reads; why it must not run. Raises
        StoreUnavailable."""
        if tool not in _HARMLESS and run.task.effects is Effects.NONE:
            if not await self.store.set_effects(run.task.id, run.task.fence):
                return "the task is held by somebody else now"
            run.task = replace(run.task, effects=Effects.POSSIBLE)
        return None

    async def settle(self, run: Run, outcome: Outcome) -> bool:
        """The attempt's end is the task's; False when somebody else holds it. Raises StoreUnavailable at shutdown."""
        outcome, bill = self._charged(self._with_result(run, outcome), run.task, told=run.first_delta_at is not None)
        event = self.event(run.task.id, run.tail.next_seq(), last_event(outcome))
        if not await self.store.settle(self._settlement(run.task, outcome, event, bill)):
            return False
        self._paid(run.task, outcome, bill)
        run.task = _ended(run.task, outcome, event, self.now())
        run.tail.tell(_told(event))
        self._ended(run.task)
        return True

    async def requeue(self, run: Run, outcome: Outcome) -> bool:
        """Another attempt is to be made; ``outcome`` is how this one went. False when somebody else holds it, and when
        it was cancelled meanwhile: then this is its end. Raises StoreUnavailable at shutdown."""
        event = self.event(run.task.id, run.tail.next_seq(), _again(outcome))
        outcome, bill = self._charged(outcome, run.task, told=run.first_delta_at is not None)
        ledger = self._ledger(run.task, outcome, bill)
        if not await self.store.requeue(Requeue(task_id=run.task.id, fence=run.task.fence, event=event, ledger=ledger)):
            if await self._unwanted(run.task) is not None:
                await self.settle(run, replace(ended_with(CANCELLED), usage=outcome.usage))
            return False
        self._paid(run.task, outcome, bill, over=False)
        run.task = replace(run.task, state=State.QUEUED, last_seq=event.seq)
        run.tail.tell(_told(event))
        return True

    # from outside

    async def end(self, task: Task, outcome: Outcome) -> Task | None:
        """Ends a task that no attempt of ours has; None when it has moved on meanwhile. Raises StoreUnavailable."""
        fence = task.fence + 1
        outcome, bill = self._charged(outcome, task)
        event = self.event(task.id, first_seq(fence), last_event(outcome))
        settlement = self._settlement(task, outcome, event, bill)
        if not outcome.usage.model_calls and not bill.micro_usd:  # no attempt, or one that had used nothing
            settlement = replace(settlement, ledger=None)
        if not await self.store.settle(replace(settlement, new_fence=fence)):
            return None
        self._paid(task, outcome, bill)
        self.tails.tell(task.id, event, after=task.last_seq)
        ended = replace(_ended(task, outcome, event, self.now()), fence=fence)
        self._ended(ended)
        return ended

    async def put_back(self, task: Task, outcome: Outcome) -> Task | None:
        """Requeues a task whose attempt is gone; None when it has moved on meanwhile. Raises StoreUnavailable."""
        fence = task.fence + 1
        event = self.event(task.id, first_seq(fence), _again(outcome))
        outcome, bill = self._charged(outcome, task)
        ledger = self._ledger(task, outcome, bill) if outcome.usage.model_calls or bill.micro_usd else None
        requeue = Requeue(task_id=task.id, fence=task.fence, event=event, new_fence=fence, ledger=ledger)
        if not await self.store.requeue(requeue):
            if (unwanted := await self._unwanted(task)) is not None:
                await self.end(unwanted, replace(ended_with(CANCELLED), usage=outcome.usage))
            return None
        self._paid(task, outcome, bill, over=False)
        self.tails.tell(task.id, event, after=task.last_seq)
        return replace(task, state=State.QUEUED, fence=fence, last_seq=event.seq)

    async def end_unwanted(self, task_id: str) -> None:
        """Ends a queued task that somebody has cancelled; any other stays as it is. Raises StoreUnavailable."""
        task = await self.store.get(task_id)
        if task is not None and task.state is State.QUEUED and task.cancel_requested_at is not None:
            await self.end(task, ended_with(CANCELLED))

    async def _unwanted(self, known: Task) -> Task | None:
        """The task as it is, if nothing has happened to it but that somebody has cancelled it."""
        task = await self.store.get(known.id)
        wished = task is not None and task.cancel_requested_at is not None
        return task if wished and task is not None and task.fence == known.fence and not task.state.terminal else None

    def chat_ended(self, run: Run) -> None:
        """Who, model, tokens, cost and outcome of a chat; never its words. The run has its cost then."""
        assert run.task.outcome is not None
        outcome, bill = self._charged(run.task.outcome, run.task, told=run.first_delta_at is not None)
        spec = replace(run.task.spec, request={"model": run.task.spec.model}, headers=None, output_schema=None)
        run.task = replace(run.task, outcome=outcome)
        task = replace(run.task, spec=spec)
        told: dict[str, Any] = {"state": outcome.state.value, "lane": spec.lane.value, "model": spec.model}
        audit = self.audit("chat.ended", task, **{**told, **traced(spec)})
        self.store.record_chat(task, self._ledger(task, outcome, bill), audit)
        self._paid(task, outcome, bill)

    # parts

    def audit(self, act: str, task: Task, peer_uid: int | None = None, **details: Any) -> AuditRecord:
        return AuditRecord(
            at=self.now(),
            act=act,
            key_id=task.spec.key_id,
            task_id=task.id,
            request_id=task.spec.request_id,
            peer_uid=peer_uid,
            details=details,
        )

    def _settlement(self, task: Task, outcome: Outcome, event: StoredEvent, bill: Charge) -> Settlement:
        details: Mapping[str, Any] = {"state": outcome.state.value, "attempt": task.attempt}
        at, webhook = self.now(), task.spec.webhook is not None
        return Settlement(
            task_id=task.id,
            fence=task.fence,
            outcome=outcome,
            finished_at=at,
            event=event,
            ledger=self._ledger(task, outcome, bill),
            audit=self.audit("task.ended", task, **details),
            webhook_id=self._ids("wh") if webhook else None,
            webhook_body=self._told_by_webhook(_ended(task, outcome, event, at)) if webhook else None,
        )

    def _ledger(self, task: Task, outcome: Outcome, bill: Charge) -> LedgerEntry:
        return LedgerEntry(
            task_id=task.id,
            attempt=task.attempt,
            at=self.now(),
            key_id=task.spec.key_id,
            trust_domain=task.spec.trust_domain,
            model=task.spec.model,
            lane=task.spec.lane,
            usage=outcome.usage,
            cost_micro_usd=outcome.cost_micro_usd,
            day=bill.day,
            charged_micro_usd=bill.micro_usd,
        )

    def _price_of(self, task: Task) -> Price | None:
        return dearest(task.spec.models, self.price)

    def _charged(self, outcome: Outcome, task: Task, *, told: bool = False) -> tuple[Outcome, Charge]:
        """The outcome with its cost, and what is charged for it. ``told``: something of an answer had come."""
        price = self._price_of(task)
        if self.budgets is None:
            bill = replace(charge(outcome, price, reserved=0, told=told), day=day_of(self.now(), UTC))
        else:
            bill = self.budgets.charge(task, outcome, price, told=told)
        return replace(outcome, cost_micro_usd=bill.cost_micro_usd), bill

    def _paid(self, task: Task, outcome: Outcome, bill: Charge, *, over: bool = True) -> None:
        """The ledger has it, or will have it."""
        self._used(task.spec.key_id, outcome.usage)
        self._told_paid(task, outcome, bill)
        if self.budgets is not None:
            self.budgets.charged(task, bill, over=over)

    def _with_result(self, run: Run, outcome: Outcome) -> Outcome:
        if outcome.state is not State.SUCCEEDED:
            return outcome
        text = run.text if outcome.text is None else outcome.text
        value = outcome.structured
        if value is None and run.task.spec.output_schema is not None and len(text) <= MAX_STRUCTURED_BYTES:
            value = structured(text)
        return replace(outcome, text=text, structured=value)


def _in_short(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a tool was called with, as far as it says what it does: paths, patterns, commands; no file's contents."""
    told = {name: given[name] for name in _TOLD_OF_CALLS if isinstance(given.get(name), str)}
    return {name: value[:_MAX_TOLD] for name, value in told.items()}


def traced(spec: TaskSpec) -> dict[str, str]:
    """For the first record about it: which trace it is in."""
    span = Trace.parse(spec.traceparent)
    return {} if span is None else {"trace_id": span.trace_id}


def _again(outcome: Outcome) -> Emission:
    failure = outcome.failure
    return Emission(TASK_REQUEUED, {"reason": failure.code.value if failure is not None else None})


def _ended(task: Task, outcome: Outcome, event: StoredEvent, at: float) -> Task:
    return replace(task, state=outcome.state, outcome=outcome, finished_at=at, last_seq=event.seq)


def _told(event: StoredEvent) -> Event:
    return Event(event.seq, event.type, {}, event.encoded)
