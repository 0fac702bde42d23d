"""The session lane: a conversation on a process that is kept for it, and resumed when that is gone.

What a session says and does passes through the agent lane's sandbox and hook; new here is what outlives a turn. A
session has a directory of its own (:class:`~claude_daemon.engine.session_home.Home`), of which no other process sees
anything, and at most one process, since two that resume one conversation would lose a branch of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence, Set
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
from claude_daemon.core.worker import Start, WorkerState
from claude_daemon.engine import report
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
from claude_daemon.engine.wear import lifetime, worn_out
from claude_daemon.ports import Ended, HealthReport, McpFailed, NotYet

_GONE: Final = "the session's transcript is not there any more"
_NO_FORM: Final = "`output_config.format` is not supported in a session's chats: submit a task with a `schema`."


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """``idle_s``: how long a process is kept for its session's next turn. ``turn_timeout_s``: a chat's. A process is
    replaced after so many turns, so many seconds or above so much memory, as a text worker is."""

    idle_s: float
    turn_timeout_s: float
    max_turns_per_worker: int
    max_worker_age_s: float
    max_worker_rss_mb: int


class TranscriptGone(Exception):
    """A session that has had turns has no transcript."""


class SessionWorker(AgentWorker):
    """A session's process: one turn after the other, for the same tools and directories."""

    session_id = ""
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
        self._agent, self._gate, self._ask, self._servers = agent, _NothingToWriteDown(), None, Servers(agent)
        self._subagents = frozenset[str]()
        await self.set_up(system)

    def begin_turn(self, message: str) -> None:
        """What has come since the last turn is nobody's, and what it used has been told."""
        self.move(WorkerState.BUSY)
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


class _NothingToWriteDown:
    """The :class:`~claude_daemon.ports.Gate` of a turn without tools."""

    async def called(self, tool: str, given: Mapping[str, Any], *, asked: bool) -> str | None:
        return None

    async def allowed(self, tool: str) -> str | None:
        return None


@dataclass(slots=True, eq=False)
class Seat:
    """A session with a process or a turn. ``users``: turns that have it; ``lock``: who may start, use or end its
    process; ``ending``: its process is about to be ended, or being so."""

    worker: SessionWorker | None = None
    users: int = 0
    ending: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    expiry: asyncio.TimerHandle | None = None


class SessionLane:
    """Implements :class:`~claude_daemon.ports.Engine`, and :class:`~claude_daemon.service.sessions.Homes`."""

    lane = Lane.SESSION

    def __init__(self, settings: SessionSettings, text: TextLane, agents: AgentLane, directory: Path) -> None:
        """``directory``: where sessions live; it is made when the first does."""
        self.settings = settings
        self.room = text.room
        self.workers: dict[str, SessionWorker] = {}  # until they are forgotten
        self.agents = agents
        self.starts: Counter[str] = Counter()
        self._ids_kept = True  # as far as has been seen
        self._text = text
        self._spawner = text.spawner
        self._directory = directory
        self._seats: dict[str, Seat] = {}  # the one that was used last is last
        self._leases: set[SessionLease] = set()

    @property
    def keeps_ids(self) -> bool:
        """Whether Claude Code keeps the ids of user messages, by which a turn that was begun is known."""
        return self._ids_kept and self._text.pool.capabilities.message_ids

    def apply(self, settings: SessionSettings) -> None:
        """For the turns and the processes that begin from now on."""
        self.settings = settings

    def unsupported(self, spec: TaskSpec) -> Failure | None:
        if not self._spawner.brokered:
            why = "sessions need an API key: a login's token would be within reach of their tools"
            return Failure(code=Code.LANE_UNAVAILABLE, message=why, param="session")
        if (failure := self._not_possible(spec.session)) is not None:
            return failure
        if spec.kind is Kind.CHAT and (spec.request.get("output_config") or {}).get("format") is not None:
            return Failure(code=Code.UNSUPPORTED_PARAMETER, message=_NO_FORM, param="output_config.format")
        if spec.kind is Kind.TASK and len(spec.request["messages"]) > 1:
            why = "`messages` in a session has one message: the session itself holds what was said before."
            return Failure(code=Code.INVALID_REQUEST, message=why, param="messages")
        return self.agents.unsupported(spec)

    def _not_possible(self, turn: SessionTurn | None) -> Failure | None:
        """Before the CLI is probed nothing is: what it cannot do is told by the turn's end then."""
        can = self._text.pool.capabilities
        forks = turn is not None and turn.source is not None
        if not self._text.up or (can.sessions and (can.fork or not forks)):
            return None
        lacks = "forks none (--fork-session)" if can.sessions else "keeps none (--session-id, --resume)"
        why = f"`session`: this Claude Code ({can.version or 'of no known version'}) {lacks}."
        return Failure(code=Code.LANE_UNAVAILABLE, message=why, param="session")

    def approximated(self, spec: TaskSpec) -> Sequence[str]:
        return self._text.approximated(spec)

    def unavailable(self) -> Failure | None:
        return self._text.unavailable()

    def lease(self, spec: TaskSpec) -> SessionLease | None:
        turn = spec.session
        assert turn is not None
        if not self._text.up or not self.room.free:
            return None
        if self._engaged(turn.id) or (turn.source is not None and self._engaged(turn.source) and self._copies(turn)):
            raise NotYet
        seat = self._seats.pop(turn.id, None) or Seat()
        self._seats[turn.id] = seat
        seat.users += 1
        if seat.expiry is not None:
            seat.expiry.cancel()
        kept = seat.worker if seat.worker is not None and self._serves(seat.worker, spec) else None
        worker = kept or self._prepared(spec, turn)
        lease = SessionLease(self, seat, spec, worker, Start.COLD if kept is None else Start.WARM)
        self.starts[lease.start] += 1
        self._leases.add(lease)
        self.room.take(lease)
        self._make_room()
        return lease

    def _engaged(self, session_id: str) -> bool:
        """Whether a turn of the session is under way or being tidied up after, or its process is being ended."""
        seat = self._seats.get(session_id)
        return seat is not None and (seat.users > 0 or seat.ending or seat.lock.locked())

    def _copies(self, turn: SessionTurn) -> bool:
        """Whether it begins with a copy of its source; it does so once."""
        return not self.home(turn.id).config.exists()

    def _prepared(self, spec: TaskSpec, turn: SessionTurn) -> SessionWorker:
        """A worker for this turn, whose process is to be started."""
        assert spec.agent is not None
        worker = self._spawner.prepare_as(SessionWorker, Shape(model=self.agents.cli_model(spec.model)))
        worker.session_id, worker.outline, worker.schema = turn.id, spec.agent.outline, plan(spec).binding.schema
        self.workers[worker.id] = worker
        return worker

    def _make_room(self) -> None:
        """Of the processes that are only kept, those that were used longest ago go where more need a place."""
        taken = [name for name, seat in self._seats.items() if seat.users or seat.worker is not None]
        kept = [name for name in taken if not self._seats[name].users]
        for name in kept[: max(0, len(taken) - self.room.limit)]:
            self.close_kept(name)

    def _fits(self, worker: SessionWorker, spec: TaskSpec) -> bool:
        """Whether its process may do what this turn may, and no more; directories aside."""
        assert spec.agent is not None
        same = worker.lasts and worker.outline == spec.agent.outline and worker.schema == plan(spec).binding.schema
        model = self._text.pool.capabilities.set_model or worker.model == self.agents.cli_model(spec.model)
        return worker.alive and same and model

    def _serves(self, worker: SessionWorker, spec: TaskSpec) -> bool:
        """The same, and its directories still bear their names."""
        assert spec.agent is not None
        try:
            return self._fits(worker, spec) and worker.identity == self.agents.identity_of(spec.agent)
        except (NotBeneath, OSError):  # the start of another one will say why
            return False

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
            try:
                async with seat.lock:
                    await self._end_kept(seat)
            finally:
                self._tidy(session_id, seat)
                self.room.tell()

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
            seat.ending = True
            self.own(self._close(session_id, seat, worker))
        else:
            self._tidy(session_id, seat)

    async def _close(self, session_id: str, seat: Seat, worker: SessionWorker) -> None:
        """It is given the time to write its transcript."""
        try:
            async with seat.lock:
                with contextlib.suppress(OSError):
                    await worker.stop()
                await self.forget(worker)
        finally:
            seat.ending = False
            self._tidy(session_id, seat)
            self.room.tell()

    def _tidy(self, session_id: str, seat: Seat) -> None:
        if seat.worker is None and not self._engaged(session_id) and self._seats.get(session_id) is seat:
            del self._seats[session_id]

    def close(self) -> None:
        """Before the text lane's pool is closed."""
        self.recycle_rolling("closing")

    # what an operator asks

    def recycle(self, worker_ids: Iterable[str], reason: str) -> None:
        """Ends the processes that are only kept, others after their turn; the session's next turn resumes it."""
        for worker in [self.workers[worker_id] for worker_id in worker_ids]:
            worker.unfit = worker.unfit or reason
            self._close_if_kept(worker)

    def _close_if_kept(self, worker: SessionWorker) -> None:
        seat = self._seats.get(worker.session_id)
        if seat is not None and seat.worker is worker:
            self.close_kept(worker.session_id)

    def recycle_rolling(self, reason: str) -> None:
        """All of them: none is made anew before it is asked for, so there is nothing to do it one after another for."""
        self.recycle(list(self.workers), reason)

    def kill(self, worker_id: str) -> None:
        """Ends its process now. A turn on it fails as one on a crashed process does, and is made again where it may."""
        worker = self.workers[worker_id]
        worker.kill()
        self._close_if_kept(worker)

    def kill_busy(self) -> list[str]:
        """Ends the processes of all who have a turn, and those that are only kept; the ids of the former."""
        busy = [lease.worker for lease in self._leases]
        for worker in busy:
            worker.kill()
        self.recycle_rolling("killed")
        return [worker.id for worker in busy]

    # for its leases

    async def start(self, lease: SessionLease, seat: Seat) -> None:
        """Starts the lease's process, unless it goes on with the one that is kept. Under the seat's lock.

        Raises SpawnFailed, WorkerLost, NotBeneath, OSError, TranscriptGone.
        """
        assert lease.spec.agent is not None
        if lease.worker is seat.worker:
            if self._serves(lease.worker, lease.spec):
                return
            lease.worker = self._prepared(lease.spec, lease.turn)  # that one has died since
        await self._end_kept(seat)
        conversation = await self._conversation(lease.turn)
        if lease.turn.source is not None:
            lease.copied(lease.turn.source)
        seat.worker = lease.worker  # from here on it ends with its seat's turn
        await self._spawn(lease.worker, lease.spec.agent, conversation)

    async def _conversation(self, turn: SessionTurn) -> Conversation:
        """What the new process goes on with. Raises OSError, TranscriptGone."""
        home = self.home(turn.id)
        source = turn.source
        if source is not None and self._copies(turn):
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

    async def _spawn(self, worker: SessionWorker, agent: AgentSpec, conversation: Conversation) -> None:
        session_id = worker.session_id
        cwd, more = self.agents.open(agent, self.home(session_id).work)
        worker.places = (cwd, *more)  # until it is forgotten
        worker.identity = self.agents.identity_of(agent)
        worker.lifetime_s = lifetime(self.settings.max_worker_age_s)
        outfit = Outfit(
            agent=agent,
            add_dirs=tuple(place.path for place in more),
            enclose=self.agents.enclosed(worker, cwd, more),
            conversation=conversation,
        )
        await self._spawner.spawn(worker, worker.wanted, lambda: self._exited(session_id, worker), outfit)
        await worker.brought_up()

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
            self._ids_kept = False

    async def _good(self, worker: SessionWorker) -> bool:
        worker.turns += 1
        worker.last_used = time.monotonic()
        if not (await worker.settle() and worker.alive and worker.lasts):
            return False
        settings = self.settings
        worn = worn_out(worker, max_turns=settings.max_turns_per_worker, max_rss_mb=settings.max_worker_rss_mb)
        if worn is not None:
            self._text.pool.say("worker.retiring", "info", worker, reason=worn)
            return False
        worker.move(WorkerState.IDLE)
        if worker.account is not None:
            worker.account.bar("its session is at nobody's turn")
        return True

    def leave(self, lease: SessionLease, seat: Seat) -> None:
        """The turn is over, or was none."""
        self._leases.discard(lease)
        if lease.worker is not seat.worker and lease.worker.id in self.workers:  # it was not needed after all
            self.own(self.forget(lease.worker))
        seat.users -= 1
        if not seat.users:
            if seat.worker is not None:
                loop = asyncio.get_running_loop()
                seat.expiry = loop.call_later(self.settings.idle_s, self.close_kept, lease.turn.id)
            else:
                self._tidy(lease.turn.id, seat)
            self._make_room()
        self.room.give_back(lease)

    def own(self, ending: Coroutine[Any, Any, None]) -> None:
        self.agents.own(ending)

    async def forget(self, worker: SessionWorker) -> None:
        try:
            await self.agents.forget(worker)
        finally:
            self.workers.pop(worker.id, None)

    # what it tells

    def counts(self) -> dict[str, Any]:
        """For ``status``. ``kept``: processes that wait for their session's next turn."""
        kept = sum(1 for seat in self._seats.values() if seat.worker is not None and not seat.users)
        starts = {start.value: self.starts[start.value] for start in (Start.WARM, Start.COLD)}
        return {"running": len(self._leases), "kept": kept, "starts": starts}

    def listing(self) -> list[dict[str, Any]]:
        """Every process with what it is and does, for people; those that are only kept are idle."""
        told = report.listing(self.workers.values(), self.lane)
        return [{**one, "session_id": self.workers[one["id"]].session_id} for one in told]

    def health(self) -> Mapping[str, HealthReport]:
        if not self.keeps_ids:
            why = "this Claude Code keeps no ids of messages: a session's turn that is cut short is never made again"
            return {"sessions": HealthReport(status=Check.WARN, reason=why, details=self.counts())}
        return {"sessions": HealthReport(status=Check.PASS, details=self.counts())}


class SessionLease(AgentLease):
    """See :class:`~claude_daemon.ports.GatedLease` and :class:`~claude_daemon.ports.CopyingLease`."""

    worker: SessionWorker

    def __init__(self, lane: SessionLane, seat: Seat, spec: TaskSpec, worker: SessionWorker, start: Start) -> None:
        super().__init__(lane.agents, spec, worker, start)
        assert spec.session is not None
        self.spec = spec
        self.turn = spec.session
        self.succeeded = False
        self.copied: Callable[[str], None] = lambda session_id: None
        self._sessions = lane
        self._seat = seat
        self._ran = False

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
            except (SpawnFailed, WorkerLost, OSError) as error:
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
        await self._sessions.start(self, self._seat)
        worker = self.worker
        worker.begin_turn(self.turn.message)
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
        self.hold_to_models(worker)
        return worker.turn(self._plan, model, limits, self.spec.request_id, self.spending)

    @property
    def _plan(self) -> TurnPlan:
        """The session remembers what was said before."""
        return replace(plan(self.spec), history=())

    def release(self) -> None:
        if not self._ran:
            self._ran = True
            self._sessions.leave(self, self._seat)
