"""The direct lane: a request goes straight to the Messages API, and its answer comes back as it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp
import orjson

from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.event import MESSAGE, MESSAGE_EVENT, Emission
from claude_daemon.core.task import Lane, Outcome, State, TaskSpec
from claude_daemon.ports import Ended, HealthReport
from claude_daemon.upstream.client import MessagesClient, UpstreamFailed, passed_on
from claude_daemon.upstream.meter import CallMeter
from claude_daemon.upstream.sse import EventTooLong, SSEDecoder


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectSettings:
    """``stall_timeout_s``: no byte of a stream for so long ends it; ``turn_timeout_s``: the whole call."""

    direct_max: int
    stall_timeout_s: float
    turn_timeout_s: float


class DirectLease:
    start = "direct"
    worker_id = None

    def __init__(self, engine: DirectEngine, spec: TaskSpec) -> None:
        self._engine = engine
        self._spec = spec
        self._released = False

    def run(self) -> AsyncIterator[Sequence[Emission | Ended]]:
        return self._run()

    async def _run(self) -> AsyncIterator[Sequence[Emission | Ended]]:
        settings, spec = self._engine.settings, self._spec
        meter = CallMeter(streaming=spec.stream)
        limit = min(settings.turn_timeout_s, spec.timeout_seconds or settings.turn_timeout_s)
        deadline = asyncio.timeout(limit)
        try:
            async with (
                deadline,
                self._engine.client.call("/v1/messages", _body(spec), passed_on(spec.headers or {})) as response,
            ):
                if spec.stream:
                    async for batch in _stream(response, meter, settings.stall_timeout_s):
                        yield batch
                else:
                    yield [await _whole(response, meter)]
            failure = meter.failure
        except UpstreamFailed as failed:
            failure = failed.failure
        except _Stalled:
            why = f"nothing came from the upstream for {settings.stall_timeout_s:g} s"
            failure = Failure(code=Code.STALLED, message=why)
        except TimeoutError:
            if not deadline.expired():
                raise
            failure = Failure(code=Code.DEADLINE, message=f"the turn took longer than {limit:g} s")
        finally:
            self.release()
        yield [Ended(outcome=_outcome(meter, failure))]

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._engine.released()


class DirectEngine:
    """The direct lane's engine: at most ``direct_max`` calls at once."""

    lane = Lane.DIRECT

    def __init__(self, client: MessagesClient, settings: DirectSettings) -> None:
        self.client = client
        self.settings = settings
        self.running = 0
        self._room: list[Callable[[], None]] = []

    def unsupported(self, spec: TaskSpec) -> Failure | None:
        return None

    def approximated(self, spec: TaskSpec) -> Sequence[str]:
        return ()

    def on_room(self, callback: Callable[[], None]) -> None:
        self._room.append(callback)

    def lease(self, spec: TaskSpec) -> DirectLease | None:
        if self.running >= self.settings.direct_max:
            return None
        self.running += 1
        return DirectLease(self, spec)

    def released(self) -> None:
        self.running -= 1
        for callback in self._room:
            callback()

    def unavailable(self) -> Failure | None:
        return None

    def health(self) -> Mapping[str, HealthReport]:
        return {}


class _Stalled(Exception):
    pass


def _body(spec: TaskSpec) -> bytes:
    request = spec.request
    if bool(request.get("stream")) != spec.stream:
        request = {**request, "stream": spec.stream}
    return orjson.dumps(request)


async def _stream(
    response: aiohttp.ClientResponse, meter: CallMeter, stall_timeout_s: float
) -> AsyncIterator[Sequence[Emission]]:
    """The events of a stream, in the batches they arrive in, up to ``message_stop``."""
    decoder = SSEDecoder()
    while True:
        try:
            async with asyncio.timeout(stall_timeout_s):
                chunk = await response.content.readany()
        except TimeoutError:
            raise _Stalled from None
        if not chunk:
            meter.end()
            return
        batch = _decoded(decoder, chunk, meter)
        if batch:
            yield batch
        if meter.complete or meter.failure is not None:
            return


def _decoded(decoder: SSEDecoder, chunk: bytes, meter: CallMeter) -> list[Emission]:
    batch: list[Emission] = []
    try:
        for _, data in decoder.feed(chunk):
            event = orjson.loads(data)
            meter.read(event)
            if meter.failure is not None:
                break
            batch.append(Emission(MESSAGE_EVENT, event, data))
    except (orjson.JSONDecodeError, EventTooLong, KeyError, AttributeError, TypeError):
        meter.failure = Failure(code=Code.UPSTREAM_MALFORMED, message="the upstream sent an event that cannot be read")
    return batch


async def _whole(response: aiohttp.ClientResponse, meter: CallMeter) -> Emission:
    body = await response.read()
    meter.feed(body)
    meter.end()
    return Emission(MESSAGE, orjson.loads(body) if meter.failure is None else {}, body)


def _outcome(meter: CallMeter, failure: Failure | None) -> Outcome:
    if failure is not None:
        return Outcome(state=State.FAILED, usage=meter.usage, failure=failure)
    return Outcome(state=State.SUCCEEDED, usage=meter.usage, stop_reason=meter.stop_reason)
