"""Ending well: no new work, what runs may finish, and what has not finished by the deadline is told why."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.lifecycle import DaemonState
from claude_daemon.ports import Clock
from claude_daemon.service.dispatch import Dispatcher
from claude_daemon.service.health import Health


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """What a drain needs of the HTTP server: ``begin`` and ``end`` mark every answer as its connection's last."""

    begin: Callable[[], None]
    end: Callable[[], None]
    connections: Callable[[], int]


class Drain:
    """One drain at a time. A drain that stops the daemon cannot be undone; one that does not, can."""

    def __init__(self, health: Health, dispatcher: Dispatcher, edge: Edge, monotonic: Clock) -> None:
        self._health = health
        self._dispatcher = dispatcher
        self._edge = edge
        self._monotonic = monotonic
        self._deadline = 0.0
        self._changed = asyncio.Event()
        self._hurry = asyncio.Event()
        self.stopping = False

    @property
    def active(self) -> bool:
        return self._health.state in (DaemonState.DRAINING, DaemonState.DRAINED, DaemonState.STOPPING)

    def begin(self, deadline_seconds: float, *, stop: bool) -> None:
        """Stops admission. A second one can shorten the deadline and turn the drain into a stop, never the reverse."""
        deadline = self._monotonic() + deadline_seconds
        self._deadline = min(self._deadline, deadline) if self.active else deadline
        self.stopping = self.stopping or stop
        if not self.active:
            self._hurry.clear()
            if self._health.state is DaemonState.STARTING:
                self.stopping = True
                self._health.move(DaemonState.STOPPING)
            else:
                self._health.move(DaemonState.DRAINING)
            self._edge.begin()
        self._note()

    def hurry(self) -> None:
        """Waits no longer: what still runs is interrupted."""
        self._deadline = self._monotonic()
        self._hurry.set()

    async def finish(self) -> None:
        """Waits for what runs, to the deadline, then interrupts it; ends in ``drained``."""
        while self._health.state is DaemonState.DRAINING and not self._hurry.is_set():
            self._changed.clear()
            async with asyncio.TaskGroup() as waits:
                idle = waits.create_task(self._dispatcher.wait_idle())
                waker = waits.create_task(self._changed.wait())
                left = max(0.0, self._deadline - self._monotonic())
                await asyncio.wait({idle, waker}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                done = idle.done()
                idle.cancel()
                waker.cancel()
            if done or self._monotonic() >= self._deadline:
                break
        if self._health.state is DaemonState.DRAINING:
            self._dispatcher.interrupt_all()
            await self._dispatcher.wait_idle()
            if self._health.state is DaemonState.DRAINING:
                self._health.move(DaemonState.DRAINED)
        self._note()

    def undo(self) -> None:
        """Takes work again. Raises Refusal when the daemon is stopping, or is not draining at all."""
        if self.stopping or not self.active:
            why = "the daemon is stopping" if self.stopping else "the daemon is not draining"
            raise Refusal.because(Code.CONFLICT, why)
        self._edge.end()
        self._health.settle()
        self._note()

    def progress(self) -> dict[str, Any]:
        """One line of progress; ``saved``: everything that must survive a stop does (chats keep nothing)."""
        line = {
            "state": self._health.state.value,
            "running": self._dispatcher.running,
            "queued": self._dispatcher.waiting,
            "connections": self._edge.connections(),
            "remaining_s": round(max(0.0, self._deadline - self._monotonic()), 1),
        }
        return line | {"saved": True} if self._health.state is not DaemonState.DRAINING else line

    async def changed(self, timeout_seconds: float) -> None:
        """Waits for a change of the drain, or a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()

    def _note(self) -> None:
        self._changed.set()
