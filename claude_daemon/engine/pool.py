"""The pool of warm processes: who gets which worker, and what happens in the background.

:meth:`Pool.lease` is synchronous and decides only; spawning, binding ahead, recycling and burying are tasks of the
pool's own. A process is unbound until its first request, which binds it to that request's system prompt and schema;
it is kept for them, least recently used first out. ``spares`` unbound processes are always being made ready, so that
the next new system prompt need not wait for a spawn. When spares run short, a warm process that is bound otherwise is
lent, and the broker puts the asked system prompt and schema in place; so nobody waits for a spawn while workers are
idle. No trust domain takes another's processes below its floor (:mod:`~claude_daemon.engine.floors`).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import random
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.room import Room
from claude_daemon.core.task import Lane, TaskSpec
from claude_daemon.core.worker import LIVE, Start, WorkerState
from claude_daemon.engine import client_tools, report
from claude_daemon.engine.capabilities import Capabilities
from claude_daemon.engine.deadline import TurnLimits, WorkerLost
from claude_daemon.engine.failures import Failures
from claude_daemon.engine.fill import Change, Sizes, fill, next_worn, spares_now, surplus
from claude_daemon.engine.floors import Asked
from claude_daemon.engine.lease import TextLease
from claude_daemon.engine.plan import Binding, Shape, TurnPlan, plan
from claude_daemon.engine.process import SpawnFailed
from claude_daemon.engine.spawner import Spawner
from claude_daemon.engine.wear import lifetime, worn_out
from claude_daemon.engine.worker import Worker, refused_tools
from claude_daemon.ports import HealthReport

_UPKEEP_INTERVAL_S: Final = 10.0  # age and memory of idle workers
# Starting a CLI takes half a second of one core: more at once would only make the first one late.
_MAX_STARTING: Final = max(1, (os.cpu_count() or 1) // 2)
_DEMAND_WINDOW_S: Final = 3.0  # how long a late binding counts as a sign that more are coming
# /clear takes 10 to 35 ms, a late binding 100 more than a warm turn: so long a cleared worker is worth waiting for.
_PATIENCE_S: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Sizes and limits, as in the configuration's ``engine`` section. ``workers``: turns at once, over all lanes that
    run the CLI, and processes of this lane."""

    workers: int
    spares: int
    max_turns_per_worker: int
    max_worker_age_s: float
    max_worker_rss_mb: int
    stall_timeout_s: float
    turn_timeout_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEvent:
    """Something worth a log line: ``name`` is stable, ``fields`` are JSON values."""

    name: str
    level: str
    fields: Mapping[str, Any]


class Pool:
    """The text lane's engine. :meth:`run` must be running for anything to happen."""

    lane = Lane.TEXT

    def __init__(
        self,
        settings: PoolSettings,
        spawner: Spawner,
        *,
        capabilities: Capabilities,
        default_model: str,
        unsupported: Callable[[TaskSpec], Failure | None],
        told: Callable[[PoolEvent], None] = lambda event: None,
    ) -> None:
        self.settings = settings
        self.room = Room(settings.workers)
        """Of every lane that runs the CLI."""
        self.capabilities = capabilities
        self.workers: dict[str, Worker] = {}
        self.starts: Counter[str] = Counter()
        self.spawned = 0
        self.default_model = default_model
        self.told = told
        self._spawner = spawner
        self._unsupported = unsupported
        self._on_end: list[Callable[[], None]] = []
        self._tasks: asyncio.TaskGroup | None = None
        self._closing = asyncio.Event()
        self._starved: TaskSpec | None = None
        self._failures = Failures()
        self._late_bindings: deque[float] = deque(maxlen=64)
        self._lends_forms = True
        self._filled_once = asyncio.Event()
        spawner.wrote = self._wrote

    # what an operator asks

    def apply(self, settings: PoolSettings) -> None:
        """Other sizes and limits from now on; a turn under way keeps its own."""
        self.settings = settings
        self.room.resize(settings.workers)
        self._apply(Change(retire=self._surplus()))
        self._changed()

    def recycle(self, worker_ids: Iterable[str], reason: str) -> None:
        """Replaces idle workers now, busy ones after their turn."""
        for worker in [self.workers[worker_id] for worker_id in worker_ids]:
            self._wear_out(worker, reason)
            if worker.state is WorkerState.IDLE:
                self._retire(worker, reason)

    def recycle_rolling(self, reason: str) -> None:
        """Replaces every worker, one idle one after another, busy ones after their turn."""
        for worker in self.workers.values():
            self._wear_out(worker, reason)
        self._replace_unfit()

    def kill(self, worker_id: str) -> None:
        """Ends its process now. A turn on it fails as one on a crashed worker does, and is made again where it may."""
        worker = self.workers[worker_id]
        self._wear_out(worker, "killed")
        if worker.process is not None:
            worker.process.kill(signal.SIGKILL)
        if worker.state is WorkerState.IDLE:
            self._retire(worker, "killed")

    def kill_busy(self) -> list[str]:
        """Ends the processes of all who have a turn; their ids."""
        busy = self._in(WorkerState.BUSY)
        for worker in busy:
            self.kill(worker.id)
        return [worker.id for worker in busy]

    def _wear_out(self, worker: Worker, reason: str) -> None:
        if worker.unfit is None:
            worker.unfit = reason

    # what the dispatcher asks

    def unsupported(self, spec: TaskSpec) -> Failure | None:
        return self._unsupported(spec) or self._tools_unsupported(spec)

    def _tools_unsupported(self, spec: TaskSpec) -> Failure | None:
        """What of a client's tools this CLI, or this way to the upstream, cannot do."""
        choice = spec.request.get("tool_choice") or {}
        if not spec.request.get("tools"):
            return None
        if not self.capabilities.takes_tools:
            return refused_tools("this Claude Code has no place for them")
        if client_tools.upstream_choice(choice) is None or self._spawner.brokered:
            return None
        path = "tool_choice" if choice["type"] != "auto" else "tool_choice.disable_parallel_tool_use"
        message = f"`{path}` is not supported on the text lane: with a login, Claude Code lets the model choose."
        return Failure(code=Code.UNSUPPORTED_PARAMETER, message=message, param=path)

    def approximated(self, spec: TaskSpec) -> Sequence[str]:
        named = [name for name in ("max_tokens", "metadata") if spec.request.get(name) is not None]
        if "anthropic-beta" in (spec.headers or {}):
            named.append("anthropic-beta")
        if any(tool.get("strict") for tool in spec.request.get("tools") or ()):
            named.append("strict")
        if not self.capabilities.history and len(spec.request["messages"]) > 1:
            named.append("messages")
        return named

    def on_end(self, callback: Callable[[], None]) -> None:
        """Registers who is told when a worker has ended, and now and then besides."""
        self._on_end.append(callback)

    def unavailable(self) -> Failure | None:
        """No process lives, and more than one in a row could not be started."""
        if not self._failures.hopeless or any(w.state in LIVE for w in self.workers.values()):
            return None
        wait = max(1.0, self._failures.retry_at - time.monotonic())
        why = f"Claude Code cannot be started: {self._failures.last_error}"
        return Failure(code=Code.ENGINE_UNAVAILABLE, message=why, retry_after_seconds=wait)

    def lease(self, spec: TaskSpec) -> TextLease | None:
        if self._closing.is_set() or not self.room.free:
            return None
        turn_plan = plan(spec)
        worker, start = self._choose(turn_plan)
        waited, self._starved = spec is self._starved, None
        if worker is None:
            if start is not Start.WARM:  # nobody to wait for: a process must be made
                self._starved = spec
                self._fill(Asked(shape=self._shape(turn_plan), trust_domain=turn_plan.binding.trust_domain))
            return None
        if waited and worker.turns == 0:
            start = Start.COLD
        return self._lease(worker, turn_plan, start, spec.request_id)

    def _lease(self, worker: Worker, turn_plan: TurnPlan, start: Start, request_id: str) -> TextLease:
        worker.move(WorkerState.BUSY)
        self.room.take(worker)
        if worker.binding is None:
            self._late_bindings.append(time.monotonic())
            worker.bind(turn_plan.binding)
        self.starts[start.value] += 1
        self._fill()
        limits = TurnLimits(stall_seconds=self.settings.stall_timeout_s, turn_seconds=self.settings.turn_timeout_s)
        model = self.cli_model(turn_plan.model)
        return TextLease(
            worker, turn_plan, model, limits, start=start, request_id=request_id, given_back=self.give_back
        )

    def _choose(self, turn_plan: TurnPlan) -> tuple[Worker | None, Start]:
        """A worker and how it starts. No worker and WARM: one that will do is about to be ready again."""
        shape = self._shape(turn_plan)
        same = [w for w in self.workers.values() if w.binding == turn_plan.binding and self._fits(w, shape)]
        idle = [w for w in same if w.state is WorkerState.IDLE]
        if idle:
            return max(idle, key=lambda w: w.last_used), Start.WARM
        soon = time.monotonic() - _PATIENCE_S
        if any(w.state is WorkerState.RECYCLING and w.last_used > soon for w in same):
            return None, Start.WARM
        if shape.binding is None:
            lenders = self._lenders(turn_plan, shape)
            idle = [w for w in lenders if w.state is WorkerState.IDLE]
            unbound = [w for w in self._in(WorkerState.IDLE) if w.binding is None and self._fits(w, shape)]
            # the last spare is kept for those whom nobody can lend a process to
            if len(unbound) > 1 or (unbound and not idle):
                return min(unbound, key=lambda w: w.born), Start.SPARE
            if idle:
                return min(idle, key=lambda w: w.last_used), Start.LENT
            if any(w.state is WorkerState.RECYCLING and w.last_used > soon for w in lenders):
                return None, Start.WARM
        return None, Start.COLD

    @property
    def _lends(self) -> bool:
        """Whether a worker can serve what it is not bound to; then few spares are enough."""
        return self.capabilities.system_block and self.capabilities.late_bind and self._spawner.brokered

    def _lenders(self, turn_plan: TurnPlan, shape: Shape) -> list[Worker]:
        """Workers that are bound otherwise and could serve this one, whatever they are doing now."""
        if not self._lends:
            return []
        model, known = self.cli_model(turn_plan.model), self.capabilities.aliases.values()
        if turn_plan.binding.schema is not None and not self._lends_forms:
            return []
        fitting = [w for w in self.workers.values() if self._fits(w, shape)]
        return [w for w in fitting if w.may_lend(turn_plan.binding, model, known)]

    def _shape(self, turn_plan: TurnPlan) -> Shape:
        """What a process must have had at its spawn to serve the plan: only what cannot be set later."""
        late = self.capabilities.late_bind or turn_plan.binding.plain
        model = self._usual.model if self.capabilities.set_model else self.cli_model(turn_plan.model)
        return Shape(model=model, binding=None if late else turn_plan.binding)

    def _fits(self, worker: Worker, shape: Shape) -> bool:
        return self.capabilities.set_model or worker.model == shape.model

    @property
    def _usual(self) -> Shape:
        return Shape(model=self.cli_model(self.default_model))

    def cli_model(self, model: str) -> str:
        """The name by which the CLI knows the model without asking upstream: its alias, where it has one."""
        return self.capabilities.aliases.get(model, model)

    def give_back(self, worker: Worker) -> None:
        """A turn is over, well or not: the worker is cleared in the background, or replaced."""
        self.room.give_back(worker)
        worker.turns += 1
        worker.last_used = time.monotonic()
        if worker.form_refused and self._lends_forms:
            self._lends_forms = False
            why = "the upstream does not know output_config.format: schemas wait for processes of their own"
            self.say("pool.forms_not_lent", "warning", worker, reason=why)
        if worker.state is not WorkerState.BUSY:
            return
        reason = self._worn_out(worker)
        if reason is not None:
            self._retire(worker, reason)
            return
        worker.move(WorkerState.RECYCLING)
        self.own(self._recycle(worker))

    # life

    async def run(self) -> None:
        """Owns every process and task of the pool until :meth:`close`; then ends them all."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._fill()
                upkeep = self._tasks.create_task(self._upkeep())
                await self._closing.wait()
                upkeep.cancel()
                for worker in list(self.workers.values()):
                    self._retire(worker, "closing")
        finally:
            self._tasks = None

    def close(self) -> None:
        self._closing.set()
        self._filled_once.set()

    async def filled(self) -> None:
        """Waits until a first worker is ready, or could not be started, or the pool is closed."""
        await self._filled_once.wait()

    def own(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs it beside whatever is going on; the pool does not end before it."""
        if self._tasks is None:
            coroutine.close()
            return
        # not on behalf of whatever request happens to be the reason: its ids are not these lines'
        self._tasks.create_task(coroutine, context=contextvars.Context())

    def _fill(self, asked: Asked | None = None) -> None:
        """Starts what is missing, and makes room for it. ``asked``: somebody waits for just such a process."""
        if self._closing.is_set() or self._tasks is None or time.monotonic() < self._failures.retry_at:
            return
        self._apply(fill(list(self.workers.values()), self._sizes(), self._usual, time.monotonic(), asked))

    def _surplus(self) -> Sequence[Worker]:
        return surplus(list(self.workers.values()), self._sizes(), self._usual, time.monotonic())

    def _apply(self, change: Change) -> None:
        for worker in change.retire:
            self._retire(worker, "room for another binding")
        for shape in change.start:
            worker = self._spawner.prepare(shape)
            worker.lifetime_s = lifetime(self.settings.max_worker_age_s)
            self.workers[worker.id] = worker
            self.spawned += 1
            self.own(self._bring_up(worker, shape))

    def _sizes(self) -> Sizes:
        since = time.monotonic() - _DEMAND_WINDOW_S
        recent = sum(1 for at in self._late_bindings if at > since)
        spares = spares_now(self.settings.spares, self.settings.workers, 0 if self._lends else recent)
        return Sizes(workers=self.settings.workers, spares=spares, starting=_MAX_STARTING)

    async def _bring_up(self, worker: Worker, shape: Shape) -> None:
        try:
            await self._spawner.spawn(worker, shape, lambda: self._exited(worker))
            if not worker.ending:
                await worker.ready()
                if self._wants_plain(shape):
                    worker.bind(Binding(trust_domain="default"))
                    await worker.clear()
                if worker.process is None or worker.process.gone:
                    raise WorkerLost(worker.obituary())
        except (SpawnFailed, WorkerLost, OSError) as error:
            if not worker.ending:
                await self._start_failed(worker, str(error))
                return
        if worker.ending:  # retired while it was starting
            await self._end(worker)
            return
        worker.move(WorkerState.IDLE)
        self._failures.ready()
        self.say("worker.ready", "info", worker, seconds=round(time.monotonic() - worker.born, 3))
        self._filled_once.set()
        self._changed()
        self._replace_unfit()

    def _wants_plain(self, shape: Shape) -> bool:
        """One process is warmed for requests without a system prompt while there are spares enough beside it."""
        if shape.binding is not None or not self.capabilities.clear or self._starved is not None:
            return False
        if any(w.binding is not None and w.binding.plain for w in self.workers.values()):
            return False
        others = [w for w in self._in(WorkerState.IDLE) if w.binding is None]
        return len(others) >= self.settings.spares and self.settings.workers > 1

    async def _start_failed(self, worker: Worker, error: str) -> None:
        delay = self._failures.failed(error, time.monotonic(), _jitter())
        told = {"error": error, "stderr": worker.last_words(), "retry_seconds": round(delay, 3)}
        self.say("worker.start_failed", "error", worker, **told)
        worker.ending = True
        self._bury(worker)
        self._filled_once.set()
        await self._fill_later(delay)

    def _crashed(self, worker: Worker) -> None:
        now, obituary = time.monotonic(), worker.obituary()
        delay = self._failures.crashed(
            obituary,
            now,
            _jitter(),
            lived_seconds=now - worker.born,
            turns=worker.turns,
        )
        told = {"error": obituary, "stderr": worker.last_words(), "request_id": self._serving(worker)}
        self.say("worker.crashed", "error", worker, **told)
        self.own(self._fill_later(delay))

    async def _fill_later(self, delay_seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_seconds):
                await self._closing.wait()
        self._fill()

    def _exited(self, worker: Worker) -> None:
        """The process has ended and its pipes are read."""
        self._spawner.forget(worker)
        worker.wake()
        if worker.ending or worker.state is WorkerState.STARTING:
            return
        self._crashed(worker)
        if worker.state is not WorkerState.BUSY:  # else its turn tells, and gives it back
            self._retire(worker, "crashed")

    async def _recycle(self, worker: Worker) -> None:
        """Back to idle, or to its end. Who waits for it does so only for a while."""
        patience = asyncio.get_running_loop().call_later(_PATIENCE_S, self.room.tell)
        try:
            reason = await self._why_not_again(worker)
        finally:
            patience.cancel()
        if worker.state is not WorkerState.RECYCLING:
            return
        if reason is not None:
            self._retire(worker, reason)
            return
        worker.move(WorkerState.IDLE)
        self._failures.proven()
        self._changed()

    async def _why_not_again(self, worker: Worker) -> str | None:
        """Ends what is left of the worker's turn and empties its conversation; why that failed, None if it did not."""
        try:
            if not await worker.settle():
                return "did not come back from its turn"
            if not self.capabilities.clear:
                return "the CLI has no /clear"
            return worker.unfit if await worker.clear() else "was not cleared"
        except WorkerLost as lost:
            return str(lost)

    def _worn_out(self, worker: Worker) -> str | None:
        """Why the worker should be replaced, None if it is good for another turn."""
        settings = self.settings
        return worn_out(worker, max_turns=settings.max_turns_per_worker, max_rss_mb=settings.max_worker_rss_mb)

    async def _upkeep(self) -> None:
        while True:
            await asyncio.sleep(_UPKEEP_INTERVAL_S)
            self._replace(self._worn_out)
            self._apply(Change(retire=self._surplus()))
            self._fill()
            if self._starved is not None:
                self.room.tell()  # another domain's processes may be out of use by now
            self._tell_end()

    def _replace_unfit(self) -> None:
        """The next one of those that an operator has had enough of; age and memory are looked at now and then only."""
        self._replace(lambda worker: worker.unfit)

    def _replace(self, why: Callable[[Worker], str | None]) -> None:
        worn = next_worn(list(self.workers.values()), why)
        if worn is not None:
            self._retire(*worn)

    def _retire(self, worker: Worker, reason: str) -> None:
        if worker.state in (WorkerState.RETIRING, WorkerState.GONE):
            return
        starting = worker.state is WorkerState.STARTING
        worker.move(WorkerState.RETIRING)
        worker.ending = True
        self.say("worker.retiring", "info", worker, reason=reason)
        if not starting or worker.process is not None:
            self.own(self._end(worker))
        self.own(self._after_retirement())

    async def _after_retirement(self) -> None:
        """Not at once: whoever retires several is to be done with it before any is replaced."""
        self._changed()

    async def _end(self, worker: Worker) -> None:
        await worker.stop()
        self._bury(worker)

    def _bury(self, worker: Worker) -> None:
        if worker.process is not None:
            worker.process.bury()
        self._spawner.forget(worker)
        self.workers.pop(worker.id, None)
        if worker.state is not WorkerState.GONE:
            worker.move(WorkerState.GONE)
        self._tell_end()
        self._changed()

    def _changed(self) -> None:
        """Who waits comes first: filling may retire what nobody has taken."""
        self.room.tell()
        self._fill()

    def _tell_end(self) -> None:
        for callback in self._on_end:
            callback()

    # what it tells

    def _in(self, state: WorkerState) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.state is state]

    def count(self, state: WorkerState) -> int:
        return sum(1 for worker in self.workers.values() if worker.state is state)

    def say(self, name: str, level: str, worker: Worker, **fields: Any) -> None:
        """Of this pool's processes, and of those of other lanes."""
        pid = worker.process.pid if worker.process is not None else None
        told = {"worker_id": worker.id, "pid": pid, "turns": worker.turns, **fields}
        self.told(PoolEvent(name=name, level=level, fields=told))

    def _wrote(self, worker: Worker, words: str) -> None:
        self.say("worker.stderr", "info", worker, said=words, request_id=self._serving(worker))

    def _serving(self, worker: Worker) -> str | None:
        """What an idle one says or dies of is nobody's request, least of all the one that it served hours ago."""
        return worker.request_id or None if worker.state is WorkerState.BUSY else None

    def counts(self) -> dict[str, int]:
        """Workers by what they are doing, for people."""
        return {"limit": self.settings.workers, **report.counts(self.workers.values()), "spawned": self.spawned}

    def listing(self) -> list[dict[str, Any]]:
        """Every worker with what it is and does, for people."""
        return report.listing(self.workers.values(), self.lane)

    @property
    def crashes(self) -> int:
        """Processes that have died or could not be started within :data:`~claude_daemon.core.worker.CRASH_WINDOW_S`."""
        return self._failures.recent.count(time.monotonic())

    def health(self) -> Mapping[str, HealthReport]:
        status, reason = report.status(self.counts(), self._failures, time.monotonic())
        return {"worker_pool": HealthReport(status=status, reason=reason, details=self.counts())}


def _jitter() -> float:
    return random.random()  # noqa: S311 - no secret
