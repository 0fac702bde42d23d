"""What an operator can do to a running daemon, beyond its tasks: everything behind the control socket's verbs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, Literal, Protocol

from claude_daemon import stacks
from claude_daemon.config import Level
from claude_daemon.config.listing import listing
from claude_daemon.configuration import Configuration
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.engine.agent import AgentLane
from claude_daemon.engine.pool import Pool
from claude_daemon.engine.session import SessionLane
from claude_daemon.engine.worker import Worker
from claude_daemon.front import Front
from claude_daemon.ports import StoreUnavailable
from claude_daemon.service.drain import Drain
from claude_daemon.service.upkeep import Upkeep
from claude_daemon.telemetry.logging import LogHandle

StopMode = Literal["smart", "fast", "immediate"]

UNSTORED_PAUSE: Final = (
    "What ran is cut and new work is refused. The queue is paused, but that could not be stored: "
    "after a restart queued tasks begin."
)


_BY_HAND: Final = "an operator's word"


class Crew(Protocol):
    """The processes of one lane, by id."""

    @property
    def workers(self) -> Mapping[str, Worker]: ...

    def recycle(self, worker_ids: Iterable[str], reason: str) -> None:
        """Replaces those that are idle, and busy ones after their turn."""

    def recycle_rolling(self, reason: str) -> None:
        """The same with all, so that no more of them are missing at once than must be."""

    def kill(self, worker_id: str) -> None: ...

    def kill_busy(self) -> list[str]:
        """The ids of those who had a turn."""


class Operations:
    """Implements :class:`~claude_daemon.api.control_daemon.Operations`."""

    def __init__(
        self,
        pool: Pool,
        agents: AgentLane,
        sessions: SessionLane,
        front: Front,
        drain: Drain,
        upkeep: Upkeep,
        log: LogHandle,
        *,
        begin_drain: Callable[[float, bool], None],
        configuration: Configuration,
        reload: Callable[[], Mapping[str, Any]],
        restart: Callable[[], Awaitable[int]],
    ) -> None:
        self._pool = pool
        self._crews: tuple[Crew, ...] = (pool, agents, sessions)
        self._front = front
        self._drain = drain
        self._upkeep = upkeep
        self._log = log
        self._begin_drain = begin_drain
        self._configuration = configuration
        self.reload = reload
        self.restart = restart

    # the whole

    def stop(self, mode: StopMode) -> None:
        """smart: a drain; fast: what runs is interrupted now; immediate: and workers are killed."""
        self._begin_drain(self._configuration.loaded.settings.drain.deadline_s if mode == "smart" else 0.0, True)
        if mode != "smart":
            self._drain.skip_lame_duck()
        if mode == "immediate":
            self._drain.hurry()
            self._kill()

    async def panic(self) -> list[str]:
        """Nothing runs any more, and nothing is begun until somebody says so; the workers that were killed.

        Raises Refusal. That of a store which does not take the pause says that all else is done.
        """
        self._begin_drain(0.0, False)
        self._drain.skip_lame_duck()
        self._upkeep.paused = True  # before anything waits for the store: who undrains meanwhile begins no task
        killed = self._kill()
        try:
            await self._upkeep.pause()
        except StoreUnavailable as error:
            raise Refusal.because(Code.STORE_UNAVAILABLE, UNSTORED_PAUSE) from error
        return killed

    def _kill(self) -> list[str]:
        return [worker_id for crew in self._crews for worker_id in crew.kill_busy()]

    # workers

    def scale(self, workers: int | None, spares: int | None) -> dict[str, int]:
        settings = self._pool.settings
        sizes = {
            "workers": settings.workers if workers is None else workers,
            "spares": settings.spares if spares is None else spares,
        }
        self._pool.apply(replace(settings, **sizes))
        return sizes

    def recycle_all(self, *, rolling: bool) -> list[str]:
        ids = [worker_id for crew in self._crews for worker_id in crew.workers]
        for crew in self._crews:
            if rolling:
                crew.recycle_rolling(_BY_HAND)
            else:
                crew.recycle(list(crew.workers), _BY_HAND)
        return ids

    def recycle(self, worker_id: str) -> str:
        """The worker's state then. Raises Refusal."""
        crew, worker = self._found(worker_id)
        crew.recycle([worker_id], _BY_HAND)
        return worker.state.value

    def kill(self, worker_id: str) -> str:
        """The worker's state then. Raises Refusal."""
        crew, worker = self._found(worker_id)
        crew.kill(worker_id)
        return worker.state.value

    def _found(self, worker_id: str) -> tuple[Crew, Worker]:
        for crew in self._crews:
            if (worker := crew.workers.get(worker_id)) is not None:
                return crew, worker
        raise Refusal.because(Code.NOT_FOUND, f"there is no worker {worker_id}", param="id")

    # what it tells

    def config(self) -> dict[str, Any]:
        return listing(self._configuration.loaded, self._configuration.started)

    def levels(self) -> dict[str, Level]:
        return self._log.levels

    def set_level(self, level: Level | None, logger: str) -> None:
        """None gives a logger back to its parent, and the root to the configuration."""
        if level is None and not logger:
            level = self._configuration.loaded.settings.log.level
        self._log.set_level(level, logger)

    def connections(self) -> list[dict[str, Any]]:
        return self._front.connections()

    def close_connection(self, connection_id: str) -> None:
        """Raises Refusal."""
        if not self._front.close_connection(connection_id):
            raise Refusal.because(Code.NOT_FOUND, f"there is no connection {connection_id}", param="id")

    def stacks(self) -> dict[str, Any]:
        return stacks.document()
