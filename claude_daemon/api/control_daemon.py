"""The control API's share of the daemon itself: reload, stop, restart, panic, workers,
config, levels, connections, stacks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Annotated, Any, Literal, Protocol

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, model_validator

from claude_daemon.api.chat import Chats
from claude_daemon.api.control import Record, json_answer, ndjson, recorded
from claude_daemon.core.worker import MAX_WORKERS
from claude_daemon.wire.parse import parse

Level = Literal["debug", "info", "warning", "error", "critical"]


class Operations(Protocol):
    """What the composition root lends to operators. Everything that names something may raise Refusal."""

    @property
    def reload(self) -> Callable[[], Mapping[str, Any]]: ...
    @property
    def restart(self) -> Callable[[], Awaitable[int]]: ...
    def stop(self, mode: Literal["smart", "fast", "immediate"]) -> None: ...
    async def panic(self) -> list[str]: ...
    def scale(self, workers: int | None, spares: int | None) -> dict[str, int]: ...
    def recycle_all(self, *, rolling: bool) -> list[str]: ...
    def recycle(self, worker_id: str) -> str: ...
    def kill(self, worker_id: str) -> str: ...
    def config(self) -> Mapping[str, Any]: ...
    def levels(self) -> Mapping[str, Level]: ...
    def set_level(self, level: Level | None, logger: str) -> None: ...
    def connections(self) -> list[dict[str, Any]]: ...
    def close_connection(self, connection_id: str) -> None: ...
    def stacks(self) -> dict[str, Any]: ...


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StopRequest(_Strict):
    """``POST stop``. ``wait`` False: answer at once."""

    mode: Literal["smart", "fast", "immediate"] = "smart"
    wait: bool = True


class RestartRequest(_Strict):
    """``POST restart``. ``wait`` False: answer as soon as the successor's configuration was found good."""

    wait: bool = True


class ScaleRequest(_Strict):
    """``POST workers/scale``. What is absent stays."""

    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] | None = None
    spares: Annotated[int, Field(ge=0, le=MAX_WORKERS)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> ScaleRequest:
        if self.workers is None and self.spares is None:
            raise ValueError("workers, spares or both are needed")
        return self


class RecycleRequest(_Strict):
    """``POST workers/recycle``. ``rolling``: one idle worker after another, not all at once."""

    rolling: bool = True


class LevelRequest(_Strict):
    """``POST log-level``. ``level`` null gives a logger back to its parent."""

    level: Level | None
    logger: Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9_.]*$")] = ""


class ControlDaemonRoutes:
    """``progress`` are the lines of a drain, up to its end."""

    def __init__(
        self,
        operations: Operations,
        chats: Chats,
        *,
        progress: Callable[[], AsyncIterator[Mapping[str, Any]]],
        line: Callable[[], Mapping[str, Any]],
        record: Record,
    ) -> None:
        self._operations = operations
        self._chats = chats
        self._progress = progress
        self._line = line
        self._record = record

    def register(self, router: web.UrlDispatcher) -> None:
        base = "/control/v1"
        router.add_post(f"{base}/reload", self.reload)
        router.add_post(f"{base}/stop", self.stop)
        router.add_post(f"{base}/restart", self.restart)
        router.add_post(f"{base}/panic", self.panic)
        router.add_post(f"{base}/workers/scale", self.scale)
        router.add_post(f"{base}/workers/recycle", self.recycle_all)
        router.add_post(f"{base}/workers/{{id}}/recycle", self.recycle)
        router.add_post(f"{base}/workers/{{id}}/kill", self.kill)
        router.add_get(f"{base}/config", self.config)
        router.add_get(f"{base}/log-level", self.levels)
        router.add_post(f"{base}/log-level", self.set_level)
        router.add_get(f"{base}/connections", self.connections)
        router.add_delete(f"{base}/connections/{{id}}", self.close_connection)
        router.add_get(f"{base}/stacks", self.stacks)

    # the whole

    async def reload(self, request: web.Request) -> web.Response:
        """Its own audit record is the daemon's, which reloads for a signal too."""
        return json_answer(self._operations.reload())

    async def stop(self, request: web.Request) -> web.StreamResponse:
        asked = parse(StopRequest, await self._chats.body(request) or b"{}")
        self._operations.stop(asked.mode)
        await recorded(request, self._record, "stop", mode=asked.mode)
        if not asked.wait:
            return json_answer(self._line())
        return await ndjson(request, self._progress())

    async def restart(self, request: web.Request) -> web.StreamResponse:
        asked = parse(RestartRequest, await self._chats.body(request) or b"{}")
        successor = await self._operations.restart()
        await recorded(request, self._record, "restart", successor=successor)
        if not asked.wait:
            return json_answer({**self._line(), "successor": successor})
        return await ndjson(request, self._handing_over(successor))

    async def _handing_over(self, successor: int) -> AsyncIterator[Mapping[str, Any]]:
        async for line in self._progress():
            yield {**line, "successor": successor}

    async def panic(self, request: web.Request) -> web.Response:
        killed = await self._operations.panic()
        await recorded(request, self._record, "panic", killed=killed)
        return json_answer({"killed": killed, "paused": True, "state": self._line()["state"]})

    # workers

    async def scale(self, request: web.Request) -> web.Response:
        asked = parse(ScaleRequest, await self._chats.body(request))
        sizes = self._operations.scale(asked.workers, asked.spares)
        await recorded(request, self._record, "workers.scale", **sizes)
        return json_answer(sizes)

    async def recycle_all(self, request: web.Request) -> web.Response:
        asked = parse(RecycleRequest, await self._chats.body(request) or b"{}")
        ids = self._operations.recycle_all(rolling=asked.rolling)
        await recorded(request, self._record, "workers.recycle", rolling=asked.rolling)
        return json_answer({"recycling": ids})

    async def recycle(self, request: web.Request) -> web.Response:
        return await self._to_worker(request, "recycle", self._operations.recycle)

    async def kill(self, request: web.Request) -> web.Response:
        return await self._to_worker(request, "kill", self._operations.kill)

    async def _to_worker(self, request: web.Request, act: str, do: Callable[[str], str]) -> web.Response:
        worker_id = request.match_info["id"]
        state = do(worker_id)
        await recorded(request, self._record, f"workers.{act}", worker_id=worker_id)
        return json_answer({"id": worker_id, "state": state})

    # what it tells

    async def config(self, request: web.Request) -> web.Response:
        """Every setting with its value and its origin."""
        return json_answer(self._operations.config())

    async def levels(self, request: web.Request) -> web.Response:
        return json_answer({"levels": self._operations.levels()})

    async def set_level(self, request: web.Request) -> web.Response:
        asked = parse(LevelRequest, await self._chats.body(request))
        self._operations.set_level(asked.level, asked.logger)
        await recorded(request, self._record, "log-level", level=asked.level, logger=asked.logger)
        return await self.levels(request)

    async def connections(self, request: web.Request) -> web.Response:
        return json_answer({"connections": self._operations.connections()})

    async def close_connection(self, request: web.Request) -> web.Response:
        connection_id = request.match_info["id"]
        self._operations.close_connection(connection_id)
        await recorded(request, self._record, "connections.close", connection_id=connection_id)
        return json_answer({"id": connection_id, "closed": True})

    async def stacks(self, request: web.Request) -> web.Response:
        return json_answer(self._operations.stacks())
