"""The control API's share of API keys: ``claudectl keys``."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from claude_daemon.api.chat import Chats, caller
from claude_daemon.api.control import json_answer
from claude_daemon.api.middleware import REQUEST_ID
from claude_daemon.api.server import PEER
from claude_daemon.core.key import Key
from claude_daemon.core.role import DEFAULT_ROLE
from claude_daemon.service.keys import KeyDesk, KeyWish, Maker
from claude_daemon.wire.parse import parse

Word = Annotated[str, Field(min_length=1, max_length=64)]


class CreateRequest(BaseModel):
    """``POST keys``. ``domain`` null: one of its own; ``expires``: seconds since the epoch, null for never."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Word
    role: Word = DEFAULT_ROLE
    domain: Word | None = None
    expires: Annotated[float, Field(allow_inf_nan=False)] | None = None


class ControlKeyRoutes:
    """Who made a key stands in the audit, in the same commit as the key."""

    def __init__(self, desk: KeyDesk, chats: Chats) -> None:
        self._desk = desk
        self._chats = chats

    def register(self, router: web.UrlDispatcher) -> None:
        base = "/control/v1"
        router.add_get(f"{base}/keys", self.list)
        router.add_post(f"{base}/keys", self.create)

    async def list(self, request: web.Request) -> web.Response:
        keys = [_document(key) | {"created_at": created_at} for key, created_at in await self._desk.list()]
        return json_answer({"keys": keys})

    async def create(self, request: web.Request) -> web.Response:
        """The one answer that ever holds the secret."""
        asked = parse(CreateRequest, await self._chats.body(request))
        peer = request.get(PEER)
        maker = Maker(
            key_id=caller(request).id,
            request_id=request[REQUEST_ID],
            peer_uid=peer.uid if peer is not None else None,
        )
        wish = KeyWish(name=asked.name, role=asked.role, domain=asked.domain, expires_at=asked.expires)
        made = await self._desk.create(maker, wish)
        answer = json_answer(_document(made.key) | {"key": made.secret}, 201)
        answer.headers["Cache-Control"] = "no-store"
        return answer


def _document(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "domain": key.trust_domain,
        "expires_at": key.expires_at,
    }
