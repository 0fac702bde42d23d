"""``/live``, ``/ready``, ``/startup``, ``/health`` and ``/openapi.json``: no key needed, nothing waits."""

from __future__ import annotations

from typing import Final

import orjson
from aiohttp import web

from claude_daemon.api.middleware import KEY
from claude_daemon.core.lifecycle import Check, DaemonState
from claude_daemon.service.health import Health, Probe
from claude_daemon.wire import openapi

_RETRY_AFTER_S: Final = "5"  # as for refused work: a restart takes about so long
_DRAINING: Final = frozenset({DaemonState.DRAINING, DaemonState.DRAINED})


class ProbeRoutes:
    """Answers from RAM; the checks behind them are cached for a second."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._openapi = orjson.dumps(openapi.document(health.version))

    def register(self, router: web.UrlDispatcher) -> None:
        router.add_get("/live", self.live)
        router.add_get("/ready", self.ready)
        router.add_get("/startup", self.startup)
        router.add_get("/health", self.health)
        router.add_get("/openapi.json", self.openapi)

    async def live(self, request: web.Request) -> web.Response:
        return self._answer(self._health.live())

    async def ready(self, request: web.Request) -> web.Response:
        return self._answer(self._health.ready())

    async def startup(self, request: web.Request) -> web.Response:
        return self._answer(self._health.startup())

    def _answer(self, probe: Probe) -> web.Response:
        headers = {"Cache-Control": "no-store"}
        if not probe.ok and self._health.state in _DRAINING:
            headers["Retry-After"] = _RETRY_AFTER_S
        status = 200 if probe.ok else 503
        return web.Response(
            status=status, body=orjson.dumps(probe.body()), content_type="application/json", headers=headers
        )

    async def health(self, request: web.Request) -> web.Response:
        return health_answer(self._health, details=KEY in request)

    async def openapi(self, request: web.Request) -> web.Response:
        return web.Response(body=self._openapi, content_type="application/json")


def health_answer(health: Health, *, details: bool) -> web.Response:
    """``application/health+json``; 503 while the whole fails."""
    document = health.document(details=details)
    status = 503 if document["status"] == Check.FAIL else 200
    return web.Response(
        status=status,
        body=orjson.dumps(document),
        content_type="application/health+json",
        headers={"Cache-Control": "no-store"},
    )
