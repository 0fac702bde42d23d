"""The control API's share of the audit: ``claudectl audit``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from claude_daemon.api.control import json_answer
from claude_daemon.core.audit import Anchor
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.ports import Audit, AuditRecord, StoreUnavailable
from claude_daemon.service.audit import AuditDesk
from claude_daemon.wire.parse import validate

MAX_PAGE: Final = 1000


class ListQuery(BaseModel):
    """``GET audit``: the last ``limit`` records, oldest first. ``act``: ``key.created``, or all of ``key``; ``since``:
    seconds since the epoch; ``after``: those behind this number, from there on; ``request``, ``task``: about these."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=100, ge=1, le=MAX_PAGE)
    act: str | None = Field(default=None, min_length=1, max_length=64)
    since: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    after: int | None = Field(default=None, ge=0)
    request: str | None = Field(default=None, min_length=1, max_length=128)
    task: str | None = Field(default=None, min_length=1, max_length=64)


class VerifyQuery(BaseModel):
    """``GET audit/verify``."""

    model_config = ConfigDict(extra="forbid")

    anchor: str | None = Field(default=None, max_length=100)


class ControlAuditRoutes:
    """Reading is no act of its own: nothing of it is recorded."""

    def __init__(self, store: Audit, desk: AuditDesk) -> None:
        self._store = store
        self._desk = desk

    def register(self, router: web.UrlDispatcher) -> None:
        base = "/control/v1"
        router.add_get(f"{base}/audit", self.list)
        router.add_get(f"{base}/audit/verify", self.verify)

    async def list(self, request: web.Request) -> web.Response:
        asked = validate(ListQuery, dict(request.query))
        try:
            if asked.after is not None:
                found = await self._store.audit(asked.after, asked.limit)
            else:
                found = await self._store.audit_latest(
                    asked.limit, asked.act, asked.since, request_id=asked.request, task_id=asked.task
                )
        except StoreUnavailable as error:
            raise _unreadable() from error
        return json_answer({"object": "list", "data": [_document(n, record) for n, record in found]})

    async def verify(self, request: web.Request) -> web.Response:
        asked = validate(VerifyQuery, dict(request.query))
        try:
            anchor = None if asked.anchor is None else Anchor.parse(asked.anchor)
        except ValueError as error:
            raise Refusal.because(Code.INVALID_REQUEST, f"`anchor`: {error}.", param="anchor") from error
        try:
            verdict = await self._desk.verify(anchor)
        except StoreUnavailable as error:
            raise _unreadable() from error
        head = None if verdict.head is None else str(verdict.head)
        return json_answer({"ok": verdict.broken is None, **asdict(verdict), "head": head})


def _document(n: int, record: AuditRecord) -> dict[str, Any]:
    return {"n": n, **asdict(record)}


def _unreadable() -> Refusal:
    return Refusal.because(Code.STORE_UNAVAILABLE, "The store cannot be read now.")
