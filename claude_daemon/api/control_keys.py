"""The control API's share of API keys: ``claudectl keys``."""

from __future__ import annotations

import time
from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from claude_daemon.api.chat import Chats, caller
from claude_daemon.api.control import json_answer
from claude_daemon.api.middleware import REQUEST_ID
from claude_daemon.api.server import PEER
from claude_daemon.api.tasks import query_of
from claude_daemon.core.budget import Budget, micro_usd, usd
from claude_daemon.core.role import DEFAULT_ROLE
from claude_daemon.service.keys import MAX_OVERLAP_SECONDS, KeyDesk, KeyWish, Listed, Maker, NewKey
from claude_daemon.wire.parse import parse

Word = Annotated[str, Field(min_length=1, max_length=64)]
MAX_USD = 1_000_000_000
"""More is no limit; and money is counted in whole numbers that a database can hold."""
Dollars = Annotated[float, Field(ge=0, le=MAX_USD, allow_inf_nan=False)]


class CreateRequest(BaseModel):
    """``POST keys``. ``domain`` null: one of its own; ``expires``: seconds since the epoch, null for never. Of
    budgets null is no limit."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Word
    role: Word = DEFAULT_ROLE
    domain: Word | None = None
    expires: Annotated[float, Field(allow_inf_nan=False)] | None = None
    budget_usd_day: Dollars | None = None
    budget_usd_month: Dollars | None = None


class RotateRequest(BaseModel):
    """``POST keys/{id}/rotate``. ``overlap_s``: how long the secret until now is good still."""

    model_config = ConfigDict(extra="forbid", strict=True)

    overlap_s: Annotated[float, Field(ge=0, le=MAX_OVERLAP_SECONDS, allow_inf_nan=False)] = 0.0


class ControlKeyRoutes:
    """``{id}`` is a key's id, or its name. Who changed a key stands in the audit, in the same commit as the change."""

    def __init__(self, desk: KeyDesk, chats: Chats) -> None:
        self._desk = desk
        self._chats = chats

    def register(self, router: web.UrlDispatcher) -> None:
        base = "/control/v1"
        router.add_get(f"{base}/keys", self.list)
        router.add_post(f"{base}/keys", self.create)
        router.add_post(f"{base}/keys/{{id}}/rotate", self.rotate)
        router.add_post(f"{base}/keys/{{id}}/suspend", self.suspend)
        router.add_post(f"{base}/keys/{{id}}/resume", self.resume)
        router.add_post(f"{base}/keys/{{id}}/revoke", self.revoke)

    async def list(self, request: web.Request) -> web.Response:
        every = query_of(request, "all").get("all") == "1"
        return json_answer({"keys": [self._document(one) for one in await self._desk.list(revoked=every)]})

    async def create(self, request: web.Request) -> web.Response:
        """Of all answers only this one and that of :meth:`rotate` ever hold the secret."""
        asked = parse(CreateRequest, await self._chats.body(request))
        budget = Budget(
            day_micro_usd=micro_usd(asked.budget_usd_day), month_micro_usd=micro_usd(asked.budget_usd_month)
        )
        wish = KeyWish(name=asked.name, role=asked.role, domain=asked.domain, expires_at=asked.expires, budget=budget)
        made = await self._desk.create(_maker(request), wish)
        return self._with_secret(made, 201, {"shares_with": list(self._desk.company_of(made.key))})

    async def rotate(self, request: web.Request) -> web.Response:
        asked = parse(RotateRequest, await self._chats.body(request) or b"{}")
        made = await self._desk.rotate(_maker(request), request.match_info["id"], asked.overlap_s)
        return self._with_secret(made, 200, {})

    async def suspend(self, request: web.Request) -> web.Response:
        return json_answer(self._document(await self._desk.suspend(_maker(request), request.match_info["id"])))

    async def resume(self, request: web.Request) -> web.Response:
        return json_answer(self._document(await self._desk.resume(_maker(request), request.match_info["id"])))

    async def revoke(self, request: web.Request) -> web.Response:
        revoked, tasks = await self._desk.revoke(_maker(request), request.match_info["id"])
        return json_answer(self._document(revoked) | {"tasks_cancelled": tasks})

    def _with_secret(self, made: NewKey, status: int, more: dict[str, Any]) -> web.Response:
        document = self._document(Listed(key=made.key, record=made.record)) | more | {"key": made.secret}
        answer = json_answer(document, status)
        answer.headers["Cache-Control"] = "no-store"
        return answer

    def _document(self, listed: Listed) -> dict[str, Any]:
        key, record = listed.key, listed.record
        why = key.unfit(time.time())
        return {
            "id": key.id,
            "name": key.name,
            "state": "good" if why is None else why.value,
            "role": key.role,
            "scopes": sorted(self._desk.role_of(key, None).scopes),
            "domain": key.trust_domain,
            "created_at": record.created_at,
            "expires_at": key.expires_at,
            "used_at": record.used_at,
            "suspended_at": record.suspended_at,
            "revoked_at": record.revoked_at,
            "previous_until": record.previous_until,
            "budget_usd_day": _usd(record.budget.day_micro_usd),
            "budget_usd_month": _usd(record.budget.month_micro_usd),
        }


def _maker(request: web.Request) -> Maker:
    peer = request.get(PEER)
    return Maker(
        key_id=caller(request).id, request_id=request[REQUEST_ID], peer_uid=peer.uid if peer is not None else None
    )


def _usd(most: int | None) -> float | None:
    return None if most is None else usd(most)
