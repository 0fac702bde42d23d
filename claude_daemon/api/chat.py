"""What the chat dialects share: from a translated request to its run, and from the run to one answer or a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol, cast

from aiohttp import web

from claude_daemon.api.errors import Dialect, dialect_of, respond
from claude_daemon.api.middleware import ANSWER_HEADERS, FACTS, KEY, REQUEST_ID, TRACEPARENT, read_body
from claude_daemon.api.rates import rate_headers
from claude_daemon.core.budget import usd
from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.event import MESSAGE, MESSAGE_EVENT, Event
from claude_daemon.core.key import Key
from claude_daemon.core.message import MessageBuilder
from claude_daemon.core.role import Role, names_of, refuses, refuses_way
from claude_daemon.core.task import Kind, Lane, TaskSpec
from claude_daemon.ports import Schemas, SessionRecord
from claude_daemon.service.admit import Admission, Admitted
from claude_daemon.service.dispatch import Dispatcher, Run
from claude_daemon.service.sessions import SessionDesk
from claude_daemon.wire.parse import refusal

LANE_HEADER: Final = "Claude-Daemon-Lane"
APPROXIMATED_HEADER: Final = "Claude-Daemon-Approximated"
TASK_HEADER: Final = "X-Task-ID"
SESSION_HEADER: Final = "X-Session-ID"
SSE_HEADERS: Final[Mapping[str, str]] = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}
# All that a lane may want to know of a client's headers. Above all its key stays here.
_PASSED_HEADERS: Final = "anthropic-"


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """``timeout_s``: a body must have arrived by then."""

    max_bytes: int
    timeout_s: float


class Form(Protocol):
    """How one dialect tells one run. Used for one answer: it may keep what it has told so far."""

    dialect: Dialect
    headers: Mapping[str, str]
    """Of every answer, those that tell a failure included."""
    end: bytes
    """What closes a stream that went well."""

    def events(self, batch: Sequence[Event]) -> bytes:
        """The part of a stream that these events are; empty where the dialect has nothing to say."""

    def message(self, message: Mapping[str, Any], raw: bytes | None) -> bytes:
        """The body of an answer that is not streamed; ``raw`` is the message as the upstream wrote it, if it did."""

    def failed(self, failure: Failure) -> bytes:
        """The event that ends a stream which has begun and cannot go on."""


class Callers(Protocol):
    """What is asked about whoever calls, when it counts."""

    def check(self, key: Key) -> None:
        """Raises Refusal for a key that is not good any more: its body took its time."""

    def role_of(self, key: Key, peer_uid: int | None) -> Role:
        """What it may ask for."""


class Chats:
    """Begins chats, tells them, and ends those whose client has left."""

    def __init__(
        self,
        admission: Admission,
        dispatcher: Dispatcher,
        sessions: SessionDesk,
        limits: BodyLimits,
        callers: Callers,
    ) -> None:
        self.admission = admission
        self._callers = callers
        self._sessions = sessions
        self._dispatcher = dispatcher
        self.limits = limits

    async def body(self, request: web.Request) -> bytes:
        """The whole body; raises Refusal when it is too large or too slow."""
        return await read_body(request, self.limits.max_bytes, self.limits.timeout_s)

    def lane(self, request: web.Request) -> Lane:
        """The one asked for, or the first that the caller may use. Raises Refusal while nothing is admitted, so that a
        drain is told before faults in the body."""
        self.admission.check_open()
        role = self._role(request)
        lane = self._lane(request, role.lanes)
        if role.lanes is not None and lane not in role.lanes:
            _may(refuses_way(role, lane=lane))
        return lane

    def _lane(self, request: web.Request, allowed: frozenset[str] | None) -> Lane:
        asked = request.headers.get(LANE_HEADER)
        free = asked in (None, "", "auto")
        if SESSION_HEADER not in request.headers:
            lane = self.admission.lane(asked)
            if free and allowed is not None and lane not in allowed and Lane.TEXT in allowed:
                return Lane.TEXT
            return lane
        if not free:
            why = f"A chat with {SESSION_HEADER} has a lane of its own; {LANE_HEADER} is auto then."
            raise Refusal.because(Code.INVALID_REQUEST, why, param=LANE_HEADER)
        return Lane.SESSION

    async def session(self, request: web.Request) -> SessionRecord | None:
        """The session that the chat continues, None if it continues none. Raises Refusal."""
        named = request.headers.get(SESSION_HEADER)
        return None if named is None else await self._sessions.join_chat(caller(request), named)

    def begin(
        self,
        request: web.Request,
        lane: Lane,
        body: Mapping[str, Any],
        *,
        stream: bool,
        output_schema: Mapping[str, Any] | None = None,
        session: SessionRecord | None = None,
    ) -> Admitted:
        """Raises Refusal. What it returns must be followed with no await in between: until then a client that
        leaves would leave its run behind."""
        self._callers.check(caller(request))
        self.check_model(request, body.get("model"))
        joined = None if session is None else self._sessions.chat(session, body)
        if joined is not None:
            _may(refuses(self._role(request), directories=joined.agent.directories))
        spec = TaskSpec(
            kind=Kind.CHAT,
            lane=lane,
            request=body if joined is None else joined.request,
            agent=None if joined is None else joined.agent,
            session=None if joined is None else joined.turn,
            key_id=caller(request).id,
            trust_domain=caller(request).trust_domain,
            request_id=request[REQUEST_ID],
            stream=stream,
            headers=passed_headers(request),
            output_schema=output_schema,
            traceparent=request[TRACEPARENT],
        )
        with self.limited(request):
            return self.admission.chat(spec)

    @contextmanager
    def limited(self, request: web.Request) -> Iterator[None]:
        """Where a request may be refused by a limit: the answer then tells how the limits stand."""
        try:
            yield
        except Refusal:
            request[ANSWER_HEADERS] = self.rates(request, dialect_of(request.path))
            raise

    def rates(self, request: web.Request, dialect: Dialect) -> dict[str, str]:
        """How the caller's rate limits stand, as the route's clients read it."""
        limits = self.admission.limits
        standings = {} if limits is None else limits.standing(caller(request).id)
        return rate_headers(standings, dialect, time.time()) if standings else {}

    def check_model(self, request: web.Request, name: str | None) -> str:
        """The id of the model that a client's name means. Raises Refusal for one that is unknown, or not the
        caller's."""
        model, role = self.admission.model(name), self._role(request)
        if role.models is not None and role.models.isdisjoint((model, name)):  # it may be there by another alias
            _may(refuses_way(role, models=[names_of(model, self.admission.models)]))
        return model

    def models(self, request: web.Request) -> Mapping[str, str]:
        """Alias → model id, of those that the caller may use."""
        aliases, allowed = self.admission.models, self._role(request).models
        if allowed is None:
            return aliases
        return {alias: model for alias, model in aliases.items() if not allowed.isdisjoint((alias, model))}

    def _role(self, request: web.Request) -> Role:
        return self._callers.role_of(caller(request), None)

    def follow(self, run: Run) -> Following:
        return Following(run, self._dispatcher)

    async def answer(self, request: web.Request, admitted: Admitted, form: Form) -> web.StreamResponse:
        """Tells a run that has begun: as a stream, or whole. A client that leaves meanwhile cancels it."""
        request[FACTS] = partial(_facts, admitted.run)
        headers = {**headers_of(admitted), **form.headers, **self.rates(request, form.dialect)}
        async with self.follow(admitted.run) as following:
            if admitted.run.task.spec.stream:
                return await _stream(request, following, form, headers)
            return await _whole(request, following, form, headers)


def _may(why: str | None) -> None:
    """Raises Refusal where a role's rule forbids it."""
    if why is not None:
        raise Refusal.because(Code.FORBIDDEN, why)


def caller(request: web.Request) -> Key:
    """The key of a request that has passed the gate."""
    return request[KEY]


def passed_headers(request: web.Request) -> dict[str, str]:
    """A client's ``anthropic-*`` headers, in lower case; one that came several times is one list."""
    kept: dict[str, str] = {}
    for name, value in request.headers.items():
        name = name.lower()
        if name.startswith(_PASSED_HEADERS):
            kept[name] = f"{kept[name]}, {value}" if name in kept else value
    return kept


async def check_schema(schemas: Schemas, schema: object, path: str) -> None:
    """Raises Refusal with every fault of an answer's schema; ``path`` is where the client wrote it."""
    faults = await schemas.check(schema)
    if faults:
        raise refusal([replace(fault, path=f"{path}.{fault.path}" if fault.path else path) for fault in faults])


class Following:
    """A run's events for one client: ``async with``; leaving early cancels the run, for nobody else follows it."""

    def __init__(self, run: Run, dispatcher: Dispatcher) -> None:
        self.run = run
        self._dispatcher = dispatcher

    async def __aenter__(self) -> Following:
        return self

    async def __aexit__(self, *exc: object) -> None:
        if not self.run.task.state.terminal:
            self._dispatcher.cancel(self.run)

    async def batches(self) -> AsyncIterator[list[Event]]:
        """The model's own events, up to the end. Raises :class:`Refusal` when the run failed."""
        async with aclosing(cast(Any, self.run.follow())) as follower:
            async for batch in follower:
                events = [event for event in batch if event.type in (MESSAGE_EVENT, MESSAGE)]
                if events:
                    yield events
        outcome = self.run.task.outcome
        if outcome is not None and outcome.failure is not None:
            raise Refusal(outcome.failure)

    async def message(self) -> tuple[Mapping[str, Any], bytes | None]:
        """The whole message, and its bytes where the upstream sent it whole. Raises :class:`Refusal`."""
        builder, whole = MessageBuilder(), None
        async for batch in self.batches():
            for event in batch:
                if event.type == MESSAGE:
                    whole = (event.data, event.raw)
                else:
                    builder.add(event.data)
        if whole is None and not builder.complete:
            raise Refusal(_nothing())
        return whole if whole is not None else (builder.message, None)


def headers_of(admitted: Admitted) -> dict[str, str]:
    """What every answer of a chat tells: its lane, its task, and what was only approximated."""
    task = admitted.run.task
    headers = {LANE_HEADER: task.spec.lane.value, TASK_HEADER: task.id}
    if task.spec.session is not None:
        headers[SESSION_HEADER] = task.spec.session.id
    if admitted.approximated:
        headers[APPROXIMATED_HEADER] = ", ".join(admitted.approximated)
    return headers


def _facts(run: Run, began: float) -> dict[str, Any]:
    """What the access line of a chat tells of it. Of one that has not ended yet, for its client has left, no usage."""
    task, spec = run.task, run.task.spec
    facts: dict[str, Any] = {"task_id": task.id, "lane": spec.lane.value, "model": spec.model}
    if spec.session is not None:
        facts["session_id"] = spec.session.id
    if run.worker_id is not None:
        facts["worker_id"] = run.worker_id
    if run.first_delta_at is not None:
        facts["first_delta_seconds"] = round(run.first_delta_at - began, 6)
    if task.outcome is not None:
        usage, cost = task.outcome.usage, task.outcome.cost_micro_usd
        facts |= {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}
        facts["cost_usd"] = None if cost is None else usd(cost)
    return facts


async def _whole(
    request: web.Request, following: Following, form: Form, headers: Mapping[str, str]
) -> web.StreamResponse:
    try:
        message, raw = await following.message()
    except Refusal as error:
        return respond(error.failure, dialect=form.dialect, request_id=request[REQUEST_ID], headers=headers)
    return web.Response(body=form.message(message, raw), content_type="application/json", headers=headers)


async def _stream(
    request: web.Request, following: Following, form: Form, headers: Mapping[str, str]
) -> web.StreamResponse:
    """The run as server-sent events. A failure before the first is an HTTP error, after it the dialect's event.

    ``write`` waits for a client that reads slowly; the run's tail then fills up, and its engine waits with it.
    """
    response: web.StreamResponse | None = None
    try:
        async with aclosing(cast(Any, following.batches())) as batches:
            async for batch in batches:
                data = form.events(batch)
                if not data:
                    continue
                if response is None:  # head and first event leave in one packet
                    response = web.StreamResponse(headers={**SSE_HEADERS, **headers})
                    await response.prepare(request)
                await response.write(data)
        if response is None:
            raise Refusal(_nothing())
    except Refusal as error:
        if response is None:
            return respond(error.failure, dialect=form.dialect, request_id=request[REQUEST_ID], headers=headers)
        await response.write(form.failed(error.failure))
        return response
    if form.end:
        await response.write(form.end)
    return response


def _nothing() -> Failure:
    return Failure(code=Code.INTERNAL, message="The run ended without an answer.")


def now() -> int:
    """Seconds since the epoch, as the dialects' ``created``."""
    return int(time.time())
