"""The OpenAI dialect over HTTP: a translation around the same runs."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from aiohttp import web

from claude_daemon.api import chat
from claude_daemon.api.errors import Dialect, status_of
from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.event import Event
from claude_daemon.core.task import Lane
from claude_daemon.engine.schema import SchemaChecker
from claude_daemon.service.admit import Admitted
from claude_daemon.wire import openai


class OpenAIRoutes:
    """``/v1/chat/completions`` and ``/v1/models``."""

    def __init__(self, chats: chat.Chats, schemas: SchemaChecker) -> None:
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
            await self._check(wanted.output_schema)
        body = wanted.request
        if lane is Lane.TEXT and asked.max_tokens is None and asked.max_completion_tokens is None:
            del body["max_tokens"]  # the client set no limit, and the text lane needs none
        try:
            admitted = self._chats.begin(request, lane, body, stream=wanted.stream, output_schema=wanted.output_schema)
        except Refusal as refusal:
            raise Refusal(openai.in_client_words(refusal.failure)) from None
        async with self._chats.follow(admitted.run) as following:
            if wanted.stream:
                return await self._stream(request, following, admitted, include_usage=wanted.include_usage)
            return await self._whole(following, admitted)

    async def _check(self, schema: object) -> None:
        faults = await self._schemas.check(schema)
        if faults:
            path = "response_format.json_schema.schema"
            said = "; ".join(f"{fault.path}: {fault.message}" if fault.path else fault.message for fault in faults[:5])
            failure = Failure(code=Code.INVALID_REQUEST, message=f"{path}: {said}", param=path, faults=tuple(faults))
            raise Refusal(failure)

    async def _stream(
        self, request: web.Request, following: chat.Following, admitted: Admitted, *, include_usage: bool
    ) -> web.StreamResponse:
        task = admitted.run.task
        chunks = openai.ChunkStream(
            id=_completion_id(task.id),
            created=int(task.created_at),
            model=task.spec.model,
            include_usage=include_usage,
        )

        def encode(batch: Sequence[Event]) -> bytes:
            return b"".join([chunks.feed_encoded(event.data) for event in batch])

        def failed(failure: Failure) -> bytes:
            return openai.encode(openai.error_body(failure, status_of(failure.code, Dialect.OPENAI)))

        headers = chat.headers_of(admitted)
        return await chat.stream(
            request, following, headers, dialect=Dialect.OPENAI, encode=encode, failed=failed, end=openai.DONE
        )

    async def _whole(self, following: chat.Following, admitted: Admitted) -> web.Response:
        message, _ = await following.message()
        task = admitted.run.task
        body = openai.completion(
            message, id=_completion_id(task.id), created=int(task.created_at), model=task.spec.model
        )
        return _json(body, chat.headers_of(admitted))

    async def models(self, request: web.Request) -> web.Response:
        return _json(openai.models_list(self._chats.admission.models, created=self._started))

    async def model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        self._chats.admission.model(name)
        return _json(openai.model_object(name, created=self._started))


def _completion_id(task_id: str) -> str:
    return "chatcmpl-" + task_id.removeprefix("task_")


def _json(body: object, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json", headers=headers)
