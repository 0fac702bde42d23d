"""The front half of the daemon: the public port, the control socket, and whoever follows; built here, and listening."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any, Final

from claude_daemon import assembly, journal
from claude_daemon.api.anthropic import AnthropicRoutes
from claude_daemon.api.app import Application, application
from claude_daemon.api.chat import Chats
from claude_daemon.api.control import ControlRoutes
from claude_daemon.api.fanout import Fanout
from claude_daemon.api.metrics import MetricsRoutes
from claude_daemon.api.middleware import Gate
from claude_daemon.api.openai import OpenAIRoutes
from claude_daemon.api.probes import ProbeRoutes
from claude_daemon.api.server import HttpServer, own_trace, route_of
from claude_daemon.api.sessions import SessionRoutes
from claude_daemon.api.tasks import TaskRoutes
from claude_daemon.api.ui import PageRoutes
from claude_daemon.api.usage import UsageRoutes
from claude_daemon.api.ws import StreamRoutes
from claude_daemon.config import Settings
from claude_daemon.core.trace import HEADER
from claude_daemon.durable import Durable
from claude_daemon.ports import Schemas
from claude_daemon.service.admit import Admission
from claude_daemon.service.health import Health
from claude_daemon.service.keys import KeyDesk
from claude_daemon.service.usage import UsageDesk
from claude_daemon.telemetry.metrics import CONTENT_TYPE
from claude_daemon.upstream.client import MessagesClient
from claude_daemon.usable import Certificate

# The last line of a progress stream is on its way when the control socket goes.
CONTROL_FLUSH_S: Final = 1.0
# Whoever comes while the daemon starts waits for it: a CLI takes half a second, on a busy machine ten times that, and
# clients wait longer than a minute.
START_PATIENCE_S: Final = 30.0

Sockets = Sequence[socket.socket]


class Front:
    """Everything between the listeners and the service. ``client`` None: nobody counts tokens for us."""

    control: HttpServer

    def __init__(
        self,
        settings: Settings,
        durable: Durable,
        admission: Admission,
        health: Health,
        schemas: Schemas,
        keys: KeyDesk,
        client: MessagesClient | None,
    ) -> None:
        self._meters = meters = durable.meters
        self._settings = settings
        self._dispatcher = durable.dispatcher
        self._upkeep = durable.upkeep
        self._certificate: Certificate | None = None
        self.chats = Chats(admission, self._dispatcher, durable.sessions, assembly.body_limits(settings), keys)
        self.gate = Gate(
            identify=keys.identify,
            check_route=keys.check_route,
            allowed_hosts=settings.http.accepted_hosts,
            allowed_origins=settings.http.allowed_origins,
            started=lambda: health.started(START_PATIENCE_S),
        )
        self.fanout = Fanout(durable.follow, lambda task_id: self._dispatcher.find(task_id) is not None)
        max_bytes = settings.http.max_body_bytes
        watched = keys.watches.watched
        self.streams = StreamRoutes(
            durable.desk,
            self.fanout,
            schemas,
            max_message_bytes=max_bytes,
            watched=watched,
            opened=journal.ws_opened,
            refused=meters.refused,
        )
        self.tasks = TaskRoutes(durable.desk, self.chats, self.fanout, schemas, watched=watched)
        self.sessions = SessionRoutes(durable.sessions)
        self.usage = UsageRoutes(UsageDesk(durable.store, durable.budgets))
        self.metrics = MetricsRoutes(meters.metrics, CONTENT_TYPE, keys.role_of)
        counter = assembly.counter(client) if client is not None else None
        public = application(
            self.gate.middleware(),
            ProbeRoutes(health),
            PageRoutes(),
            OpenAIRoutes(self.chats, schemas),
            AnthropicRoutes(self.chats, schemas, counter),
            self.tasks,
            self.sessions,
            self.usage,
            self.metrics,
            self.streams,
        )
        self.public = self._server(public, self._accessed)

    def controlled_by(self, routes: ControlRoutes) -> None:
        """What the control socket answers; once, before :meth:`listen`."""
        self._control_routes = routes
        self.control = self._server(application(routes.middleware(), routes), self._controlled)

    def _accessed(self, request: Any, status: int, seconds: float, sent: int) -> None:
        route, spans = route_of(request), self._meters.spans
        self._meters.access(request, route, status, seconds)
        if spans is not None and route is not None:
            spans.access(own_trace(request), request.headers.get(HEADER), request.method, route, status, seconds)
        journal.access(request, status, seconds, sent)

    def _controlled(self, request: Any, status: int, seconds: float, sent: int) -> None:
        self._meters.control_access(status)
        journal.control_access(request, status, seconds, sent)

    def records(self) -> None:
        """Traces that begin here are collected."""
        self.public.records = self.control.records = True

    def _server(self, app: Application, on_access: Callable[..., None]) -> HttpServer:
        return HttpServer(
            app,
            limits=assembly.limits(self._settings),
            ids=assembly.ids,
            on_access=on_access,
            on_error=journal.unhandled,
            on_refused=self._meters.refused,
        )

    async def listen(self, public: Sockets, control: socket.socket, certificate: Certificate | None) -> None:
        self._certificate = certificate
        await self.public.listen(public, ssl=None if certificate is None else certificate.listening)
        await self.control.listen_unix(control)

    def apply(self, settings: Settings, certificate: Certificate | None) -> None:
        """What a reload may change of it. ``certificate`` as :func:`~claude_daemon.usable.tls` has read it anew."""
        self._settings = settings
        http = settings.http
        self.gate.apply(http.accepted_hosts, http.allowed_origins)
        self.chats.limits = assembly.body_limits(settings)
        self.streams.max_message_bytes = http.max_body_bytes
        self._control_routes.settings = assembly.control_settings(settings)
        for server in (self.public, self.control):
            server.apply(assembly.limits(settings))
        if self._certificate is not None and certificate is not None:
            self._certificate.current = certificate.current

    # draining

    def begin_drain(self, handed_over: bool) -> None:
        """No task is begun any more, and who follows one that does not run here goes where it will."""
        self.public.begin_drain()
        self._dispatcher.hold()
        self.fanout.begin_drain()
        self.streams.begin_drain(back_soon=handed_over)

    def end_drain(self) -> None:
        self.public.end_drain()
        self.fanout.end_drain()
        self.streams.end_drain()
        self._upkeep.undrained()

    async def accept_again(self, sockets: Sockets) -> None:
        """After a drain that handed its listeners over, and took them back."""
        certificate = self._certificate
        await self.public.listen(sockets, ssl=None if certificate is None else certificate.listening)

    @property
    def notices(self) -> int:
        return self.fanout.sent_on + self.streams.told

    async def send_on(self) -> None:
        """Everybody who still follows is given what there is, and sent elsewhere."""
        self.fanout.close()
        await self.streams.close()

    def listeners(self) -> list[tuple[str, socket.socket]]:
        """Second descriptors of all listening sockets, by name, for a successor; the caller closes them."""
        public = [("http", sock) for sock in self.public.listeners()]
        return [*public, *(("control", sock) for sock in self.control.listeners())]

    async def close_control(self) -> None:
        await self.control.wait_idle(CONTROL_FLUSH_S)
        await self.control.close()

    def connections(self) -> list[dict[str, Any]]:
        """Every connection to the public port, for people."""
        return self.public.listing()

    def close_connection(self, connection_id: str) -> bool:
        """False when there is no such connection."""
        return self.public.end_one(connection_id)
