"""What the chat dialects share: from a translated request to its run, and from the run to one answer or a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from aiohttp import web

from claude_daemon.api.errors import Dialect, respond
from claude_daemon.api.middleware import KEY, REQUEST_ID, read_body
from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.event import MESSAGE, MESSAGE_EVENT, Event
from claude_daemon.core.key import Key
from claude_daemon.core.message import MessageBuilder
from claude_daemon.core.task import Kind, Lane, TaskSpec
from claude_daemon.service.admit import Admission, Admitted
from claude_daemon.service.dispatch import Dispatcher, Run

LANE_HEADER = "Claude-Daemon-Lane"
APPROXIMATED_HEADER = "Claude-Daemon-Approximated"
TASK_HEADER = "X-Task-ID"
SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-store, no-transform",
    "X-Accel-Buffering": "no",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyLimits:
    """``timeout_s``: a body must have arrived by then."""

    max_bytes: int
    timeout_s: float


class Chats:
    """Begins chats, and ends those whose client has left."""

    def __init__(self, admission: Admission, dispatcher: Dispatcher, limits: BodyLimits) -> None:
        self.admission = admission
        self._dispatcher = dispatcher
        self._limits = limits

    async def body(self, request: web.Request) -> bytes:
        """The whole body; raises Refusal when it is too large or too slow."""
        return await read_body(request, self._limits.max_bytes, self._limits.timeout_s)

    def lane(self, request: web.Request) -> Lane:
        """Raises Refusal while nothing is admitted, so that a drain is told before faults in the body."""
        self.admission.check_open()
        return self.admission.lane(request.headers.get(LANE_HEADER))

    def begin(
        self,
        request: web.Request,
        lane: Lane,
        body: Mapping[str, Any],
        *,
        stream: bool,
        output_schema: Mapping[str, Any] | None = None,
    ) -> Admitted:
        """Raises Refusal."""
        return self.admission.chat(
            TaskSpec(
                kind=Kind.CHAT,
                lane=lane,
                request=body,
                key_id=caller(request).id,
                trust_domain=caller(request).trust_domain,
                request_id=request[REQUEST_ID],
                stream=stream,
                headers=dict(request.headers),
                output_schema=output_schema,
            )
        )

    def follow(self, run: Run) -> Following:
        return Following(run, self._dispatcher)


def caller(request: web.Request) -> Key:
    """The key of a request that has passed the gate."""
    return request[KEY]


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
        return whole if whole is not None else (builder.message, None)


def headers_of(admitted: Admitted) -> dict[str, str]:
    """What every answer of a chat tells: its lane, its task, and what was only approximated."""
    task = admitted.run.task
    headers = {LANE_HEADER: task.spec.lane.value, TASK_HEADER: task.id}
    if admitted.approximated:
        headers[APPROXIMATED_HEADER] = ", ".join(admitted.approximated)
    return headers


async def stream(
    request: web.Request,
    following: Following,
    headers: Mapping[str, str],
    *,
    dialect: Dialect,
    encode: Callable[[Sequence[Event]], bytes],
    failed: Callable[[Failure], bytes],
    end: bytes = b"",
) -> web.StreamResponse:
    """Streams a run as SSE. A failure before the first event is an HTTP error, after it the dialect's error event."""
    response: web.StreamResponse | None = None
    try:
        async for batch in following.batches():
            data = encode(batch)
            if response is None:
                response = web.StreamResponse(headers={**SSE_HEADERS, **headers})
                await response.prepare(request)
            if data:
                await response.write(data)
    except Refusal as refusal:
        if response is None:
            return respond(refusal.failure, dialect=dialect, request_id=request[REQUEST_ID], headers=headers)
        await response.write(failed(refusal.failure))
        return response
    if response is None:
        nothing = Failure(code=Code.INTERNAL, message="the run ended without an answer")
        return respond(nothing, dialect=dialect, request_id=request[REQUEST_ID], headers=headers)
    if end:
        await response.write(end)
    return response


def now() -> int:
    """Seconds since the epoch, as the dialects' ``created``."""
    return int(time.time())
