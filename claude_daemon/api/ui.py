"""``/ui`` and ``/docs``: two pages and what they are made of, read once and served from RAM.

They hold nothing of anybody's, so they need no key; what they show they ask for with the key that is typed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from types import MappingProxyType
from typing import Final

from aiohttp import web

CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",  # a form that no script has taken over goes nowhere, and no key with it
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # text never becomes markup: what would do that throws
        "trusted-types 'none'",
    )
)
_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Content-Security-Policy": CONTENT_SECURITY_POLICY,
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
)
_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
)
PAGES: Final[Mapping[str, str]] = MappingProxyType({"/ui": "ui.html", "/docs": "docs.html"})
"""Each page's path, and its file."""
_PARTS: Final = (
    "base.css",
    "ui.css",
    "docs.css",
    "icon.svg",
    "app.js",
    "approvals.js",
    "client.js",
    "docs.js",
    "dom.js",
    "overview.js",
    "stream.js",
    "task.js",
    "tasks.js",
    "tools.js",
    "transcript.js",
    "usage.js",
)
FILES: Final[Mapping[str, str]] = MappingProxyType({**PAGES, **{f"/ui/{part}": part for part in _PARTS}})
"""Every path of theirs, and its file in ``static``. None needs a key."""


class PageRoutes:
    """The pages are the same for everybody and for as long as the daemon lives."""

    def __init__(self) -> None:
        static = resources.files("claude_daemon.api") / "static"
        self._bodies = {path: (static / name).read_bytes() for path, name in FILES.items()}

    def register(self, router: web.UrlDispatcher) -> None:
        for path in FILES:
            router.add_get(path, self.page)

    async def page(self, request: web.Request) -> web.Response:
        kind = _TYPES[FILES[request.path].rpartition(".")[2]]
        return web.Response(body=self._bodies[request.path], content_type=kind, charset="utf-8", headers=_HEADERS)
