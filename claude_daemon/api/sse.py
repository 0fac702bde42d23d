"""A task's events as server-sent events."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Final

import orjson
from aiohttp import hdrs, web

from claude_daemon.api.chat import SSE_HEADERS, TASK_HEADER
from claude_daemon.api.fanout import Cursor, Fanout, Why
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.event import Event

COMMENT_S: Final = 15.0
"""Proxies cut what is silent for a minute, some after half of one."""
RETRY_MS: Final = 1000
"""What a client waits before it comes back after a cut."""
DRAIN_RETRY_MS: Final = (1000, 5000)
"""The same in a drain, spread so that not all come back in one moment."""
MAX_SEQ: Final = (1 << 63) - 1
"""What a database can compare with."""
LAST_EVENT_ID: Final = "Last-Event-ID"
_COMMENT: Final = b":\n\n"


def frame(event: Event) -> bytes:
    """One event; its JSON has no line breaks."""
    assert event.raw is not None
    return b"id: %d\nevent: %b\ndata: %b\n\n" % (event.seq, event.type.encode(), event.raw)


def cursor_of(request: web.Request) -> int:
    """``Last-Event-ID`` or ``?after=``; 0 from the start. Raises Refusal for what is no cursor."""
    given = request.headers.get(LAST_EVENT_ID, request.query.get("after", ""))
    return cursor(given, "after" if LAST_EVENT_ID not in request.headers else LAST_EVENT_ID)


def cursor(given: str, name: str) -> int:
    if given == "":
        return 0
    if not given.isascii() or not given.isdigit() or len(given) > 19 or int(given) > MAX_SEQ:
        raise Refusal.because(Code.INVALID_REQUEST, f"`{name}` is the seq of an event.", param=name)
    return int(given)


class _Sink:
    """A response that has begun. Frames go to the transport past aiohttp, which would make a task wait for each."""

    def __init__(self, request: web.Request, response: web.StreamResponse) -> None:
        self._transport = request.transport
        self._response = response
        self._chunked = response.headers.get(hdrs.TRANSFER_ENCODING) == "chunked"
        self.written = False

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self.written = True
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def write_piece(self, events: Sequence[Event]) -> None:
        self.written = True
        await self._response.write(b"".join(map(frame, events)))

    @property
    def buffered(self) -> int:
        if self._transport is None or self._transport.is_closing():
            return -1
        return self._transport.get_write_buffer_size()


async def stream(request: web.Request, fanout: Fanout, task_id: str, after: int) -> web.StreamResponse:
    """The task's events after the cursor, up to its end, or up to a ``drain`` event that tells where to go on."""
    response = web.StreamResponse(headers={**SSE_HEADERS, TASK_HEADER: task_id})
    await response.prepare(request)
    await response.write(b"retry: %d\n\n" % RETRY_MS)  # and with it the head: from here on we may write ourselves
    sink, cursor = _Sink(request, response), Cursor(after)
    async with asyncio.TaskGroup() as group:
        beat = group.create_task(_beat(sink))
        try:
            why = await fanout.serve(task_id, cursor, sink, frame)
        finally:
            beat.cancel()
    if why is Why.SLOW and request.transport is not None:
        request.transport.abort()  # a goodbye would wait behind all that it has not read
    if why is Why.DRAIN:
        wait = random.randint(*DRAIN_RETRY_MS)  # noqa: S311 - no secret
        told = orjson.dumps({"task": task_id, "cursor": cursor.after, "retry_after_ms": wait})
        await response.write(b"retry: %d\nevent: drain\ndata: %b\n\n" % (wait, told))
    return response


async def _beat(sink: _Sink) -> None:
    """A comment whenever nothing else was said for a while; never ends."""
    while True:
        sink.written = False
        await asyncio.sleep(COMMENT_S)
        if not sink.written and 0 <= sink.buffered < len(_COMMENT):
            sink.write(_COMMENT)
