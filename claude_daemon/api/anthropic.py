"""The Anthropic dialect over HTTP: nearly the identity on the inner form."""

from __future__ import annotations

import asyncio
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
from claude_daemon.ports import Schemas
from claude_daemon.wire import anthropic

COUNT_TIMEOUT_S: Final = 60.0
"""Nothing is generated: the API counts in less than a second, and its slowest day is not an hour long."""
REQUEST_ID_HEADER: Final = "request-id"
"""What Anthropic's libraries read, beside the ``X-Request-ID`` that every answer has."""

# A rough estimate for where nobody can be asked; the answer is marked as such.
_CHARS_PER_TOKEN: Final = 4
_TOKENS_PER_FILE: Final = 1600  # the most that the API makes of one image
_SCHEMA_PATH: Final = "output_config.format.schema"

CountTokens = Callable[[bytes, Mapping[str, str]], Awaitable[bytes]]
"""Asks the upstream; the body of its answer. Raises Refusal."""


class AnthropicRoutes:
    """``/v1/messages`` and ``/v1/messages/count_tokens``. ``count`` is None where only the CLI has a login."""

    def __init__(self, chats: chat.Chats, schemas: Schemas, count: CountTokens | None) -> None:
        self._chats = chats
        self._schemas = schemas
        self._count = count

    def register(self, router: web.UrlDispatcher) -> None:
        router.add_post("/v1/messages", self.messages)
        router.add_post("/v1/messages/count_tokens", self.count_tokens)

    async def messages(self, request: web.Request) -> web.StreamResponse:
        lane = self._chats.lane(request)
        asked = anthropic.parse_messages(await self._chats.body(request))
        schema = None
        if lane is Lane.TEXT and _wants_schema(asked):
            # what goes straight through is the upstream's to judge; on the text lane the form is ours to keep
            schema = asked["output_config"]["format"].get("schema")
            await chat.check_schema(self._schemas, schema, _SCHEMA_PATH)
        streamed = bool(asked.get("stream"))
        session = await self._chats.session(request)
        admitted = self._chats.begin(request, lane, asked, stream=streamed, output_schema=schema, session=session)
        return await self._chats.answer(request, admitted, _Message(request[REQUEST_ID]))

    async def count_tokens(self, request: web.Request) -> web.Response:
        self._chats.admission.check_open()
        asked = anthropic.parse_count_tokens(await self._chats.body(request))
        asked["model"] = self._chats.check_model(request, asked["model"])
        with self._chats.limited(request):
            self._chats.admission.enter(chat.caller(request).id)
        headers = {REQUEST_ID_HEADER: request[REQUEST_ID], **self._chats.rates(request, Dialect.ANTHROPIC)}
        if self._count is not None:
            try:
                async with asyncio.timeout(COUNT_TIMEOUT_S):
                    body = await self._count(orjson.dumps(asked), chat.passed_headers(request))
            except TimeoutError:
                why = f"The upstream did not count within {COUNT_TIMEOUT_S:g} seconds."
                raise Refusal.because(Code.DEADLINE, why) from None
        else:
            body = orjson.dumps({"input_tokens": estimated_tokens(asked)})
            headers[chat.APPROXIMATED_HEADER] = "input_tokens"
        return web.Response(body=body, content_type="application/json", headers=headers)


class _Message:
    """One message of the Messages API, whole or in its events."""

    dialect = Dialect.ANTHROPIC
    end = b""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self.headers: Mapping[str, str] = {REQUEST_ID_HEADER: request_id}

    def events(self, batch: Sequence[Event]) -> bytes:
        """The events in the API's framing; what came from the upstream goes on byte for byte."""
        pieces: list[bytes] = []
        for event in batch:
            data = event.raw
            if data is None or b"\n" in data or b"\r" in data:  # a line break would end the field
                data = orjson.dumps(event.data)
            kind = event.data.get("type")
            pieces += (_HEADS.get(kind) or _head(kind), data, b"\n\n")
        return b"".join(pieces)

    def message(self, message: Mapping[str, Any], raw: bytes | None) -> bytes:
        return raw if raw is not None else orjson.dumps(message)

    def failed(self, failure: Failure) -> bytes:
        body = anthropic.error_body(failure, status_of(failure.code, Dialect.ANTHROPIC), self._request_id)
        return _head("error") + orjson.dumps(body) + b"\n\n"


def _head(kind: object) -> bytes:
    """The beginning of an event, up to its data."""
    name = "".join(str(kind).split())
    return b"event: " + name.encode() + b"\ndata: "


# One is looked up for every delta.
_HEADS: Final[Mapping[Any, bytes]] = {
    kind: _head(kind)
    for kind in (
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "ping",
    )
}


def _wants_schema(asked: Mapping[str, Any]) -> bool:
    form = (asked.get("output_config") or {}).get("format")
    return isinstance(form, dict) and form.get("type") == "json_schema"


def estimated_tokens(asked: Mapping[str, Any]) -> int:
    """A request's input tokens, by its length: files, whose bytes say little, count the same each. Never 0."""
    files = 0

    def counted(value: Any) -> Any:
        nonlocal files
        if isinstance(value, list):
            return [counted(item) for item in value]
        if not isinstance(value, dict):
            return value
        if isinstance(value.get("source"), dict):
            files += 1
            return None
        return {name: counted(item) for name, item in value.items()}

    text = orjson.dumps(counted([asked.get("system"), asked["messages"], asked.get("tools")]))
    return -(-len(text) // _CHARS_PER_TOKEN) + files * _TOKENS_PER_FILE
