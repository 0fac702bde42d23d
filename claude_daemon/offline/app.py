"""The routes of the model: who may ask, what was asked, and the answer written to the connection."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import orjson
from aiohttp import web

from claude_daemon.offline import catalogue, events, tokens, validate
from claude_daemon.offline.author import Author
from claude_daemon.offline.errors import ERROR_TYPES, ApiError, error_body
from claude_daemon.offline.requestlog import Recorded, RequestLog
from claude_daemon.offline.script import Script
from claude_daemon.offline.settings import FaultKind, Settings

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
"""Twice what the real API takes, so that the daemon's own limit is the one under test."""
WRITE_BYTES: Final = 256 * 1024
"""A stream without pace is written in portions of this size, so that a slow reader holds it back."""

CUT_SECONDS: Final = 0.1
"""Between the last delta and a cut: a client such as Claude Code discards what it has not parsed by then."""

_LOG: Final = logging.getLogger(__name__)
_BODY: Final = web.RequestKey("body", object)
_REQUEST_ID: Final = web.RequestKey("request_id", str)
_LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
_SSE_HEADERS: Final = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Routes:
    """The handlers and their guard. `changed` is called when a request arrives and when one has ended."""

    def __init__(
        self, *, api_key: str, author: Author, log: RequestLog, ids: events.Ids, changed: Callable[[], None]
    ) -> None:
        self.active = 0
        self._api_key = api_key.encode()
        self._author = author
        self._log = log
        self._ids = ids
        self._changed = changed

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/v1/messages", self._messages)
        app.router.add_post("/v1/messages/count_tokens", self._count_tokens)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{id}", self._model)
        app.router.add_get("/offline/settings", self._get_settings)
        app.router.add_put("/offline/settings", self._put_settings)
        app.router.add_get("/offline/requests", self._get_requests)
        app.router.add_delete("/offline/requests", self._delete_requests)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let a request in only from this machine, with the key; answer every error in the API's shape."""
        request[_REQUEST_ID] = self._ids("req")
        self.active += 1
        try:
            await self._admit(request)
            return await handler(request)
        except ApiError as error:
            return _error(request, error)
        except web.HTTPException as error:
            status = error.status if error.status in ERROR_TYPES else 500
            return _error(request, ApiError(status))
        except ConnectionError:
            raise
        except Exception:
            _LOG.exception("offline model: request %s failed", request[_REQUEST_ID])
            return _error(request, ApiError(500))
        finally:
            self.active -= 1
            self._changed()

    async def _admit(self, request: web.Request) -> None:
        """Check the host and the key, then read the body. Record the request before it is answered."""
        body: object = None
        try:
            _check_host(request)
            self._check_key(request)
            body = request[_BODY] = await _read_json(request) if request.can_read_body else None
        finally:
            self._record(request, body)

    def _check_key(self, request: web.Request) -> None:
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        key = request.headers.get("x-api-key") or (bearer.strip() if scheme.lower() == "bearer" else "")
        if not hmac.compare_digest(key.encode("utf-8", "surrogateescape"), self._api_key):
            raise ApiError(401)

    def _record(self, request: web.Request, body: object) -> None:
        if request.path.startswith("/offline/"):
            return
        headers = {name.lower(): value for name, value in request.headers.items()} if self._log.enabled else {}
        self._log.add(Recorded(method=request.method, path=request.path_qs, headers=headers, body=body))
        self._changed()

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        body = validate.check(request[_BODY])
        with _NestingLimit():
            script = self._author.write(body)
        if script.fault is not None and script.fault.kind is FaultKind.HANG:
            await _forever()
        if body.get("stream"):
            return await self._stream(request, script)
        return await self._whole(request, script)

    async def _stream(self, request: web.Request, script: Script) -> web.StreamResponse:
        """Write the events: all at once where nothing asks for time, else delta by delta."""
        stream = events.stream(script, self._ids, request[_REQUEST_ID])
        headers = _SSE_HEADERS | {"request-id": request[_REQUEST_ID]}
        at_once = not (script.first_s or script.pace_s)
        if at_once and stream.ending is events.Ending.END and sum(map(len, stream.chunks)) <= WRITE_BYTES:
            whole = web.Response(body=b"".join(stream.chunks), headers=headers)
            whole.enable_chunked_encoding()
            return whole
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await asyncio.sleep(script.first_s)
        for number, portion in enumerate(_portions(stream.chunks, WRITE_BYTES if at_once else 1)):
            if number:
                await asyncio.sleep(script.pace_s)
            await response.write(portion)
        if stream.ending is events.Ending.SILENCE:
            await _forever()
        if stream.ending is events.Ending.DROP:
            await asyncio.sleep(CUT_SECONDS)
            _drop(request)
        return response

    async def _whole(self, request: web.Request, script: Script) -> web.StreamResponse:
        """Answer without a stream, after the time that one would have taken."""
        kind = script.fault.kind if script.fault is not None else None
        if kind is FaultKind.STALL:
            await _forever()
        if kind is FaultKind.CUT:
            _drop(request)
        await asyncio.sleep(script.first_s + script.pace_s * (script.output_tokens - 1))
        return _json(request, events.message(script, self._ids))

    async def _count_tokens(self, request: web.Request) -> web.StreamResponse:
        body = validate.check(request[_BODY], needs_max_tokens=False)
        with _NestingLimit():
            return _json(request, {"input_tokens": tokens.count(body)})

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return _json(request, catalogue.models())

    async def _model(self, request: web.Request) -> web.StreamResponse:
        model = catalogue.model(request.match_info["id"])
        if model is None:
            raise ApiError(404, f"model: {request.match_info['id'][:200]}")
        return _json(request, model)

    async def _get_settings(self, request: web.Request) -> web.StreamResponse:
        return _json(request, self._author.settings.to_json())

    async def _put_settings(self, request: web.Request) -> web.StreamResponse:
        try:
            self._author.settings = Settings.from_json(request[_BODY])
        except ValueError as error:
            raise ApiError(400, str(error)) from None
        return _json(request, self._author.settings.to_json())

    async def _get_requests(self, request: web.Request) -> web.StreamResponse:
        entries = [
            {"method": entry.method, "path": entry.path, "headers": entry.headers, "body": entry.body}
            for entry in self._log.entries
        ]
        return _json(request, {"recording": self._log.enabled, "requests": entries})

    async def _delete_requests(self, request: web.Request) -> web.StreamResponse:
        self._log.clear()
        return _json(request, {"recording": self._log.enabled, "requests": []})


class _NestingLimit:
    """Turns what Python and orjson raise for a body nested too deeply into a 400."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, RecursionError | orjson.JSONEncodeError):
            raise ApiError(400, "body: nested too deeply") from None


def _check_host(request: web.Request) -> None:
    """Only names of this machine, with our own port: refuses a page that rebinds its DNS name to loopback."""
    transport = request.transport
    port = transport.get_extra_info("sockname")[1] if transport is not None else None
    if request.headers.get("host") not in {f"{name}:{port}" for name in _LOCAL_NAMES}:
        raise ApiError(403, "host: not a name of this server")


async def _read_json(request: web.Request) -> object:
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise ApiError(413)
    try:
        return orjson.loads(await request.read())
    except orjson.JSONDecodeError:
        raise ApiError(400, "body: not valid JSON") from None


def _portions(chunks: tuple[bytes, ...], size: int) -> list[bytes]:
    """The chunks, joined until each portion but the last has at least `size` bytes."""
    portions: list[bytes] = []
    held: list[bytes] = []
    held_bytes = 0
    for chunk in chunks:
        held.append(chunk)
        held_bytes += len(chunk)
        if held_bytes >= size:
            portions.append(b"".join(held))
            held, held_bytes = [], 0
    return [*portions, b"".join(held)] if held else portions


def _drop(request: web.Request) -> None:
    """Close the connection after what is already written; the body never gets its end."""
    if request.transport is not None:
        request.transport.close()


async def _forever() -> None:
    """Wait until the client goes away or the server stops: both cancel the handler."""
    await asyncio.Event().wait()


def _json(request: web.Request, body: Mapping[str, Any]) -> web.Response:
    headers = {"request-id": request[_REQUEST_ID]}
    return web.Response(body=orjson.dumps(body), content_type="application/json", headers=headers)


def _error(request: web.Request, error: ApiError) -> web.Response:
    request_id = request[_REQUEST_ID]
    headers = {"request-id": request_id}
    if error.retry_after_seconds is not None:
        headers["retry-after"] = str(error.retry_after_seconds)
    body = orjson.dumps(error_body(error.type, str(error), request_id))
    return web.Response(status=error.status, body=body, content_type="application/json", headers=headers)
