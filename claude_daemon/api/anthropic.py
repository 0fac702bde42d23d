"""The Anthropic dialect over HTTP: nearly the identity on the inner form."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import orjson
from aiohttp import web

from claude_daemon.api import chat
from claude_daemon.api.errors import Dialect, status_of
from claude_daemon.api.middleware import REQUEST_ID
from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.event import Event
from claude_daemon.core.task import Lane
from claude_daemon.engine.schema import SchemaChecker
from claude_daemon.service.admit import Admitted
from claude_daemon.wire import anthropic

# A rough estimate for where nobody can be asked; the answer is marked as such.
_CHARS_PER_TOKEN: Final = 4

CountTokens = Callable[[bytes, Mapping[str, str]], Awaitable[bytes]]
"""Asks the upstream; the body of its answer. Raises Refusal."""


class AnthropicRoutes:
    """``/v1/messages`` and ``/v1/messages/count_tokens``. ``count`` is None where only the CLI has a login."""

    def __init__(self, chats: chat.Chats, schemas: SchemaChecker, count: CountTokens | None) -> None:
        self._chats = chats
        self._schemas = schemas
        self._count = count

    def register(self, router: web.UrlDispatcher) -> None:
        router.add_post("/v1/messages", self.messages)
        router.add_post("/v1/messages/count_tokens", self.count_tokens)

    async def messages(self, request: web.Request) -> web.StreamResponse:
        lane = self._chats.lane(request)
        asked = anthropic.parse_messages(await self._chats.body(request))
        # what goes straight through is the upstream's to judge; on the text lane the form is ours to keep
        schema = _schema_of(asked) if lane is Lane.TEXT else None
        if schema is not None:
            await self._check(schema)
        streamed = bool(asked.get("stream"))
        admitted = self._chats.begin(request, lane, asked, stream=streamed, output_schema=schema)
        async with self._chats.follow(admitted.run) as following:
            if streamed:
                return await self._stream(request, following, admitted)
            message, raw = await following.message()
            headers = {**chat.headers_of(admitted), "request-id": request[REQUEST_ID]}
            body = raw if raw is not None else orjson.dumps(message)
            return web.Response(body=body, content_type="application/json", headers=headers)

    async def _check(self, schema: object) -> None:
        faults = await self._schemas.check(schema)
        if faults:
            said = "; ".join(f"{fault.path}: {fault.message}" if fault.path else fault.message for fault in faults[:5])
            path = "output_config.format.schema"
            failure = Failure(code=Code.INVALID_REQUEST, message=f"{path}: {said}", param=path, faults=tuple(faults))
            raise Refusal(failure)

    async def _stream(self, request: web.Request, following: chat.Following, admitted: Admitted) -> web.StreamResponse:
        request_id = request[REQUEST_ID]

        def failed(failure: Failure) -> bytes:
            body = anthropic.error_body(failure, status_of(failure.code, Dialect.ANTHROPIC), request_id)
            return b"event: error\ndata: " + orjson.dumps(body) + b"\n\n"

        headers = {**chat.headers_of(admitted), "request-id": request_id}
        return await chat.stream(request, following, headers, dialect=Dialect.ANTHROPIC, encode=_encode, failed=failed)

    async def count_tokens(self, request: web.Request) -> web.Response:
        self._chats.admission.check_open()
        asked = anthropic.parse_count_tokens(await self._chats.body(request))
        asked["model"] = self._chats.admission.model(asked["model"])
        if self._count is not None:
            body = await self._count(orjson.dumps(asked), request.headers)
            return web.Response(body=body, content_type="application/json")
        counted = len(orjson.dumps([asked.get("system"), asked["messages"], asked.get("tools")]))
        body = orjson.dumps({"input_tokens": -(-counted // _CHARS_PER_TOKEN)})
        headers = {chat.APPROXIMATED_HEADER: "input_tokens"}
        return web.Response(body=body, content_type="application/json", headers=headers)


def _encode(batch: Sequence[Event]) -> bytes:
    """The events in the API's framing; what came from the upstream goes on byte for byte."""
    pieces: list[bytes] = []
    for event in batch:
        kind = str(event.data.get("type")).encode()
        pieces += (b"event: ", kind, b"\ndata: ", event.raw or orjson.dumps(event.data), b"\n\n")
    return b"".join(pieces)


def _schema_of(asked: Mapping[str, Any]) -> Mapping[str, Any] | None:
    form = (asked.get("output_config") or {}).get("format")
    schema = form.get("schema") if isinstance(form, dict) and form.get("type") == "json_schema" else None
    return schema if isinstance(schema, dict) else None
