"""The control API's share of tasks and their store: ``claudectl run``, ``tasks``, ``queue`` and ``backup``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from claude_daemon.api import sse
from claude_daemon.api.chat import Chats
from claude_daemon.api.control import Record, recorded
from claude_daemon.api.submission import asker, wish_of
from claude_daemon.api.tasks import TaskRoutes
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.task import Task
from claude_daemon.ports import Schemas, StoreUnavailable
from claude_daemon.service.follow import Follow
from claude_daemon.service.tasks import TaskDesk, unavailable
from claude_daemon.service.upkeep import Upkeep
from claude_daemon.wire import tasks as wire
from claude_daemon.wire.parse import load, parse

_NDJSON = {"Content-Type": "application/x-ndjson"}


class PurgeRequest(BaseModel):
    """``POST tasks/purge``. ``before``: seconds since the epoch; tasks that ended before then go."""

    model_config = ConfigDict(extra="forbid", strict=True)

    before: float = Field(ge=0, allow_inf_nan=False)


class BackupRequest(BaseModel):
    """``POST backup``. ``path``: absolute, and not there yet; it is written by the daemon, as its user."""

    model_config = ConfigDict(extra="forbid", strict=True)

    path: str = Field(min_length=1, max_length=4096, pattern=r"^/")


class ControlTaskRoutes:
    """``tasks`` answers what the public port answers too."""

    def __init__(
        self,
        desk: TaskDesk,
        tasks: TaskRoutes,
        follow: Follow,
        upkeep: Upkeep,
        chats: Chats,
        schemas: Schemas,
        *,
        record: Record,
    ) -> None:
        self._desk = desk
        self._tasks = tasks
        self._follow = follow
        self._upkeep = upkeep
        self._chats = chats
        self._schemas = schemas
        self._record = record

    def register(self, router: web.UrlDispatcher) -> None:
        base = "/control/v1"
        router.add_post(f"{base}/tasks", self.submit)
        router.add_get(f"{base}/tasks", self._tasks.list)
        router.add_post(f"{base}/tasks/purge", self.purge)
        router.add_get(f"{base}/tasks/{{id}}", self._tasks.get)
        router.add_get(f"{base}/tasks/{{id}}/events", self.events)
        router.add_post(f"{base}/tasks/{{id}}/cancel", self._tasks.cancel)
        router.add_post(f"{base}/tasks/{{id}}/approvals/{{approval}}", self._tasks.approve)
        router.add_get(f"{base}/approvals", self.approvals)
        router.add_post(f"{base}/tasks/{{id}}/retry", self.retry)
        router.add_post(f"{base}/queue/pause", self.pause)
        router.add_post(f"{base}/queue/resume", self.resume)
        router.add_post(f"{base}/backup", self.backup)

    async def submit(self, request: web.Request) -> web.StreamResponse:
        """Submits a task and streams its events; with ``?detach=true`` the task as it was queued."""
        if request.query.get("detach") == "true":
            return _json(wire.task_document(await self._submitted(request)), 202)
        return await self._ndjson(request, (await self._submitted(request)).id, 0)

    async def _submitted(self, request: web.Request) -> Task:
        document = load(await self._chats.body(request))
        return (await self._desk.submit(asker(request), await wish_of(document, self._schemas)))[0]

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The task's events from ``?after=`` on, up to its end."""
        task_id = await self._tasks.followed(request)
        return await self._ndjson(request, task_id, sse.cursor(request.query.get("after", ""), "after"))

    async def _ndjson(self, request: web.Request, task_id: str, after: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={**_NDJSON, "X-Task-ID": task_id})
        await response.prepare(request)
        async with aclosing(cast(Any, self._follow.events(task_id, after))) as batches:
            async for events in batches:
                await response.write(b"".join(event.raw + b"\n" for event in events))
        return response

    async def approvals(self, request: web.Request) -> web.Response:
        """Every call that waits for somebody's word, the oldest first."""
        waiting = sorted(self._desk.approvals(asker(request)), key=lambda approval: approval.requested_at)
        told = [{"task": approval.task_id, **approval.document()} for approval in waiting]
        return _json(wire.list_document(told, None))

    async def retry(self, request: web.Request) -> web.Response:
        task = await self._desk.retry(asker(request), request.match_info["id"])
        return _json(wire.task_document(task), 202)

    async def purge(self, request: web.Request) -> web.Response:
        asked = parse(PurgeRequest, await self._chats.body(request))
        if asked.before > time.time():
            raise Refusal.because(Code.INVALID_REQUEST, "`before` lies in the future.", param="before")
        await recorded(request, self._record, "tasks.purge", before=asked.before)
        try:
            return _json({"purged": await self._upkeep.purge(asked.before)})
        except StoreUnavailable as error:
            raise Refusal(unavailable(error)) from error

    async def pause(self, request: web.Request) -> web.Response:
        return await self._set_paused(request, True)

    async def resume(self, request: web.Request) -> web.Response:
        return await self._set_paused(request, False)

    async def _set_paused(self, request: web.Request, paused: bool) -> web.Response:
        try:
            await (self._upkeep.pause() if paused else self._upkeep.resume())
        except StoreUnavailable as error:
            raise Refusal(unavailable(error)) from error
        await recorded(request, self._record, "queue.pause" if paused else "queue.resume")
        return _json({"paused": paused})

    async def backup(self, request: web.Request) -> web.Response:
        asked = parse(BackupRequest, await self._chats.body(request))
        await recorded(request, self._record, "backup", path=asked.path)
        try:
            size = await self._upkeep.backup(Path(asked.path))
        except FileExistsError:
            raise Refusal.because(Code.CONFLICT, f"{asked.path} is there already", param="path") from None
        except OSError as error:
            why = f"{asked.path}: {error.strerror or error}"
            raise Refusal.because(Code.INVALID_REQUEST, why, param="path") from error
        return _json({"path": asked.path, "size_bytes": size})


def _json(body: Mapping[str, Any], status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")
