"""From a client's bytes to a wish, the same for HTTP, WebSocket and control socket."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from claude_daemon.api.chat import caller, check_schema
from claude_daemon.api.middleware import REQUEST_ID, TRACEPARENT
from claude_daemon.api.server import PEER
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.ports import Idempotency, Schemas
from claude_daemon.service.sessions import SessionWish
from claude_daemon.service.tasks import Asker, Wish
from claude_daemon.wire import tasks as wire

IDEMPOTENCY_KEY: Final = "Idempotency-Key"
_IDEMPOTENCY_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)
_SCHEMA_PATH: Final = "schema"


def asker(request: web.Request) -> Asker:
    """Who asks; over the control socket with the peer's uid."""
    peer = request.get(PEER)
    return Asker(
        key=caller(request),
        request_id=request[REQUEST_ID],
        peer_uid=peer.uid if peer is not None else None,
        traceparent=request[TRACEPARENT],
    )


async def wish_of(document: Mapping[str, Any], schemas: Schemas) -> Wish:
    """Raises Refusal with every fault of a submission."""
    asked = wire.task_of(document)
    if asked.output_schema is not None:
        await check_schema(schemas, asked.output_schema, _SCHEMA_PATH)
    return Wish(
        request=asked.inner(),
        agent=asked.agent(),
        session=None if asked.session is None else SessionWish(id=asked.session.id, fork=asked.session.fork),
        output_schema=asked.output_schema,
        timeout_seconds=asked.timeout_s,
        priority=asked.priority,
        webhook=asked.webhook,
        metadata=asked.metadata,
    )


def idempotency_of(request: web.Request, document: Mapping[str, Any]) -> Idempotency | None:
    """The client's key for this submission, if it gave one. Raises Refusal for a malformed one."""
    given = request.headers.get(IDEMPOTENCY_KEY)
    if given is None:
        return None
    if not _IDEMPOTENCY_KEY.fullmatch(given):
        why = f"{IDEMPOTENCY_KEY} has 1 to 255 visible ASCII characters."
        raise Refusal.because(Code.INVALID_REQUEST, why, param=IDEMPOTENCY_KEY)
    return Idempotency(key=given, digest=hashlib.sha256(wire.canonical(document)).digest())
