"""The direct lane: a request goes straight to the Messages API, and its answer comes back as it is."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from typing import Any, Final, cast

import aiohttp
import orjson

from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.event import MESSAGE, MESSAGE_EVENT, Emission
from claude_daemon.core.room import Room
from claude_daemon.core.task import Lane, Outcome, State, TaskSpec, Usage
from claude_daemon.core.trace import HEADER, Trace
from claude_daemon.ports import Ended, HealthReport
from claude_daemon.upstream.client import MessagesClient, UpstreamFailed, passed_on
from claude_daemon.upstream.meter import UNREADABLE, CallMeter, call_fields, malformed
from claude_daemon.upstream.sse import MAX_EVENT_BYTES, EventTooLong, SSEDecoder

# The last bytes follow the last event at once; an upstream that keeps them back loses the connection, not our time.
_READ_OUT_S: Final = 0.25
_LEFT: Final = Failure(code=Code.CANCELLED, message="the caller left")


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectSettings:
    """``stall_timeout_s``: no byte of a stream (its first included) for so long; ``turn_timeout_s``: the whole call."""

    direct_max: int
    stall_timeout_s: float
    turn_timeout_s: float


class DirectLease:
    start = "direct"
    worker_id = None

    def __init__(self, engine: DirectEngine, spec: TaskSpec) -> None:
        self._engine = engine
        self._spec = spec
        self._meter = CallMeter(streaming=spec.stream)
        above = Trace.parse(spec.traceparent)
        self._span = None if above is None else above.below(secrets.token_bytes)
        self._began = time.monotonic()

    @property
    def usage(self) -> Usage:
        return self._meter.usage

    def run(self) -> AsyncIterator[Sequence[Emission | Ended]]:
        return self._run()

    async def _run(self) -> AsyncIterator[Sequence[Emission | Ended]]:
        settings, spec = self._engine.settings, self._spec
        meter = self._meter
        watch = _Watch(
            stall_seconds=settings.stall_timeout_s,
            turn_seconds=min(settings.turn_timeout_s, spec.timeout_seconds or settings.turn_timeout_s),
            streaming=spec.stream,
        )
        failure: Failure | None = _LEFT  # what it is if we are cancelled half-way
        try:
            async with AsyncExitStack() as stack:
                call = self._engine.client.call("/v1/messages", _body(spec), self._headers())
                async with watch:
                    response = await stack.enter_async_context(call)
                read = aclosing(cast(Any, (_stream if spec.stream else _whole)(response, meter, watch)))
                async for batch in await stack.enter_async_context(read):
                    yield batch
            failure = meter.failure
        except UpstreamFailed as failed:
            failure = failed.failure
        except _TooLate as late:
            failure = late.failure
        finally:
            self.release()
            self._tell(failure)
        yield [Ended(outcome=_outcome(meter, failure))]

    def _headers(self) -> dict[str, str]:
        headers = passed_on(self._spec.headers or {})
        if self._span is not None:
            headers[HEADER] = self._span.header
        return headers

    def _tell(self, failure: Failure | None) -> None:
        traced = {} if self._span is None else self._span.fields
        fields = call_fields(self._meter, failure, time.monotonic() - self._began)
        self._engine.told("model_call", {"path": "/v1/messages", **traced, **fields})

    def release(self) -> None:
        self._engine.room.give_back(self)


class DirectEngine:
    """The direct lane's engine: at most ``direct_max`` calls at once. ``told`` hears of each when it is over."""

    lane = Lane.DIRECT

    def __init__(
        self,
        client: MessagesClient,
        settings: DirectSettings,
        told: Callable[[str, dict[str, Any]], None] = lambda name, fields: None,
    ) -> None:
        self.client = client
        self.told = told
        self.settings = settings
        self.room = Room(settings.direct_max)

    def apply(self, settings: DirectSettings) -> None:
        """For the calls that begin from now on."""
        self.settings = settings
        self.room.resize(settings.direct_max)

    def unsupported(self, spec: TaskSpec) -> Failure | None:
        return None

    def approximated(self, spec: TaskSpec) -> Sequence[str]:
        return ()

    def lease(self, spec: TaskSpec) -> DirectLease | None:
        lease = DirectLease(self, spec)
        return lease if self.room.take(lease) else None

    def unavailable(self) -> Failure | None:
        return None

    def health(self) -> Mapping[str, HealthReport]:
        return {}


class _TooLate(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class _Watch:
    """A call's deadlines, as a context for each wait; raises :class:`_TooLate`.

    Only waits are timed, and none of them spans a ``yield``: a slow caller is not the upstream's fault. An answer
    that is not streamed comes when it is complete, so only the whole call is bounded then.
    """

    def __init__(self, *, stall_seconds: float, turn_seconds: float, streaming: bool) -> None:
        self._stall = stall_seconds if streaming else turn_seconds
        self._turn = turn_seconds
        self._ends = asyncio.get_running_loop().time() + turn_seconds
        self._last = False  # this wait ends with the call
        self._timeout: asyncio.Timeout | None = None

    async def __aenter__(self) -> None:
        now = asyncio.get_running_loop().time()
        self._last = self._ends <= now + self._stall
        if now >= self._ends:  # while the caller was busy; what is here already would be read without waiting
            raise _TooLate(self._failure())
        self._timeout = asyncio.timeout_at(min(self._ends, now + self._stall))
        await self._timeout.__aenter__()

    async def __aexit__(self, *exc: Any) -> None:
        assert self._timeout is not None
        try:
            await self._timeout.__aexit__(*exc)
        except TimeoutError:
            raise _TooLate(self._failure()) from None

    def _failure(self) -> Failure:
        if self._last:
            return Failure(code=Code.DEADLINE, message=f"the turn took longer than {self._turn:g} s")
        return Failure(code=Code.STALLED, message=f"nothing came from the upstream for {self._stall:g} s")


def _body(spec: TaskSpec) -> bytes:
    request = spec.request
    if bool(request.get("stream")) != spec.stream:
        request = {**request, "stream": spec.stream}
    return orjson.dumps(request)


async def _stream(
    response: aiohttp.ClientResponse, meter: CallMeter, watch: _Watch
) -> AsyncIterator[Sequence[Emission]]:
    """The events of a stream, in the batches they arrive in, up to ``message_stop``."""
    decoder = SSEDecoder()
    while not meter.complete and meter.failure is None:
        async with watch:
            chunk = await response.content.readany()
        if not chunk:
            meter.end()
            return
        batch = _decoded(decoder, chunk, meter)
        if batch:
            yield batch
    if meter.complete:
        await _read_out(response)


async def _read_out(response: aiohttp.ClientResponse) -> None:
    """The end of the body behind the last event: read, the connection serves the next call too."""
    with contextlib.suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(_READ_OUT_S):
            while await response.content.readany():
                pass


def _decoded(decoder: SSEDecoder, chunk: bytes, meter: CallMeter) -> list[Emission]:
    batch: list[Emission] = []
    try:
        for _, data in decoder.feed(chunk):
            event = orjson.loads(data)
            meter.read(event)
            if meter.failure is not None:
                break
            batch.append(Emission(MESSAGE_EVENT, event, data))
    except (*UNREADABLE, EventTooLong):
        meter.failure = malformed()
    return batch


async def _whole(
    response: aiohttp.ClientResponse, meter: CallMeter, watch: _Watch
) -> AsyncIterator[Sequence[Emission]]:
    """The answer as one ``message``, once it is complete and can be read."""
    pieces, held = [], 0
    async with watch:
        while chunk := await response.content.readany():
            pieces.append(chunk)
            held += len(chunk)
            if held > MAX_EVENT_BYTES:
                meter.failure = malformed()
                return
    body = b"".join(pieces)
    meter.feed(body)
    meter.end()
    if meter.failure is None:
        yield [Emission(MESSAGE, orjson.loads(body), body)]


def _outcome(meter: CallMeter, failure: Failure | None) -> Outcome:
    if failure is not None:
        return Outcome(state=State.FAILED, usage=meter.usage, failure=failure)
    return Outcome(state=State.SUCCEEDED, usage=meter.usage, stop_reason=meter.stop_reason)
