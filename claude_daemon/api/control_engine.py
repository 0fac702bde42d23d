"""The control API's share of the engine: ``claudectl engine check``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from aiohttp import web

from claude_daemon.api.control import Record, ndjson, recorded


class ControlEngineRoutes:
    """``check`` begins a check and tells it as it goes on; it raises Refusal while another is under way."""

    def __init__(self, check: Callable[[], AsyncIterator[Mapping[str, Any]]], *, record: Record) -> None:
        self._check = check
        self._record = record

    def register(self, router: web.UrlDispatcher) -> None:
        router.add_post("/control/v1/engine/check", self.check)

    async def check(self, request: web.Request) -> web.StreamResponse:
        lines = self._check()
        await recorded(request, self._record, "engine.check")
        return await ndjson(request, lines)
