"""One client's connection: aiohttp's protocol with deadlines, bounds and answers of our own.

aiohttp parses and writes; what it lets a peer do without end is bounded here. The class reaches into some
privates of :class:`aiohttp.web_protocol.RequestHandler` (``_waiter``, ``_messages``, ``_request_count``,
``_process_keepalive``, ``_drain_helper``, ``_ErrInfo``, ``ERROR``); tests/api/test_server.py fails in plain words if
a new aiohttp moves them.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, RequestPayloadError, _ErrInfo

from claude_daemon.api.middleware import KEY, REQUEST_ID
from claude_daemon.core.errors import Code, Failure, Refusal

if TYPE_CHECKING:
    from claude_daemon.api.server import HttpServer

MAX_LINE_BYTES: Final = 8190
"""Of the request line and of each header: what Apache and nginx allow, so no client sends more."""
MAX_HEADERS: Final = 100
MAX_HEAD_BYTES: Final = 64 * 1024
"""Of all headers together. A browser with every cookie it may keep for us stays below."""
UNREAD_SECONDS: Final = 60.0
"""How long a peer may take nothing of what is written for it, before it is cut: it holds a turn, perhaps a worker."""
LINGER_SECONDS: Final = 1.0
"""How long a connection that we end still swallows what is under way. Closed at once, the kernel would
answer the peer's late bytes with a reset, and the peer lose the answer that tells it why."""

_REQUEST_LINE: Final = re.compile(rb"[A-Z]{3,20} (/[!-~]{0,200}?)(?:\?[!-~]*)?(?: HTTP/|\r|\n|\Z)")


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a Unix socket, as the kernel says; ``pid`` is 0 where it does not know."""

    uid: int
    gid: int
    pid: int


def peer_of(sock: socket.socket) -> Peer:
    """The peer of a connected Unix socket: SO_PEERCRED; on macOS what getpeereid uses, and LOCAL_PEERPID."""
    if sys.platform == "darwin":
        local, credentials, peer_pid = 0, 1, 2  # SOL_LOCAL, LOCAL_PEERCRED, LOCAL_PEERPID of <sys/un.h>
        # struct xucred: version, uid, number of groups, groups
        _version, uid, _count, gid = struct.unpack_from("IIh2xI", sock.getsockopt(local, credentials, 76))
        (pid,) = struct.unpack("i", sock.getsockopt(local, peer_pid, 4))
        return Peer(uid, gid, pid)
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(uid, gid, pid)


class Connection(RequestHandler):
    """Serves one client until it, or a deadline, or the server ends it."""

    __slots__ = (
        "_broken",
        "_head",
        "_head_bytes",
        "_head_timer",
        "_payload",
        "_unread_timer",
        "born",
        "id",
        "peer",
        "peer_address",
        "server",
    )

    def __init__(self, server: HttpServer, **settings: Any) -> None:
        super().__init__(
            server,
            keepalive_timeout=server.limits.keepalive_timeout_s,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            max_headers=MAX_HEADERS,
            lingering_time=LINGER_SECONDS,
            access_log=cast(Any, None),  # HttpServer keeps its own
            **settings,
        )
        self.server = server
        self.id = server.next_id()
        self.born = self._loop.time()
        self._head = b""  # the first bytes of a head that is not complete
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._payload: Any = None  # the body of the request that was parsed last
        self._broken = False  # unusable after the answer under way
        self._unread_timer: asyncio.TimerHandle | None = None  # runs while the peer takes nothing
        self.peer: Peer | None = None
        self.peer_address: str | None = None

    # what the server asks

    @property
    def idle(self) -> bool:
        """Whether it waits for its next request: none is served, none has begun to arrive."""
        return self._waiting and not self._head_bytes

    @property
    def used(self) -> bool:
        """Whether it has brought a request before."""
        return self._request_count > 0

    @property
    def queued(self) -> bool:
        """Whether a request has arrived that nobody serves yet."""
        return bool(self._messages) and self._current_request is None

    @property
    def closing(self) -> bool:
        """Whether the answer under way is its last one."""
        return self.server.draining or self._close or (self._broken and not self._messages)

    @property
    def path(self) -> str:
        """The path of the head that was being read, as far as it can be told; ``/`` if not."""
        found = _REQUEST_LINE.match(self._head)
        return found[1].decode("ascii") if found else "/"

    @property
    def _waiting(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def end(self) -> asyncio.Task[None] | None:
        """Closes it and cancels its handler, which is returned for the caller to wait for."""
        task = self._task_handler
        self.force_close()
        if task is not None:
            task.cancel()
        return task

    def cut(self) -> None:
        """The same for one who does not wait."""
        self.end()

    def describe(self) -> dict[str, Any]:
        """What it is and does, for people. A key is told by its id."""
        request, transport = self._current_request, self.transport
        key = request.get(KEY) if request is not None else None
        return {
            "id": self.id,
            "peer": _address(transport.get_extra_info("peername")) if transport is not None else None,
            "age_seconds": round(self._loop.time() - self.born, 3),
            "requests": self._request_count,
            "state": self._state(request),
            "request_id": request.get(REQUEST_ID) if request is not None else None,
            "path": request.path if request is not None else None,
            "key_id": key.id if key is not None else None,
            "unsent_bytes": transport.get_write_buffer_size() if transport is not None else 0,
        }

    def _state(self, request: web.BaseRequest | None) -> str:
        if self._upgraded:
            return "websocket"
        if request is None:
            return "idle"
        return "stream" if request.writer.output_size > 0 else "active"

    # what the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        refusal = self.server.admit(self, transport)
        if refusal is not None:
            self._manager = self._parser = None
            transport.set_protocol(refusal)
            refusal.connection_made(transport)
            return
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._head_is_in()
        self._reads_again()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread_timer is None and self.transport is not None:
            self._unread_timer = self._loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._reads_again()
        super().resume_writing()

    async def drained(self) -> None:
        """Waits until the peer has taken most of what was written past aiohttp. Raises ConnectionError when it left."""
        await self._drain_helper()

    def _reads_again(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def data_received(self, data: bytes) -> None:
        if self._broken:
            return
        requests, in_body, waiting = self._request_count, self._in_body, self._waiting
        if not self._head_bytes and not in_body:
            self._head = data[:256]
        super().data_received(data)
        if self._request_count != requests:
            if not requests:
                self.server.noted()
            self._heads_complete(len(data), self._request_count - requests)
        elif not in_body and not self._upgraded and not self._close:
            self._head_grew(data, waiting)

    # heads and their deadline

    @property
    def _in_body(self) -> bool:
        return self._payload is not None and not self._payload.is_eof()

    def _heads_complete(self, size: int, count: int) -> None:
        size += self._head_bytes
        self._head_is_in()
        message, payload = self._messages[-1]
        if isinstance(message, _ErrInfo):
            self._break_off()
        elif size > MAX_HEAD_BYTES and any(_is_too_large(m) for m, _ in list(self._messages)[-count:]):
            self._messages.pop()
            self._fail(_head_too_large())
        else:
            self._payload = payload

    def _head_grew(self, data: bytes, waiting: bool) -> None:
        if not self._head_bytes and not data.strip(b"\r\n"):
            return  # some clients end a body with a line break too many
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._fail(_head_too_large())
        elif waiting and self._head_timer is None:
            self._await_head()

    def _head_is_in(self) -> None:
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _await_head(self) -> None:
        self._head_timer = self._loop.call_later(self.server.limits.header_timeout_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._waiting:
            return  # a request before it is being served: answered() gives this one its time
        if self._head_bytes:
            self._fail(Failure(code=Code.REQUEST_TIMEOUT, message="The headers did not arrive in time."))
        else:
            self.force_close()

    def answered(self) -> None:
        """A request is done with. A head that began to arrive meanwhile has its time from now on."""
        if self._head_bytes and self._head_timer is None and self.transport is not None:
            self._await_head()

    def _process_keepalive(self) -> None:
        if self._head_bytes or not self.used:
            self._keepalive_handle = None  # not idle: its head has a deadline of its own
        else:
            super()._process_keepalive()

    # the end

    def _fail(self, failure: Failure) -> None:
        """Answers the failure after what is being served, and closes."""
        error = _ErrInfo(status=400, exc=Refusal(failure), message=failure.message)
        self._request_count += 1
        self._messages.append((error, EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._break_off()

    def refuse_body(self, failure: Failure) -> None:
        """Answers the failure to a request whose body has not come whole, and closes; to others it does nothing."""
        if self._in_body and not self._upgraded:
            self._break_off(Refusal(failure))

    def _break_off(self, why: Exception | None = None) -> None:
        """Reads no further; what came before is served. A handler learns that its body never comes, and why."""
        self._broken = True
        if self._in_body:
            self._payload.set_exception(why or RequestPayloadError("the body is malformed"))
            self._payload.feed_eof()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what aiohttp could not parse, and to what goes wrong outside of every handler."""
        if request.writer.output_size > 0 or isinstance(exc, ConnectionError):
            raise ConnectionError("the answer has begun or the client is gone")
        if isinstance(exc, Refusal):
            failure = exc.failure
        elif status == 400:
            failure = Failure(code=Code.INVALID_REQUEST, message="The request is not valid HTTP.")
        else:
            failure = self.server.unhandled(request, exc)
        return self.server.answer_broken(request, failure)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        finished = await super().finish_response(request, resp, start_time)
        transport = self.transport
        if transport is None or not transport.can_write_eof():
            return finished
        if self._broken and (self._close or not self._messages):
            transport.write_eof()
            await asyncio.sleep(LINGER_SECONDS)  # connection_lost() ends it
        elif self._in_body and not resp.keep_alive:
            transport.write_eof()  # the peer knows that this was all; aiohttp swallows the rest of the body
        return finished

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """aiohttp's own complaints. The server reports what a handler raised; the rest is a peer's doing."""


class TurnedAway(asyncio.Protocol):
    """A connection that is answered without being read: it gets its answer, and then its end.

    ``linger`` swallows what the peer has under way, so that the answer reaches it; it costs a descriptor for
    up to LINGER_SECONDS.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, answer: bytes, *, linger: bool) -> None:
        self._loop = loop
        self._answer = answer
        self._linger = linger
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)
        transport.write(self._answer)
        if self._linger and transport.can_write_eof():
            transport.write_eof()
            self._timer = self._loop.call_later(LINGER_SECONDS, transport.abort)
        else:
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _address(peername: Any) -> str | None:
    if not isinstance(peername, tuple):
        return None
    host, port = str(peername[0]), peername[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_too_large(message: Any) -> bool:
    if isinstance(message, _ErrInfo):
        return False
    return sum(len(name) + len(value) for name, value in message.raw_headers) > MAX_HEAD_BYTES


def _head_too_large() -> Failure:
    return Failure(code=Code.INVALID_REQUEST, message=f"The request's headers exceed {MAX_HEAD_BYTES} bytes.")
