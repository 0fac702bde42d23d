"""``/v1/stream``: many tasks over one WebSocket (INTERFACE.md, "WebSocket").

What a client sends is acted on in its order, one message at a time: a client that sends faster than we act waits in its
own socket. What it is sent goes through :mod:`~claude_daemon.api.fanout`, bounded for each connection.
"""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, cast

import orjson
from aiohttp import WSCloseCode, WSMsgType, web
from pydantic import BeforeValidator, Field

from claude_daemon.api.connection import Connection
from claude_daemon.api.fanout import Cursor, Fanout, Why
from claude_daemon.api.submission import asker, wish_of
from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.event import Event
from claude_daemon.core.key import Unfit
from claude_daemon.core.task import Kind
from claude_daemon.ports import Answer, Schemas, StoreUnavailable
from claude_daemon.service.keys import refusal_of
from claude_daemon.service.tasks import Asker, TaskDesk, unavailable
from claude_daemon.service.watch import Watched
from claude_daemon.wire import tasks as wire
from claude_daemon.wire.openai_messages import Strict
from claude_daemon.wire.parse import load, nearest, validate, wrong

SUBPROTOCOL: Final = "claude-daemon.v1"
HEARTBEAT_S: Final = 20.0
"""A ping so often, and an end to a connection whose pong does not come within half of it."""
MAX_SUBSCRIPTIONS: Final = 1000
"""Of one connection: each costs a few hundred bytes, and a screen shows none as many."""
CLOSE_TIMEOUT_S: Final = 2.0
"""How long a peer may take to say goodbye."""
DRAIN_RETRY_MS: Final = (1000, 5000)
"""What a client waits before it comes back, spread so that not all come in one moment."""

_Id = Annotated[str, Field(min_length=1, max_length=64)]
MAX_REF: Final = 128
"""Characters of a client's own name for what it asks."""


def _ref(given: object) -> object:
    if given is None or (isinstance(given, int) and not isinstance(given, bool)):
        return given
    if isinstance(given, str) and len(given) <= MAX_REF:
        return given
    raise wrong(f"A `ref` is a string of at most {MAX_REF} characters, or an integer.")


_Ref = Annotated[Any, BeforeValidator(_ref)]


class _Op(Strict):
    ref: _Ref = None


class Submit(_Op):
    op: Literal["submit"]
    task: dict[str, Any]


class Subscribe(_Op):
    op: Literal["subscribe"]
    task: _Id
    after: Annotated[int, Field(ge=0, lt=1 << 63)] = 0


class OfTask(_Op):
    op: Literal["unsubscribe", "cancel"]
    task: _Id


class Approve(_Op):
    op: Literal["approve"]
    task: _Id
    approval: _Id
    allow: bool
    message: Annotated[str, Field(max_length=wire.MAX_MESSAGE)] = ""


class Ping(_Op):
    op: Literal["ping"]


def frame(event: Event) -> bytes:
    """One event as a whole WebSocket message: a final, unmasked text frame (RFC 6455, 5.2)."""
    assert event.raw is not None
    payload = b'{"op":"event",' + event.raw[1:]
    return _head(len(payload)) + payload


def _head(size: int) -> bytes:
    if size < 126:
        return bytes((0x81, size))
    return struct.pack("!BBH", 0x81, 126, size) if size < 1 << 16 else struct.pack("!BBQ", 0x81, 127, size)


class StreamRoutes:
    """``max_message_bytes``: as for a body over HTTP. ``refused`` hears why something that was asked was not done.
    ``watched``: see :meth:`Watches.watched <claude_daemon.service.watch.Watches.watched>`. ``opened`` hears of every
    connection, which then is in :attr:`open`."""

    def __init__(
        self,
        desk: TaskDesk,
        fanout: Fanout,
        schemas: Schemas,
        *,
        max_message_bytes: int,
        watched: Watched,
        opened: Callable[[web.Request], None] = lambda request: None,
        refused: Callable[[Code], None] = lambda code: None,
    ) -> None:
        self._opened = opened
        self._refused = refused
        self._desk = desk
        self._watched = watched
        self._fanout = fanout
        self._schemas = schemas
        self.max_message_bytes = max_message_bytes
        self.open: set[_Connection] = set()
        self._goodbye = WSCloseCode.GOING_AWAY
        self.told = 0
        """Connections that were told of a drain, since the start."""

    def register(self, router: web.UrlDispatcher) -> None:
        router.add_get("/v1/stream", self.stream)

    async def stream(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(
            protocols=(SUBPROTOCOL,),
            heartbeat=HEARTBEAT_S,
            timeout=CLOSE_TIMEOUT_S,
            autoclose=False,  # a goodbye is returned with its own code, below
            compress=False,  # a pass over many followers writes the same bytes to all
            max_msg_size=self.max_message_bytes,
        )
        if not socket.can_prepare(request).ok:
            why = "This route speaks WebSocket alone (RFC 6455), version 13."
            raise Refusal.because(Code.INVALID_REQUEST, why)
        await socket.prepare(request)
        connection = _Connection(
            request,
            socket,
            self._desk,
            self._fanout,
            self._schemas,
            goodbye=lambda: self._goodbye,
            watched=self._watched,
            refused=self._refused,
        )
        self._opened(request)
        self.open.add(connection)
        try:
            await connection.serve()
        finally:
            self.open.discard(connection)
        return socket

    def begin_drain(self, *, back_soon: bool) -> None:
        """Tells everybody where they are; those that follow no task that still runs are closed.

        ``back_soon``: a successor is known, and the goodbye says so.
        """
        self._goodbye = WSCloseCode.SERVICE_RESTART if back_soon else WSCloseCode.GOING_AWAY
        self.told += len(self.open)
        for connection in list(self.open):
            connection.begin_drain()

    def end_drain(self) -> None:
        """Another drain tells everybody anew."""
        for connection in self.open:
            connection.end_drain()

    async def close(self) -> None:
        """Closes everybody."""
        async with asyncio.TaskGroup() as group:
            for connection in list(self.open):
                group.create_task(connection.go())


class _Sink:
    """A connection as the fan-out sees it: frames go to the transport past aiohttp, whole ones only."""

    def __init__(self, request: web.Request, socket: web.WebSocketResponse) -> None:
        self._transport = request.transport
        self._connection = cast(Connection, request.protocol)
        self._socket = socket

    def write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    async def write_piece(self, events: Sequence[Event]) -> None:
        self.write(b"".join(map(frame, events)))
        await self._connection.drained()

    @property
    def buffered(self) -> int:
        if self._transport is None or self._transport.is_closing() or self._socket.closed:
            return -1
        return self._transport.get_write_buffer_size()


class _Connection:
    """One client. Its messages are acted on in order; each subscription is a task of its own."""

    def __init__(
        self,
        request: web.Request,
        socket: web.WebSocketResponse,
        desk: TaskDesk,
        fanout: Fanout,
        schemas: Schemas,
        *,
        goodbye: Callable[[], int],
        watched: Watched,
        refused: Callable[[Code], None],
    ) -> None:
        self._request = request
        self._refused = refused
        self._watched = watched
        self._socket = socket
        self._desk = desk
        self._fanout = fanout
        self._schemas = schemas
        self._goodbye = goodbye
        self._sink = _Sink(request, socket)
        self._asker: Asker = asker(request)
        self._unfit = False  # the key is not good any more: nothing is done or sent but the goodbye
        self._subscriptions: dict[str, tuple[asyncio.Task[None], Cursor]] = {}
        self._group: asyncio.TaskGroup | None = None
        self._telling: asyncio.Task[None] | None = None  # of a drain, while it lasts
        self._told: dict[str, int] = {}  # the cursors in that
        self._ops: Mapping[str, Callable[[Mapping[str, Any]], Awaitable[None]]] = {
            "submit": self._submit,
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "cancel": self._cancel,
            "approve": self._approve,
            "ping": self._ping,
        }

    async def serve(self) -> None:
        """Until either side closes."""
        async with asyncio.TaskGroup() as self._group:
            try:
                with self._watched(self._asker.key, self._key_ended) as look:
                    while (message := await self._socket.receive()).type is WSMsgType.TEXT:
                        look()
                        await self._act(message.data)
                if message.type is WSMsgType.BINARY:
                    await self.close(WSCloseCode.UNSUPPORTED_DATA, b"messages are JSON text")
                elif message.type is WSMsgType.CLOSE:
                    await self.close(message.data or WSCloseCode.OK, b"")
            finally:
                for task, _ in self._subscriptions.values():
                    task.cancel()

    async def close(self, code: int, why: bytes) -> None:
        """Says why and ends the connection. Behind what is written already: a slow reader learns it when it gets there,
        one that reads nothing is cut by the server's own deadline."""
        await self._socket.close(code=code, message=why, drain=False)

    def _key_ended(self, why: Unfit) -> None:
        assert self._group is not None
        self._unfit = True
        for task, _ in self._subscriptions.values():
            task.cancel()
        told = refusal_of(why).failure.message
        self._group.create_task(self.close(WSCloseCode.POLICY_VIOLATION, told.encode()))

    def begin_drain(self) -> None:
        if self._group is not None and self._telling is None:
            # now: those that are sent elsewhere follow nothing any more when the message goes
            self._told = {task_id: cursor.after for task_id, (_, cursor) in self._subscriptions.items()}
            self._telling = self._group.create_task(self._tell_drain(dict(self._told)))

    def end_drain(self) -> None:
        self._telling = None
        self._told = {}

    async def go(self) -> None:
        """The daemon drains, and nothing that this client waits for will come any more."""
        await self.close(self._goodbye(), b"the daemon drains")

    async def _tell_drain(self, cursors: Mapping[str, int]) -> None:
        wait = random.randint(*DRAIN_RETRY_MS)  # noqa: S311 - no secret
        await self._send({"op": "drain", "retry_after_ms": wait, "cursors": cursors})
        if not self._subscriptions:
            await self.go()

    async def _send(self, message: Mapping[str, Any]) -> None:
        if not self._socket.closed and not self._unfit:
            await self._socket.send_str(orjson.dumps(message).decode())

    # what a client wants

    async def _act(self, text: str) -> None:
        if self._unfit:
            return
        ref = None
        try:
            message = load(text.encode())
            ref = message.get("ref")
            op = message.get("op")
            action = self._ops.get(op) if isinstance(op, str) else None
            if action is None:
                known = ", ".join(self._ops)
                why = f"`op` is one of {known}.{nearest(op, self._ops) if isinstance(op, str) else ''}"
                raise Refusal.because(Code.INVALID_REQUEST, why, param="op")
            await action(message)
        except Refusal as refusal:
            self._refused(refusal.failure.code)
            await self._send_error(ref, refusal.failure)
        except StoreUnavailable as error:
            await self._send_error(ref, unavailable(error))

    async def _send_error(self, ref: Any, failure: Failure, task_id: str | None = None) -> None:
        known = ref if isinstance(ref, str | int) else None
        told: dict[str, Any] = {"op": "error", "ref": known, "error": wire.error_document(failure)}
        await self._send(told | ({"task": task_id} if task_id is not None else {}))

    async def _ack(self, ref: _Ref, task_id: str) -> None:
        await self._send({"op": "ack", "ref": ref, "task": task_id})

    async def _submit(self, message: Mapping[str, Any]) -> None:
        asked = validate(Submit, message)
        self._room_for(None)
        task, _ = await self._desk.submit(self._asker, await wish_of(asked.task, self._schemas))
        await self._ack(asked.ref, task.id)
        self._follow(task.id, 0, asked.ref)

    async def _subscribe(self, message: Mapping[str, Any]) -> None:
        asked = validate(Subscribe, message)
        self._room_for(asked.task)
        task = await self._desk.get(self._asker, asked.task)
        if task.spec.kind is Kind.CHAT:
            raise Refusal.because(Code.CONFLICT, "A chat keeps no events.")
        await self._stop_following(task.id)
        await self._ack(asked.ref, task.id)
        self._follow(task.id, asked.after, asked.ref)

    async def _unsubscribe(self, message: Mapping[str, Any]) -> None:
        asked = validate(OfTask, message)
        if not await self._stop_following(asked.task):
            raise Refusal.because(Code.NOT_FOUND, "This connection does not follow such a task.", param="task")
        await self._ack(asked.ref, asked.task)

    async def _cancel(self, message: Mapping[str, Any]) -> None:
        asked = validate(OfTask, message)
        task = await self._desk.cancel(self._asker, asked.task)
        await self._ack(asked.ref, task.id)

    async def _approve(self, message: Mapping[str, Any]) -> None:
        asked = validate(Approve, message)
        answer = Answer(allow=asked.allow, message=asked.message)
        await self._desk.approve(self._asker, asked.task, asked.approval, answer)
        await self._ack(asked.ref, asked.task)

    async def _ping(self, message: Mapping[str, Any]) -> None:
        asked = validate(Ping, message)
        await self._send({"op": "pong", "ref": asked.ref})

    # following

    def _room_for(self, task_id: str | None) -> None:
        if len(self._subscriptions) >= MAX_SUBSCRIPTIONS and task_id not in self._subscriptions:
            why = f"One connection follows at most {MAX_SUBSCRIPTIONS} tasks."
            raise Refusal.because(Code.CONFLICT, why)

    def _follow(self, task_id: str, after: int, ref: _Ref) -> None:
        assert self._group is not None
        cursor = Cursor(after)
        self._told.pop(task_id, None)  # whoever asks anew is told anew
        self._subscriptions[task_id] = self._group.create_task(self._following(task_id, cursor, ref)), cursor

    async def _stop_following(self, task_id: str) -> bool:
        task, _ = self._subscriptions.pop(task_id, (None, None))
        if task is None:
            return False
        task.cancel()
        await asyncio.wait({task})  # nothing of it is sent after the answer to who ended it
        return True

    async def _following(self, task_id: str, cursor: Cursor, ref: _Ref) -> None:
        try:
            why = await self._fanout.serve(task_id, cursor, self._sink, frame)
        except Refusal as refusal:
            await self._send_error(ref, refusal.failure, task_id)
            why = Why.ENDED
        except StoreUnavailable as error:
            await self._send_error(ref, unavailable(error), task_id)
            why = Why.ENDED
        except ConnectionError:
            why = Why.GONE
        self._subscriptions.pop(task_id, None)
        if why is Why.SLOW:
            await self.close(WSCloseCode.TRY_AGAIN_LATER, b"too slow a reader: come back with your cursor")
        elif why is Why.DRAIN and self._told.get(task_id) != cursor.after:
            await self._tell_drain({task_id: cursor.after})  # it came during the drain, or got on since
        elif self._telling is not None and not self._subscriptions:
            await asyncio.wait({self._telling})
            await self.go()
