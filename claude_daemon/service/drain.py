"""Ending well: no new work, what runs may finish, and what has not finished by the deadline is told why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.lifecycle import DaemonState
from claude_daemon.ports import Clock
from claude_daemon.service.dispatch import Dispatcher
from claude_daemon.service.health import Health
from claude_daemon.service.hint import Hint

MAX_DEADLINE_SECONDS: Final = 24 * 3600.0
"""A drain of more than a day is a daemon that refuses work; and event loops know no timer of a thousand years."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """What a drain needs of the HTTP server: ``begin`` and ``end`` mark every answer as its connection's last."""

    begin: Callable[[], None]
    end: Callable[[], None]
    connections: Callable[[], int]


class Drain:
    """One drain at a time. A drain that stops the daemon cannot be undone; one that does not, can.

    :meth:`run` does the waiting and must be running. ``grace_seconds``: what is interrupted at the deadline has so
    long to end.
    """

    def __init__(
        self, health: Health, dispatcher: Dispatcher, edge: Edge, monotonic: Clock, *, grace_seconds: float
    ) -> None:
        self._health = health
        self._dispatcher = dispatcher
        self._edge = edge
        self._monotonic = monotonic
        self._grace_seconds = grace_seconds
        self._deadline = 0.0
        self._changed = Hint()
        self.stopping = False
        self.hurried = False
        dispatcher.idled.listen(self._changed.give)

    @property
    def active(self) -> bool:
        return self._health.state in (DaemonState.DRAINING, DaemonState.DRAINED, DaemonState.STOPPING)

    def begin(self, deadline_seconds: float, *, stop: bool) -> None:
        """Stops admission. A second one can shorten the deadline and turn the drain into a stop, never the reverse.

        Raises Refusal for a drain without a stop while the daemon is starting: there is nothing to drain yet.
        """
        if self._health.state is DaemonState.STARTING and not stop:
            raise Refusal.because(Code.NOT_READY, "the daemon is starting", retry_after_seconds=1.0)
        deadline = self._monotonic() + min(deadline_seconds, MAX_DEADLINE_SECONDS)
        self._deadline = min(self._deadline, deadline) if self.active else deadline
        self.stopping = self.stopping or stop
        if not self.active:
            starting = self._health.state is DaemonState.STARTING
            self._health.move(DaemonState.STOPPING if starting else DaemonState.DRAINING)
            self._edge.begin()
        self._changed.give()

    def hurry(self) -> None:
        """Waits no longer: what still runs is interrupted."""
        self.hurried = True
        self._deadline = self._monotonic()
        self._changed.give()

    async def run(self) -> None:
        """Finishes each drain that begins: waits for what runs, to the deadline, then interrupts it.

        Ends after a drain that stops the daemon, in ``drained`` (or ``stopping``, when it was still starting).
        """
        while True:
            if self._health.state is DaemonState.DRAINING:
                await self._finish()
            elif self.stopping:
                return
            else:
                await self._changed.wait()

    async def _finish(self) -> None:
        while self._draining and not self._dispatcher.idle:
            left = self._deadline - self._monotonic()
            if left <= 0:
                await self._interrupt()
                break
            await self._changed.wait(left)
        if self._draining:
            self._health.move(DaemonState.DRAINED)
            self._changed.give()

    async def _interrupt(self) -> None:
        self._dispatcher.interrupt_all()
        until = self._monotonic() + self._grace_seconds
        while self._draining and not self._dispatcher.idle and (left := until - self._monotonic()) > 0:
            await self._changed.wait(left)

    @property
    def _draining(self) -> bool:
        """Whether this drain goes on: it may have been undone."""
        return self._health.state is DaemonState.DRAINING

    def undo(self) -> None:
        """Takes work again. Raises Refusal when the daemon is stopping, or is not draining at all."""
        if self.stopping or not self.active:
            why = "the daemon is stopping" if self.stopping else "the daemon is not draining"
            raise Refusal.because(Code.CONFLICT, why)
        self._edge.end()
        self._health.settle()
        self._changed.give()

    def progress(self) -> dict[str, Any]:
        """One line of progress. ``queued`` tasks stay where they are; ``saved``: all that must survive a stop does."""
        line = {
            "state": self._health.state.value,
            "running": self._dispatcher.running,
            "waiting": self._dispatcher.waiting,
            "queued": self._dispatcher.queued,
            "connections": self._edge.connections(),
            "remaining_s": round(max(0.0, self._deadline - self._monotonic()), 1),
        }
        return line | {"saved": True} if self._health.state is not DaemonState.DRAINING else line

    async def changed(self, timeout_seconds: float | None = None) -> None:
        """Waits for a change of the drain, or so long."""
        await self._changed.wait(timeout_seconds)
