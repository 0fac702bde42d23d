"""The session lane: a conversation on a process that is kept for it, and resumed when that is gone.

What a session says and does passes through the agent lane's sandbox and hook; new here is what outlives a turn. A
session has a directory of its own (:class:`~claude_daemon.engine.session_home.Home`), of which no other process sees
anything, and at most one process, since two that resume one conversation would lose a branch of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

from claude_daemon.core.agent import AgentSpec
from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.event import Emission
from claude_daemon.core.lifecycle import Check
from claude_daemon.core.session import SessionTurn
from claude_daemon.core.task import Kind, Lane, State, TaskSpec
from claude_daemon.core.worker import Start
from claude_daemon.engine.agent import AgentLane, AgentLease, failed
from claude_daemon.engine.agent_spares import Identity
from claude_daemon.engine.agent_worker import AgentWorker
from claude_daemon.engine.deadline import TurnLimits, WorkerLost
from claude_daemon.engine.lane import TextLane
from claude_daemon.engine.mcp import Servers
from claude_daemon.engine.plan import Shape, TurnPlan, plan
from claude_daemon.engine.process import SpawnFailed
from claude_daemon.engine.removal import remove_tree
from claude_daemon.engine.sandbox import NotBeneath
from claude_daemon.engine.session_home import Home
from claude_daemon.engine.spawner import Conversation, Outfit
from claude_daemon.ports import Ended, HealthReport, McpFailed

_GONE: Final = "the session's transcript is not there any more"
_NO_FORM: Final = "`output_config.format` is not supported in a session's chats: submit a task with a `schema`."


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """``places``: processes at once, those that are only kept included. ``idle_s``: how long one is kept for its
    session's next turn. ``turn_timeout_s``: a chat's."""

    places: int
    idle_s: float
    turn_timeout_s: float


class TranscriptGone(Exception):
    """A session that has had turns has no transcript."""


class SessionWorker(AgentWorker):
    """A session's process: one turn after the other, for the same tools and directories."""

    outline: AgentSpec
    schema: bytes | None = None
    identity: Identity = ()
    is_set_up = False

    async def set_up(self, system: Mapping[str, Any]) -> None:
        """Once: the first ``initialize`` counts."""
        if not self.is_set_up:
            await super().set_up(system)
            self.is_set_up = True

    async def set_up_for_chat(self, system: Mapping[str, Any], agent: AgentSpec) -> None:
        """The same for a turn without tools."""
        self._agent, self._gate, self._ask, self._servers = agent, _nothing_to_write_down, None, Servers(agent)
        self._subagents = frozenset[str]()
        await self.set_up(system)

    def begin_turn(self, message: str) -> None:
        """What has come since the last turn is nobody's, and what it used has been told."""
        self._inbox.clear()
        self._inbox_bytes = 0
        if self._held and self.process is not None:
            self._held = False
            self.process.hold(False)
        self.message = message
        if self.account is not None:
            self.account.begin()

    @property
    def lasts(self) -> bool:
        """Whether it may serve another turn: what a task may do without being asked is written down once for each
        process, and a server is each task's own."""
        return self._can.hooks and not self.outline.mcp_servers

    @property
    def alive(self) -> bool:
        return self.process is not None and not self.process.gone and not self.ending and self.unfit is None


async def _nothing_to_write_down(tool: str, given: Mapping[str, Any]) -> str | None:
    return None


@dataclass(slots=True, eq=False)
class Seat:
    """A session with a process or a turn. ``users``: turns that have it or wait for the one before to be over;
    ``lock``: who may start, use or end its process."""

    worker: SessionWorker | None = None
    users: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    expiry: asyncio.TimerHandle | None = None


class SessionLane:
    """Implements :class:`~claude_daemon.ports.Engine`, and :class:`~claude_daemon.service.sessions.Homes`."""

    lane = Lane.SESSION

    def __init__(self, settings: SessionSettings, text: TextLane, agents: AgentLane, directory: Path) -> None:
        """``directory``: where sessions live; it is made when the first does."""
        self.settings = settings
        self.agents = agents
        self.starts: Counter[str] = Counter()
        self.keeps_ids = True
        """Whether Claude Code keeps the ids of user messages, by which a turn that was begun is known."""
        self._text = text
        self._spawner = text.spawner
        self._directory = directory
        self._seats: dict[str, Seat] = {}  # the one that was used last is last
        self._leases: set[SessionLease] = set()
        self._room: list[Callable[[], None]] = []
        text.pool.on_room(self._tell_room)

    def apply(self, settings: SessionSettings) -> None:
        before, self.settings = self.settings, settings
        if settings.places > before.places:
            self._tell_room()

    def unsupported(self, spec: TaskSpec) -> Failure | None:
        if not self._spawner.brokered:
            why = "sessions need an API key: a login's token would be within reach of their tools"
            return Failure(code=Code.LANE_UNAVAILABLE, message=why, param="session")
        if spec.kind is Kind.CHAT and (spec.request.get("output_config") or {}).get("format") is not None:
            return Failure(code=Code.UNSUPPORTED_PARAMETER, message=_NO_FORM, param="output_config.format")
        if spec.kind is Kind.TASK and len(spec.request["messages"]) > 1:
            why = "`messages` in a session has one message: the session itself holds what was said before."
            return Failure(code=Code.INVALID_REQUEST, message=why, param="messages")
        return self.agents.unsupported(spec)

    def approximated(self, spec: TaskSpec) -> Sequence[str]:
        return self._text.approximated(spec)

    def on_room(self, callback: Callable[[], None]) -> None:
        self._room.append(callback)

    def _tell_room(self) -> None:
        for callback in self._room:
            callback()

    def unavailable(self) -> Failure | None:
        return self._text.unavailable()

    def lease(self, spec: TaskSpec) -> SessionLease | None:
        turn = spec.session
        assert turn is not None
        if not self._text.up or len(self._leases) >= self.settings.places:
            return None
        seat = self._seats.pop(turn.id, None) or Seat()
        self._seats[turn.id] = seat
        seat.users += 1
        if seat.expiry is not None:
            seat.expiry.cancel()
        warm = seat.worker is not None and self._fits(seat.worker, spec)
        lease = SessionLease(self, seat, spec, Start.WARM if warm else Start.COLD)
        self.starts[lease.start] += 1
        self._leases.add(lease)
        self._make_room()
        return lease

    def _make_room(self) -> None:
        """Of the processes that are only kept, those that were used longest ago go where more need a place."""
        taken = [name for name, seat in self._seats.items() if seat.users or seat.worker is not None]
        kept = [name for name in taken if not self._seats[name].users]
        for name in kept[: max(0, len(taken) - self.settings.places)]:
            self.close_kept(name)

    def _fits(self, worker: SessionWorker, spec: TaskSpec) -> bool:
        """Whether its process may do what this turn may, and no more; directories aside."""
        assert spec.agent is not None
        same = worker.lasts and worker.outline == spec.agent.outline and worker.schema == plan(spec).binding.schema
        model = self._text.pool.capabilities.set_model or worker.model == self.agents.cli_model(spec.model)
        return worker.alive and same and model

    # what is kept

    def home(self, session_id: str) -> Home:
        return Home(self._directory / session_id)

    def warm(self, session_id: str) -> bool:
        seat = self._seats.get(session_id)
        return seat is not None and seat.worker is not None

    async def said(self, spec: TaskSpec) -> bool:
        """Whether the task's user message is in its session already; where nobody can tell, it is."""
        turn = spec.session
        if turn is None:
            return False
        home = self.home(turn.id)

        def look() -> bool:
            if not self.keeps_ids:
                return home.transcript(turn.transcript) is not None
            return home.holds(turn.transcript, turn.message)

        try:
            return await asyncio.to_thread(look)
        except OSError:
            return True

    async def remove(self, session_id: str) -> None:
        await self._end_process(session_id)
        await asyncio.to_thread(self.home(session_id).remove)

    async def _end_process(self, session_id: str) -> None:
        """Of a session that is at nobody's turn, or whose turn was just over."""
        seat = self._seats.get(session_id)
        if seat is not None:
            async with seat.lock:
                await self._end_kept(seat)
            self._tidy(session_id, seat)

    async def _end_kept(self, seat: Seat) -> None:
        """Under its lock. The process is given the time to write its transcript."""
        worker, seat.worker = seat.worker, None
        if worker is not None:
            with contextlib.suppress(OSError):
                await worker.stop()
            await self.forget(worker)

    def keep_only(self, sessions: Set[str]) -> Sequence[str]:
        """Deletes what belongs to none of these, before the first turn; what that was. Blocks."""
        strange = [path for path in self._directory.glob("*") if path.name not in sessions]
        for path in strange:
            remove_tree(path)
        return [path.name for path in strange]

    def close_kept(self, session_id: str) -> None:
        """Ends the process of a session that is at nobody's turn."""
        seat = self._seats.get(session_id)
        if seat is None or seat.users:
            return
        worker, seat.worker = seat.worker, None
        if seat.expiry is not None:
            seat.expiry.cancel()
        if worker is not None:
            self.own(self._close(session_id, seat, worker))
        else:
            self._tidy(session_id, seat)

    async def _close(self, session_id: str, seat: Seat, worker: SessionWorker) -> None:
        """It is given the time to write its transcript."""
        async with seat.lock:
            with contextlib.suppress(OSError):
                await worker.stop()
            await self.forget(worker)
        self._tidy(session_id, seat)
        self._tell_room()

    def _tidy(self, session_id: str, seat: Seat) -> None:
        if not seat.users and seat.worker is None and not seat.lock.locked() and self._seats.get(session_id) is seat:
            del self._seats[session_id]

    def close(self) -> None:
        """Before the text lane's pool is closed."""
        self.recycle()

    def recycle(self) -> list[str]:
        """Ends the processes that are only kept, others after their turn; the ids of the former's workers."""
        ended = []
        for name, seat in list(self._seats.items()):
            if seat.worker is not None and seat.users:
                seat.worker.unfit = seat.worker.unfit or "recycled"
            elif seat.worker is not None:
                ended.append(seat.worker.id)
                self.close_kept(name)
        return ended

    def kill_busy(self) -> list[str]:
        """Ends the processes of all who have a turn, and those that are only kept; the ids of the former."""
        busy = [seat.worker for seat in self._seats.values() if seat.worker is not None and seat.users]
        for worker in busy:
            worker.unfit = worker.unfit or "killed"
            if worker.process is not None:
                worker.process.kill(signal.SIGKILL)
        self.recycle()
        return [worker.id for worker in busy]

    # for its leases

    async def worker(self, spec: TaskSpec, seat: Seat, copied: Callable[[str], None]) -> SessionWorker:
        """The session's process for this turn. Under the seat's lock.

        Raises SpawnFailed, WorkerLost, NotBeneath, OSError, TranscriptGone.
        """
        turn, agent = spec.session, spec.agent
        assert turn is not None and agent is not None
        kept = seat.worker
        if kept is not None and self._fits(kept, spec) and self._same_places(kept, agent):
            return kept
        await self._end_kept(seat)
        conversation = await self._conversation(turn)
        if turn.source is not None:
            copied(turn.source)
        seat.worker = await self._spawn(spec, agent, turn, conversation)
        return seat.worker

    def _same_places(self, worker: SessionWorker, agent: AgentSpec) -> bool:
        """Whether its directories still bear their names. Raises NotBeneath, OSError."""
        return worker.identity == self.agents.identity_of(agent)

    async def _conversation(self, turn: SessionTurn) -> Conversation:
        """What the new process goes on with. Raises OSError, TranscriptGone."""
        home = self.home(turn.id)
        source = turn.source
        if source is not None and not home.config.exists():
            await self._end_process(source)  # which writes the last of its transcript then
            await asyncio.to_thread(home.copy, self.home(source))

        def found() -> Conversation:
            home.make()
            own = home.transcript(turn.transcript)
            if own is not None:
                return Conversation(config_dir=home.config, resume=turn.transcript)
            base = turn.source_transcript
            if base is not None and home.transcript(base) is not None:
                return Conversation(config_dir=home.config, session_id=turn.transcript, resume=base, fork=True)
            if turn.begun:
                raise TranscriptGone
            return Conversation(config_dir=home.config, session_id=turn.transcript)

        return await asyncio.to_thread(found)

    async def _spawn(
        self, spec: TaskSpec, agent: AgentSpec, turn: SessionTurn, conversation: Conversation
    ) -> SessionWorker:
        shape = Shape(model=self.agents.cli_model(spec.model))
        worker = self._spawner.prepare_as(SessionWorker, shape)
        worker.outline, worker.schema = agent.outline, plan(spec).binding.schema
        try:
            cwd, more = self.agents.open(agent, self.home(turn.id).work)
            worker.places = (cwd, *more)  # until it is forgotten
            worker.identity = self.agents.identity_of(agent)
            outfit = Outfit(
                agent=agent,
                add_dirs=tuple(place.path for place in more),
                enclose=self.agents.enclosed(cwd, more),
                conversation=conversation,
            )
            await self._spawner.spawn(worker, shape, lambda: self._exited(turn.id, worker), outfit)
            await worker.ready()
        except BaseException:
            self.own(self._kill(worker))
            raise
        return worker

    async def _kill(self, worker: SessionWorker) -> None:
        with contextlib.suppress(OSError):
            await worker.kill_now()
        await self.forget(worker)

    def _exited(self, session_id: str, worker: SessionWorker) -> None:
        """Its process has ended: a turn on it sees that, and one that was only kept is not any more."""
        worker.wake()
        seat = self._seats.get(session_id)
        if seat is not None and seat.worker is worker and not seat.users:
            self.close_kept(session_id)

    async def after_turn(self, lease: SessionLease, seat: Seat, *, left: bool) -> None:
        """The process is kept if it is good for another turn. The seat's lock is held, and given back here."""
        turn, worker = lease.turn, seat.worker
        try:
            await lease.close_servers()
            if worker is not None and not await self._good(worker):
                seat.worker = None
                with contextlib.suppress(OSError):
                    await (worker.kill_now() if left else worker.stop())
                await self.forget(worker)
        finally:
            seat.lock.release()
            self.leave(lease, seat)
        if turn.begun or not self.keeps_ids:
            return
        # once for each session: does Claude Code keep the ids that we give?
        if lease.succeeded and not await self.said(lease.spec):
            self.keeps_ids = False

    async def _good(self, worker: SessionWorker) -> bool:
        if not (await worker.settle() and worker.alive and worker.lasts):
            return False
        if worker.account is not None:
            worker.account.bar("its session is at nobody's turn")
        return True

    def leave(self, lease: SessionLease, seat: Seat) -> None:
        """The turn is over, or was none."""
        self._leases.discard(lease)
        seat.users -= 1
        if not seat.users:
            if seat.worker is not None:
                loop = asyncio.get_running_loop()
                seat.expiry = loop.call_later(self.settings.idle_s, self.close_kept, lease.turn.id)
            else:
                self._tidy(lease.turn.id, seat)
            self._make_room()
        self._tell_room()

    def own(self, ending: Coroutine[Any, Any, None]) -> None:
        self.agents.own(ending)

    async def forget(self, worker: SessionWorker) -> None:
        await self.agents.forget(worker)

    # what it tells

    def counts(self) -> dict[str, Any]:
        """For ``status``. ``kept``: processes that wait for their session's next turn."""
        kept = sum(1 for seat in self._seats.values() if seat.worker is not None and not seat.users)
        starts = {start.value: self.starts[start.value] for start in (Start.WARM, Start.COLD)}
        return {"running": len(self._leases), "kept": kept, "places": self.settings.places, "starts": starts}

    def health(self) -> Mapping[str, HealthReport]:
        if not self.keeps_ids:
            why = "this Claude Code keeps no ids of messages: a session's turn that is cut short is never made again"
            return {"sessions": HealthReport(status=Check.WARN, reason=why, details=self.counts())}
        return {"sessions": HealthReport(status=Check.PASS, details=self.counts())}


class SessionLease(AgentLease):
    """See :class:`~claude_daemon.ports.GatedLease` and :class:`~claude_daemon.ports.CopyingLease`."""

    def __init__(self, lane: SessionLane, seat: Seat, spec: TaskSpec, start: Start) -> None:
        super().__init__(lane.agents, spec, None, start)
        assert spec.session is not None
        self.spec = spec
        self.turn = spec.session
        self.succeeded = False
        self.copied: Callable[[str], None] = lambda session_id: None
        self._sessions = lane
        self._seat = seat
        self._ran = False
        self._found = seat.worker.id if seat.worker is not None else None

    @property
    def worker_id(self) -> str | None:
        return self._found if self._worker is None else self._worker.id

    async def run(self) -> AsyncIterator[Sequence[Emission | Ended]]:
        self._ran = True
        lane, seat = self._sessions, self._seat
        if (refused := lane.unsupported(self.spec)) is not None:  # since it was queued something may have changed
            lane.leave(self, seat)
            yield [failed(refused)]
            return
        left = True
        try:
            await seat.lock.acquire()
        except BaseException:
            lane.leave(self, seat)
            raise
        try:
            try:
                worker = await self._begun()
            except NotBeneath as error:
                yield [failed(Failure(code=Code.INVALID_REQUEST, message=str(error)))]
                return
            except McpFailed as error:
                yield [failed(Failure(code=Code.MCP_UNAVAILABLE, message=f"the MCP server {error}"))]
                return
            except TranscriptGone:
                yield [failed(Failure(code=Code.NOT_FOUND, message=_GONE))]
                return
            except (SpawnFailed, WorkerLost, OSError, shutil.Error) as error:
                why = f"the session's process could not be started: {error}"
                yield [failed(Failure(code=Code.ENGINE_CRASHED, message=why))]
                return
            async with aclosing(cast(Any, self._answer(worker))) as batches:
                async for batch in batches:
                    if isinstance(batch[-1], Ended):
                        left, self.succeeded = False, batch[-1].outcome.state is State.SUCCEEDED
                    yield batch
        finally:
            lane.own(lane.after_turn(self, seat, left=left))

    async def _begun(self) -> SessionWorker:
        worker = await self._sessions.worker(self.spec, self._seat, self.copied)
        worker.begin_turn(self.turn.message)
        self._worker = worker
        agent = self.spec.agent
        assert agent is not None
        self._servers = servers = self._sessions.agents.servers(agent)
        await servers.open()
        if self.spec.kind is Kind.CHAT:
            await worker.set_up_for_chat(self._told(self._plan, agent), agent)
        return worker

    async def close_servers(self) -> None:
        if self._servers is not None:
            await self._servers.close()

    def _answer(self, worker: SessionWorker) -> AsyncIterator[Sequence[Emission | Ended]]:
        assert self.spec.agent is not None and self._servers is not None
        if self.spec.kind is Kind.TASK:
            return self._turn(worker, self.spec.agent, self._servers)
        settings = self._sessions.settings
        limits = TurnLimits(
            stall_seconds=self._sessions.agents.settings.stall_timeout_s, turn_seconds=settings.turn_timeout_s
        )
        model = self._sessions.agents.cli_model(self.spec.model)
        return worker.turn(self._plan, model, limits, self.spec.request_id)

    @property
    def _plan(self) -> TurnPlan:
        """The session remembers what was said before."""
        return replace(plan(self.spec), history=())

    def release(self) -> None:
        if not self._ran:
            self._ran = True
            self._sessions.leave(self, self._seat)
