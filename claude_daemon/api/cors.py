"""Cross-origin requests from browsers: only for pages whose origin the operator has configured.

Those pages bring a key like everybody else; there are no cookies, so no credentials of a browser's own are allowed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from aiohttp import hdrs, web

ORIGIN: Final = web.RequestKey("cors_origin", str)
"""Set where a page of a configured origin asks."""
MAX_AGE_S: Final = 600
"""How long a browser remembers that it may ask; a reload that takes an origin away counts by then."""

# What a page may read of an answer beyond its body.
_EXPOSED: Final = ", ".join(
    (
        "X-Request-ID",
        "X-Task-ID",
        "X-Session-ID",
        "Claude-Daemon-Lane",
        "Claude-Daemon-Approximated",
        "Retry-After",
        "request-id",
    )
)
# A list of header names; SDKs in a browser send two dozen of their own.
_NAMES: Final = re.compile(r"[A-Za-z0-9_-]{1,64}(?:[ \t]*,[ \t]*[A-Za-z0-9_-]{1,64}){0,63}", re.ASCII)


def is_preflight(request: web.Request) -> bool:
    return request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers


def preflight(request: web.Request, methods: Iterable[str]) -> web.Response:
    """What the page may do on this route, which has these methods. Nothing runs, so no key is needed."""
    headers: dict[str, str] = {
        hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(sorted(methods)),
        hdrs.ACCESS_CONTROL_MAX_AGE: str(MAX_AGE_S),
    }
    asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "").strip()
    if _NAMES.fullmatch(asked):
        headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked
    if request.headers.get("Access-Control-Request-Private-Network") == "true":
        headers["Access-Control-Allow-Private-Network"] = "true"
    return web.Response(status=204, headers=headers)


def headers_for(origin: str) -> Mapping[str, str]:
    """Of every answer to such a page, errors too: else it could not read why."""
    return {
        hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin,
        hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: _EXPOSED,
        hdrs.VARY: hdrs.ORIGIN,
    }
