"""Durable tasks, as their owners see them: submitted, found, listed, cancelled, tried again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from claude_daemon.core.agent import TOOLS, AgentSpec, Approval, contradiction
from claude_daemon.core.budget import Reservation, usd
from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.event import first_seq
from claude_daemon.core.key import Key
from claude_daemon.core.role import APPROVE, WEBHOOKS, Role, names_of, permitted, refuses, toolless
from claude_daemon.core.task import Kind, Lane, State, Task, TaskSpec
from claude_daemon.ports import (
    Answer,
    Batch,
    BatchState,
    Clock,
    Idempotency,
    Ids,
    QueueLimits,
    SessionRecord,
    StoreUnavailable,
    Submission,
    TaskFilter,
    TaskPage,
)
from claude_daemon.service.admit import Admission
from claude_daemon.service.approvals import Asked
from claude_daemon.service.book import Book, traced
from claude_daemon.service.dispatch import Dispatcher
from claude_daemon.service.follow import NO_TASK
from claude_daemon.service.run import CANCELLED, REVOKED, Ticket, ended_with
from claude_daemon.service.sessions import Joined, SessionDesk, SessionWish

T = TypeVar("T")

_ENDED_AT_ONCE: Final = 100
"""Tasks of a revoked key: as many as one commit takes well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What somebody wants done, before it is admitted. ``request`` is a Messages API body with the model as asked."""

    request: Mapping[str, Any]
    agent: AgentSpec | None = None
    session: SessionWish | None = None
    output_schema: Mapping[str, Any] | None = None
    timeout_seconds: float | None = None
    priority: int = 0
    webhook: str | None = None
    metadata: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """Who asks. ``peer_uid`` is set for the control socket, whose requests see every key's tasks."""

    key: Key
    request_id: str
    peer_uid: int | None = None
    traceparent: str | None = None

    @property
    def owner(self) -> str | None:
        """Whose tasks it sees; None for all."""
        return None if self.peer_uid is not None else self.key.id


class TaskDesk:
    """``check_webhook`` says what is wrong with a webhook's URL, None if nothing is. ``role_of`` tells what somebody
    may, who comes with this key and, over the control socket, as this peer. ``check_key`` raises Refusal for a key that
    is not good any more, ``is_revoked`` tells of one by its id. ``accepted`` is told each new task once it is
    durable, and the peer's uid where it came over the control socket."""

    def __init__(
        self,
        admission: Admission,
        dispatcher: Dispatcher,
        book: Book,
        sessions: SessionDesk,
        *,
        limits: QueueLimits,
        monotonic: Clock,
        ids: Ids,
        check_webhook: Callable[[str], str | None],
        role_of: Callable[[Key, int | None], Role],
        check_key: Callable[[Key], None] = lambda key: None,
        is_revoked: Callable[[str], bool] = lambda key_id: False,
        accepted: Callable[[Task, int | None], None] = lambda task, peer_uid: None,
    ) -> None:
        self._admission = admission
        self._dispatcher = dispatcher
        self._book = book
        self._sessions = sessions
        self.limits = limits
        self._monotonic = monotonic
        self._ids = ids
        self._check_webhook = check_webhook
        self._role_of = role_of
        self._check_key = check_key
        self._is_revoked = is_revoked
        self._accepted = accepted

    # in

    async def submit(self, asker: Asker, wish: Wish, idempotency: Idempotency | None = None) -> tuple[Task, bool]:
        """The task, durable, and whether it is new. Raises Refusal."""
        task, made = await self._task(asker, wish)
        reservation, refused = self._reserved(task, idempotency)
        submission = self._submission(asker, task, made, idempotency, reservation=reservation, refused=refused)
        (answer,) = await self._dispatcher.finish(self._enqueue(asker, [submission], None))
        if isinstance(answer, Failure):
            raise Refusal(answer)
        return answer, answer.id == task.id

    def _reserved(self, task: Task, idempotency: Idempotency | None) -> tuple[Reservation | None, Failure | None]:
        """What the task sets aside, or why it may not: who repeats a submission gets what it was, the budget spent or
        not. Raises Refusal."""
        try:
            return self._admission.reserve(task), None
        except Refusal as refusal:
            if idempotency is None:
                raise
            return None, refusal.failure

    async def submit_batch(self, asker: Asker, wishes: Sequence[Wish | Failure]) -> BatchState:
        """Those that can be had are queued together; what is wrong with the others is kept beside them.

        Raises Refusal when none of them can be had now (draining, the store is unavailable).
        """
        self._admission.check_open()
        batch_id = self._ids("batch")
        tasks: dict[int, Task] = {}
        made: dict[int, SessionRecord | None] = {}
        reserved: dict[int, Reservation | None] = {}
        refused: dict[int, Failure] = {}
        for position, wish in enumerate(wishes):
            try:
                if isinstance(wish, Failure):
                    raise Refusal(wish)
                task, made[position] = await self._task(asker, wish)
                reserved[position] = self._admission.reserve(task)
                tasks[position] = replace(task, batch_id=batch_id)
            except Refusal as refusal:
                refused[position] = refusal.failure
        batch = Batch(id=batch_id, key_id=asker.key.id, created_at=self._book.now(), size=len(wishes), refused=refused)
        submissions = [
            self._submission(asker, task, made[position], reservation=reserved[position])
            for position, task in tasks.items()
        ]
        answers = await self._dispatcher.finish(self._enqueue(asker, submissions, batch))
        became = dict(zip(tasks, answers, strict=True))
        turned_away = {position: answer for position, answer in became.items() if isinstance(answer, Failure)}
        return BatchState(
            batch=replace(batch, refused={**refused, **turned_away}),
            tasks={position: answer for position, answer in became.items() if isinstance(answer, Task)},
        )

    async def _task(self, asker: Asker, wish: Wish) -> tuple[Task, SessionRecord | None]:
        """The task, and the session that it begins. Raises Refusal, naming the parameter at fault."""
        self._admission.check_open()
        self._admission.enter(asker.key.id)
        joined = await self._joined(asker, wish)
        if joined is not None:
            wish = replace(wish, agent=joined.agent, request=joined.request)
        role = self._role_of(asker.key, asker.peer_uid)
        wish = _bounded(role, wish)
        agent = self._granted(role, wish)
        lane = Lane.SESSION if joined is not None else Lane.TEXT if agent is None else Lane.AGENT
        _judge(role, wish, lane)
        if wish.webhook is not None and (wrong := self._check_webhook(wish.webhook)) is not None:
            raise Refusal.because(Code.INVALID_REQUEST, f"`webhook`: {wrong}", param="webhook")
        spec = TaskSpec(
            kind=Kind.TASK,
            lane=lane,
            request=wish.request,
            agent=agent,
            session=None if joined is None else joined.turn,
            key_id=asker.key.id,
            trust_domain=asker.key.trust_domain,
            request_id=asker.request_id,
            output_schema=wish.output_schema,
            timeout_seconds=wish.timeout_seconds,
            priority=wish.priority,
            webhook=wish.webhook,
            metadata=wish.metadata or {},
            traceparent=asker.traceparent,
        )
        spec = self._admission.check(spec)
        check_models(role, spec, self._admission.models)
        task = Task(id=self._ids("task"), spec=spec, created_at=self._book.now())
        return task, None if joined is None else joined.made

    def _check_asker(self, asker: Asker) -> None:
        if asker.peer_uid is None:
            self._check_key(asker.key)

    async def _joined(self, asker: Asker, wish: Wish) -> Joined | None:
        if wish.session is None:
            return None
        return await self._sessions.join(asker.key, wish.session, wish.agent, wish.request, asker.peer_uid)

    def _granted(self, role: Role, wish: Wish) -> AgentSpec | None:
        """What the agent may: of what was wished for, what the role permits. Raises Refusal, naming the rule."""
        agent = wish.agent
        if agent is not None and (found := contradiction(agent)) is not None:
            raise Refusal.because(Code.INVALID_REQUEST, found[1], param=found[0])
        why = refuses(
            role,
            tools=_tools_wished(agent) if agent is not None else (),
            approval=agent.approval if agent is not None else Approval.NEVER,
            mcp_servers=agent.mcp_servers if agent is not None else (),
            agents=agent.agents if agent is not None else (),
            project_settings="all" if agent is not None and agent.project_settings else "none",
            directories=agent.directories if agent is not None else (),
            scopes=[WEBHOOKS] if wish.webhook is not None else (),
        )
        if why is not None:
            raise Refusal.because(Code.FORBIDDEN, why)
        if agent is None:
            return None
        acts = agent.touches_directories or agent.approval is not Approval.NEVER
        if acts and not permitted(role, TOOLS):
            raise Refusal.because(Code.FORBIDDEN, toolless(role))
        beyond = sorted(set(agent.tools) - set(permitted(role, agent.tools)))
        return replace(agent, deny=(*agent.deny, *beyond))

    def _submission(
        self,
        asker: Asker,
        task: Task,
        made: SessionRecord | None,
        idempotency: Idempotency | None = None,
        *,
        reservation: Reservation | None = None,
        refused: Failure | None = None,
    ) -> Submission:
        event = self._book.queued_event(task.id)
        return Submission(
            task=replace(task, last_seq=event.seq),
            event=event,
            idempotency=idempotency,
            audit=self._book.audit("task.accepted", task, asker.peer_uid, **traced(task.spec)),
            session=made,
            reservation=reservation,
            refused=refused,
        )

    async def _enqueue(
        self, asker: Asker, submissions: Sequence[Submission], batch: Batch | None
    ) -> Sequence[Task | Failure]:
        """What was promised is durable first: only then is it told, and may run."""
        taken: set[str] = set()
        try:
            self._check_asker(asker)  # with no await up to the store: a key's end there comes after all that it got in
            answers = await self._book.store.enqueue(submissions, self.limits, batch)
            taken.update(answer.id for answer in answers if isinstance(answer, Task))
        except StoreUnavailable as error:
            raise Refusal(unavailable(error)) from error
        finally:
            for submission in submissions:
                if submission.task.id not in taken:
                    self._admission.give_back(submission.task.id)
        for submission, answer in zip(submissions, answers, strict=True):
            if isinstance(answer, Task) and answer.id == submission.task.id:
                self._accepted(answer, asker.peer_uid)
                self._book.tails.tell(answer.id, submission.event, after=0)
                self._dispatcher.enqueue(self._ticket(answer), timeout_s=answer.spec.timeout_seconds)
        return answers

    def _ticket(self, task: Task) -> Ticket:
        spec = task.spec
        whose = spec.key_id, spec.trust_domain
        ticket = Ticket(task.id, spec.lane, *whose, spec.priority, self._monotonic(), spec.sessions)
        ticket.task = task
        return ticket

    # out

    async def get(self, asker: Asker, task_id: str) -> Task:
        """Raises Refusal for a task that is not there, or not this key's: which of the two is nobody's business."""
        run = self._dispatcher.find(task_id)
        task = run.task if run is not None and not run.durable else await self._book.store.get(task_id)
        if task is None or asker.owner not in (None, task.spec.key_id):
            raise Refusal(NO_TASK)
        return task

    async def list(
        self, asker: Asker, *, kind: Kind | None, states: frozenset[State] | None, limit: int, cursor: str | None
    ) -> TaskPage:
        """Newest first. Raises Refusal for a cursor that is none."""
        try:
            wanted = TaskFilter(key_id=asker.owner, kind=kind, states=states)
            return await self._book.store.list(wanted, limit, cursor)
        except ValueError as error:
            raise Refusal.because(Code.INVALID_REQUEST, str(error), param="cursor") from error

    async def batch(self, asker: Asker, batch_id: str) -> BatchState:
        state = await self._book.store.batch(batch_id)
        if state is None or asker.owner not in (None, state.batch.key_id):
            raise Refusal.because(Code.NOT_FOUND, "There is no such batch.")
        return state

    # changes

    async def cancel(self, asker: Asker, task_id: str) -> Task:
        """The task as it is then: cancelled if it was queued, about to be if it runs, unchanged if it had ended."""
        task = await self.get(asker, task_id)
        if task.spec.kind is Kind.CHAT:
            run = self._dispatcher.find(task_id)
            if run is not None:
                self._dispatcher.cancel(run)
                return run.task
            return task
        try:
            return await self._dispatcher.finish(self._cancel(asker, task))
        except StoreUnavailable as error:
            run, why = self._dispatcher.find(task_id), "Nothing can be stored now; it goes on."
            if run is not None:
                self._dispatcher.cancel(run)  # its end is kept until it can be stored; nothing more is spent meanwhile
                why = "It is being stopped, but nothing can be stored now: a daemon that ends meanwhile begins it anew."
            raise Refusal(replace(unavailable(error), message=why)) from error

    async def _cancel(self, asker: Asker, known: Task) -> Task:
        """Whatever happens meanwhile: a claim, a requeue and an end all move the fence, and then it is looked again."""
        while True:
            audit = self._book.audit("task.cancel", known, asker.peer_uid)
            task = await self._book.store.request_cancel(known.id, self._book.now(), audit)
            if task is None:
                raise Refusal(NO_TASK)
            if task.state.terminal:
                return task
            run = self._dispatcher.find(task.id)
            if run is not None:
                self._dispatcher.cancel(run)
                return task
            self._dispatcher.withdraw(task.id)
            if task.state is State.RUNNING:
                return task  # an orphan: whoever recovers it sees the wish
            ended = await self._book.end(task, ended_with(CANCELLED))
            if ended is not None:
                return ended

    async def end_work(self, key_id: str, task_ids: Sequence[str]) -> None:
        """Ends a key's chats, and those of its tasks whose end the store has as wished; never raises."""
        for run in self._dispatcher.of_key(key_id):
            self._dispatcher.cancel(run, REVOKED)
        for task_id in task_ids:
            self._dispatcher.withdraw(task_id)  # all at once: none begins while the others are ended
        for start in range(0, len(task_ids), _ENDED_AT_ONCE):
            ends = [self._end_unwanted(task_id) for task_id in task_ids[start : start + _ENDED_AT_ONCE]]
            await asyncio.gather(*ends)

    async def _end_unwanted(self, task_id: str) -> None:
        with contextlib.suppress(StoreUnavailable):  # its wish is durable: whoever reads the task next ends it
            await self._book.end_unwanted(task_id)

    async def finish(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """As :meth:`Dispatcher.finish`."""
        return await self._dispatcher.finish(coroutine)

    async def approve(self, asker: Asker, task_id: str, approval_id: str, answer: Answer) -> Asked:
        """Answers a call that waits. Raises Refusal."""
        task = await self.get(asker, task_id)
        why = refuses(self._role_of(asker.key, asker.peer_uid), scopes=[APPROVE])
        if why is not None:
            raise Refusal.because(Code.FORBIDDEN, why)
        self._check_asker(asker)
        approvals = self._dispatcher.approvals
        approvals.check(task_id, approval_id, answer)
        audit = self._book.audit("approval.answered", task, asker.peer_uid, approval=approval_id, allow=answer.allow)
        try:
            await self._book.store.record(audit)  # what is allowed is known of before it is done
        except StoreUnavailable as error:
            raise Refusal(unavailable(error)) from error
        by = asker.key.id if asker.peer_uid is None else f"uid {asker.peer_uid}"
        return approvals.resolve(task_id, approval_id, answer, by)

    def approvals(self, asker: Asker) -> Sequence[Asked]:
        """Every call that waits, for whoever sees every task."""
        assert asker.owner is None
        return self._dispatcher.approvals.every()

    async def retry(self, asker: Asker, task_id: str) -> Task:
        """A task that did not succeed is queued again. Raises Refusal for one in another state."""
        self._admission.check_open()
        task = await self.get(asker, task_id)
        if task.spec.kind is Kind.CHAT or task.state not in (State.FAILED, State.CANCELLED):
            raise Refusal.because(Code.CONFLICT, f"a {task.spec.kind} that is {task.state} cannot be tried again")
        if self._is_revoked(task.spec.key_id):
            raise Refusal.because(Code.CONFLICT, "the key of this task is revoked")
        if await self._dispatcher.said(task.spec):
            why = "The session of this task holds its message already: go on there with a new one."
            raise Refusal.because(Code.CONFLICT, why)
        try:
            return await self._dispatcher.finish(self._retry(asker, task))
        except StoreUnavailable as error:
            raise Refusal(unavailable(error)) from error

    async def _retry(self, asker: Asker, task: Task) -> Task:
        event = self._book.queued_event(task.id, task.fence + 1)
        audit = self._book.audit("task.retry", task, asker.peer_uid)
        reservation, queued = self._admission.reserve(task), None
        try:
            queued = await self._book.store.retry(task.id, event, self.limits, audit, reservation)
        finally:
            if reservation is not None and not isinstance(queued, Task):
                self._admission.give_back(task.id)
        if queued is None:
            raise Refusal.because(Code.CONFLICT, "the task has moved on meanwhile")
        if isinstance(queued, Failure):
            raise Refusal(queued)
        assert event.seq == first_seq(queued.fence)
        self._dispatcher.enqueue(self._ticket(queued), timeout_s=queued.spec.timeout_seconds)
        return queued


def _bounded(role: Role, wish: Wish) -> Wish:
    """The same with the role's limits for those that the wish names none of. What it asks for is judged later."""
    timeout = role.max_timeout_seconds if wish.timeout_seconds is None else wish.timeout_seconds
    agent = wish.agent
    if agent is None and role.max_cost_micro_usd is not None:
        agent = AgentSpec()  # as for a task that names a cost: the lanes that keep it are those of agents
    if agent is not None:
        agents = tuple(replace(one, max_turns=one.max_turns or role.max_turns) for one in agent.agents)
        turns, cost = agent.max_turns or role.max_turns, agent.max_cost_micro_usd or role.max_cost_micro_usd
        agent = replace(agent, max_turns=turns, max_cost_micro_usd=cost, agents=agents)
    return replace(wish, timeout_seconds=timeout, agent=agent)


def _judge(role: Role, wish: Wish, lane: Lane) -> None:
    """Raises Refusal for a lane or a limit that is not the role's."""
    agent = wish.agent
    turns = [] if agent is None else [agent.max_turns, *(one.max_turns for one in agent.agents)]
    cost = None if agent is None or agent.max_cost_micro_usd is None else usd(agent.max_cost_micro_usd)
    limits = {
        "max_turns": max((number for number in turns if number is not None), default=None),
        "max_cost_usd": cost,
        "timeout_s": wish.timeout_seconds,
        "priority": wish.priority,
    }
    if (why := refuses(role, lane=lane, limits=limits)) is not None:
        raise Refusal.because(Code.FORBIDDEN, why)


def check_models(role: Role, spec: TaskSpec, aliases: Mapping[str, str]) -> None:
    """Raises Refusal for a model that is not the role's, be it asked for by an alias or by its id."""
    if role.models is not None:
        why = refuses(role, models=[names_of(model, aliases) for model in sorted(spec.models)])
        if why is not None:
            raise Refusal.because(Code.FORBIDDEN, why)


def _tools_wished(agent: AgentSpec) -> Sequence[str]:
    """Every rule and tool that the task, or one of its subagents, would be allowed."""
    return [*agent.allow, *(tool for one in agent.agents for tool in one.tools or ())]


def unavailable(error: StoreUnavailable) -> Failure:
    """What a caller is told: not the reason, which is the operator's."""
    return Failure(code=Code.STORE_UNAVAILABLE, message="Nothing can be stored now; nothing was accepted.")
