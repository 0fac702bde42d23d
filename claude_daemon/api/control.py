"""The control API: HTTP over the Unix socket, for ``claudectl`` and nobody else.

The peer is known by the kernel's word. Whoever may open the socket and has an allowed uid acts as the ``local`` key;
a process that descends from this daemon (a worker's child) is refused.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from pydantic import BaseModel, ConfigDict, Field
from structlog.contextvars import bind_contextvars

from claude_daemon.api import chat
from claude_daemon.api.app import Routes
from claude_daemon.api.connection import Peer
from claude_daemon.api.middleware import KEY, REQUEST_ID, check_media_type
from claude_daemon.api.probes import health_answer
from claude_daemon.api.server import PEER
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.key import Key
from claude_daemon.core.lifecycle import DaemonState
from claude_daemon.ports import AuditRecord
from claude_daemon.service.drain import MAX_DEADLINE_SECONDS, Drain
from claude_daemon.service.health import Health
from claude_daemon.wire.parse import parse

VERSION_HEADER: Final = "Claude-Daemon-Control"
VERSION: Final = "1"
_MAX_READY_WAIT_S: Final = 30.0
_PROGRESS_INTERVAL_S: Final = 0.5
_MAX_ANCESTORS: Final = 64  # deeper than any process tree that is not a loop


class DrainRequest(BaseModel):
    """``POST drain``. ``deadline_s`` None: the configured one; ``wait`` False: answer at once."""

    model_config = ConfigDict(extra="forbid", strict=True)

    deadline_s: float | None = Field(default=None, ge=0, le=MAX_DEADLINE_SECONDS)
    stop: bool = False
    wait: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """Who may: root and our own user always, and these. ``deadline_s``: the configured deadline of a drain."""

    allowed_uids: frozenset[int]
    allowed_gids: frozenset[int]
    deadline_s: float


Record = Callable[[AuditRecord], Awaitable[None]]
"""Writes down what was done. A store that takes nothing now is not a reason not to do it."""


async def recorded(request: web.Request, record: Record, act: str, **details: Any) -> None:
    """What an operator did, and who that was by the kernel's word."""
    peer = request.get(PEER)
    await record(
        AuditRecord(
            at=time.time(),
            act=f"control.{act}",
            key_id=request[KEY].id,
            request_id=request[REQUEST_ID],
            peer_uid=peer.uid if peer is not None else None,
            details=details,
        )
    )


class ControlRoutes:
    """``/control/v1/…``; ``status`` and ``workers`` tell what only the composition root knows.

    ``groups`` are further routes behind the same gate.
    """

    def __init__(
        self,
        settings: ControlSettings,
        health: Health,
        drain: Drain,
        chats: chat.Chats,
        local: Key,
        *,
        status: Callable[[], Mapping[str, Any]],
        workers: Callable[[], list[dict[str, Any]]],
        begin_drain: Callable[[float, bool], None],
        record: Record,
        groups: Sequence[Routes] = (),
        refused: Callable[[str, int | None, int | None], None] = lambda reason, uid, pid: None,
    ) -> None:
        self.settings = settings
        self._health = health
        self._drain = drain
        self._chats = chats
        self._local = local
        self._status = status
        self._workers = workers
        self._begin_drain = begin_drain
        self._record = record
        self.groups = list(groups)
        self._refused = refused

    def register(self, router: web.UrlDispatcher) -> None:
        base = "/control/v1"
        router.add_get(f"{base}/health", self.health)
        router.add_get(f"{base}/ready", self.ready)
        router.add_get(f"{base}/status", self.status)
        router.add_get(f"{base}/workers", self.workers)
        router.add_post(f"{base}/drain", self.drain)
        router.add_post(f"{base}/undrain", self.undrain)
        for group in self.groups:
            group.register(router)

    def middleware(self) -> Middleware:
        @web.middleware
        async def gate(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._check_peer(request)
            self._check(request)
            return await handler(request)

        return gate

    def _check_peer(self, request: web.Request) -> None:
        """Raises Refusal, and tells of it."""
        peer = request.get(PEER)
        if peer is None or not self._may(peer.uid, peer.gid):
            why = "this user may not control the daemon (control.allowed_uids)"
            refusal = Refusal.because(Code.FORBIDDEN, why)
        elif _may_be_a_child(peer):
            refusal = Refusal.because(Code.FROM_WORKER, "a worker's child may not control the daemon")
        else:
            return
        self._refused(refusal.failure.code, peer and peer.uid, peer and peer.pid)
        raise refusal

    def _check(self, request: web.Request) -> None:
        """Raises Refusal, or the router's 404 or 405. A page in a browser always sends Origin, and never our header."""
        if "Origin" in request.headers:
            raise Refusal.because(Code.ORIGIN_NOT_ALLOWED, "the control socket is not for web pages")
        if request.headers.get(VERSION_HEADER) != VERSION:
            raise Refusal.because(Code.CONTROL_VERSION, f"this daemon speaks version {VERSION} of the control protocol")
        error = request.match_info.http_exception
        if error is not None:
            raise error
        check_media_type(request)
        request[KEY] = self._local
        bind_contextvars(key_id=self._local.id)

    def _may(self, uid: int, gid: int) -> bool:
        return uid in {0, os.getuid()} | self.settings.allowed_uids or gid in self.settings.allowed_gids

    async def health(self, request: web.Request) -> web.Response:
        return health_answer(self._health, details=True)

    async def ready(self, request: web.Request) -> web.Response:
        wait = _seconds(request.query.get("wait"))
        if wait > 0:
            await self._health.wait_ready(min(wait, _MAX_READY_WAIT_S))
        probe = self._health.ready()
        return json_answer(probe.body(), 200 if probe.ok else 503)

    async def status(self, request: web.Request) -> web.Response:
        return json_answer(dict(self._status()))

    async def workers(self, request: web.Request) -> web.Response:
        return json_answer({"workers": self._workers()})

    async def drain(self, request: web.Request) -> web.StreamResponse:
        asked = parse(DrainRequest, await self._chats.body(request) or b"{}")
        deadline = asked.deadline_s if asked.deadline_s is not None else self.settings.deadline_s
        self._begin_drain(deadline, asked.stop)
        await recorded(request, self._record, "drain", deadline_s=deadline, stop=asked.stop)
        if not asked.wait:
            return json_answer(self._drain.progress())
        return await ndjson(request, self.progress())

    async def progress(self) -> AsyncIterator[Mapping[str, Any]]:
        """The lines of a drain, up to its end."""
        while self._health.state is DaemonState.DRAINING:
            yield self._drain.progress()
            await self._drain.changed(_PROGRESS_INTERVAL_S)
        yield self._drain.progress()

    async def undrain(self, request: web.Request) -> web.Response:
        self._drain.undo()
        await recorded(request, self._record, "undrain")
        return json_answer({"state": self._health.state.value})


async def ndjson(request: web.Request, lines: AsyncIterator[Mapping[str, Any]]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    async with aclosing(cast(Any, lines)):
        async for line in lines:
            await response.write(orjson.dumps(line) + b"\n")
    return response


def json_answer(body: Mapping[str, Any], status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(body), content_type="application/json")


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        raise Refusal.because(Code.INVALID_REQUEST, "wait is a number of seconds", param="wait") from None


def _may_be_a_child(peer: Peer) -> bool:
    """Whether it is to be asked where it comes from. What workers start has our uid, unless we are root, who may see
    everybody; systemd's ``ProtectProc=`` hides from us who has another one."""
    return os.getuid() in (0, peer.uid) and may_descend_from(peer.pid, os.getpid())


def may_descend_from(pid: int, ancestor: int) -> bool:
    """Whether a process is a child, grandchild, … of another, or may be (where /proc tells).

    One that has ended cannot be asked: who connects, hands the socket on and leaves is taken for a descendant. Pid 0
    is what the kernel says of a process outside of our pid namespace, where no descendant of ours can be.
    """
    if pid == 0 or not Path("/proc/self/stat").exists():
        return False
    parent = _parent_of(pid)
    for _ in range(_MAX_ANCESTORS):
        if parent is None or parent == ancestor:
            return True
        if parent <= 1:
            return False
        above = _parent_of(parent)
        # an ancestor that has ended meanwhile has left its children to another: begin anew
        parent = above if above is not None else _parent_of(pid)
    return True


def _parent_of(pid: int) -> int | None:
    """0 for a process without one; None if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # the command's name, in parentheses, may itself hold spaces and parentheses
    return int(stat.rpartition(")")[2].split()[1])
