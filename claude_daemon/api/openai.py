"""The OpenAI dialect over HTTP: a translation around the same runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
from aiohttp import web

from claude_daemon.api import chat
from claude_daemon.api.errors import Dialect, status_of
from claude_daemon.core.errors import Failure, Refusal
from claude_daemon.core.event import Event
from claude_daemon.core.task import Lane, Task
from claude_daemon.ports import Schemas
from claude_daemon.wire import openai

_SCHEMA_PATH: Final = "response_format.json_schema.schema"


class OpenAIRoutes:
    """``/v1/chat/completions`` and ``/v1/models``."""

    def __init__(self, chats: chat.Chats, schemas: Schemas) -> None:
        self._chats = chats
        self._schemas = schemas
        self._started = chat.now()

    def register(self, router: web.UrlDispatcher) -> None:
        router.add_post("/v1/chat/completions", self.completions)
        router.add_get("/v1/models", self.models)
        router.add_get("/v1/models/{model}", self.model)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        lane = self._chats.lane(request)
        asked = openai.parse_request(await self._chats.body(request))
        wanted = openai.to_messages(asked)
        if wanted.output_schema is not None:
            await chat.check_schema(self._schemas, wanted.output_schema, _SCHEMA_PATH)
        body = wanted.request
        if lane is not Lane.DIRECT and asked.max_tokens is None and asked.max_completion_tokens is None:
            del body["max_tokens"]  # the client set no limit, and Claude Code needs none
        session = await self._chats.session(request)
        try:
            admitted = self._chats.begin(
                request, lane, body, stream=wanted.stream, output_schema=wanted.output_schema, session=session
            )
        except Refusal as refusal:
            raise Refusal(openai.in_client_words(refusal.failure)) from None
        form = _Completion(admitted.run.task, include_usage=wanted.include_usage)
        return await self._chats.answer(request, admitted, form)

    async def models(self, request: web.Request) -> web.Response:
        return _json(openai.models_list(self._chats.models(request), created=self._started))

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        self._chats.check_model(request, name)
        return _json(openai.model_object(name, created=self._started))


class _Completion:
    """One ``chat.completion``, whole or in chunks."""

    dialect = Dialect.OPENAI
    headers: Mapping[str, str] = {}
    end = openai.DONE

    def __init__(self, task: Task, *, include_usage: bool) -> None:
        self._head: dict[str, Any] = {
            "id": "chatcmpl-" + task.id.removeprefix("task_"),
            "created": int(task.created_at),
            "model": task.spec.model,
        }
        self._chunks = openai.ChunkStream(**self._head, include_usage=include_usage)

    def events(self, batch: Sequence[Event]) -> bytes:
        encoded = self._chunks.feed_encoded
        return b"".join([encoded(event.data) for event in batch])

    def message(self, message: Mapping[str, Any], raw: bytes | None) -> bytes:
        return orjson.dumps(openai.completion(message, **self._head))

    def failed(self, failure: Failure) -> bytes:
        return openai.encode(openai.error_body(failure, status_of(failure.code, Dialect.OPENAI)))


def _json(body: object) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")
