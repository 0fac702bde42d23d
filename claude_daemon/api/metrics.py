"""``GET /metrics``: the numbers for Prometheus; the same over the control socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from aiohttp import hdrs, web

from claude_daemon.api.middleware import KEY
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.key import Key
from claude_daemon.core.role import METRICS, Role, refuses

_JSON = "application/json"


class Exposition(Protocol):
    """The numbers, read anew each time."""

    async def text(self) -> bytes: ...

    async def document(self) -> bytes: ...


class MetricsRoutes:
    """``content_type`` is that of the text. ``role_of``: what a key may."""

    def __init__(self, exposition: Exposition, content_type: str, role_of: Callable[[Key, int | None], Role]) -> None:
        self._exposition = exposition
        self._content_type = content_type
        self._role_of = role_of

    def register(self, router: web.UrlDispatcher) -> None:
        router.add_get("/metrics", self.metrics)

    async def metrics(self, request: web.Request) -> web.Response:
        if (why := refuses(self._role_of(request[KEY], None), scopes=[METRICS])) is not None:
            raise Refusal.because(Code.FORBIDDEN, why)
        return await self.text()

    async def text(self) -> web.Response:
        return _answer(await self._exposition.text(), self._content_type)

    async def document(self) -> web.Response:
        return _answer(await self._exposition.document(), _JSON)


class ControlMetricsRoutes:
    """``GET metrics``: JSON for those who accept that alone, as ``claudectl metrics`` does, else the text."""

    def __init__(self, routes: MetricsRoutes) -> None:
        self._routes = routes

    def register(self, router: web.UrlDispatcher) -> None:
        router.add_get("/control/v1/metrics", self.metrics)

    async def metrics(self, request: web.Request) -> web.Response:
        if request.headers.get(hdrs.ACCEPT, "").strip() == _JSON:
            return await self._routes.document()
        return await self._routes.text()


def _answer(body: bytes, content_type: str) -> web.Response:
    return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type, hdrs.CACHE_CONTROL: "no-store"})
