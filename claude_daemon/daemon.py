"""The composition root: builds every part, owns the root TaskGroup, runs the lifecycle, applies a reload.

Order of a start: signals, lock, sockets (LIFECYCLE.md: listen first), then the engine. Order of an end: drain,
public listener, dispatcher, workers, broker, control socket, store, lock.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from claude_daemon import __version__, assembly, journal, stacks, usable
from claude_daemon.api.control import ControlRoutes
from claude_daemon.api.control_audit import ControlAuditRoutes
from claude_daemon.api.control_daemon import ControlDaemonRoutes
from claude_daemon.api.control_engine import ControlEngineRoutes
from claude_daemon.api.control_events import ControlEventRoutes
from claude_daemon.api.control_keys import ControlKeyRoutes
from claude_daemon.api.control_tasks import ControlTaskRoutes
from claude_daemon.api.metrics import ControlMetricsRoutes
from claude_daemon.api.sessions import ControlSessionRoutes
from claude_daemon.api.usage import ControlUsageRoutes
from claude_daemon.config import ConfigError, Loaded, Settings
from claude_daemon.config.loading import check_reload
from claude_daemon.configuration import Configuration
from claude_daemon.core.errors import Code, Failure, Fault, Refusal
from claude_daemon.core.key import DEFAULT_DOMAIN, LOCAL, Key, digest
from claude_daemon.core.lifecycle import DaemonState
from claude_daemon.core.role import DEFAULT_ROLE, names_told
from claude_daemon.durable import Durable
from claude_daemon.engine.agent import AgentLane
from claude_daemon.engine.cgroup import Cgroups
from claude_daemon.engine.check import EngineCheck
from claude_daemon.engine.lane import TextLane, bundled_cli
from claude_daemon.engine.launch import Access
from claude_daemon.engine.pool import PoolEvent
from claude_daemon.engine.process import become_subreaper
from claude_daemon.engine.sandbox import not_dumpable
from claude_daemon.engine.schema import SchemaChecker
from claude_daemon.engine.session import SessionLane
from claude_daemon.front import Front
from claude_daemon.gauges import Gauges
from claude_daemon.home import audit_key, local_secret
from claude_daemon.meters import Meters
from claude_daemon.operations import Operations
from claude_daemon.ports import AuditRecord, Engine, HealthReport, StoreUnavailable
from claude_daemon.report import Report
from claude_daemon.restart import Restart, Sockets
from claude_daemon.service.activity import Happenings
from claude_daemon.service.admit import Admission
from claude_daemon.service.dispatch import Dispatcher
from claude_daemon.service.drain import Drain, Edge
from claude_daemon.service.health import Health
from claude_daemon.service.keys import KeyDesk
from claude_daemon.sources import Source, find_source
from claude_daemon.spans import Spans
from claude_daemon.store import SqliteStore
from claude_daemon.supervise.pidfile import PidFile, taken_over
from claude_daemon.supervise.sockets import AcceptErrors, control_socket, inode_of, tcp_sockets, unlink_own
from claude_daemon.supervise.stages import Stage
from claude_daemon.supervision import Supervision
from claude_daemon.surroundings import Surroundings
from claude_daemon.telemetry.loop_lag import LoopLag
from claude_daemon.telemetry.metrics import Metrics
from claude_daemon.upstream.broker import Broker
from claude_daemon.upstream.client import MessagesClient, proxy_for
from claude_daemon.upstream.direct import DirectEngine
from claude_daemon.usable import BadSetting

if TYPE_CHECKING:
    from claude_daemon.store.redis import RedisLink

log = journal.log

EXIT_CRASH: Final = 1
EXIT_UNSAVED: Final = 75

_TOLD_OF_PROCESSES: Final = ("worker_id", "pid", "turns", "seconds", "reason")


class Daemon:
    """One daemon: construct it in its loop, :meth:`run` it once. The home is checked already."""

    source: Source
    text: TextLane
    direct: DirectEngine | None = None
    agents: AgentLane
    cgroups: Cgroups | None
    sessions: SessionLane
    keys: KeyDesk
    durable: Durable
    dispatcher: Dispatcher
    admission: Admission
    report: Report
    front: Front
    drain: Drain
    redis: RedisLink | None

    def __init__(self, loaded: Loaded, surroundings: Surroundings) -> None:
        self.configuration = Configuration(loaded, time.monotonic)
        self.started = loaded
        self.surroundings = surroundings
        self.health = Health(
            version=__version__,
            monotonic=time.monotonic,
            born=time.monotonic(),
            changed=self._state_changed,
            told=journal.check_changed,
        )
        self.happenings = Happenings(time.time)
        self.supervision = Supervision(
            surroundings.notifier, self.health, status=self._status, needs_time=self._needs_time
        )
        self.metrics = Metrics()
        self.meters = Meters(self.metrics, monotonic=time.monotonic)
        self.restart = Restart(
            surroundings.argv,
            surroundings.environ,
            self._listeners,
            supervisor=surroundings.supervisor,
        )
        self.loop_lag = LoopLag()
        self.disk = assembly.disk(loaded)
        self.url = ""
        self._stop = asyncio.Event()
        self._signals = 0
        self._reload_asked = asyncio.Event()
        self._starting: asyncio.Task[Any] | None = None
        self._serving = False
        self._others: list[asyncio.Task[None]] = []

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
            stack.callback(self.surroundings.notifier.close)
            stack.callback(self.loop_lag.stop)
            self._handle_signals(stack)
            await self._unless_stopped(self._take_lock(stack))
            if self._stop.is_set():
                return 0
            self._take_home()
            self._open_store(stack)
            self._listen(stack)
            try:
                await self._unless_stopped(self._build(stack))
                if not self._stop.is_set():
                    await self._serve(announce)
            except (BadSetting, StoreUnavailable):
                raise
            except Exception as error:  # a part that fails takes the daemon with it: half a daemon helps nobody
                log.critical("daemon.crashed", exc_info=error)
                return EXIT_CRASH
        log.info("daemon.stopped")
        return 0

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

    async def _take_lock(self, stack: AsyncExitStack) -> None:
        """The home is ours from here on. A successor waits until its predecessor has let go of it."""
        paths = self.started.paths
        for directory in (paths.run_dir, paths.engine_dir):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.surroundings.takeover:
            self.surroundings.teller.tell(Stage.WAITING)
            log.info("daemon.waiting", reason="for the lock of the daemon before")
            pid_file = await taken_over(paths.pid_file)
        else:
            pid_file = PidFile(paths.pid_file)
        stack.callback(pid_file.close)

    def _take_home(self) -> None:
        not_dumpable()  # from here on secrets of the home are in memory
        paths, repaired = self.started.paths, lambda said: log.warning("home.repaired", reason=said)
        secret = local_secret(paths.local_key, secrets.token_bytes, repaired)
        self._audit_key = audit_key(paths.audit_key, secrets.token_bytes, repaired)
        self.local = Key(id=LOCAL, name=LOCAL, digest=digest(secret), role=DEFAULT_ROLE, trust_domain=DEFAULT_DOMAIN)

    def _open_store(self, stack: AsyncExitStack) -> None:
        """The lock is ours, so nobody else has it open. Raises StoreBroken, StoreUnavailable."""
        self._store = SqliteStore.open(
            self.started.paths.database, audit_key=self._audit_key, committed=self.meters.committed
        )
        stack.push_async_callback(self._close_store)

    async def _close_store(self) -> None:
        self._saved = await self._store.close() and self._saved

    def _listen(self, stack: AsyncExitStack) -> None:
        """From here on the kernel holds the connections of those who come before we can answer."""
        http, control = self.started.settings.http, self.started.settings.control
        inherited, path = self.surroundings.inherited, self.started.paths.control_socket
        self._certificate = usable.tls(self.started.settings)
        self._control_sock = inherited.control or control_socket(path, control.mode)
        if inherited.control is None or self.surroundings.takeover:  # else its path is somebody else's
            stack.callback(self._unlink_control, path, inode_of(path))
        if inherited.left is not None:
            inherited.left.unlink(missing_ok=True)
        stack.callback(self._control_sock.close)
        self._public_socks = list(inherited.public) or tcp_sockets(http.host, http.port)
        for sock in self._public_socks:
            stack.callback(sock.close)
        if self._certificate is None and not http.allow_plaintext:
            usable.hold_to_loopback(self._public_socks)
        address, port = self._public_socks[0].getsockname()[:2]
        host = address if inherited.public else http.host
        self.url = _url(host, port, tls=self._certificate is not None)
        AcceptErrors(journal.accept_failed).install(asyncio.get_running_loop())

    def _unlink_control(self, path: Path, inode: tuple[int, int, int]) -> None:
        if not self.restart.pids:  # a successor listens on it still
            unlink_own(path, inode)

    async def _serve(self, announce: Callable[[Daemon], None]) -> None:
        self._serving = True
        self.loop_lag.start()
        async with asyncio.TaskGroup() as group:
            text = group.create_task(self.text.run(), name="text lane")
            dispatching = group.create_task(self.dispatcher.run(), name="dispatcher")
            self._group = group
            self._others += [
                group.create_task(self.health.watch(), name="health"),
                group.create_task(self.surroundings.log.watch(), name="log"),
                group.create_task(self.disk.run(), name="disk"),
                group.create_task(self.supervision.run(), name="supervision"),
                group.create_task(self._reload_when_asked(), name="reload"),
            ]
            if self.redis is not None:
                self._others.append(group.create_task(self.redis.run(), name="redis"))
            draining = group.create_task(self.drain.run(), name="drain")
            await self.durable.start()
            upkeep = group.create_task(self.durable.run(), name="upkeep")
            probed = group.create_task(self.text.probed(), name="probe")
            stopped = group.create_task(self._stop.wait(), name="stop")
            self.surroundings.teller.tell(Stage.LISTENING, url=self.url)
            await asyncio.wait({probed, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if self.health.state is DaemonState.STARTING:
                self._started(announce)
            await stopped
            probed.cancel()
            await draining
            await self._end_requests()
            upkeep.cancel()
            self.dispatcher.close()
            await dispatching
            self._saved = not self.dispatcher.unsaved
            await self._end_workers(text)
            if self.redis is not None:
                await self.redis.close()
            for task in self._others:
                task.cancel()

    def _started(self, announce: Callable[[Daemon], None]) -> None:
        self.health.settle()
        log.info("daemon.ready", url=self.url, state=self.health.state, version=__version__)
        self.supervision.ready()
        probe = self.health.ready()
        self.surroundings.teller.tell(
            Stage.READY, ready=probe.ok, reason=probe.reason, url=self.url, upstream=self.source.name
        )
        announce(self)

    async def _end_requests(self) -> None:
        await self.front.send_on()
        await self._flush()
        self.health.move(DaemonState.STOPPING)
        self.front.public.stop_listening()

    async def _flush(self) -> None:
        """Answers are complete now, but for their last bytes; a peer that takes none of them is not waited for."""
        until = time.monotonic() + self.drain.settings.grace_s
        public = self.front.public
        while public.in_flight and not self.drain.hurried and (left := until - time.monotonic()) > 0:
            async with asyncio.TaskGroup() as group:
                waits = {
                    group.create_task(public.wait_idle(left)),
                    group.create_task(self.drain.changed(left)),
                }
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for wait in waits:
                    wait.cancel()

    async def _end_workers(self, text: asyncio.Task[None]) -> None:
        self.sessions.close()
        self.agents.close()
        self.text.close()
        if not self.text.up:
            text.cancel()  # in the middle of a probe, which ends what it has started
        await asyncio.wait({text})

    # signals

    def _handle_signals(self, stack: AsyncExitStack) -> None:
        """From here to the very end, so that there is no moment in which a signal leaves files behind."""
        loop = asyncio.get_running_loop()
        for number, action in (
            (signal.SIGTERM, self._told_to_stop),
            (signal.SIGINT, self._told_to_stop),
            (signal.SIGQUIT, partial(self._told_to_stop, fast=True)),
            (signal.SIGHUP, self._reload_asked.set),
            (signal.SIGUSR1, self._reopen_log),
            (signal.SIGUSR2, self._dump_stacks),
        ):
            loop.add_signal_handler(number, action)
            stack.callback(signal.signal, number, signal.SIG_IGN)  # all is done: nothing is left to interrupt
            stack.callback(loop.remove_signal_handler, number)

    def _told_to_stop(self, *, fast: bool = False) -> None:
        """The first one drains, a second one waits no longer; while starting, one is enough."""
        self._signals += 1
        if self._starting is not None:
            self._stop.set()
            self._starting.cancel()
        elif self._serving:
            if self._signals == 1:
                self.begin_drain(self.settings.drain.deadline_s, stop=True)
                self.durable.note(self._act("drain", stop=True, fast=fast))
            if fast or self._signals > 1:
                self.drain.hurry()

    def _act(self, name: str, **details: Any) -> AuditRecord:
        """What the daemon did of its own accord, or for a signal."""
        return AuditRecord(at=time.time(), act=f"daemon.{name}", key_id=self.local.id, details=details)

    def _control_refused(self, reason: str, uid: int | None, pid: int | None) -> None:
        self.meters.control_refused(reason)
        journal.control_refused(reason, uid, pid)
        self.durable.control_refused.note(None if uid is None else f"uid {uid}", reason)

    def _reopen_log(self) -> None:
        if self.surroundings.log.reopen():
            log.info("log.reopened")

    def _dump_stacks(self) -> None:
        found = stacks.document()
        for kind in ("tasks", "threads"):
            for entry in found[kind]:
                journal.stack(kind, entry)

    def _state_changed(self, old: DaemonState, new: DaemonState) -> None:
        journal.state_changed(old, new)
        self.happenings.tell("daemon.state", {"old": old.value, "new": new.value})
        if new is DaemonState.STOPPING:  # the control socket waits for nobody who watches
            self.happenings.close()

    def _process_changed(self, event: PoolEvent) -> None:
        """What a process has said is in the log alone, where secrets are masked."""
        if event.name.startswith("worker."):
            told = {name: event.fields[name] for name in _TOLD_OF_PROCESSES if name in event.fields}
            self.happenings.tell(event.name, told)

    def _snapshot(self) -> dict[str, Any]:
        """The whole, for those who watch it."""
        report = self.report
        return {"status": report.status(), "workers": report.workers(), **self.durable.activity.document()}

    # drain and restart

    @property
    def settings(self) -> Settings:
        """Those in force."""
        return self.configuration.loaded.settings

    @property
    def inherited(self) -> bool:
        """Whether somebody else holds our listener too, and gives it to the next daemon."""
        return bool(self.surroundings.inherited.public) and not self.surroundings.takeover

    def _listeners(self) -> Sockets:
        return self.front.listeners()

    def begin_drain(self, deadline_seconds: float, stop: bool, *, successor: bool = False) -> None:
        """From a signal or the control socket; with ``stop`` the daemon ends after it. Raises Refusal."""
        if stop and not successor:
            self.restart.call_off()  # to stop means that none is to run
        handed_over = stop and (successor or self.inherited)
        self.drain.begin(deadline_seconds, stop=stop, handed_over=handed_over)
        log.info(
            "daemon.draining",
            deadline_seconds=deadline_seconds,
            stop=self.drain.stopping,
            handed_over=self.drain.handed_over,
        )
        if stop:
            self.supervision.stopping()
            self._stop.set()

    async def _begin_restart(self) -> int:
        """The successor's pid; from here on this daemon drains and ends. Raises Refusal."""
        if self.health.state not in (DaemonState.READY, DaemonState.DEGRADED, DaemonState.DRAINED):
            raise Refusal.because(Code.CONFLICT, f"the daemon is {self.health.state}")
        pid = await self.restart.successor()
        if self.drain.stopping:
            self.restart.call_off()
            raise Refusal.because(Code.CONFLICT, "the daemon is stopping")
        log.info("daemon.restarting", successor=pid)
        self.begin_drain(self.settings.drain.deadline_s, stop=True, successor=True)
        self._others.append(self._group.create_task(self._go_on_if_lost(), name="successor"))
        return pid

    async def _go_on_if_lost(self) -> None:
        """Takes everything back from a successor that ends while it waits for us."""
        why = await self.restart.lost()
        log.error("daemon.successor_lost", reason=why)
        public = [socket.socket(fileno=os.dup(sock.fileno())) for name, sock in self.restart.kept if name == "http"]
        self.restart.call_off()
        if self.drain.take_back():
            await self.front.accept_again(public)
            log.warning("daemon.goes_on", state=self.health.state)
        else:
            for sock in public:
                sock.close()

    def _status(self) -> str:
        """One line for people."""
        state = self.health.state.value
        if self.health.state is DaemonState.STARTING:
            return f"{state}: probing Claude Code"
        told = f"{state}: {self.dispatcher.running} running, {self.dispatcher.queued} queued"
        if self.drain.active:
            return f"{told}, {self.drain.remaining_seconds:.0f} s left"
        blocked = self.health.blocking_failure()
        return told if blocked is None else f"{told}; not ready: {blocked}"

    def _needs_time(self) -> bool:
        """While it starts, and while it ends within the time it was given."""
        if self.health.state is DaemonState.STARTING:
            return True
        return self.drain.stopping and (self.drain.remaining_seconds > 0 or not self.dispatcher.idle)

    # reload

    async def _reload_when_asked(self) -> None:
        """For SIGHUP; never ends. One that comes while the daemon starts counts when it has started."""
        await self.health.started(None)
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            try:
                self.reload()
            except Refusal as refusal:
                journal.reload_refused(refusal.failure)
            except Exception as error:  # our own bug: what serves goes on serving
                log.critical("daemon.reload_failed", exc_info=error)

    def reload(self) -> Mapping[str, Any]:
        """Loads the configuration again and applies it; what has changed. Raises Refusal, and nothing has."""
        self.supervision.reloading()
        try:
            new = self.surroundings.reload()
            check_reload(self.configuration.loaded, new)
            certificate = usable.tls(new.settings)
            usable.validate(new.settings)
        except ConfigError as error:
            faults = tuple(Fault(path=fault.key or fault.where, message=str(fault)) for fault in error.faults)
            message = f"nothing was changed: {len(faults)} fault{'s' * (len(faults) != 1)} in the configuration"
            raise Refusal(Failure(code=Code.BAD_CONFIGURATION, message=message, faults=faults)) from error
        except BadSetting as error:
            raise Refusal.because(Code.BAD_CONFIGURATION, f"nothing was changed: {error}") from error
        else:
            return self.apply(new, certificate)
        finally:
            self.supervision.reloaded()

    def apply(self, new: Loaded, certificate: usable.Certificate | None) -> Mapping[str, Any]:
        """Brings a configuration into force that was found good: every part takes its share, none can fail or wait."""
        settings, before = new.settings, self.settings
        changed = self.configuration.change(new)
        if settings.log != before.log:  # else levels that were set by hand stay
            self.surroundings.log.apply(settings.log, new.secrets.values())
        self.surroundings.log.mask(new.secrets.values())
        self.front.apply(settings, certificate)
        self.keys.roles = usable.roles(settings)
        self.durable.apply(settings)
        self.drain.settings = assembly.drain_settings(settings)
        if self.direct is not None:
            self.direct.apply(assembly.direct_settings(settings))
        if self.redis is not None and settings.redis.url is not None:
            self.redis.retarget(settings.redis.url)
        self._apply_engine(new, before)
        self.health.note()
        told = {
            "changed": [{"key": change.key, "old": change.old, "new": change.new} for change in changed],
            "needs_restart": self.configuration.needs_restart,
            "config": self.configuration.document(),
        }
        journal.reloaded(told)
        self.durable.note(self._act("reload", **told))
        return told

    def _apply_engine(self, new: Loaded, before: Settings) -> None:
        engine, pool = new.settings.engine, self.text.pool
        if "credential" not in self.configuration.needs_restart:
            before_renewal, self.source = self.source, self.source.renewed(new.credential)
            self.report.source = self.source
            if self.source != before_renewal:
                self.durable.credential.renewed()
        self.admission.default_model = engine.default_model
        self._models_changed()
        told_otherwise = self.text.respawn_with(
            max_retries=engine.max_retries,
            request_timeout_s=engine.turn_timeout_s,
            oauth_token=self.source.oauth_token,
        )
        sizes = assembly.pool_settings(new.settings)
        if (engine.workers, engine.spares) == (before.engine.workers, before.engine.spares):  # an operator's word stays
            sizes = replace(sizes, workers=pool.settings.workers, spares=pool.settings.spares)
        pool.apply(sizes)
        self.agents.apply(assembly.agent_settings(new), assembly.price_of(new.settings))
        self.sessions.apply(assembly.session_settings(new.settings))
        if told_otherwise:
            self.sessions.recycle_rolling("the configuration has changed")
            pool.recycle_rolling("the configuration has changed")
            self.agents.renew_spares()

    # parts

    async def _build(self, stack: AsyncExitStack) -> None:
        settings = self.started.settings
        environ = self.surroundings.environ
        subreaper = become_subreaper()
        # before anything is started, or it would be in the way
        self.cgroups = assembly.cgroups(self.started.paths.home)
        if self.cgroups is not None:
            stack.callback(self.cgroups.give_back)
        cli = settings.engine.cli_path or bundled_cli() or Path("claude")
        self.source = await find_source(self.started, cli, environ, stack)
        if self.source.name == "offline":
            log.warning("engine.offline", reason="the offline model answers: no account, no network")
        self.keys = KeyDesk(
            self._store,
            self.local,
            shared=self.source.access is not Access.BROKER,  # else the CLI holds its own, the same for all
            roles=usable.roles(settings),
            now=time.time,
            monotonic=time.monotonic,
            ids=assembly.ids,
            randbytes=secrets.token_bytes,
        )
        await self.keys.load()
        client = await self._client(stack)
        broker = Broker(client, told=self.meters.model_call)
        stack.push_async_callback(broker.stop)
        await broker.start()
        self.schemas = SchemaChecker()
        stack.push_async_callback(self.schemas.stop)
        await self.schemas.start()
        engines = await self._build_lanes(cli, client, broker, owns_process=subreaper)
        self.durable = Durable(
            settings,
            self._store,
            engines,
            self.sessions,
            self.schemas,
            audit_key=self._audit_key,
            meters=self.meters,
            budget_of=self.keys.budget_of,
            happened=self.happenings.tell,
        )
        stack.push_async_callback(self.durable.close)
        self.dispatcher = self.durable.dispatcher
        self.admission = self._admission(engines)
        self.durable.serve(self.admission, self.health, draining=lambda: self.drain.begun, keys=self.keys)
        self.report = self._report()
        self.health.sources += [
            self.report.engine_checks,
            self.report.auth_check,
            self.report.machine_checks,
            self.report.log_check,
            self.durable.check,
            self.durable.budgets.check,
            self.configuration.check,
        ]
        self.redis = assembly.redis_link(settings, told=self.meters.told, changed=self.health.note)
        if self.redis is not None:
            self.health.sources.append(self._redis_check)
        self._build_front(stack, client)
        self._record_traces(stack)
        await self.front.listen(self._public_socks, self._control_sock, self._certificate)

    def _admission(self, engines: Sequence[Engine]) -> Admission:
        settings = self.started.settings
        return Admission(
            self.dispatcher,
            engines,
            state=lambda: self.health.state,
            lenient=lambda: self.health.lenient,
            store_error=lambda: self._store.status().error,
            models=settings.engine.models,
            default_model=settings.engine.default_model,
            login=self.source.kind,
            limits=self.durable.limits,
            budgets=self.durable.budgets,
        )

    def _report(self) -> Report:
        return Report(
            configuration=self.configuration,
            source=self.source,
            text=self.text,
            direct=self.direct,
            agents=self.agents,
            sessions=self.sessions,
            dispatcher=self.dispatcher,
            health=self.health,
            keys=self.keys,
            credential=self.durable.credential,
            loop_lag=self.loop_lag,
            disk=self.disk,
            queue=self.durable.queue,
            paused=lambda: self.durable.upkeep.paused,
            url=self.url,
            supervisor=self.surroundings.supervisor,
            log=self.surroundings.log,
        )

    async def _build_lanes(
        self, cli: Path, client: MessagesClient | None, broker: Broker, *, owns_process: bool
    ) -> list[Engine]:
        """Every lane that there is here, in the order in which they are preferred."""
        self.text = assembly.text_lane(
            self.started,
            cli,
            self.source,
            broker,
            self.surroundings.environ,
            told=self.meters.pool_event,
            changed=self._engine_changed,
            happened=self._process_changed,
            owns_process=owns_process,
            known=lambda: self.schemas.pids | self.restart.pids,
        )
        self.direct = (
            DirectEngine(client, assembly.direct_settings(self.started.settings), self.meters.model_call)
            if client is not None
            else None
        )
        self.agents = assembly.agent_lane(
            self.started,
            self.text,
            exposed=self.keys.arms_somebody,
            may_use=self._may_use,
            cgroups=self.cgroups,
        )
        await self.agents.probe()
        if self.agents.missing is not None:
            journal.no_sandbox(self.agents.missing, required=self.agents.settings.required)
        self.sessions = assembly.session_lane(self.started, self.text, self.agents)
        engines: list[Engine] = [self.text, self.agents, self.sessions]
        if self.direct is not None:
            engines.insert(0, self.direct)
        return engines

    def _redis_check(self) -> Mapping[str, HealthReport]:
        assert self.redis is not None
        return {"redis": self.redis.check()}

    async def _client(self, stack: AsyncExitStack) -> MessagesClient | None:
        """The way to the upstream, where we hold a credential for it; a rotated one counts from the next call on."""
        if self.source.credential is None:
            return None
        base_url = self.source.base_url
        proxy = proxy_for(base_url, self.surroundings.environ)
        client = MessagesClient(base_url, lambda: self.source.in_force, proxy=proxy)
        stack.push_async_callback(client.close)
        await client.start()
        return client

    def _engine_changed(self) -> None:
        """Workers have come or gone, or the CLI has been probed: then it has the last word on its own aliases."""
        self._models_changed()
        self.health.note()

    def _may_use(self, key_id: str, model: str) -> bool:
        """``model``: as the upstream names it."""
        return self.keys.may_use(key_id, names_told(model, self.admission.models))

    def _models_changed(self) -> None:
        self.admission.models = assembly.models(self.configuration.loaded, self.text.pool.capabilities.aliases)
        self.meters.models = frozenset(self.admission.models.values())
        self.text.pool.default_model = self.admission.model(None)

    def _build_front(self, stack: AsyncExitStack, client: MessagesClient | None) -> None:
        self.front = Front(
            self.started.settings,
            self.durable,
            self.admission,
            self.health,
            self.schemas,
            self.keys,
            client,
        )
        gauges = self._gauges()
        self.metrics.look, self.metrics.read = gauges.look, gauges.read
        public = self.front.public
        edge = Edge(
            begin=self.front.begin_drain,
            end=self.front.end_drain,
            leave=public.stop_listening,
            connections=lambda: len(public.connections),
            unanswered=lambda: public.unanswered,
            silent=lambda: public.silent,
            notices=lambda: self.front.notices,
            refuse=public.refuse_bodies,
        )
        settings = assembly.drain_settings(self.started.settings)
        self.drain = Drain(self.health, self.dispatcher, edge, time.monotonic, settings=settings)
        public.changed = self.drain.note
        self.front.controlled_by(self._control_routes())
        stack.push_async_callback(self.front.close_control)
        stack.push_async_callback(public.close)

    def _record_traces(self, stack: AsyncExitStack) -> None:
        """Where a collector is configured. Raises BadSetting."""
        endpoint = self.started.settings.telemetry.otlp_endpoint
        if endpoint is not None:
            traces = assembly.traces(endpoint)
            stack.push_async_callback(traces.close)
            self.meters.spans = Spans(traces, now=time.time, monotonic=time.monotonic)
            self.front.records()

    def _gauges(self) -> Gauges:
        return Gauges(
            health=self.health,
            text=self.text,
            agents=self.agents,
            sessions=self.sessions,
            durable=self.durable,
            keys=self.keys,
            front=self.front,
            home=self.started.paths.home,
            disk=self.disk,
            now=time.time,
            lost=lambda: self.surroundings.log.lost,
            loop_lag=lambda: self.loop_lag.recent_seconds,
        )

    def _control_routes(self) -> ControlRoutes:
        durable, front = self.durable, self.front
        operations = Operations(
            self.text.pool,
            self.agents,
            self.sessions,
            front,
            self.drain,
            durable.upkeep,
            self.surroundings.log,
            begin_drain=self.begin_drain,
            configuration=self.configuration,
            reload=self.reload,
            restart=self._begin_restart,
        )
        routes = ControlRoutes(
            assembly.control_settings(self.started.settings),
            self.health,
            self.drain,
            front.chats,
            self.local,
            status=self.report.status,
            workers=self.report.workers,
            begin_drain=self.begin_drain,
            record=durable.record,
            refused=self._control_refused,
        )
        routes.groups += [
            ControlDaemonRoutes(
                operations, front.chats, progress=routes.progress, line=self.drain.progress, record=durable.record
            ),
            ControlEngineRoutes(EngineCheck(self.text, self.agents).begin, record=durable.record),
            ControlEventRoutes(self.happenings, snapshot=self._snapshot),
            ControlAuditRoutes(self._store, durable.audit),
            ControlKeyRoutes(self.keys, front.chats),
            ControlSessionRoutes(front.sessions),
            ControlMetricsRoutes(front.metrics),
            ControlUsageRoutes(front.usage, self.keys.names),
            ControlTaskRoutes(
                durable.desk,
                front.tasks,
                durable.follow,
                durable.upkeep,
                front.chats,
                self.schemas,
                record=durable.record,
            ),
        ]
        return routes


def _url(host: str, port: int, *, tls: bool) -> str:
    host = host.strip("[]")
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
