"""The composition root: builds every part, owns the root TaskGroup, runs the lifecycle.

Order of a start: signals, lock, sockets (LIFECYCLE.md: listen first), then the engine. Order of an end: drain,
public listener, dispatcher, workers, broker, control socket, store, lock.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from claude_daemon import __version__, assembly, journal
from claude_daemon.api import chat
from claude_daemon.api.anthropic import AnthropicRoutes
from claude_daemon.api.app import application
from claude_daemon.api.control import ControlRoutes, ControlSettings
from claude_daemon.api.control_tasks import ControlTaskRoutes
from claude_daemon.api.fanout import Fanout
from claude_daemon.api.middleware import Gate
from claude_daemon.api.openai import OpenAIRoutes
from claude_daemon.api.probes import ProbeRoutes
from claude_daemon.api.server import HttpServer
from claude_daemon.api.tasks import TaskRoutes
from claude_daemon.api.ws import StreamRoutes
from claude_daemon.assembly import BadSetting
from claude_daemon.config import Loaded
from claude_daemon.core.key import Key, Keyring, digest
from claude_daemon.core.lifecycle import DaemonState
from claude_daemon.durable import Durable
from claude_daemon.engine.lane import bundled_cli
from claude_daemon.engine.process import become_subreaper
from claude_daemon.engine.schema import SchemaChecker
from claude_daemon.home import local_secret
from claude_daemon.ports import Engine
from claude_daemon.report import Report
from claude_daemon.service.admit import Admission
from claude_daemon.service.drain import Drain, Edge
from claude_daemon.service.health import Health
from claude_daemon.sources import find_source
from claude_daemon.store import SqliteStore
from claude_daemon.supervise.pidfile import PidFile
from claude_daemon.supervise.sockets import AcceptErrors, control_socket, inode_of, tcp_sockets, unlink_own
from claude_daemon.upstream.broker import Broker
from claude_daemon.upstream.client import MessagesClient, proxy_for

log = journal.log

EXIT_CRASH: Final = 1
EXIT_UNSAVED: Final = 75
# SIGHUP is the terminal that was closed; it drains until it means a reload.
_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# The last line of a progress stream is on its way when the control socket goes.
_CONTROL_FLUSH_S: Final = 1.0


class Daemon:
    """One daemon: construct it in its loop, :meth:`run` it once. The home is taken already."""

    def __init__(self, loaded: Loaded, environ: Mapping[str, str]) -> None:
        self.loaded = loaded
        self.health = Health(
            version=__version__, monotonic=time.monotonic, born=time.monotonic(), changed=journal.state_changed
        )
        self.url = ""
        self._environ = environ
        self._stop = asyncio.Event()
        self._signals = 0
        self._starting: asyncio.Task[Any] | None = None

    # life

    async def run(self, *, announce: Callable[[Daemon], None] = lambda daemon: None) -> int:
        """Serves until told to stop; the exit status.

        Raises OSError, AlreadyRunning, SocketInUse, PathTooLong, BadKeyFile, BadSetting, StoreBroken before it
        serves.
        """
        self._saved = True
        status = await self._run(announce)
        if status == 0 and not self._saved:
            log.error("daemon.unsaved", reason="the store took no more; what ran is found at the next start")
            return EXIT_UNSAVED
        return status

    async def _run(self, announce: Callable[[Daemon], None]) -> int:
        async with AsyncExitStack() as stack:
            self._handle_signals(stack)
            self._take_home(stack)
            self._open_store(stack)
            self._listen(stack)
            try:
                await self._unless_stopped(self._build(stack))
                if not self._stop.is_set():
                    await self._serve(announce)
            except BadSetting:
                raise
            except Exception as error:  # a part that fails takes the daemon with it: half a daemon helps nobody
                log.critical("daemon.crashed", exc_info=error)
                return EXIT_CRASH
        log.info("daemon.stopped")
        return 0

    def _handle_signals(self, stack: AsyncExitStack) -> None:
        """From here to the very end, so that there is no moment in which a signal leaves files behind."""
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._stop_signal)
            stack.callback(signal.signal, number, signal.SIG_IGN)  # all is done: nothing is left to interrupt
            stack.callback(loop.remove_signal_handler, number)

    def _stop_signal(self) -> None:
        """The first one drains, a second one waits no longer; while starting, one is enough."""
        self._signals += 1
        if self._starting is not None:
            self._stop.set()
            self._starting.cancel()
        elif self._signals == 1:
            self.begin_drain(self.loaded.settings.drain.deadline_s, stop=True)
        else:
            self.drain.hurry()

    async def _unless_stopped(self, starting: Awaitable[None]) -> None:
        """Waits for a step of the start, and gives it up when told to stop."""
        self._starting = task = asyncio.current_task()
        assert task is not None
        try:
            await starting
        except asyncio.CancelledError:
            if not self._stop.is_set():
                raise
            task.uncancel()
        finally:
            self._starting = None

    def _take_home(self, stack: AsyncExitStack) -> None:
        paths = self.loaded.paths
        for directory in (paths.run_dir, paths.engine_dir):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        stack.callback(PidFile(paths.pid_file).close)
        secret = local_secret(
            paths.local_key, secrets.token_bytes, lambda said: log.warning("home.repaired", reason=said)
        )
        self.local = Key(id="local", name="local", digest=digest(secret), role="standard", trust_domain="default")

    def _open_store(self, stack: AsyncExitStack) -> None:
        """The lock is ours, so nobody else has it open. Raises StoreBroken, StoreUnavailable."""
        self._store = SqliteStore.open(self.loaded.paths.database)
        stack.push_async_callback(self._close_store)

    async def _close_store(self) -> None:
        self._saved = await self._store.close() and self._saved

    def _listen(self, stack: AsyncExitStack) -> None:
        """From here on the kernel holds the connections of those who come before we can answer."""
        http, control = self.loaded.settings.http, self.loaded.settings.control
        path = self.loaded.paths.control_socket
        self._tls = assembly.tls(self.loaded.settings)
        self._control_sock = control_socket(path, control.mode)
        stack.callback(self._control_sock.close)
        stack.callback(unlink_own, path, inode_of(path))
        self._public_socks = tcp_sockets(http.host, http.port)
        for sock in self._public_socks:
            stack.callback(sock.close)
        scheme, host = "https" if self._tls else "http", http.host.strip("[]")
        authority = f"[{host}]" if ":" in host else host
        self.url = f"{scheme}://{authority}:{self._public_socks[0].getsockname()[1]}"
        AcceptErrors(journal.accept_failed).install(asyncio.get_running_loop())

    async def _serve(self, announce: Callable[[Daemon], None]) -> None:
        async with asyncio.TaskGroup() as group:
            text = group.create_task(self.text.run())
            dispatching = group.create_task(self.dispatcher.run())
            watching = group.create_task(self.health.watch())
            draining = group.create_task(self.drain.run())
            await self.durable.start()
            upkeep = group.create_task(self.durable.run())
            probed = group.create_task(self.text.probed())
            stopped = group.create_task(self._stop.wait())
            await asyncio.wait({probed, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if self.health.state is DaemonState.STARTING:
                self.health.settle()
                log.info("daemon.ready", url=self.url, state=self.health.state, version=__version__)
                announce(self)
            await stopped
            probed.cancel()
            await draining
            self.fanout.close()
            await self.streams.close()
            await self._flush()
            self.health.move(DaemonState.STOPPING)
            self.public.stop_listening()
            upkeep.cancel()
            self.dispatcher.close()
            await dispatching
            self._saved = not self.dispatcher.unsaved
            await self._end_workers(text)
            watching.cancel()

    async def _flush(self) -> None:
        """Answers are complete now, but for their last bytes; a peer that takes none of them is not waited for."""
        until = time.monotonic() + self.loaded.settings.drain.kill_grace_s
        while self.public.in_flight and not self.drain.hurried and (left := until - time.monotonic()) > 0:
            async with asyncio.TaskGroup() as group:
                waits = {
                    group.create_task(self.public.wait_idle(left)),
                    group.create_task(self.drain.changed(left)),
                }
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()

    async def _end_workers(self, text: asyncio.Task[None]) -> None:
        self.text.close()
        if not self.text.up:
            text.cancel()  # in the middle of a probe, which ends what it has started
        await asyncio.wait({text})

    def begin_drain(self, deadline_seconds: float, stop: bool) -> None:
        """From a signal or the control socket; with ``stop`` the daemon ends after it. Raises Refusal."""
        self.drain.begin(deadline_seconds, stop=stop)
        log.info("daemon.draining", deadline_seconds=deadline_seconds, stop=self.drain.stopping)
        if stop:
            self._stop.set()

    # parts

    async def _build(self, stack: AsyncExitStack) -> None:
        settings = self.loaded.settings
        subreaper = become_subreaper()
        cli = settings.engine.cli_path or bundled_cli() or Path("claude")
        self.source = source = await find_source(self.loaded, cli, self._environ, stack)
        if source.name == "offline":
            log.warning("engine.offline", reason="the offline model answers: no account, no network")
        client = None
        if (credential := source.credential) is not None:
            proxy = proxy_for(source.base_url, self._environ)
            client = MessagesClient(source.base_url, lambda: credential, proxy=proxy)
            stack.push_async_callback(client.close)
            await client.start()
        broker = Broker(client, told=journal.model_call)
        stack.push_async_callback(broker.stop)
        await broker.start()
        self.schemas = SchemaChecker()
        stack.push_async_callback(self.schemas.stop)
        await self.schemas.start()
        self.text = assembly.text_lane(
            self.loaded,
            cli,
            source,
            broker,
            self._environ,
            changed=self._engine_changed,
            owns_process=subreaper,
            known=lambda: self.schemas.pids,
        )
        self.direct = assembly.direct_lane(settings, client) if client is not None else None
        engines: list[Engine] = [self.text] if self.direct is None else [self.direct, self.text]
        self.durable = Durable(settings, self._store, engines, self.schemas)
        stack.push_async_callback(self.durable.close)
        self.dispatcher = self.durable.dispatcher
        self.admission = Admission(
            self.dispatcher,
            engines,
            state=lambda: self.health.state,
            store_error=lambda: self._store.status().error,
            models=settings.engine.models,
            default_model=settings.engine.default_model,
            login=source.kind,
        )
        self.report = Report(
            loaded=self.loaded,
            source=source,
            text=self.text,
            direct=self.direct,
            dispatcher=self.dispatcher,
            health=self.health,
            paused=lambda: self.durable.upkeep.paused,
            url=self.url,
        )
        self.durable.serve(self.admission, self.health)
        self.health.sources += [self.report.engine_checks, self.report.source_check, self.durable.check]
        await self._build_edge(stack, client)

    def _engine_changed(self) -> None:
        """Workers have come or gone, or the CLI has been probed: then it has the last word on its own aliases."""
        self.admission.models = assembly.models(self.loaded, self.text.pool.capabilities.aliases)
        self.text.pool.default_model = self.admission.model(None)
        self.health.note()

    async def _build_edge(self, stack: AsyncExitStack, client: MessagesClient | None) -> None:
        settings, limits = self.loaded.settings, assembly.limits(self.loaded.settings)
        http = settings.http
        body = chat.BodyLimits(max_bytes=http.max_body_bytes, timeout_s=http.body_timeout_s)
        chats = chat.Chats(self.admission, self.dispatcher, body)
        gate = Gate(
            identify=Keyring([self.local]).identify,
            allowed_hosts=http.accepted_hosts,
            allowed_origins=http.allowed_origins,
        )
        desk = self.durable.desk
        self.fanout = Fanout(self.durable.follow, lambda task_id: self.dispatcher.find(task_id) is not None)
        self.streams = StreamRoutes(desk, self.fanout, self.schemas, max_message_bytes=http.max_body_bytes)
        tasks = TaskRoutes(desk, chats, self.fanout, self.schemas)
        public = application(
            gate.middleware(),
            ProbeRoutes(self.health),
            OpenAIRoutes(chats, self.schemas),
            AnthropicRoutes(chats, self.schemas, assembly.counter(client) if client is not None else None),
            tasks,
            self.streams,
        )
        self.public = HttpServer(
            public, limits=limits, ids=assembly.ids, on_access=journal.access, on_error=journal.unhandled
        )
        edge = Edge(
            begin=self._drain_begins,
            end=self._drain_ends,
            connections=lambda: len(self.public.connections),
        )
        self.drain = Drain(
            self.health, self.dispatcher, edge, time.monotonic, grace_seconds=settings.drain.kill_grace_s
        )
        durable = self.durable
        control = self._control_routes(
            chats,
            ControlTaskRoutes(desk, tasks, durable.follow, durable.upkeep, chats, self.schemas, record=durable.record),
        )
        self.control = HttpServer(
            application(control.middleware(), control),
            limits=limits,
            ids=assembly.ids,
            on_access=journal.control_access,
            on_error=journal.unhandled,
        )
        stack.push_async_callback(self.control.close)
        stack.push_async_callback(self.control.wait_idle, _CONTROL_FLUSH_S)
        stack.push_async_callback(self.public.close)
        await self.public.listen(self._public_socks, ssl=self._tls)
        await self.control.listen_unix(self._control_sock)

    def _drain_begins(self) -> None:
        """No task is begun any more, and who follows one that does not run here goes where it will."""
        self.public.begin_drain()
        self.dispatcher.hold()
        self.fanout.begin_drain()
        self.streams.begin_drain()

    def _drain_ends(self) -> None:
        self.public.end_drain()
        self.fanout.end_drain()
        self.durable.upkeep.undrained()

    def _control_routes(self, chats: chat.Chats, tasks: ControlTaskRoutes) -> ControlRoutes:
        control = self.loaded.settings.control
        return ControlRoutes(
            ControlSettings(
                allowed_uids=frozenset(control.allowed_uids),
                allowed_gids=frozenset(control.allowed_gids),
                deadline_s=self.loaded.settings.drain.deadline_s,
            ),
            self.health,
            self.drain,
            chats,
            self.local,
            status=self.report.status,
            workers=self.report.workers,
            begin_drain=self.begin_drain,
            record=self.durable.record,
            groups=[tasks],
            refused=journal.control_refused,
        )
