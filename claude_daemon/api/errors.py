"""Failures as HTTP answers: the one table from codes to statuses, and the three forms of their bodies."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final

import orjson
from aiohttp import web

from claude_daemon.core.errors import Code, Failure
from claude_daemon.wire import anthropic, openai, problem

SECURITY_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Referrer-Policy": "no-referrer",
    }
)
"""On every answer that does not set them itself: none is a page, and none is anybody's to keep or to frame."""


class Dialect(StrEnum):
    """The form in which a route tells its errors."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """How one code is answered.

    ``anthropic`` and ``openai`` are set where those routes differ from ``status``. ``retry_after_seconds``
    is the hint where the failure brings none. ``close`` ends the connection with the answer. ``headers``
    are always sent.
    """

    status: int
    anthropic: int | None = None
    openai: int | None = None
    retry_after_seconds: float | None = None
    close: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)

    def status_in(self, dialect: Dialect) -> int:
        special = {Dialect.ANTHROPIC: self.anthropic, Dialect.OPENAI: self.openai}.get(dialect)
        return special or self.status


PHRASES: Final[Mapping[int, str]] = {
    **{status.value: status.phrase for status in HTTPStatus},
    499: "Client Closed Request",
    529: "Overloaded",
}

# What the clients' own libraries look for: without it they send again what was answered with 409, 429 or 5xx.
NO_RETRY: Final[Mapping[str, str]] = {"x-should-retry": "false"}

TABLE: Final[Mapping[Code, Row]] = {
    Code.INVALID_REQUEST: Row(status=400),
    Code.BAD_CONFIGURATION: Row(status=400),
    Code.UNSUPPORTED_PARAMETER: Row(status=400),
    Code.LANE_UNAVAILABLE: Row(status=400),
    Code.UNAUTHENTICATED: Row(status=401, headers={"WWW-Authenticate": "Bearer"}),
    Code.FORBIDDEN: Row(status=403),
    Code.FROM_WORKER: Row(status=403),
    Code.NOT_FOUND: Row(status=404),
    Code.MODEL_NOT_FOUND: Row(status=404),
    Code.METHOD_NOT_ALLOWED: Row(status=405),
    Code.UNSUPPORTED_MEDIA_TYPE: Row(status=415),
    # the rest of the body is still under way: the connection is of no more use
    Code.BODY_TOO_LARGE: Row(status=413, close=True),
    Code.REQUEST_TIMEOUT: Row(status=408, close=True),
    Code.HOST_NOT_ALLOWED: Row(status=421),
    Code.ORIGIN_NOT_ALLOWED: Row(status=403),
    Code.CONTROL_VERSION: Row(status=426, headers={"Upgrade": "claude-daemon-control/1", "Claude-Daemon-Control": "1"}),
    Code.CONFLICT: Row(status=409, headers=NO_RETRY),
    Code.IDEMPOTENCY_CONFLICT: Row(status=409, headers=NO_RETRY),
    Code.QUEUE_FULL: Row(status=429, retry_after_seconds=30),
    Code.RATE_LIMITED: Row(status=429, retry_after_seconds=1),
    # to wait helps only tomorrow, or next month
    Code.BUDGET_EXHAUSTED: Row(status=402, openai=429, headers=NO_RETRY),
    Code.DRAINING: Row(status=503, retry_after_seconds=5, close=True),
    Code.OVERLOADED: Row(status=503, anthropic=529, retry_after_seconds=2),
    # our own overload, not the upstream's slowness: hence not 504
    Code.QUEUE_TIMEOUT: Row(status=503, anthropic=529, retry_after_seconds=5),
    Code.NOT_READY: Row(status=503, retry_after_seconds=2),
    Code.STORE_UNAVAILABLE: Row(status=503, retry_after_seconds=5),
    Code.INTERNAL: Row(status=500),
    Code.UPSTREAM_INVALID_REQUEST: Row(status=400),
    Code.UPSTREAM_NOT_FOUND: Row(status=404),
    Code.UPSTREAM_TOO_LARGE: Row(status=413),
    # no client can mend our credential by asking again
    Code.UPSTREAM_CREDENTIAL: Row(status=502, headers=NO_RETRY),
    Code.UPSTREAM_RATE_LIMITED: Row(status=429),
    Code.UPSTREAM_OVERLOADED: Row(status=503, anthropic=529, retry_after_seconds=5),
    Code.UPSTREAM_ERROR: Row(status=502),
    Code.UPSTREAM_UNREACHABLE: Row(status=502),
    Code.UPSTREAM_CUT: Row(status=502),
    Code.UPSTREAM_MALFORMED: Row(status=502),
    Code.ENGINE_CRASHED: Row(status=502),
    Code.ENGINE_UNAVAILABLE: Row(status=503, retry_after_seconds=5),
    Code.ANSWER_DIVERGED: Row(status=502),
    Code.SCHEMA_MISMATCH: Row(status=502),
    Code.STALLED: Row(status=504),
    Code.DEADLINE: Row(status=504),
    # a task's own limits: no route answers with them, the task tells them as its end
    Code.MAX_TURNS: Row(status=409, headers=NO_RETRY),
    Code.DISK_QUOTA: Row(status=409, headers=NO_RETRY),
    Code.MEMORY_LIMIT: Row(status=409, headers=NO_RETRY),
    Code.MAX_COST: Row(status=402, headers=NO_RETRY),
    Code.SANDBOX_UNAVAILABLE: Row(status=403),
    Code.MCP_UNAVAILABLE: Row(status=502),
    # somebody cancelled it on purpose. A 5xx or 409 would make client libraries run it again.
    Code.CANCELLED: Row(status=499, headers=NO_RETRY),
    Code.INTERRUPTED: Row(status=503, retry_after_seconds=5),
}


def dialect_of(path: str) -> Dialect:
    """The dialect of a route, by its path without the query."""
    if path.startswith("/v1/messages") and path[12:13] in ("", "/"):
        return Dialect.ANTHROPIC
    if path == "/v1/chat/completions" or (path.startswith("/v1/models") and path[10:11] in ("", "/")):
        return Dialect.OPENAI
    return Dialect.PROBLEM


def status_of(code: Code, dialect: Dialect) -> int:
    return TABLE[code].status_in(dialect)


def headers_of(failure: Failure) -> dict[str, str]:
    """Retry-After in whole seconds and never 0, ``Connection: close``, and what the code always brings."""
    row = TABLE[failure.code]
    headers = dict(row.headers)
    wait = failure.retry_after_seconds if failure.retry_after_seconds is not None else row.retry_after_seconds
    if wait is not None:
        headers["Retry-After"] = str(max(1, math.ceil(wait)))
    if row.close:
        headers["Connection"] = "close"
    return headers


def respond(
    failure: Failure, *, dialect: Dialect, request_id: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    """The answer to a request that failed before anything was sent. ``headers`` are added."""
    status, body, content_type = _content(failure, dialect, request_id)
    response = web.Response(
        body=body,
        status=status,
        reason=_phrase(status),
        headers={"Content-Type": content_type, **_own(dialect, request_id), **headers_of(failure), **(headers or {})},
    )
    if TABLE[failure.code].close:
        response.force_close()
    return response


def raw_answer(failure: Failure, *, dialect: Dialect, request_id: str) -> bytes:
    """The same as bytes, for a connection on which no request is ever read; it is closed after it."""
    status, body, content_type = _content(failure, dialect, request_id)
    headers = {
        "Content-Type": content_type,
        "Content-Length": str(len(body)),
        "X-Request-ID": request_id,
        **SECURITY_HEADERS,
        **_own(dialect, request_id),
        **headers_of(failure),
        "Connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} {_phrase(status)}\r\n{head}\r\n".encode("ascii") + body


def _own(dialect: Dialect, request_id: str) -> dict[str, str]:
    """Anthropic's libraries read the id from a header without the ``X-``."""
    return {"request-id": request_id} if dialect is Dialect.ANTHROPIC else {}


def _content(failure: Failure, dialect: Dialect, request_id: str) -> tuple[int, bytes, str]:
    status = status_of(failure.code, dialect)
    if dialect is Dialect.ANTHROPIC:
        body, content_type = anthropic.error_body(failure, status, request_id), "application/json"
    elif dialect is Dialect.OPENAI:
        body, content_type = openai.error_body(failure, status), "application/json"
    else:
        body, content_type = problem.problem(failure, status, request_id), problem.CONTENT_TYPE
    return status, _encode(body), content_type


def _encode(body: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(body)
    except TypeError:  # a lone surrogate, from a client's header or path
        return json.dumps(body).encode("ascii")


def _phrase(status: int) -> str:
    """The reason phrase, also for the two statuses that no registry has."""
    return PHRASES.get(status, "Error")


def failure_of_http_error(error: web.HTTPException) -> Failure:
    """An error that aiohttp raised (its router, or a route's ``request.read()``) in our terms."""
    codes = {
        401: (Code.UNAUTHENTICATED, "A key is needed."),
        403: (Code.FORBIDDEN, "This is not allowed."),
        404: (Code.NOT_FOUND, "There is no such route."),
        405: (Code.METHOD_NOT_ALLOWED, "This route does not have that method."),
        413: (Code.BODY_TOO_LARGE, "The body is too large."),
        415: (Code.UNSUPPORTED_MEDIA_TYPE, "The body's media type is not supported."),
    }
    usual = (Code.INVALID_REQUEST, "The request is not valid.")
    if error.status >= 500:
        usual = (Code.INTERNAL, "Something went wrong here.")
    code, message = codes.get(error.status, usual)
    return Failure(code=code, message=message)
