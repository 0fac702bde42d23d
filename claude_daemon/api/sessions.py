"""Sessions over HTTP: what a key has, and their end."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from claude_daemon.api.control import json_answer
from claude_daemon.api.submission import asker
from claude_daemon.api.tasks import limit_of, query_of
from claude_daemon.ports import AuditRecord, SessionRecord
from claude_daemon.service.sessions import SessionDesk
from claude_daemon.wire.tasks import list_document


class SessionRoutes:
    """``/v1/sessions``; over the control socket the same, and every key's."""

    def __init__(self, desk: SessionDesk) -> None:
        self._desk = desk

    def register(self, router: web.UrlDispatcher, base: str = "/v1") -> None:
        router.add_get(f"{base}/sessions", self.list)
        router.add_get(f"{base}/sessions/{{id}}", self.get)
        router.add_delete(f"{base}/sessions/{{id}}", self.delete)

    async def list(self, request: web.Request) -> web.Response:
        query = query_of(request, "limit", "cursor")
        page = await self._desk.list(asker(request).owner, limit_of(query.get("limit")), query.get("cursor"))
        return json_answer(list_document([self._document(known) for known in page.sessions], page.next))

    async def get(self, request: web.Request) -> web.Response:
        return json_answer(self._document(await self._desk.get(asker(request).owner, request.match_info["id"])))

    async def delete(self, request: web.Request) -> web.Response:
        session_id, by = request.match_info["id"], asker(request)
        audit = AuditRecord(
            at=time.time(),
            act="session.deleted",
            key_id=by.key.id,
            request_id=by.request_id,
            peer_uid=by.peer_uid,
            details={"session": session_id},
        )
        await self._desk.delete(by.owner, session_id, audit)
        return json_answer({"id": session_id, "object": "session", "deleted": True})

    def _document(self, known: SessionRecord) -> dict[str, Any]:
        """Of Claude Code's own ids nothing: they are not public."""
        return {
            "id": known.id,
            "object": "session",
            "state": self._desk.state(known.id),
            "key_id": known.key_id,
            "created_at": known.created_at,
            "used_at": known.used_at,
            "cwd": known.cwd,
            "add_dirs": list(known.add_dirs),
        }


class ControlSessionRoutes:
    """``sessions`` on the control socket."""

    def __init__(self, routes: SessionRoutes) -> None:
        self._routes = routes

    def register(self, router: web.UrlDispatcher) -> None:
        self._routes.register(router, "/control/v1")
