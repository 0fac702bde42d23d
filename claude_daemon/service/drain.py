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
SETTLE_SECONDS: Final = 0.05
"""Between the last accept and a connection that we know of lie a few passes of the loop."""
FIRST_WORDS_SECONDS: Final = 0.5
"""Who has just connected sends at once, with TLS two round trips later; who has said nothing by then wants nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainSettings:
    """``lame_duck_s``: readiness says no for so long before any work is refused. ``grace_s``: what is interrupted at
    the deadline has so long to end."""

    lame_duck_s: float = 0.0
    grace_s: float = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """What a drain needs of the listener and of those who are connected.

    ``begin`` makes every answer its connection's last and tells streams to come back; ``end`` takes that back.
    ``leave`` accepts nobody any more: whoever holds the listener too does. ``unanswered``: requests whose answer has
    not begun. ``silent``: connections that have not said yet what they want. ``notices``: streams told to come back.
    ``refuse`` answers those who have sent only a part of what they want.
    """

    begin: Callable[[bool], None]
    end: Callable[[], None]
    leave: Callable[[], None]
    connections: Callable[[], int]
    unanswered: Callable[[], int] = lambda: 0
    silent: Callable[[], int] = lambda: 0
    notices: Callable[[], int] = lambda: 0
    refuse: Callable[[], None] = lambda: None


class Drain:
    """One drain at a time. A drain that stops the daemon cannot be undone; one that does not, can.

    Where a successor (or systemd) holds the listener too, the drain hands over: nobody new is accepted, and whoever
    was is served, since nobody else can. Otherwise new work is refused.

    :meth:`run` does the waiting and must be running.
    """

    def __init__(
        self, health: Health, dispatcher: Dispatcher, edge: Edge, monotonic: Clock, *, settings: DrainSettings
    ) -> None:
        self.settings = settings
        self._health = health
        self._dispatcher = dispatcher
        self._edge = edge
        self._monotonic = monotonic
        self._deadline = 0.0
        self._duck_until = 0.0
        self._handed_over_at: float | None = None
        self._changed = Hint()
        self.begun = False
        """Whether work is held back: what ``undrained`` gives free."""
        self.stopping = False
        self.hurried = False
        dispatcher.idled.listen(self._changed.give)

    @property
    def active(self) -> bool:
        return self._health.state in (DaemonState.DRAINING, DaemonState.DRAINED, DaemonState.STOPPING)

    @property
    def handed_over(self) -> bool:
        return self._handed_over_at is not None

    @property
    def remaining_seconds(self) -> float:
        return max(0.0, self._deadline - self._monotonic())

    def begin(self, deadline_seconds: float, *, stop: bool, handed_over: bool = False) -> None:
        """Stops admission. A second one can shorten the deadline and turn the drain into a stop, never the reverse.

        ``handed_over``: somebody else holds the listener too. Raises Refusal for a drain without a stop while the
        daemon is starting: there is nothing to drain yet.
        """
        if self._health.state is DaemonState.STARTING and not stop:
            raise Refusal.because(Code.NOT_READY, "the daemon is starting", retry_after_seconds=1.0)
        now, active = self._monotonic(), self.active
        if not active:
            self._duck_until = now if handed_over else now + self.settings.lame_duck_s
        elif handed_over:
            self._duck_until = now
        deadline = max(now, self._duck_until) + min(deadline_seconds, MAX_DEADLINE_SECONDS)
        self._deadline = min(self._deadline, deadline) if active else deadline
        self.stopping = self.stopping or stop
        if not active:
            starting = self._health.state is DaemonState.STARTING
            self._health.lenient = self._duck_until > now
            self._health.move(DaemonState.STOPPING if starting else DaemonState.DRAINING)
        if self._duck_until <= now:
            self._hold(handed_over)
        self._changed.give()

    def _hold(self, handed_over: bool) -> None:
        """The lame duck is over: no new work, or nobody new."""
        newly = handed_over and not self.handed_over
        if newly:
            self._handed_over_at = self._monotonic()
            self._edge.leave()
        self._health.lenient = self.handed_over
        if newly or not self.begun:
            self.begun = True
            self._edge.begin(self.handed_over)

    def skip_lame_duck(self) -> None:
        """No new work from now on, and the deadline comes the sooner by what was left of the lame duck."""
        left = self._duck_until - self._monotonic()
        if self.active and left > 0:
            self._duck_until -= left
            self._deadline -= left
            self._hold(self.handed_over)
            self._changed.give()

    def hurry(self) -> None:
        """Waits no longer: what still runs is interrupted."""
        self.hurried = True
        self.skip_lame_duck()
        self._deadline = self._monotonic()
        self._changed.give()

    def note(self) -> None:
        """Something that a drain waits for has changed."""
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
        while self._draining and (left := self._duck_until - self._monotonic()) > 0:
            await self._changed.wait(left)
        if self._draining:
            self._hold(self.handed_over)
        while self._draining and not self._quiet():
            left = self._deadline - self._monotonic()
            if left <= 0:
                await self._interrupt()
                break
            await self._changed.wait(min(left, self._settling()))
        if self._draining:
            self._health.move(DaemonState.DRAINED)
            self._changed.give()

    def _quiet(self) -> bool:
        if not self._dispatcher.idle or self._edge.unanswered():
            return False
        if self._handed_over_at is None:
            return True
        since = self._monotonic() - self._handed_over_at
        return since >= (FIRST_WORDS_SECONDS if self._edge.silent() else SETTLE_SECONDS)

    def _settling(self) -> float:
        """How long until silence alone is enough."""
        if self._handed_over_at is None:
            return MAX_DEADLINE_SECONDS
        since = self._monotonic() - self._handed_over_at
        ahead = [at - since for at in (SETTLE_SECONDS, FIRST_WORDS_SECONDS) if at > since]
        return min(ahead, default=MAX_DEADLINE_SECONDS)

    async def _interrupt(self) -> None:
        """What runs has the grace to end. What is answered with that, or refused, needs a few passes of the loop."""
        self._dispatcher.interrupt_all()
        self._edge.refuse()
        await self._until(lambda: self._dispatcher.idle, self.settings.grace_s)
        await self._until(lambda: not self._edge.unanswered(), SETTLE_SECONDS)

    async def _until(self, holds: Callable[[], bool], at_most_seconds: float) -> None:
        until = self._monotonic() + at_most_seconds
        while self._draining and not holds() and (left := until - self._monotonic()) > 0:
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
        self._health.lenient = False
        if self.begun:
            self.begun = False
            self._edge.end()
        self._health.settle()
        self._changed.give()

    def take_back(self) -> bool:
        """The successor is gone: this daemon goes on. False when it has ended already."""
        if not self._draining:
            return False
        self.stopping = self.hurried = False
        self._handed_over_at = None
        self.undo()
        return True

    def progress(self) -> dict[str, Any]:
        """One line of progress. ``queued`` tasks stay where they are; ``saved``: all that must survive a stop does."""
        line = {
            "state": self._health.state.value,
            "running": self._dispatcher.running,
            "waiting": self._dispatcher.waiting,
            "queued": self._dispatcher.queued,
            "connections": self._edge.connections(),
            "notices": self._edge.notices(),
            "remaining_s": round(self.remaining_seconds, 1),
        }
        return line if self._draining else line | {"saved": not self._dispatcher.unsaved}

    async def changed(self, timeout_seconds: float | None = None) -> None:
        """Waits for a change of the drain, or so long."""
        await self._changed.wait(timeout_seconds)
