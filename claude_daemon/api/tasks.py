"""``/v1/tasks`` and ``/v1/batches``: durable work over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final, cast

import orjson
from aiohttp import web
from multidict import MultiMapping
from structlog.contextvars import bind_contextvars

from claude_daemon.api import sse
from claude_daemon.api.chat import Chats, caller
from claude_daemon.api.connection import Connection
from claude_daemon.api.fanout import Fanout
from claude_daemon.api.submission import IDEMPOTENCY_KEY, asker, idempotency_of, wish_of
from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.task import Kind, State, Task
from claude_daemon.ports import Answer, BatchState, Schemas
from claude_daemon.service.tasks import TaskDesk, Wish
from claude_daemon.service.watch import Watched
from claude_daemon.wire import tasks as wire
from claude_daemon.wire.parse import MAX_NAME, load, nearest

DEFAULT_LIMIT: Final = 20
MAX_LIMIT: Final = 100
"""Of one page: a task's result may be long."""
_AT_ONCE: Final = 16


class TaskRoutes:
    """``chats`` reads bodies; ``fanout`` serves followers. ``watched``: see
    :meth:`Watches.watched <claude_daemon.service.watch.Watches.watched>`."""

    def __init__(self, desk: TaskDesk, chats: Chats, fanout: Fanout, schemas: Schemas, *, watched: Watched) -> None:
        self._watched = watched
        self._desk = desk
        self._chats = chats
        self._fanout = fanout
        self._schemas = schemas

    def register(self, router: web.UrlDispatcher) -> None:
        router.add_post("/v1/tasks", self.submit)
        router.add_get("/v1/tasks", self.list)
        router.add_get("/v1/tasks/{id}", self.get)
        router.add_get("/v1/tasks/{id}/events", self.events)
        router.add_post("/v1/tasks/{id}/cancel", self.cancel)
        router.add_post("/v1/tasks/{id}/approvals/{approval}", self.approve)
        router.add_post("/v1/batches", self.submit_batch)
        router.add_get("/v1/batches/{id}", self.batch)

    async def submit(self, request: web.Request) -> web.StreamResponse:
        """202 once the task is durable; 200 with the first task for an idempotency key that was used before."""
        if wants_events(request):
            return await self._stream(request, (await self._submitted(request))[0].id, 0)
        task, new = await self._submitted(request)
        headers = {"Location": f"/v1/tasks/{task.id}", "X-Task-ID": task.id}
        return _json(wire.task_document(task), status=202 if new else 200, headers=headers)

    async def _submitted(self, request: web.Request) -> tuple[Task, bool]:
        """On its own, so that whoever only follows keeps nothing of what was asked."""
        document = load(await self._chats.body(request))
        wish = await wish_of(document, self._schemas)
        task, new = await self._desk.submit(asker(request), wish, idempotency_of(request, document))
        _is_about(task)
        return task, new

    async def list(self, request: web.Request) -> web.Response:
        query = query_of(request, "kind", "state", "limit", "cursor")
        page = await self._desk.list(
            asker(request),
            kind=_one(Kind, query.get("kind"), "kind") if "kind" in query else Kind.TASK,
            states=frozenset(_one(State, name, "state") for name in query.getall("state", [])) or None,
            limit=limit_of(query.get("limit")),
            cursor=query.get("cursor"),
        )
        return _json(wire.list_document([wire.task_document(task) for task in page.tasks], page.next))

    async def get(self, request: web.Request) -> web.Response:
        return _json(wire.task_document(await self._task(request)))

    async def events(self, request: web.Request) -> web.StreamResponse:
        query_of(request, "after")
        return await self._stream(request, await self.followed(request), sse.cursor_of(request))

    async def _stream(self, request: web.Request, task_id: str, after: int) -> web.StreamResponse:
        """Cut when the key is not good any more."""
        connection = cast(Connection, request.protocol)
        with self._watched(caller(request), lambda why: connection.cut()):
            return await sse.stream(request, self._fanout, task_id, after)

    async def followed(self, request: web.Request) -> str:
        """The id of a task that has events, and nothing else of it: a stream lives long. Raises Refusal."""
        task = await self._task(request)
        if task.spec.kind is Kind.CHAT:
            raise Refusal.because(Code.CONFLICT, "A chat keeps no events.")
        return task.id

    async def cancel(self, request: web.Request) -> web.Response:
        task = await self._desk.cancel(asker(request), request.match_info["id"])
        _is_about(task)
        return _json(wire.task_document(task))

    async def approve(self, request: web.Request) -> web.Response:
        """Allows or denies a call that waits; the same answer again changes nothing."""
        asked = wire.parse_answer(await self._chats.body(request))
        named = request.match_info
        answer = Answer(allow=asked.allow, message=asked.message)
        approval = await self._desk.approve(asker(request), named["id"], named["approval"], answer)
        return _json({"object": "approval", "task": named["id"], "allow": answer.allow, **approval.document()})

    async def submit_batch(self, request: web.Request) -> web.Response:
        if IDEMPOTENCY_KEY in request.headers:
            why = "A batch has no idempotency key; submit tasks one by one where that is needed."
            raise Refusal.because(Code.UNSUPPORTED_PARAMETER, why, param=IDEMPOTENCY_KEY)
        wishes: list[Wish | Failure] = []
        for number, document in enumerate(wire.parse_batch(await self._chats.body(request))):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # a thousand faulty ones take a second, and others have their turn meanwhile
            try:
                wishes.append(await wish_of(document, self._schemas))
            except Refusal as refusal:
                wishes.append(refusal.failure)
        state = await self._desk.submit_batch(asker(request), wishes)
        return _json(batch_document(state), status=202, headers={"Location": f"/v1/batches/{state.batch.id}"})

    async def batch(self, request: web.Request) -> web.Response:
        return _json(batch_document(await self._desk.batch(asker(request), request.match_info["id"])))

    async def _task(self, request: web.Request) -> Task:
        task = await self._desk.get(asker(request), request.match_info["id"])
        _is_about(task)
        return task


def _is_about(task: Task) -> None:
    """The request's lines say so from here on."""
    bind_contextvars(task_id=task.id, lane=task.spec.lane.value)


def wants_events(request: web.Request) -> bool:
    return "text/event-stream" in request.headers.get("Accept", "")


def query_of(request: web.Request, *known: str) -> MultiMapping[str]:
    """The query. Raises Refusal for a name that is not known: a filter that is misspelt would let everything pass."""
    for name in request.query:
        if name not in known:
            why = f"This query parameter is not known here.{nearest(name, known)}"
            raise Refusal.because(Code.UNSUPPORTED_PARAMETER, why, param=name[:MAX_NAME])
    return request.query


def limit_of(given: str | None) -> int:
    """Raises Refusal for what is no number of tasks."""
    if given is None:
        return DEFAULT_LIMIT
    if not given.isascii() or not given.isdigit() or len(given) > 9 or not 1 <= int(given) <= MAX_LIMIT:
        raise Refusal.because(Code.INVALID_REQUEST, f"`limit` is from 1 to {MAX_LIMIT}.", param="limit")
    return int(given)


def _one(kinds: Any, name: str | None, param: str) -> Any:
    try:
        return kinds(name)
    except ValueError:
        known = ", ".join(kinds)
        raise Refusal.because(Code.INVALID_REQUEST, f"`{param}` is one of {known}.", param=param) from None


def batch_document(state: BatchState) -> dict[str, Any]:
    """Each task by its position, refused ones with their error; ``finished`` when none is on its way any more."""
    batch = state.batch
    counts = dict.fromkeys([*(s.value for s in State), "refused"], 0)
    rows: list[dict[str, Any]] = []
    for position in range(batch.size):
        task, failure = state.tasks.get(position), batch.refused.get(position)
        name = "refused" if failure is not None else task.state.value if task is not None else "purged"
        counts[name] = counts.get(name, 0) + 1
        error = failure or (task.outcome.failure if task is not None and task.outcome is not None else None)
        rows.append({"id": task.id if task else None, "state": name, "error": wire.error_document(error)})
    under_way = counts["queued"] + counts["running"]
    return {
        "id": batch.id,
        "object": "batch",
        "state": "running" if under_way else "finished",
        "created_at": batch.created_at,
        "counts": counts,
        "tasks": rows,
    }


def _json(body: Mapping[str, Any], *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json", headers=headers)
