"""The agent lane: Claude Code with its own tools, one process for one attempt, in a sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import orjson

from claude_daemon.core.agent import STARTS_AGENTS, AgentSpec, Approval, Subagent
from claude_daemon.core.budget import usd
from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.event import Emission
from claude_daemon.core.lifecycle import Check
from claude_daemon.core.price import Price, cost_micro_usd, dearest, is_dearer, is_model, told_price
from claude_daemon.core.task import Lane, Outcome, State, TaskSpec, Usage
from claude_daemon.core.worker import Start, WorkerState
from claude_daemon.engine import report
from claude_daemon.engine.agent_quota import EVERY_S, larger_than
from claude_daemon.engine.agent_spares import Identity, Spare, Wanted, identity
from claude_daemon.engine.agent_turn import AgentReader
from claude_daemon.engine.agent_worker import AgentWorker
from claude_daemon.engine.cgroup import Cgroups
from claude_daemon.engine.deadline import TurnLimits, WorkerLost
from claude_daemon.engine.lane import TextLane
from claude_daemon.engine.launch import Launch
from claude_daemon.engine.mcp import Servers
from claude_daemon.engine.mcp_stdio import StdioServer
from claude_daemon.engine.plan import Shape, TurnPlan, plan
from claude_daemon.engine.pool import PoolEvent
from claude_daemon.engine.process import SpawnFailed
from claude_daemon.engine.removal import remove_tree
from claude_daemon.engine.sandbox import Limits, NotBeneath, Place, bwrap_argv, open_beneath, sandbox_missing
from claude_daemon.engine.spawner import Command, Outfit
from claude_daemon.ports import (
    Ask,
    ConnectMcp,
    Ended,
    Gate,
    HealthReport,
    Heard,
    Limit,
    Lost,
    McpFailed,
    McpServer,
    McpTransport,
    Spending,
)

_UNBOUNDED_S: Final = 24 * 3600.0
"""A run that nobody gave a timeout must end some day."""
_MIB: Final = 1024 * 1024
_TMP: Final = "/tmp"  # noqa: S108 - the sandbox's own


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """``spares``: processes kept for the shapes seen most, ``max_spare_age_s``: how long
    each. ``roots``: where tasks may work, but for ``private``, the daemon's own files and directories, without
    symlinks; ``trusted``: those of them whose settings count where that is asked for. ``servers``: what MCP servers a
    task may name. ``work_quota_mb``: what it may keep in directories that the daemon has made for it. ``wanted``: a
    sandbox is, where there is one; ``bwrap`` None: there is none.

    ``required``: without a sandbox no tool runs that could change anything.
    """

    spares: int
    max_spare_age_s: float
    stall_timeout_s: float
    roots: tuple[Path, ...]
    private: tuple[Path, ...]
    limits: Limits
    work_quota_mb: int
    bwrap: Path | None
    wanted: bool
    required: bool
    trusted: frozenset[Path] = frozenset()
    servers: Mapping[str, McpServer] = field(default_factory=dict)


class AgentLane:
    """Implements :class:`~claude_daemon.ports.Engine`. It shares the CLI, its probe, its room and its processes'
    bookkeeping with the text lane, and is up when that is."""

    lane = Lane.AGENT

    def __init__(
        self,
        settings: AgentSettings,
        text: TextLane,
        directory: Path,
        *,
        unsupported: Callable[[TaskSpec], Failure | None],
        price: Callable[[str], Price | None],
        exposed: Callable[[], bool],
        remote: ConnectMcp,
        may_use: Callable[[str, str], bool] = lambda key_id, model: True,
        cgroups: Cgroups | None = None,
    ) -> None:
        """``directory``: where scratch directories are made. ``unsupported``: what no Claude Code process can do.

        ``exposed``: whether there is anybody but this user who may have tools run. ``remote`` reaches MCP servers that
        have a URL. ``may_use``: whether a key, by its id, may use a model. ``cgroups``: where each agent has one of its
        own.
        """
        self._may_use = may_use
        self._remote = remote
        self.settings = settings
        self.price = price
        self.missing: str | None = "it has not been tried yet"
        """Why there is no sandbox."""
        self._text = text
        self._spawner = text.spawner
        self._scratch = directory / "work"
        self._unsupported = unsupported
        self._exposed = exposed
        self.room = text.room
        self.workers: dict[str, AgentWorker] = {}  # until they are forgotten
        self._cgroups = cgroups
        self._leases: set[AgentLease] = set()
        self._wanted = Wanted()
        self._spares: list[Spare] = []
        self._generation = 0  # of the spares: those of an earlier one were started under other settings
        self._filling = False
        self._closed = False
        self.starts: Counter[str] = Counter()
        text.pool.on_end(self._fill)  # now and then, whether or not any task comes: spares age, and die

    async def probe(self) -> None:
        """Tries the sandbox. Before the first task; and ends and empties what an earlier daemon left."""
        if self._cgroups is not None and (left := await asyncio.to_thread(self._cgroups.sweep)):
            self._text.pool.told(PoolEvent(name="agents.old_ones_ended", level="warning", fields={"cgroups": left}))
        await asyncio.to_thread(remove_tree, self._scratch)
        self._scratch.mkdir(parents=True, mode=0o700, exist_ok=True)  # what cannot be removed keeps nobody from work
        if self.settings.bwrap is None:
            self.missing = "bubblewrap is not installed" if self.settings.wanted else 'engine.sandbox is "none"'
        else:
            self.missing = await sandbox_missing(self.settings.bwrap)

    def apply(self, settings: AgentSettings, price: Callable[[str], Price | None]) -> None:
        """What counts from the next task on. The sandbox stays: which one there is was tried at the start."""
        before = self.settings
        self.settings = replace(settings, bwrap=before.bwrap, wanted=before.wanted, required=before.required)
        self.price = price
        told = [(one.limits, one.roots, one.trusted) for one in (settings, before)]
        if told[0] != told[1]:
            self.renew_spares()
        self._fill()

    def renew_spares(self) -> None:
        """What a process is told at its start has changed: no task gets one that was started before."""
        self._generation += 1
        for spare in list(self._spares):
            self._drop(spare)

    def unsupported(self, spec: TaskSpec) -> Failure | None:
        agent = spec.agent
        assert agent is not None
        if not self._spawner.brokered:  # the CLI would hold the real one, within reach of its tools
            told = "agents need an API key: a login's token would be within reach of their tools"
            return Failure(code=Code.LANE_UNAVAILABLE, message=told, param="tools")
        if (failure := self._unsupported(spec)) is not None:
            return failure
        for name, path in (("cwd", agent.cwd), *(("add_dirs", path) for path in agent.add_dirs)):
            if path is not None and (why := self._outside(path)) is not None:
                return Failure(code=Code.INVALID_REQUEST, message=f"`{name}`: {why}", param=name)
        if (failure := self._not_configured(agent)) is not None:
            return failure
        unpriced = sorted(model for model in spec.models if self.price(model) is None)
        if agent.max_cost_micro_usd is not None and unpriced:
            why = f"`max_cost_usd` needs the price of {unpriced[0]}: [prices] in the configuration has none."
            return Failure(code=Code.INVALID_REQUEST, message=why, param="max_cost_usd")
        if self.missing is not None and self.settings.required and agent.tools:
            why = f"without a sandbox only Read, Grep and Glob are allowed here: {self.missing}"
            if not self._text.pool.capabilities.restricted:
                why = f"without a sandbox, and with a Claude Code without --restricted, no tool runs: {self.missing}"
            elif agent.read_only:
                return None
            return Failure(code=Code.SANDBOX_UNAVAILABLE, message=why, param="tools")
        return None

    def _not_configured(self, agent: AgentSpec) -> Failure | None:
        for name in agent.mcp_servers:
            if name not in self.settings.servers:
                why = f"`mcp_servers`: the configuration has no [mcp.{name}]."
                return Failure(code=Code.INVALID_REQUEST, message=why, param="mcp_servers")
        if agent.agents and self._text.up and not self._text.pool.capabilities.hooks:
            why = "`agents`: this Claude Code has no hooks, by which they are kept to what the task says of them."
            return Failure(code=Code.LANE_UNAVAILABLE, message=why, param="agents")
        if agent.project_settings and (strange := self._untrusted(agent)) is not None:
            why = f"`project_settings`: {strange}"
            return Failure(code=Code.FORBIDDEN, message=why, param="project_settings")
        return None

    def _untrusted(self, agent: AgentSpec) -> str | None:
        """Why settings of these directories do not count; an added one would bring skills of its own."""
        if agent.cwd is None:
            return "there is no project without `cwd`."
        for path in (agent.cwd, *agent.add_dirs):
            if self._root_of(path) not in self.settings.trusted:
                return f"{path} is under no root that the operator trusts."
        return None

    def _outside(self, path: str) -> str | None:
        if (root := self._root_of(path)) is not None:
            private = self._is_private(Path(os.path.normpath(path)), root)
            return "the daemon's own files are there." if private else self._not_there(path)
        if not self.settings.roots:
            return "no directories are configured that tasks may work in: [[roots]]."
        return "it is not under one of the configured roots."

    def _not_there(self, path: str) -> str | None:
        """Why it cannot be opened now. It is opened when the task begins, whatever is found here."""
        try:
            os.close(self.opened(path).fd)
        except NotBeneath as error:
            return f"{error}."
        except OSError:  # the machine is at fault, and may be no more by then
            return None
        return None

    def _root_of(self, path: str) -> Path | None:
        """The innermost, by its name alone; the directory itself is opened beneath the root when the task begins."""
        normal = Path(os.path.normpath(path))
        around = [root for root in self.settings.roots if normal.is_relative_to(root)]
        return max(around, key=lambda root: len(root.parts), default=None)

    def _is_private(self, path: Path, root: Path) -> bool:
        """Whether it has something of the daemon's own within, or is within such; unless the root is so itself, which
        somebody has meant."""
        within = (own for own in self.settings.private if path.is_relative_to(own))
        meant = all(own in root.parents for own in within)
        return not meant or any(own.is_relative_to(path) for own in self.settings.private)

    def approximated(self, spec: TaskSpec) -> Sequence[str]:
        return self._text.approximated(spec)

    def unavailable(self) -> Failure | None:
        return self._text.unavailable()

    def lease(self, spec: TaskSpec) -> AgentLease | None:
        if not self._text.up or not self.room.free:
            return None
        spare = self._claim(spec)
        if spare is not None:
            spare.move(WorkerState.BUSY)
        worker = spare or self.worker(self._shape(spec.model))
        lease = AgentLease(self, spec, worker, Start.COLD if spare is None else Start.SPARE)
        self.starts[lease.start] += 1
        self._leases.add(lease)
        self.room.take(lease)
        return lease

    def _claim(self, spec: TaskSpec) -> AgentWorker | None:
        """A spare of this shape whose directories are still those that bear their names."""
        assert spec.agent is not None
        outline, now = spec.agent.outline, time.monotonic()
        self._wanted.note(outline)
        another_model = self.cli_model(spec.model) != self.cli_model(self._text.pool.default_model)
        if another_model and not self._text.pool.capabilities.set_model:
            return None
        if not any(spare.outline == outline for spare in self._spares):
            return None
        try:
            places = self.identity_of(outline)
        except (NotBeneath, OSError):
            return None
        for spare in [spare for spare in self._spares if spare.outline == outline]:
            if spare.fits(places, now, self.settings.max_spare_age_s):
                self._spares.remove(spare)
                return spare.worker
            self._drop(spare)  # it will never fit any more, and would keep another from being started
        return None

    def identity_of(self, outline: AgentSpec) -> Identity:
        """The directories that bear its names now. Raises NotBeneath, OSError."""
        with ExitStack() as opened:
            paths = [path for path in (outline.cwd, *outline.add_dirs) if path is not None]
            places = []
            for path in paths:
                places.append(self.opened(path))
                opened.callback(os.close, places[-1].fd)
            return identity(places)

    def give_back(self, lease: AgentLease) -> None:
        if lease in self._leases:
            self._leases.discard(lease)
            self.room.give_back(lease)
            self._fill()

    @property
    def running(self) -> int:
        return len(self._leases)

    def counts(self) -> dict[str, Any]:
        """For ``status``: ``starts`` is how many tasks found a spare, or none."""
        starts = {start.value: self.starts[start.value] for start in (Start.SPARE, Start.COLD)}
        return {
            "running": self.running,
            "spares": sum(spare.alive for spare in self._spares),
            "starts": starts,
            "sandboxed": self.missing is None,
            "limits": self.limited_by,
        }

    @property
    def limited_by(self) -> str:
        """What holds agents to their limits: ``cgroup``, all processes of one together; ``rlimit``, each process."""
        if self._cgroups is not None:
            return "cgroup"
        return "rlimit" if self.missing is None else "none"

    def health(self) -> Mapping[str, HealthReport]:
        """It warns while somebody may have tools run, and nothing confines them."""
        details = self.counts()
        if self.missing is None:
            return {"agents": HealthReport(status=Check.PASS, details=details)}
        if self.settings.required:
            why = f"no sandbox, so no tool but Read, Grep and Glob runs: {self.missing}"
            return {"agents": HealthReport(status=Check.PASS, reason=why, details=details)}
        why = f"no sandbox, so a key with tools is this user: {self.missing}"
        status = Check.WARN if self._exposed() else Check.PASS
        return {"agents": HealthReport(status=status, reason=why, details=details)}

    def listing(self) -> list[dict[str, Any]]:
        """Every process with what it is and does, for people; spares are idle."""
        return report.listing(self.workers.values(), self.lane)

    # what an operator asks

    def recycle(self, worker_ids: Iterable[str], reason: str) -> None:
        """Replaces spares. Whoever has a turn has no other after it anyway."""
        for spare in [spare for spare in self._spares if spare.worker.id in set(worker_ids)]:
            self._drop(spare)
        self._fill()

    def recycle_rolling(self, reason: str) -> None:
        """Replaces every spare, one after another."""
        for spare in self._spares:
            spare.worker.unfit = spare.worker.unfit or reason
        self._fill()

    def kill(self, worker_id: str) -> None:
        """Ends its process now. A turn on it fails as one on a crashed process does, and is made again where it may."""
        self.workers[worker_id].kill()
        self.recycle([worker_id], "killed")

    def kill_busy(self) -> list[str]:
        """Ends the processes of all who have a turn, and those that wait for one; the ids of the former."""
        busy = [lease.worker for lease in self._leases]
        for worker in busy:
            worker.kill()
        self.renew_spares()
        return [worker.id for worker in busy]

    # spares

    def _fill(self) -> None:
        """One at a time, so that a start never takes more than one core from those who work."""
        if self._filling or self._closed:
            return
        wanted = self._wanted.most(self.settings.spares)
        now = time.monotonic()
        for spare in list(self._spares):
            if spare.outline not in wanted or not spare.alive or now - spare.born >= self.settings.max_spare_age_s:
                self._drop(spare)
        if (worn := next((spare for spare in self._spares if spare.worker.unfit is not None), None)) is not None:
            self._drop(worn)
        have = [spare.outline for spare in self._spares]
        missing = next((outline for outline in wanted if outline not in have), None)
        if missing is not None and self._text.up:
            self._filling = True
            self.own(self._bring_up(missing))

    async def _bring_up(self, outline: AgentSpec) -> None:
        worker = self.worker(self._shape(self._text.pool.default_model))
        generation = self._generation
        try:
            places = await self.spawn(worker, outline)
        except (NotBeneath, SpawnFailed, WorkerLost, OSError):
            await self._end_spare(worker)  # the task that needs it will say why
            return
        finally:
            self._filling = False
        spare = Spare(worker=worker, outline=outline, places=places, born=time.monotonic())
        self._spares.append(spare)
        if self._closed or generation != self._generation:
            self._drop(spare)
        self._fill()

    def _drop(self, spare: Spare) -> None:
        self._spares.remove(spare)
        self.own(self._end_spare(spare.worker))

    async def _end_spare(self, worker: AgentWorker) -> None:
        with contextlib.suppress(OSError):
            await worker.kill_now()
        await self.forget(worker)

    def close(self) -> None:
        """No spares from here on; before the text lane's pool is closed."""
        self._closed = True
        for spare in list(self._spares):
            self._drop(spare)

    # for its leases

    def open(self, agent: AgentSpec, scratch: Path) -> tuple[Place, list[Place]]:
        """The directories of a task, as descriptors; ``scratch`` is where it works if it has named none. Raises
        NotBeneath, OSError."""
        if agent.project_settings and (strange := self._untrusted(agent)) is not None:
            raise NotBeneath(f"the settings of the project cannot be read any more: {strange}")
        if agent.cwd is None:
            scratch.mkdir(mode=0o700, exist_ok=True)
            cwd = open_beneath(scratch.parent, scratch.name)
        else:
            cwd = self.opened(agent.cwd)
        with ExitStack() as opened:
            opened.callback(os.close, cwd.fd)
            more = []
            for path in agent.add_dirs:
                more.append(self.opened(path))
                opened.callback(os.close, more[-1].fd)
            opened.pop_all()
        return cwd, more

    def opened(self, path: str) -> Place:
        """Raises NotBeneath, OSError."""
        root = self._root_of(path)
        if root is None:
            raise NotBeneath(f"{path} is not under a configured root any more")
        place = open_beneath(root, str(Path(os.path.normpath(path)).relative_to(root)))
        if self._is_private(place.path, root):
            os.close(place.fd)
            raise NotBeneath(f"no task may work in {place.path}: the daemon's own files are there")
        return place

    def own(self, ending: Coroutine[Any, Any, None]) -> None:
        """The end of a process, which nobody waits for; the text lane's pool does not end before it."""
        self._text.pool.own(self._guarded(ending))

    async def _guarded(self, ending: Coroutine[Any, Any, None]) -> None:
        """The boundary of what is done for one process: a machine that has no thread left costs the others nothing."""
        try:
            await ending
        except Exception as error:
            self._text.pool.told(PoolEvent(name="agent.not_cleaned_up", level="error", fields={"error": repr(error)}))

    async def forget(self, worker: AgentWorker) -> None:
        """In a thread: what a task leaves in its directories may be large."""
        for place in worker.places:
            os.close(place.fd)
        worker.places = ()
        try:
            if not await asyncio.to_thread(self._remove, worker):
                fields = {"worker_id": worker.id, "reason": "a process of it does not end, or it cannot be written"}
                self._text.pool.told(PoolEvent(name="agent.cgroup_stays", level="warning", fields=fields))
        finally:
            self._spawner.forget(worker)
            self.workers.pop(worker.id, None)
            if worker.state is not WorkerState.GONE:
                worker.move(WorkerState.GONE)
            self._text.swept()

    def _remove(self, worker: AgentWorker) -> bool:
        """Whether its cgroup is gone. What is in there is ended first: nobody writes any more where it is removed."""
        ended = worker.group is None or worker.group.end()
        remove_tree(self._scratch / worker.id)
        if worker.home is not None:
            remove_tree(worker.home)
        return ended

    def servers(self, agent: AgentSpec) -> Servers:
        """Those of a task, not yet open. Raises McpFailed."""
        return Servers(agent, self.settings.servers, self._connect)

    def _connect(self, server: McpServer, heard: Heard, lost: Lost) -> McpTransport:
        if server.url is not None:
            return self._remote(server, heard, lost)
        return StdioServer(server, heard, lost, spawner=self._spawner, told=self._server_wrote)

    def _server_wrote(self, name: str, words: str) -> None:
        self._text.pool.told(PoolEvent(name="mcp.stderr", level="info", fields={"server": name, "said": words}))

    def forbids(self, spec: TaskSpec, than: Price | None, model: str) -> str | None:
        """Why a model, as the upstream names it, is none for a task whose own models cost ``than`` at most."""
        if any(is_model(model, own) for own in spec.models):
            return None
        price = told_price(model, self.price)
        if price is not None and than is not None and is_dearer(price, than):
            return f"something in the task asked for {model}, which is dearer than the task's own models"
        if not self._may_use(spec.key_id, model):
            return f"something in the task asked for {model}, which the role of its key may not use"
        return None

    def cli_model(self, model: str) -> str:
        return self._text.pool.cli_model(model)

    def _shape(self, model: str) -> Shape:
        return Shape(model=self.cli_model(model))

    def worker(self, shape: Shape) -> AgentWorker:
        """One whose process is to be started; until it is forgotten, whether or not that has been done."""
        worker = self._spawner.prepare_as(AgentWorker, shape)
        self.workers[worker.id] = worker
        return worker

    async def spawn(self, worker: AgentWorker, agent: AgentSpec) -> Identity:
        """The directories that it was given by name. Raises SpawnFailed, WorkerLost, NotBeneath, OSError."""
        cwd, more = self.open(agent, self._scratch / worker.id)
        try:
            given = identity([*([cwd] if agent.cwd is not None else []), *more])
            enclose = self.enclosed(worker, cwd, more)
            outfit = Outfit(agent=agent, add_dirs=tuple(place.path for place in more), enclose=enclose)
            await self._spawner.spawn(worker, worker.wanted, worker.wake, outfit)
        except BaseException:
            for place in (cwd, *more):
                os.close(place.fd)
            raise
        worker.places = (cwd, *more)  # until it is forgotten
        await worker.brought_up()
        return given

    def enclosed(self, worker: AgentWorker, cwd: Place, more: Sequence[Place]) -> Callable[[Command, Launch], Command]:
        """What makes of a command one that is held: in a cgroup, in a sandbox, as far as there are such. Raises OSError
        when it is called."""
        confine = self._confined(cwd, more)
        if self._cgroups is None:
            return confine
        cgroups = self._cgroups

        def enclose(command: Command, launch: Launch) -> Command:
            confined = confine(command, launch)
            worker.group = cgroups.make(worker.id, self.settings.limits)
            return replace(confined, argv=worker.group.entering(confined.argv))

        return enclose

    def _confined(self, cwd: Place, more: Sequence[Place]) -> Callable[[Command, Launch], Command]:
        bwrap = self.settings.bwrap
        if bwrap is None or self.missing is not None:
            # where it was opened, whatever bears its name by now
            where = Path(f"/proc/self/fd/{cwd.fd}") if sys.platform == "linux" else cwd.path
            return lambda command, launch: replace(command, cwd=where)

        def confine(command: Command, launch: Launch) -> Command:
            argv, fds = bwrap_argv(
                command.argv,
                bwrap=bwrap,
                cli=launch.cli,
                cwd=cwd,
                add_dirs=more,
                read_only=() if launch.settings_file is None else (launch.settings_file,),
                home=launch.home,
                config_dir=launch.config_dir,
                limits=self.settings.limits,
            )
            return Command(argv=argv, env={**command.env, "TMPDIR": _TMP}, cwd=command.cwd, pass_fds=fds)

        return confine


class AgentLease:
    """See :class:`~claude_daemon.ports.GatedLease` and :class:`~claude_daemon.ports.MeteredLease`."""

    def __init__(self, lane: AgentLane, spec: TaskSpec, worker: AgentWorker, start: Start) -> None:
        """``worker``: a spare, or one whose process is to be started."""
        self.gate: Gate | None = None
        self.ask: Ask | None = None
        self.spending: Spending | None = None
        self._lane = lane
        self._spec = spec
        self.worker = worker
        self.start = start.value
        self._servers: Servers | None = None
        self._ending = False

    @property
    def worker_id(self) -> str:
        return self.worker.id

    @property
    def usage(self) -> Usage:
        return Usage() if self.worker.account is None else self.worker.account.usage

    async def run(self) -> AsyncIterator[Sequence[Emission | Ended]]:
        agent = self._spec.agent
        assert agent is not None
        if (refused := self._lane.unsupported(self._spec)) is not None:
            # since it was queued the sandbox, a root or a price may have gone, with a reload or another daemon
            yield [failed(refused)]
            return
        worker, left = self.worker, True
        try:
            try:
                self._servers = servers = self._lane.servers(agent)
                await servers.open()
                if worker.process is None:
                    await self._lane.spawn(worker, agent)
                    worker.move(WorkerState.BUSY)
            except McpFailed as error:
                yield [failed(Failure(code=Code.MCP_UNAVAILABLE, message=f"the MCP server {error}"))]
                return
            except NotBeneath as error:
                yield [failed(Failure(code=Code.INVALID_REQUEST, message=str(error)))]
                return
            except (SpawnFailed, WorkerLost, OSError) as error:
                why = f"the agent could not be started: {error}"
                yield [failed(Failure(code=Code.ENGINE_CRASHED, message=why))]
                return
            async with aclosing(cast(Any, self._turn(worker, agent, servers))) as batches:
                async for batch in batches:
                    left = not isinstance(batch[-1], Ended)
                    yield batch
        finally:
            self._end_soon(worker, left=left)

    async def _turn(
        self, worker: AgentWorker, agent: AgentSpec, servers: Servers
    ) -> AsyncGenerator[Sequence[Emission | Ended]]:
        spec, settings = self._spec, self._lane.settings
        turn_plan = plan(spec)
        reader = AgentReader(
            show_thinking=turn_plan.show_thinking,
            structured=turn_plan.binding.schema is not None,
            max_turns=agent.max_turns,
        )
        over = asyncio.Event()
        self.hold_to_models(worker)
        self._lane.own(self._keep_quota(worker, agent, reader, over))
        turn = worker.agent_turn(
            turn_plan,
            self._lane.cli_model(self._spec.model),
            TurnLimits(stall_seconds=settings.stall_timeout_s, turn_seconds=spec.timeout_seconds or _UNBOUNDED_S),
            reader,
            agent=agent,
            servers=servers,
            system=self._told(turn_plan, agent),
            gate=self.gate,
            ask=self.ask if agent.approval is Approval.ASK else None,
            where=agent.cwd,
            limit=self._limit(worker, reader, agent.max_cost_micro_usd),
            request_id=spec.request_id,
        )
        try:
            async with aclosing(turn) as batches:
                async for batch in batches:
                    yield batch
        finally:
            over.set()

    async def _keep_quota(
        self, worker: AgentWorker, agent: AgentSpec, reader: AgentReader, over: asyncio.Event
    ) -> None:
        """Of the directories that the daemon has made for it; a named one is its owner's to watch."""
        assert worker.config_dir is not None
        most_mb, directories = self._lane.settings.work_quota_mb, [worker.config_dir]
        if agent.cwd is None:
            directories.append(worker.places[0].path)
        while not over.is_set():
            if await asyncio.to_thread(larger_than, most_mb * _MIB, *directories):
                why = f"the task keeps more than agent.work_quota_mb = {most_mb} in its directories"
                reader.fail(Failure(code=Code.DISK_QUOTA, message=why))
                worker.wake()
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await over.wait()

    def _told(self, turn_plan: TurnPlan, agent: AgentSpec) -> Mapping[str, Any]:
        """The fields of ``initialize``."""
        fields: dict[str, Any] = {}
        if turn_plan.binding.system:
            fields["systemPrompt"] = turn_plan.binding.system
        if agent.append_system is not None:
            fields["appendSystemPrompt"] = agent.append_system
        if agent.agents:
            fields["agents"] = {one.name: self._defined(one, agent) for one in agent.agents}
        if turn_plan.binding.schema is not None:
            fields["jsonSchema"] = orjson.loads(turn_plan.binding.schema)
        return fields

    def _defined(self, one: Subagent, agent: AgentSpec) -> Mapping[str, Any]:
        """A subagent as Claude Code is told of it. It starts none of its own, and has nothing that the task has not."""
        told: dict[str, Any] = {"description": one.description, "prompt": one.prompt}
        if one.tools is None:
            told["disallowedTools"] = [STARTS_AGENTS]
        else:
            told["tools"] = [tool for tool in agent.tools if tool in one.tools]
        if one.model is not None:
            told["model"] = self._lane.cli_model(one.model)
        if one.max_turns is not None:
            told["maxTurns"] = one.max_turns
        return told

    def _limit(self, worker: AgentWorker, reader: AgentReader, most: int | None) -> Limit | None:
        """No further model call once the task has spent ``most``, nothing is left to spend, or a model was asked
        that is none for it."""
        price, spending, account = dearest(self._spec.models, self._lane.price), self.spending, worker.account

        def why(usage: Usage) -> Failure | None:
            if account is not None and account.forbidden is not None:
                return Failure(code=Code.FORBIDDEN, message=account.forbidden)
            if most is not None and price is not None and cost_micro_usd(usage, price) >= most:
                told = f"the task has spent its max_cost_usd of {usd(most):g}"
                return Failure(code=Code.MAX_COST, message=told)
            return None if spending is None else spending(usage)

        return worker.ends_turn(reader, why)

    def hold_to_models(self, worker: AgentWorker) -> None:
        """Its tools have the worker's token within reach: whoever uses it is answered by no dearer model than the
        task's own, and by none that the key may not use."""
        if worker.account is not None:
            price = dearest(self._spec.models, self._lane.price)
            worker.account.forbids = partial(self._lane.forbids, self._spec, price)

    def _end_soon(self, worker: AgentWorker, *, left: bool) -> None:
        """Once: the place becomes free when the process is gone."""
        if not self._ending:
            self._ending = True
            self._lane.own(self._end(worker, left=left))

    async def _end(self, worker: AgentWorker, *, left: bool) -> None:
        """``left``: nobody waits for an end any more, so it is not given time for one."""
        async with AsyncExitStack() as all_of_it:  # whichever part fails; the last one pushed is the first one done
            all_of_it.callback(self._lane.give_back, self)
            all_of_it.push_async_callback(self._lane.forget, worker)
            if self._servers is not None:
                all_of_it.push_async_callback(self._servers.close)
            with contextlib.suppress(OSError):
                await (worker.kill_now() if left else worker.stop())

    def release(self) -> None:
        """Its process ends unused, unless its end is under way."""
        if self.worker.process is None and not self._ending:
            self._ending = True
            self._lane.own(self._lane.forget(self.worker))
            self._lane.give_back(self)
        else:
            self._end_soon(self.worker, left=True)


def failed(failure: Failure) -> Ended:
    return Ended(outcome=Outcome(state=State.FAILED, failure=failure))
