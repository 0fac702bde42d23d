"""An application: one gate, and the routes behind it."""

from __future__ import annotations

from typing import Protocol

from aiohttp import web
from aiohttp.typedefs import Middleware

Application = web.Application


class Routes(Protocol):
    """A group of routes."""

    def register(self, router: web.UrlDispatcher) -> None: ...


def application(gate: Middleware, *groups: Routes) -> web.Application:
    """Every request passes ``gate`` first, those without a route included: it also raises the router's 404 and 405."""
    app = web.Application(middlewares=[gate])
    for routes in groups:
        routes.register(app.router)
    return app
