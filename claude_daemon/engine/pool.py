"""The pool of warm processes: who gets which worker, and what happens in the background.

:meth:`Pool.lease` is synchronous and decides only; spawning, binding ahead, recycling and burying are tasks of the
pool's own. A process is unbound until its first request, which binds it to that request's system prompt and schema;
it is kept for them, least recently used first out. ``spares`` unbound processes are always being made ready, so that
the next new system prompt need not wait for a spawn.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.event import Emission
from claude_daemon.core.lifecycle import Check
from claude_daemon.core.retry import Backoff
from claude_daemon.core.task import Lane, TaskSpec
from claude_daemon.core.worker import LIVE, Start, WorkerState
from claude_daemon.engine.capabilities import Capabilities
from claude_daemon.engine.plan import Binding, Shape, TurnPlan, plan
from claude_daemon.engine.process import SpawnFailed
from claude_daemon.engine.spawner import Spawner
from claude_daemon.engine.worker import TurnLimits, Worker, WorkerLost
from claude_daemon.ports import Ended, HealthReport

# A CLI that cannot start is tried again after 0.5 to 30 s: soon enough for a fixed installation, never a spin.
_BACKOFF: Final = Backoff(first_seconds=0.5, limit_seconds=30.0)
_CRASH_MEMORY_S: Final = 5.0  # LIFECYCLE.md: worker_pool warns while one crashed in the last 5 s
_UPKEEP_INTERVAL_S: Final = 10.0  # age and memory of idle workers
# Starting a CLI takes half a second of one core: more at once would only make the first one late.
_MAX_STARTING: Final = max(1, (os.cpu_count() or 1) // 2)
_DEMAND_WINDOW_S: Final = 3.0  # how long a late binding counts as a sign that more are coming


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Sizes and limits, as in the configuration's ``engine`` section."""

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


class TextLease:
    """A worker held for one turn."""

    def __init__(self, pool: Pool, worker: Worker, turn_plan: TurnPlan, start: Start) -> None:
        self._pool = pool
        self._worker = worker
        self._plan = turn_plan
        self._start = start
        self._released = False

    @property
    def start(self) -> str:
        return self._start.value

    @property
    def worker_id(self) -> str | None:
        return self._worker.id

    async def run(self) -> AsyncIterator[Sequence[Emission | Ended]]:
        settings = self._pool.settings
        limits = TurnLimits(stall_seconds=settings.stall_timeout_s, turn_seconds=settings.turn_timeout_s)
        turn = self._worker.turn(self._plan, self._pool.cli_model(self._plan.model), limits)
        try:
            async for batch in turn:
                if isinstance(batch[-1], Ended):
                    self.release()  # before the caller acts on the end, so that the next request finds the place
                yield batch
        finally:
            await turn.aclose()  # type: ignore[attr-defined]
            self.release()

    def release(self) -> None:
        if not self._released:
            self._released = True
            self._pool.give_back(self._worker)


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
        self.capabilities = capabilities
        self.workers: dict[str, Worker] = {}
        self.starts: Counter[str] = Counter()
        self.spawned = 0
        self._spawner = spawner
        self.default_model = default_model
        self._unsupported = unsupported
        self._told = told
        self._room: list[Callable[[], None]] = []
        self._tasks: asyncio.TaskGroup | None = None
        self._closing = asyncio.Event()
        self._starved: TaskSpec | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._last_error = ""
        self._last_crash = float("-inf")
        self._late_bindings: deque[float] = deque(maxlen=64)
        self._filled_once = asyncio.Event()

    def unsupported(self, spec: TaskSpec) -> Failure | None:
        return self._unsupported(spec)

    def approximated(self, spec: TaskSpec) -> Sequence[str]:
        named = ["max_tokens"] if spec.request.get("max_tokens") is not None else []
        if not self.capabilities.history and len(spec.request["messages"]) > 1:
            named.append("messages")
        return named

    def on_room(self, callback: Callable[[], None]) -> None:
        self._room.append(callback)

    def unavailable(self) -> Failure | None:
        """No process lives, and more than one in a row could not be started."""
        if self._failures < 2 or any(w.state in LIVE for w in self.workers.values()):
            return None
        wait = max(1.0, self._retry_at - time.monotonic())
        why = f"Claude Code cannot be started: {self._last_error}"
        return Failure(code=Code.ENGINE_UNAVAILABLE, message=why, retry_after_seconds=wait)

    def lease(self, spec: TaskSpec) -> TextLease | None:
        if self._closing.is_set() or self._count(WorkerState.BUSY) >= self.settings.workers:
            return None
        turn_plan = plan(spec)
        worker, start = self._choose(turn_plan)
        if worker is None:
            if start is not Start.WARM:  # nobody to wait for: a process must be made
                self._starved = spec
                self._fill(self._shape(turn_plan))
            return None
        if spec is self._starved:
            self._starved = None
            start = start if start is Start.WARM else Start.COLD
        worker.move(WorkerState.BUSY)
        if worker.binding is None:
            self._late_bindings.append(time.monotonic())
            worker.bind(turn_plan.binding)
        self.starts[start.value] += 1
        self._fill()
        return TextLease(self, worker, turn_plan, start)

    def _choose(self, turn_plan: TurnPlan) -> tuple[Worker | None, Start]:
        """A worker and how it starts. No worker and WARM: one with this binding is about to be ready again."""
        shape = self._shape(turn_plan)
        same = [w for w in self.workers.values() if w.binding == turn_plan.binding and self._fits(w, shape)]
        idle = [w for w in same if w.state is WorkerState.IDLE]
        if idle:
            return max(idle, key=lambda w: w.last_used), Start.WARM
        if any(w.state is WorkerState.RECYCLING for w in same):
            return None, Start.WARM
        if self.capabilities.late_bind or turn_plan.binding.plain:
            unbound = [w for w in self._in(WorkerState.IDLE) if w.binding is None and self._fits(w, shape)]
            if unbound:
                return min(unbound, key=lambda w: w.born), Start.SPARE
        return None, Start.COLD

    def _shape(self, turn_plan: TurnPlan) -> Shape:
        """What a process must have had at its spawn to serve the plan: only what cannot be set later."""
        late = self.capabilities.late_bind or turn_plan.binding.plain
        model = self._default_cli_model if self.capabilities.set_model else self.cli_model(turn_plan.model)
        return Shape(model=model, binding=None if late else turn_plan.binding)

    def _fits(self, worker: Worker, shape: Shape) -> bool:
        return self.capabilities.set_model or worker.model == shape.model

    @property
    def _default_cli_model(self) -> str:
        return self.cli_model(self.default_model)

    def cli_model(self, model: str) -> str:
        """The name by which the CLI knows the model without asking upstream: its alias, where it has one."""
        return self.capabilities.aliases.get(model, model)

    def give_back(self, worker: Worker) -> None:
        """A turn is over, well or not: the worker is cleared in the background, or buried."""
        worker.turns += 1
        worker.last_used = time.monotonic()
        if worker.state is not WorkerState.BUSY:
            return
        worker.move(WorkerState.RECYCLING)
        self._spawn_task(self._recycle(worker))
        self.tell_room()

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

    async def filled(self) -> None:
        """Waits until a first worker is ready, or could not be started."""
        await self._filled_once.wait()

    def _spawn_task(self, coroutine: Any) -> None:
        if self._tasks is None:
            coroutine.close()
            return
        self._tasks.create_task(coroutine)

    def _fill(self, shape: Shape | None = None) -> None:
        """Starts what is missing, and makes room for it. ``shape``: somebody waits for just such a process."""
        if self._closing.is_set() or self._tasks is None or time.monotonic() < self._retry_at:
            return
        usual = Shape(model=self._default_cli_model, binding=None)
        if shape is not None and shape != usual:
            if not any(w.state is WorkerState.STARTING and w.wanted == shape for w in self.workers.values()):
                self._make_room(1)
                self._start(shape)
            return
        unbound = len(
            [w for w in self.workers.values() if w.binding is None and w.state in _COMING_OR_IDLE and w.wanted == usual]
        )
        live = len([w for w in self.workers.values() if w.state is not WorkerState.RETIRING])
        limit = self.settings.workers + self._spares()
        wanted = max(self._spares() - unbound, 1 - unbound if shape is not None else 0, 0)
        if wanted > 0:
            self._make_room(live + wanted - limit)
        starting = self._count(WorkerState.STARTING)
        for _ in range(min(max(wanted, limit - live), _MAX_STARTING - starting)):
            self._start(usual)

    def _spares(self) -> int:
        """Spares to keep: the configured number, more while new system prompts keep coming."""
        since = time.monotonic() - _DEMAND_WINDOW_S
        recent = sum(1 for at in self._late_bindings if at > since)
        return min(
            max(self.settings.spares, min(recent, self.settings.workers)),
            self.settings.spares + self.settings.workers,
        )

    def _make_room(self, surplus: int) -> None:
        idle = sorted((w for w in self._in(WorkerState.IDLE) if w.binding is not None), key=lambda w: w.last_used)
        for worker in idle[: max(surplus, 0)]:
            self._retire(worker, "room for another binding")

    def _start(self, shape: Shape) -> None:
        worker = self._spawner.prepare(shape)
        self.workers[worker.id] = worker
        self.spawned += 1
        self._spawn_task(self._bring_up(worker, shape))

    async def _bring_up(self, worker: Worker, shape: Shape) -> None:
        try:
            await self._spawner.spawn(worker, shape, lambda: self._exited(worker))
            await worker.ready()
            if self._wants_plain(worker, shape):
                worker.bind(Binding(trust_domain="default"))
                await worker.clear()
        except (SpawnFailed, WorkerLost, OSError) as error:
            self._start_failed(worker, str(error))
            return
        if worker.state is not WorkerState.STARTING:
            return
        worker.move(WorkerState.IDLE)
        self._failures, self._last_error = 0, ""
        self._say("worker.ready", "info", worker, seconds=round(time.monotonic() - worker.born, 3))
        self._filled_once.set()
        self._fill()
        self.tell_room()

    def _wants_plain(self, worker: Worker, shape: Shape) -> bool:
        """One process is warmed for requests without a system prompt while there are spares enough beside it."""
        if shape.binding is not None or not self.capabilities.clear or self._starved is not None:
            return False
        if any(w.binding is not None and w.binding.plain for w in self.workers.values()):
            return False
        others = [w for w in self._in(WorkerState.IDLE) if w.binding is None]
        return len(others) >= self.settings.spares and self.settings.workers > 1

    def _start_failed(self, worker: Worker, error: str) -> None:
        self._crashed(error)
        self._say("worker.start_failed", "error", worker, error=error)
        worker.ending = True
        self._bury(worker)
        self._filled_once.set()

    def _crashed(self, error: str) -> None:
        self._failures += 1
        self._last_error = error
        self._last_crash = time.monotonic()
        delay = _BACKOFF.delay(self._failures, random.random()) if self._failures > 1 else 0.0  # noqa: S311
        self._retry_at = time.monotonic() + delay
        if not self._closing.is_set():
            self._spawn_task(self._fill_later(delay))

    async def _fill_later(self, delay_seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_seconds):
                await self._closing.wait()
        self._fill()

    def _exited(self, worker: Worker) -> None:
        """The process has ended and its pipes are read."""
        self._spawner.forget(worker)
        worker.wake()
        if worker.ending:
            return
        if worker.state in (WorkerState.IDLE, WorkerState.RECYCLING):
            self._crashed(worker.obituary())
            self._say("worker.crashed", "error", worker, error=worker.obituary())
            self._retire(worker, "crashed")
        elif worker.state is WorkerState.BUSY:
            self._last_crash = time.monotonic()
            self._say("worker.crashed", "error", worker, error=worker.obituary())

    async def _recycle(self, worker: Worker) -> None:
        reason = None
        try:
            if not await worker.settle():
                reason = "did not come back from its turn"
            elif (reason := self._worn_out(worker)) is None:
                if not self.capabilities.clear:
                    reason = "the CLI has no /clear"
                elif not await worker.clear():
                    reason = "was not cleared"
        except WorkerLost as lost:
            reason = str(lost)
        if worker.state is not WorkerState.RECYCLING:
            return
        if reason is not None:
            self._retire(worker, reason)
            return
        worker.move(WorkerState.IDLE)
        self.tell_room()

    def _worn_out(self, worker: Worker) -> str | None:
        """Why the worker should be replaced, None if it is good for another turn."""
        settings = self.settings
        if worker.process is None or worker.process.gone:
            return "crashed"
        if worker.turns >= settings.max_turns_per_worker:
            return f"served {worker.turns} turns"
        if time.monotonic() - worker.born >= settings.max_worker_age_s:
            return f"older than {settings.max_worker_age_s:g} s"
        rss = worker.process.rss_bytes()
        if rss is not None and rss > settings.max_worker_rss_mb * 2**20:
            return f"grew to {rss // 2**20} MB"
        return None

    async def _upkeep(self) -> None:
        while True:
            await asyncio.sleep(_UPKEEP_INTERVAL_S)
            for worker in self._in(WorkerState.IDLE):
                reason = self._worn_out(worker)
                if reason is not None:
                    self._retire(worker, reason)
            self._fill()

    def _retire(self, worker: Worker, reason: str) -> None:
        if worker.state in (WorkerState.RETIRING, WorkerState.GONE):
            return
        worker.move(WorkerState.RETIRING)
        self._say("worker.retiring", "info", worker, reason=reason)
        self._spawn_task(self._end(worker))
        self._fill()

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
        self._fill()
        self.tell_room()

    def _in(self, state: WorkerState) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.state is state]

    def _count(self, state: WorkerState) -> int:
        return sum(1 for worker in self.workers.values() if worker.state is state)

    def tell_room(self) -> None:
        """Tells the dispatcher that a place may be free, or that none will be."""
        for callback in self._room:
            callback()

    def _say(self, name: str, level: str, worker: Worker, **fields: Any) -> None:
        pid = worker.process.pid if worker.process is not None else None
        self._told(
            PoolEvent(
                name=name,
                level=level,
                fields={"worker_id": worker.id, "pid": pid, "turns": worker.turns, **fields},
            )
        )

    def counts(self) -> dict[str, int]:
        """Workers by what they are doing, for people: ``spares`` are unbound and idle."""
        return {
            "limit": self.settings.workers,
            "live": sum(1 for w in self.workers.values() if w.state in LIVE),
            "busy": self._count(WorkerState.BUSY),
            "idle": self._count(WorkerState.IDLE),
            "starting": self._count(WorkerState.STARTING),
            "spares": sum(1 for w in self._in(WorkerState.IDLE) if w.binding is None),
            "spawned": self.spawned,
        }

    def listing(self) -> list[dict[str, Any]]:
        """Every worker with what it is and does, for people."""
        return [_told(worker) for worker in sorted(self.workers.values(), key=lambda w: w.born)]

    def health(self) -> Mapping[str, HealthReport]:
        return {"worker_pool": self._pool_health()}

    def _pool_health(self) -> HealthReport:
        counts = self.counts()
        crashed = time.monotonic() - self._last_crash < _CRASH_MEMORY_S
        if counts["live"] == 0 and self._failures > 0:
            return HealthReport(
                status=Check.FAIL, reason=f"no worker can be started: {self._last_error}", details=counts
            )
        if crashed:
            return HealthReport(status=Check.WARN, reason="a worker crashed in the last 5 s", details=counts)
        if counts["live"] < self.settings.workers:
            reason = f"{counts['live']} of {self.settings.workers} workers live"
            return HealthReport(status=Check.WARN, reason=reason, details=counts)
        return HealthReport(status=Check.PASS, details=counts)


_COMING_OR_IDLE = frozenset({WorkerState.STARTING, WorkerState.IDLE})


def _told(worker: Worker) -> dict[str, Any]:
    rss = worker.process.rss_bytes() if worker.process is not None else None
    return {
        "id": worker.id,
        "pid": worker.process.pid if worker.process is not None else None,
        "state": worker.state.value,
        "lane": Lane.TEXT.value,
        "bound": worker.binding.label if worker.binding is not None else None,
        "turns": worker.turns,
        "age_seconds": round(time.monotonic() - worker.born, 1),
        "rss_mb": rss // 2**20 if rss is not None else None,
        "model": worker.model,
    }
