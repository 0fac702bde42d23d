"""The composition root: builds every part, owns the root TaskGroup, runs the lifecycle.

Order of a start: directories, lock, sockets (LIFECYCLE.md: listen first), then the engine. Order of an end: drain,
public listener, dispatcher, workers, broker, control socket last.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from claude_daemon import __version__
from claude_daemon.api import chat
from claude_daemon.api.anthropic import AnthropicRoutes
from claude_daemon.api.control import ControlRoutes, ControlSettings
from claude_daemon.api.middleware import Gate
from claude_daemon.api.openai import OpenAIRoutes
from claude_daemon.api.probes import ProbeRoutes
from claude_daemon.api.server import HttpServer, Limits
from claude_daemon.config import Loaded
from claude_daemon.core.errors import Refusal
from claude_daemon.core.ids import new_id
from claude_daemon.core.key import Key, Keyring, digest, new_secret
from claude_daemon.core.lifecycle import Check, DaemonState
from claude_daemon.core.task import TaskSpec
from claude_daemon.engine.capabilities import Capabilities
from claude_daemon.engine.lane import TextLane, bundled_cli, login_present
from claude_daemon.engine.launch import Access
from claude_daemon.engine.pool import Pool, PoolEvent, PoolSettings
from claude_daemon.engine.process import become_subreaper
from claude_daemon.engine.schema import SchemaChecker
from claude_daemon.engine.spawner import EngineSite, Spawner
from claude_daemon.offline import OfflineModel
from claude_daemon.ports import Engine, HealthReport
from claude_daemon.service.admit import Admission
from claude_daemon.service.dispatch import Dispatcher, DispatchSettings, Run
from claude_daemon.service.drain import Drain, Edge
from claude_daemon.service.health import Health
from claude_daemon.supervise.pidfile import PidFile
from claude_daemon.supervise.sockets import AcceptErrors, control_socket, inode_of, tcp_sockets, unlink_own
from claude_daemon.telemetry.logging import get_logger
from claude_daemon.upstream.broker import Broker
from claude_daemon.upstream.client import MessagesClient, UpstreamFailed, passed_on
from claude_daemon.upstream.credential import CredentialKind, UpstreamCredential
from claude_daemon.upstream.direct import DirectEngine, DirectSettings
from claude_daemon.wire.text_lane import text_lane_unsupported

log = get_logger("claude_daemon.daemon")

_EXIT_UNSAVED: Final = 75


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """Where answers come from. ``credential`` None: none was found, or the CLI has its own (``access``)."""

    name: str
    base_url: str
    access: Access
    credential: UpstreamCredential | None
    kind: str
    origin: str
    oauth_token: str | None = None


class Daemon:
    """One daemon: construct it in its loop, :meth:`run` it once."""

    def __init__(self, loaded: Loaded, environ: Mapping[str, str]) -> None:
        self.loaded = loaded
        self.health = Health(
            version=__version__, monotonic=time.monotonic, born=time.monotonic(), changed=_state_changed
        )
        self.url = ""
        self._environ = environ
        self._stop = asyncio.Event()
        self._signals = 0
        self._drain_seconds = loaded.settings.drain.deadline_s

    # life

    async def run(self, *, announce: Callable[[Daemon], None] = lambda daemon: None) -> int:
        """Serves until told to stop; the exit status. Raises OSError, AlreadyRunning, SocketInUse before it serves."""
        async with AsyncExitStack() as stack:
            self._take_home(stack)
            self.local_secret, self.local = _local_key(self.loaded.paths.local_key)
            await self._listen(stack)
            self._handle_signals()
            await self._build(stack)
            return await self._serve(announce)

    def _take_home(self, stack: AsyncExitStack) -> None:
        paths = self.loaded.paths
        for directory in (paths.home, paths.run_dir, paths.engine_dir):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._pid_file = PidFile(paths.pid_file)
        stack.callback(self._pid_file.close)

    async def _listen(self, stack: AsyncExitStack) -> None:
        http, control = self.loaded.settings.http, self.loaded.settings.control
        self._control_sock = control_socket(self.loaded.paths.control_socket, control.mode)
        stack.callback(unlink_own, self.loaded.paths.control_socket, inode_of(self.loaded.paths.control_socket))
        self._public_socks = tcp_sockets(http.host, http.port)
        port = self._public_socks[0].getsockname()[1]
        self.url = f"http://{http.host}:{port}"
        AcceptErrors(lambda said: log.warning("http.accept_failed", reason=said)).install(asyncio.get_running_loop())

    async def _serve(self, announce: Callable[[Daemon], None]) -> int:
        async with asyncio.TaskGroup() as group:
            text, dispatching = group.create_task(self.text.run()), group.create_task(self.dispatcher.run())
            await self.text.probed()
            if self.health.state is DaemonState.STARTING:
                self.health.settle()
                log.info("daemon.ready", url=self.url, state=self.health.state, version=__version__)
                announce(self)
            await self._stop.wait()
            await self._finish_drain()
            self.health.move(DaemonState.STOPPING)
            self.public.stop_listening()
            self.dispatcher.close()
            await dispatching
            self.text.close()
            await text
        log.info("daemon.stopped")
        return 0

    async def _finish_drain(self) -> None:
        if self.health.state is not DaemonState.STOPPING:
            await self.drain.finish()
        # answers are complete now, but for their last bytes
        await self.public.wait_idle(self.loaded.settings.drain.kill_grace_s)

    def begin_drain(self, deadline_seconds: float, stop: bool) -> None:
        """From a signal or the control socket; with ``stop`` the daemon ends after it."""
        fresh = not self.drain.active
        self.drain.begin(deadline_seconds, stop=stop)
        log.info("daemon.draining", deadline_seconds=deadline_seconds, stop=stop)
        if stop:
            self._stop.set()
        elif fresh:
            self._drains = asyncio.ensure_future(self.drain.finish())  # noqa: TID251 - ended by the drain itself

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_signal)

    def _stop_signal(self) -> None:
        """The first one drains, a second one waits no longer."""
        self._signals += 1
        if self._signals == 1:
            self.begin_drain(self._drain_seconds, stop=True)
        else:
            self.drain.hurry()

    # parts

    async def _build(self, stack: AsyncExitStack) -> None:
        settings, paths = self.loaded.settings, self.loaded.paths
        become_subreaper()
        cli = settings.engine.cli_path or bundled_cli() or Path("claude")
        self.upstream = await self._upstream(cli, stack)
        client = None
        if self.upstream.credential is not None:
            client = MessagesClient(self.upstream.base_url, _always(self.upstream.credential))
            await client.start()
            stack.push_async_callback(client.close)
        self.broker = Broker(client, told=lambda name, fields: log.info(name, **fields))
        await self.broker.start()
        stack.push_async_callback(self.broker.stop)
        self.schemas = SchemaChecker()
        await self.schemas.start()
        stack.push_async_callback(self.schemas.stop)
        self.text = self._text_lane(cli, paths.engine_dir)
        self.direct = self._direct_lane(client)
        engines: list[Engine] = [self.text] if self.direct is None else [self.direct, self.text]
        self.dispatcher = Dispatcher(
            engines,
            DispatchSettings(
                max_waiting=settings.http.max_waiting,
                wait_timeout_s=settings.queue.wait_timeout_s,
                max_attempts=settings.queue.max_attempts,
            ),
            schemas=self.schemas,
            now=time.time,
            monotonic=time.monotonic,
            ids=ids,
            settled=_settled,
        )
        self.admission = Admission(
            self.dispatcher,
            engines,
            state=lambda: self.health.state,
            models=settings.engine.models,
            default_model=settings.engine.default_model,
            login=self.upstream.kind,
        )
        self.health.sources += [self._engine_checks, self._upstream_check]
        await self._build_edge(stack, client)

    async def _upstream(self, cli: Path, stack: AsyncExitStack) -> Upstream:
        engine, credential = self.loaded.settings.engine, self.loaded.credential
        offline = engine.upstream == "offline"
        if not offline and credential is None:
            login = await login_present(cli, self._environ, self.loaded.paths.engine_dir)
            if login:
                return Upstream(
                    name="anthropic",
                    base_url=engine.base_url,
                    access=Access.LOGIN,
                    credential=None,
                    kind="login",
                    origin="claude",
                )
            offline = engine.upstream == "auto"
        if offline:
            model = await stack.enter_async_context(OfflineModel())
            log.warning("engine.offline", reason="the offline model answers: no account, no network")
            key = UpstreamCredential(kind=CredentialKind.API_KEY, secret=model.api_key)
            return Upstream(
                name="offline",
                base_url=model.base_url,
                access=Access.BROKER,
                credential=key,
                kind="api_key",
                origin="offline model",
            )
        if credential is None:
            return Upstream(
                name="anthropic",
                base_url=engine.base_url,
                access=Access.BROKER,
                credential=None,
                kind="none",
                origin="",
            )
        secret, origin = credential.secret.reveal(), str(credential.origin)
        if credential.kind == "oauth_token":
            return Upstream(
                name="anthropic", base_url=engine.base_url, access=Access.OAUTH, credential=None,
                kind=credential.kind, origin=origin, oauth_token=secret,
            )  # fmt: skip
        key = UpstreamCredential(kind=CredentialKind(credential.kind), secret=secret)
        return Upstream(
            name="anthropic",
            base_url=engine.base_url,
            access=Access.BROKER,
            credential=key,
            kind=credential.kind,
            origin=origin,
        )

    def _text_lane(self, cli: Path, directory: Path) -> TextLane:
        engine = self.loaded.settings.engine
        site = EngineSite(
            cli=cli,
            directory=directory,
            access=self.upstream.access,
            max_retries=engine.max_retries,
            request_timeout_s=engine.turn_timeout_s,
            environ=self._environ,
            base_url=self.upstream.base_url,
            oauth_token=self.upstream.oauth_token,
        )
        nothing_known = Capabilities()
        spawner = Spawner(site, self.broker, ids, nothing_known)
        old = spawner.end_old_workers()
        if old:
            log.warning("engine.old_workers_ended", pids=old)
        pool = Pool(
            PoolSettings(
                workers=engine.workers,
                spares=engine.spares,
                max_turns_per_worker=engine.max_turns_per_worker,
                max_worker_age_s=engine.max_worker_age_s,
                max_worker_rss_mb=engine.max_worker_rss_mb,
                stall_timeout_s=engine.stall_timeout_s,
                turn_timeout_s=engine.turn_timeout_s,
            ),
            spawner,
            capabilities=nothing_known,
            default_model=engine.models.get(engine.default_model, engine.default_model),
            unsupported=_text_unsupported,
            told=self._pool_event,
        )
        return TextLane(
            cli, directory / "capabilities.json", spawner, pool,
            without=engine.without, default_model=pool.default_model, changed=self.health.note,
        )  # fmt: skip

    def _direct_lane(self, client: MessagesClient | None) -> DirectEngine | None:
        if client is None:
            return None
        engine = self.loaded.settings.engine
        return DirectEngine(
            client,
            DirectSettings(
                direct_max=engine.direct_max,
                stall_timeout_s=engine.stall_timeout_s,
                turn_timeout_s=engine.turn_timeout_s,
            ),
        )

    async def _build_edge(self, stack: AsyncExitStack, client: MessagesClient | None) -> None:
        settings = self.loaded.settings
        http = settings.http
        body = chat.BodyLimits(max_bytes=http.max_body_bytes, timeout_s=http.body_timeout_s)
        chats = chat.Chats(self.admission, self.dispatcher, body)
        gate = Gate(
            identify=Keyring([self.local]).identify,
            allowed_hosts=http.accepted_hosts,
            allowed_origins=http.allowed_origins,
        )
        app = web.Application(middlewares=[gate.middleware()])
        ProbeRoutes(self.health).register(app.router)
        OpenAIRoutes(chats, self.schemas).register(app.router)
        AnthropicRoutes(chats, self.schemas, _counter(client) if client is not None else None).register(app.router)
        limits = Limits(
            max_body_bytes=http.max_body_bytes,
            max_connections=http.max_connections,
            max_connections_per_peer=http.max_connections_per_peer,
            header_timeout_s=http.header_timeout_s,
            body_timeout_s=http.body_timeout_s,
            keepalive_timeout_s=http.keepalive_timeout_s,
        )
        self.public = HttpServer(app, limits=limits, ids=ids, on_access=_access, on_error=_error)
        edge = Edge(
            begin=self.public.begin_drain,
            end=self.public.end_drain,
            connections=lambda: len(self.public.connections),
        )
        self.drain = Drain(self.health, self.dispatcher, edge, time.monotonic)
        self.control = HttpServer(
            self._control_app(chats), limits=limits, ids=ids, on_access=_control_access, on_error=_error
        )
        stack.push_async_callback(self.control.close)
        stack.push_async_callback(self.public.close)
        await self.public.listen(self._public_socks)
        await self.control.listen_unix(self._control_sock)

    def _control_app(self, chats: chat.Chats) -> web.Application:
        control = self.loaded.settings.control
        routes = ControlRoutes(
            ControlSettings(
                allowed_uids=frozenset(control.allowed_uids),
                allowed_gids=frozenset(control.allowed_gids),
                deadline_s=self.loaded.settings.drain.deadline_s,
            ),
            self.health,
            self.drain,
            chats,
            self.local,
            status=self.status,
            workers=self.workers,
            begin_drain=self.begin_drain,
        )
        app = web.Application(middlewares=[routes.middleware()])
        routes.register(app.router)
        return app

    # what it tells

    def _engine_checks(self) -> Mapping[str, HealthReport]:
        """The text lane's checks; a CLI that cannot be started is no blocker while the direct lane works."""
        checks = dict(self.text.health())
        engine = checks["engine"]
        if engine.status is Check.FAIL and self.direct is not None:
            reason = f"{engine.reason}; the direct lane works"
            checks["engine"] = HealthReport(status=Check.WARN, reason=reason, details=engine.details)
        return checks

    def _upstream_check(self) -> Mapping[str, HealthReport]:
        upstream = self.upstream
        details = {"kind": upstream.kind, "origin": upstream.origin, "upstream": upstream.name}
        if upstream.kind == "none":
            reason = "no credential: set ANTHROPIC_API_KEY (or _FILE), or log in with claude"
            return {"engine": HealthReport(status=Check.FAIL, reason=reason, details=details)}
        reason = "the offline model answers" if upstream.name == "offline" else ""
        return {"auth": HealthReport(status=Check.PASS, reason=reason, details=details)}

    def status(self) -> dict[str, Any]:
        """Everything ``claudectl status`` shows."""
        paths, can = self.loaded.paths, self.text.pool.capabilities
        document = self.health.document(details=True)
        return {
            "version": __version__,
            "pid": os.getpid(),
            "state": document["state"],
            "uptime_seconds": document["uptime_seconds"],
            "profile": self.loaded.profile,
            "url": self.url,
            "home": str(paths.home),
            "key_file": str(paths.local_key),
            "upstream": self.upstream.name,
            "base_url": self.upstream.base_url,
            "credential": {"kind": self.upstream.kind, "origin": self.upstream.origin},
            "cli": {"path": str(self.text.cli), "version": can.version, "missing": can.missing()},
            "lanes": ["direct", "text"] if self.direct is not None else ["text"],
            "workers": self.text.pool.counts(),
            "queue": {"waiting": self.dispatcher.waiting, "running": self.dispatcher.running},
            "starts": {start: self.text.pool.starts[start] for start in ("warm", "spare", "cold")},
            "checks": document["checks"],
        }

    def workers(self) -> list[dict[str, Any]]:
        """Every worker, for ``claudectl workers list``."""
        return self.text.pool.listing()

    def _pool_event(self, event: PoolEvent) -> None:
        getattr(log, event.level)(event.name, **event.fields)
        self.health.note()


def ids(prefix: str) -> str:
    """A fresh id, see :func:`~claude_daemon.core.ids.new_id`."""
    return new_id(prefix, milliseconds=time.time_ns() // 1_000_000, randbytes=secrets.token_bytes)


def _always(credential: UpstreamCredential) -> Callable[[], UpstreamCredential]:
    return lambda: credential


def _text_unsupported(spec: TaskSpec) -> Any:
    return text_lane_unsupported(spec.request)


def _counter(client: MessagesClient) -> Any:
    async def count(body: bytes, headers: Mapping[str, str]) -> bytes:
        try:
            async with client.call("/v1/messages/count_tokens", body, passed_on(headers)) as response:
                return await response.read()
        except UpstreamFailed as failed:
            raise Refusal(failed.failure) from failed

    return count


def _local_key(path: Path) -> tuple[str, Key]:
    """The ``local`` key, made at the first start and kept in a file that only we can read."""
    try:
        secret = path.read_text().strip()
    except FileNotFoundError:
        secret = new_secret(secrets.token_bytes)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secret + "\n")
    key = Key(id="local", name="local", digest=digest(secret), role="standard", trust_domain="default")
    return secret, key


def _state_changed(old: DaemonState, new: DaemonState) -> None:
    log.info("daemon.state", old=old, new=new)


def _access(request: web.BaseRequest, status: int, seconds: float, sent: int) -> None:
    log.info(
        "http.access",
        method=request.method,
        path=request.path,
        status=status,
        seconds=round(seconds, 6),
        bytes=sent,
    )


def _control_access(request: web.BaseRequest, status: int, seconds: float, sent: int) -> None:
    log.debug("control.access", method=request.method, path=request.path, status=status, seconds=round(seconds, 6))


def _error(request_id: str, error: BaseException) -> None:
    log.error("http.unhandled", request_id=request_id, exc_info=error)


def _settled(run: Run) -> None:
    """One line for every task, with the ids that join it to its request, its worker and its model calls."""
    task = run.task
    outcome = task.outcome
    assert outcome is not None
    failure = outcome.failure
    first = run.first_delta_at
    log.info(
        "task.settled",
        task_id=task.id,
        request_id=task.spec.request_id,
        key_id=task.spec.key_id,
        trust_domain=task.spec.trust_domain,
        worker_id=run.worker_id,
        lane=task.spec.lane,
        start=run.start,
        state=task.state,
        code=failure.code if failure is not None else None,
        reason=failure.message if failure is not None else None,
        attempt=task.attempt,
        first_delta_seconds=round(first - run.queued_at, 6) if first is not None else None,
        input_tokens=outcome.usage.input_tokens,
        output_tokens=outcome.usage.output_tokens,
    )
