"""The HTTP server: listeners, connections, and the life of every request from its first byte to its last.

One class serves the public port and the control socket. It is aiohttp's low-level server with a protocol of
our own (:mod:`~claude_daemon.api.connection`) and none of ``run_app``: whoever composes the daemon decides
when it drains.

An order that loses nothing: :meth:`HttpServer.begin_drain`, :meth:`~HttpServer.stop_listening` if a
successor is to take over, :meth:`~HttpServer.wait_idle`, :meth:`~HttpServer.close`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import resource
import secrets
import socket
import ssl as tls
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, cast

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.web_protocol import ERROR
from structlog.contextvars import bind_contextvars, clear_contextvars
from yarl import URL

from claude_daemon.api import cors, errors, forwarded
from claude_daemon.api.connection import Connection, Peer, TurnedAway, peer_of
from claude_daemon.api.errors import SECURITY_HEADERS
from claude_daemon.api.middleware import (
    ANSWER_HEADERS,
    BEGAN,
    EXPECTS_CONTINUE,
    REQUEST_ID,
    TRACEPARENT,
    read_body,
    request_id_of,
)
from claude_daemon.core import trace
from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.trace import RandBytes, Trace
from claude_daemon.ports import Ids, StoreUnavailable

__all__ = ["PEER", "HttpServer", "Limits", "Request", "read_body"]

PEER: Final = web.RequestKey("peer", Peer)
"""Who is at the other end; only for requests over a Unix socket."""

BACKLOG: Final = 1024
"""Connections that the kernel holds for us while we are busy or being replaced (LIFECYCLE.md, "Hot
restart")."""
CLIENT_GONE: Final = 499
"""The status in the access log of a request whose client left before its answer was complete; nobody is
sent it."""
DRAIN_RETRY_AFTER_S: Final = 5.0
"""A restart takes about so long; behind a balancer another daemon answers meanwhile."""
FLUSH_SECONDS: Final = 1.0
"""How long close() lets a peer take what is already written before it is cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one server grants its clients. ``reserved_descriptors`` are left to the rest of the process, the
    control socket above all: a TCP connection whose descriptor would be among the last ones is turned
    away. A connection from ``trusted_proxies`` is not one peer's but of all who come by it.
    """

    max_body_bytes: int = 16 * 1024 * 1024
    max_connections: int = 4096
    max_connections_per_peer: int = 4096
    trusted_proxies: tuple[forwarded.Network, ...] = ()
    header_timeout_s: float = 10
    body_timeout_s: float = 30
    keepalive_timeout_s: float = 75
    reserved_descriptors: int = 64


class AnswerCut(ConnectionError):
    """A handler failed after its answer had begun: the connection ends, so that it never looks complete."""


class Request(web.Request):
    """A request that knows its id before anything else happens, and puts it on whatever is answered."""

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        await super()._prepare_hook(response)
        cast(Connection, self.protocol).server.begun(self)
        headers = response.headers
        headers.popall(hdrs.SERVER, None)
        headers["X-Request-ID"] = self[REQUEST_ID]
        for name, value in SECURITY_HEADERS.items():
            headers.setdefault(name, value)
        if (origin := self.get(cors.ORIGIN)) is not None:
            headers.update(cors.headers_for(origin))
        if response.status != 101 and cast(Connection, self.protocol).closing:
            headers[hdrs.CONNECTION] = "close"
            response.force_close()


OnAccess = Callable[[web.BaseRequest, int, float, int], None]
"""The request, its status, its duration in seconds, and the bytes sent for it, head included."""
OnRefused = Callable[[Code], None]
"""Why a request was turned away."""
OnError = Callable[[str, BaseException], None]
"""The id of the request, and what its handler raised that nobody expected."""


class HttpServer(web.Server):
    """Serves one application on any number of sockets. Construct it in the loop that runs it."""

    def __init__(
        self,
        app: web.Application,
        *,
        limits: Limits,
        ids: Ids,
        on_access: OnAccess,
        on_error: OnError,
        on_refused: OnRefused = lambda code: None,
        randbytes: RandBytes = secrets.token_bytes,
    ) -> None:
        app.freeze()
        super().__init__(self._serve, request_factory=self._make, handler_cancellation=True)
        self.draining = False
        self.in_flight = 0
        """Requests whose answer is not complete, streams and WebSockets included."""
        self.turned_away = 0
        """Connections that were refused, since the start."""
        self.records = False
        """Whether traces that begin here are collected."""
        self.changed: Callable[[], None] = lambda: None
        """Told what a drain waits for: an answer has begun, a connection has spoken or is gone."""
        self._unanswered: set[int] = set()  # by identity: requests have no hash
        self._app = app
        self._ids = ids
        self._randbytes = randbytes
        self._on_access = on_access
        self._on_error = on_error
        self._on_refused = on_refused
        self._made = 0
        self._listeners: list[asyncio.Server] = []
        self._per_peer: Counter[str] = Counter()
        self._idle = asyncio.Event()
        self._idle.set()
        self.apply(limits)

    def apply(self, limits: Limits) -> None:
        """For connections and requests from now on."""
        self.limits = limits
        self._last_descriptor = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - limits.reserved_descriptors

    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop)

    # listening

    async def listen(self, sockets: Iterable[socket.socket], *, ssl: tls.SSLContext | None = None) -> None:
        """Accepts from bound TCP sockets. They are the server's from now on."""
        # asyncio wants no handshake timeout where there is no TLS
        timeout: dict[str, Any] = {"ssl_handshake_timeout": self.limits.header_timeout_s} if ssl else {}
        for sock in sockets:
            server = await self._loop.create_server(self, sock=sock, backlog=BACKLOG, ssl=ssl, **timeout)
            self._listeners.append(server)

    async def listen_unix(self, sock: socket.socket) -> None:
        """Accepts from a bound Unix socket; requests then carry :data:`PEER`. Its path stays after
        close()."""
        # since 3.13 asyncio would unlink the path, which may be a successor's by then
        keep: dict[str, Any] = {"cleanup_socket": False} if _unlinks_sockets(self._loop) else {}
        self._listeners.append(await self._loop.create_unix_server(self, sock=sock, backlog=BACKLOG, **keep))

    def stop_listening(self) -> None:
        """Accepts no more. Only our descriptors are closed: where another process holds a listener too, it
        goes on."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def listeners(self) -> list[socket.socket]:
        """A second descriptor of each listening socket, for a successor; the caller closes them."""
        found = [sock for listener in self._listeners for sock in listener.sockets]
        return [socket.socket(fileno=os.dup(sock.fileno())) for sock in found]

    # who is connected

    def next_id(self) -> str:
        self._made += 1
        return f"conn_{self._made}"

    def listing(self) -> list[dict[str, Any]]:
        """Every connection with what it does, the oldest first, for people."""
        return [connection.describe() for connection in cast("list[Connection]", self.connections)]

    def end_one(self, connection_id: str) -> bool:
        """Closes a connection with whatever it does; False when there is none of this id."""
        for connection in cast("list[Connection]", self.connections):
            if connection.id == connection_id:
                connection.end()
                return True
        return False

    # draining

    @property
    def unanswered(self) -> int:
        """Requests whose answer has not begun."""
        return len(self._unanswered) + sum(c.queued for c in cast("list[Connection]", self.connections))

    @property
    def silent(self) -> int:
        """Connections that have not brought a request yet."""
        return sum(not c.used for c in cast("list[Connection]", self.connections))

    def begun(self, request: web.BaseRequest) -> None:
        """The answer's head is being written, or there is none."""
        if id(request) in self._unanswered:
            self._unanswered.remove(id(request))
            self.noted()

    def noted(self) -> None:
        if self.draining:
            self.changed()

    def begin_drain(self) -> None:
        """Every further answer ends its connection, and connections that wait for their next request are
        closed.

        What has reached this machine by now is read first: it is answered, not dropped.
        """
        self.draining = True
        self._loop.call_later(0, self._close_idle)

    def end_drain(self) -> None:
        self.draining = False

    def refuse_bodies(self) -> None:
        """The drain's deadline: whose body has not come whole is answered now, and waited for no longer."""
        failure = Failure(
            code=Code.DRAINING,
            message="The daemon drains, and the body was not complete by its deadline.",
            retry_after_seconds=DRAIN_RETRY_AFTER_S,
        )
        for connection in cast("list[Connection]", self.connections):
            connection.refuse_body(failure)

    async def wait_idle(self, timeout_s: float) -> bool:
        """Waits until no request is in flight; False if some still are after ``timeout_s``."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Ends everything: listeners, then connections with their handlers, cancelled and waited for."""
        self.draining = True
        self.stop_listening()
        transports = list(self._connections.values())
        tasks = [task for c in self.connections if (task := cast(Connection, c).end()) is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._flush(transports)
        self._connections.clear()

    def _close_idle(self) -> None:
        if not self.draining:
            return
        for connection in cast("list[Connection]", self.connections):
            if connection.idle and connection.used:
                connection.force_close()

    async def _flush(self, transports: list[asyncio.Transport]) -> None:
        """Gives peers a moment to take what is written; a peer that reads nothing is cut."""
        until = self._loop.time() + FLUSH_SECONDS
        # a transport tells nobody that it has written everything
        while self._loop.time() < until and any(t.get_write_buffer_size() for t in transports):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for transport in transports:
            transport.abort()
        await asyncio.sleep(0)  # connection_lost() is told in the next pass

    # connections

    def admit(self, connection: Connection, transport: asyncio.Transport) -> TurnedAway | None:
        """None if the connection may stay, else who tells it that it may not."""
        scarce = False
        sock = transport.get_extra_info("socket")
        if sock.family == socket.AF_UNIX:
            connection.peer = peer_of(sock)
            refused = len(self._connections) >= self.limits.max_connections
        else:
            peername = transport.get_extra_info("peername")
            address = peer_address(peername)
            scarce = sock.fileno() >= self._last_descriptor
            refused = (
                scarce
                or len(self._connections) >= self.limits.max_connections
                or (self._per_peer[address] >= self.limits.max_connections_per_peer and not self._is_proxy(peername))
            )
            if not refused:
                self._per_peer[address] += 1
                connection.peer_address = address
        if not refused:
            return None
        self.turned_away += 1
        failure = Failure(code=Code.OVERLOADED, message="There are too many connections.")
        answer = errors.raw_answer(failure, dialect=errors.Dialect.PROBLEM, request_id=self._ids("req"))
        return TurnedAway(self._loop, answer, linger=not scarce)

    def _is_proxy(self, peername: tuple[Any, ...]) -> bool:
        return forwarded.is_proxy(str(peername[0]), self.limits.trusted_proxies)

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self.noted()
        address = handler.peer_address
        if address is not None:
            self._per_peer[address] -= 1
            if not self._per_peer[address]:
                del self._per_peer[address]

    # requests

    def _make(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> Request:
        if message is ERROR:  # aiohttp's stand-in for what it could not parse: HTTP/1.0, and always the root
            path = protocol.path
            url = URL.build(path=path, encoded=True)
            message = message._replace(path=path, url=url, version=HttpVersion11)
        limit = self.limits.max_body_bytes
        remote = self._remote(protocol, message)
        request = Request(message, payload, protocol, writer, task, self._loop, client_max_size=limit, remote=remote)
        request[REQUEST_ID] = request_id_of(message.headers.get("X-Request-ID"), self._ids)
        if protocol.peer is not None:
            request[PEER] = protocol.peer
        if hdrs.EXPECT in message.headers:
            asked = message.headers[hdrs.EXPECT].lower() == "100-continue"
            request[EXPECTS_CONTINUE] = asked and request.version >= HttpVersion11
        return request

    def _remote(self, protocol: Any, message: Any) -> str | None:
        """The client's address, through the proxies that are trusted; None lets aiohttp say who is connected."""
        trusted, transport = self.limits.trusted_proxies, protocol.transport
        if not trusted or transport is None or protocol.peer is not None:
            return None
        peername = transport.get_extra_info("peername")
        values = message.headers.getall(forwarded.HEADER, ())
        return None if peername is None else forwarded.client_of(str(peername[0]), values, trusted)

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request, from its head to its answer's last byte. Raises ConnectionError if not all was
        sent."""
        request = _without_expect(cast(Request, request))
        request[BEGAN], status = time.monotonic(), CLIENT_GONE
        self._unanswered.add(id(request))
        self.in_flight += 1
        self._idle.clear()
        try:
            response = await self._answer(request)
            await response.prepare(request)
            await response.write_eof()
            status = response.status
            return response
        except AnswerCut:
            status = 500
            raise
        finally:
            self.begun(request)
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()
            cast(Connection, request.protocol).answered()
            self._on_access(request, status, time.monotonic() - request[BEGAN], request.writer.output_size)

    async def _answer(self, request: Request) -> web.StreamResponse:
        """What the application answers, or why it does not: the only place where a request's errors end."""
        span = Trace.begin(request.headers.get(trace.HEADER), self._randbytes, recorded=self.records)
        request[TRACEPARENT] = span.header
        clear_contextvars()  # of the connection's request before
        bind_contextvars(request_id=request[REQUEST_ID], **span.fields)
        headers: dict[str, str] = {}
        try:
            return await self._app._handle(request)
        except Refusal as refusal:
            failure = refusal.failure
            self._on_refused(failure.code)
            headers |= request.get(ANSWER_HEADERS, {})
        except web.HTTPException as error:
            if error.status < 400:
                return web.Response(status=error.status, headers=error.headers, body=error.body)
            failure = errors.failure_of_http_error(error)
            if isinstance(error, web.HTTPMethodNotAllowed):
                headers[hdrs.ALLOW] = ", ".join(sorted(error.allowed_methods))
        except StoreUnavailable as error:
            failure = Failure(code=Code.STORE_UNAVAILABLE, message=f"The store does not answer now: {error}.")
        except ConnectionError:
            raise
        except Exception as error:
            failure = self.unhandled(request, error)
        if request.writer.output_size > 0:
            if failure.code is not Code.INTERNAL:
                self.unhandled(request, Refusal(failure))  # a stream tells its errors in its own form
            raise AnswerCut("an answer that has begun cannot become another")
        return errors.respond(
            failure, dialect=errors.dialect_of(request.path), request_id=request[REQUEST_ID], headers=headers
        )

    def unhandled(self, request: web.BaseRequest, error: BaseException | None) -> Failure:
        """Reports what nobody expected, once, and says nothing of it to the client."""
        self._on_error(cast(Request, request)[REQUEST_ID], error or RuntimeError("unknown error"))
        return Failure(code=Code.INTERNAL, message="Something went wrong here. The log has it by request id.")

    def answer_broken(self, request: web.BaseRequest, failure: Failure) -> web.StreamResponse:
        """The answer to what never became a request; the connection ends with it."""
        dialect, request_id = errors.dialect_of(request.path), cast(Request, request)[REQUEST_ID]
        response = errors.respond(failure, dialect=dialect, request_id=request_id)
        response.force_close()
        clear_contextvars()
        bind_contextvars(request_id=request_id)
        self._on_access(request, response.status, 0.0, 0)
        return response


def peer_address(peername: tuple[Any, ...]) -> str:
    """What counts as one peer: an IPv4 address, or the /64 of an IPv6 address: what one household has.

    >>> peer_address(("127.0.0.1", 80)), peer_address(("2001:db8::1", 80, 0, 0))
    ('127.0.0.1', '2001:db8::/64')
    """
    text = str(peername[0]).partition("%")[0]
    if ":" not in text:
        return text
    address = ipaddress.IPv6Address(text)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{ipaddress.IPv6Address(address.packed[:8] + bytes(8))}/64"


def route_of(request: web.BaseRequest) -> str | None:
    """The route's own path, as ``/v1/tasks/{id}``; None for a request that has none, malformed ones included."""
    info = request._match_info if isinstance(request, web.Request) else None
    resource = None if info is None else info.route.resource
    return None if resource is None else resource.canonical


def own_trace(request: web.BaseRequest) -> str | None:
    """The request's own span, as ``traceparent`` has it; None for one that was malformed."""
    return request.get(TRACEPARENT)


def _without_expect(request: Request) -> Request:
    """aiohttp would answer ``Expect`` itself before we know who asks; :func:`read_body` does it instead."""
    if hdrs.EXPECT not in request.headers:
        return request
    headers = request.headers.copy()
    headers.popall(hdrs.EXPECT)
    return cast(Request, request.clone(headers=headers))


def _unlinks_sockets(loop: asyncio.AbstractEventLoop) -> bool:
    return isinstance(loop, asyncio.SelectorEventLoop) and "cleanup_socket" in (
        loop.create_unix_server.__kwdefaults__ or {}
    )
