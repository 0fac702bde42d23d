"""Who may ask what: the checks that every public request passes before its route, cheapest first.

Pure functions for each check, and :class:`Gate`, the one middleware that runs them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, cast

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_protocol import RequestPayloadError
from structlog.contextvars import bind_contextvars
from yarl import URL

from claude_daemon.api import cors, ui
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.key import Key
from claude_daemon.ports import Ids

REQUEST_ID: Final = web.RequestKey("request_id", str)
TRACEPARENT: Final = web.RequestKey("traceparent", str)
"""The request's own span, for whatever is done on its behalf: below the client's where it told one."""
BEGAN: Final = web.RequestKey("began", float)
"""When the request was complete but for its body, in monotonic seconds."""
FACTS: Final = web.RequestKey("facts", object)
"""A callable that tells :func:`facts_of`, given :data:`BEGAN`."""
KEY: Final = web.RequestKey("key", Key)
"""The key of the caller; on open routes only if a good one was given."""
ANSWER_HEADERS: Final = web.RequestKey("answer_headers", dict[str, str])
"""What the answer tells besides, if it is a refusal."""
EXPECTS_CONTINUE: Final = web.RequestKey("expects_continue", bool)
"""Set where the client waits for leave to send its body."""

OPEN_ROUTES: Final = frozenset({"/live", "/ready", "/startup", "/health", "/openapi.json"}) | ui.FILES.keys()
"""Routes that need no key."""

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)
_CODINGS: Final = frozenset({"", "identity", "gzip", "deflate"})  # those that aiohttp undoes


def facts_of(request: web.BaseRequest) -> Mapping[str, Any]:
    """What a request's access line tells besides, now that it is over."""
    facts = cast("Callable[[float], Mapping[str, Any]] | None", request.get(FACTS))
    return {} if facts is None else facts(request[BEGAN])


def request_id_of(given: str | None, ids: Ids) -> str:
    """The client's request id if it may stand in logs and headers, else a new one."""
    return given if given is not None and _REQUEST_ID.fullmatch(given) else ids("req")


def host_name(authority: str) -> str:
    """``Example.com:8006`` → ``example.com``; the brackets of an IPv6 literal stay."""
    name, colon, port = authority.rpartition(":")
    if not colon or not port.isdigit():
        name = authority
    return name.lower().removesuffix(".")


def secret_of(request: web.Request) -> str | None:
    """The key that a request brings: ``Authorization: Bearer``, ``x-api-key``, or a browser's WebSocket
    subprotocol ``bearer.<key>``; None if it brings none."""
    headers = request.headers
    scheme, _, credentials = headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if "x-api-key" in headers:
        return headers["x-api-key"]
    for protocol in headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(","):
        if protocol.strip().startswith("bearer."):
            return protocol.strip().removeprefix("bearer.")
    return None


async def _at_once() -> None:
    """Start-up is over."""


class Gate:
    """The middleware of the public port.

    ``allowed_hosts`` are names without a port: the port in ``Host`` is whatever a client or a tunnel
    reaches us by, and DNS rebinding, against which this stands, shows in the name. ``*`` allows every name.
    ``identify`` and ``check_route`` are :class:`KeyDesk's <claude_daemon.service.keys.KeyDesk>`: the key with a secret
    that came from an address, and whether it may use a route; both raise Refusal. ``started`` returns when start-up is
    over: whoever comes earlier waits for it, and is served then, for a restart must cost nobody a request.
    """

    def __init__(
        self,
        *,
        identify: Callable[[str, str | None], Key],
        allowed_hosts: Iterable[str],
        allowed_origins: Iterable[str] = (),
        open_routes: frozenset[str] = OPEN_ROUTES,
        check_route: Callable[[Key, str], None] = lambda key, path: None,
        started: Callable[[], Awaitable[None]] = _at_once,
    ) -> None:
        self._identify = identify
        self._check_route = check_route
        self._open_routes = open_routes
        self._started = started
        self.apply(allowed_hosts, allowed_origins)

    def apply(self, allowed_hosts: Iterable[str], allowed_origins: Iterable[str]) -> None:
        """From the next request on."""
        self._hosts = frozenset(host.lower().removesuffix(".") for host in allowed_hosts)
        self._origins = frozenset(origin.lower().removesuffix("/") for origin in allowed_origins)

    def middleware(self) -> Middleware:
        """For ``web.Application(middlewares=[…])``."""

        @web.middleware
        async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
            if (answer := self._preflight(request)) is not None:
                return answer
            self.check(request)
            if request.path not in self._open_routes:
                await self._started()
            return await handler(request)

        return gate

    def _preflight(self, request: web.Request) -> web.Response | None:
        """A browser asks whether a page of another origin may ask. Raises Refusal as :meth:`check` does."""
        error = request.match_info.http_exception
        if not cors.is_preflight(request) or not isinstance(error, web.HTTPMethodNotAllowed):
            return None
        self._check_host(request)
        self._check_origin(request)
        return cors.preflight(request, error.allowed_methods) if cors.ORIGIN in request else None

    def check(self, request: web.Request) -> None:
        """Sets :data:`KEY`, or raises Refusal, or the router's 404 or 405."""
        self._check_host(request)
        self._check_origin(request)
        error = request.match_info.http_exception
        if error is not None:
            raise error
        self._check_key(request)
        check_media_type(request)

    def _check_host(self, request: web.Request) -> None:
        target = request.raw_path
        host = request.headers.get(hdrs.HOST)
        authorities = [] if host is None else [host]  # only HTTP/1.0 may go without: no browser does
        if not target.startswith("/") and target != "*":
            authorities.append(URL(target, encoded=True).raw_authority)
        for authority in authorities:
            if host_name(authority) not in self._hosts and "*" not in self._hosts:
                raise Refusal.because(
                    Code.HOST_NOT_ALLOWED, "Not a host of this service; http.allowed_hosts lists them."
                )

    def _check_origin(self, request: web.Request) -> None:
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is None:
            return
        own, asked = request.headers.get(hdrs.HOST, "").lower(), origin.lower()
        if own and asked in (f"http://{own}", f"https://{own}"):
            return
        if asked in self._origins:
            request[cors.ORIGIN] = origin
            return
        raise Refusal.because(
            Code.ORIGIN_NOT_ALLOWED, "This origin may not call us; http.allowed_origins lists those that may."
        )

    def _check_key(self, request: web.Request) -> None:
        open_to_all = request.path in self._open_routes
        secret = secret_of(request)
        if secret is None:
            if not open_to_all:
                needed = "A key is needed: Authorization: Bearer cd_… or x-api-key."
                raise Refusal.because(Code.UNAUTHENTICATED, needed)
            return
        try:
            key = self._identify(secret, getattr(request.protocol, "peer_address", None))
        except Refusal:
            if not open_to_all:
                raise
            return
        request[KEY] = key
        bind_contextvars(key_id=key.id)
        if not open_to_all:
            resource = request.match_info.route.resource
            self._check_route(key, request.path if resource is None else resource.canonical)


def check_media_type(request: web.Request) -> None:
    """Bodies are JSON, as aiohttp can decode them. Raises Refusal."""
    if not request.body_exists:
        return
    media_type = request.headers.get(hdrs.CONTENT_TYPE, "application/json").partition(";")[0].strip().lower()
    coding = request.headers.get(hdrs.CONTENT_ENCODING, "").strip().lower()
    if media_type != "application/json" or coding not in _CODINGS:
        raise Refusal.because(
            Code.UNSUPPORTED_MEDIA_TYPE, "The body must be application/json, plain or in gzip or deflate."
        )


async def read_body(request: web.Request, max_bytes: int, timeout_s: float) -> bytes:
    """The whole body of a request.

    A body that is announced as too large is refused before any of it is read; one of unknown length as soon
    as it is. ``100 Continue`` is sent only here, so a client that asks first never sends what nobody would
    read.

    Raises Refusal: ``body_too_large``, ``request_timeout`` if it is not complete within ``timeout_s``,
    ``invalid_request`` if it is cut or malformed. All of them end the connection.
    """
    if not request.body_exists:
        return b""
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    if request.get(EXPECTS_CONTINUE, False) and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        async with asyncio.timeout(timeout_s):
            return await _collect(request, max_bytes)
    except TimeoutError:
        message = f"The body was not complete within {timeout_s:g} seconds."
        raise Refusal.because(Code.REQUEST_TIMEOUT, message) from None
    except RequestPayloadError:
        request.protocol.close()
        raise Refusal.because(Code.INVALID_REQUEST, "The body's framing or encoding is malformed.") from None


async def _collect(request: web.Request, max_bytes: int) -> bytes:
    first = await request.content.readany()
    if request.content.at_eof() and len(first) <= max_bytes:
        return first  # the usual case: it came in one piece
    pieces, size = [first], len(first)
    while size <= max_bytes and (piece := await request.content.readany()):
        pieces.append(piece)
        size += len(piece)
    if size > max_bytes:
        raise _too_large(max_bytes)
    return b"".join(pieces)


def _too_large(max_bytes: int) -> Refusal:
    return Refusal.because(Code.BODY_TOO_LARGE, f"The body exceeds {max_bytes} bytes.")
