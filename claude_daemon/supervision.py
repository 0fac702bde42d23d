"""What systemd is told while the daemon lives: that it is ready, how it is, that its loop turns, when it needs time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from claude_daemon.core.lifecycle import DaemonState
from claude_daemon.service.health import Health
from claude_daemon.supervise.notify import Notifier

INTERVAL_S: Final = 1.0
"""How often a status that has changed is told, and more time asked for."""
EXTENSION_S: Final = 5.0
"""How much time is asked for: a few intervals, so that a busy second does not cost the daemon its life."""


class Supervision:
    """``status`` is one line for people. ``needs_time``: a start or a drain gets on, and is not to be cut short."""

    def __init__(
        self, notifier: Notifier, health: Health, *, status: Callable[[], str], needs_time: Callable[[], bool]
    ) -> None:
        self._notifier = notifier
        self._health = health
        self._status = status
        self._needs_time = needs_time
        self._told = ""

    async def run(self) -> None:
        """Never ends. In the loop itself: one that stands still is to be noticed."""
        period = self._notifier.watchdog_seconds
        interval = INTERVAL_S if period is None else min(INTERVAL_S, period / 2)
        while self._notifier.active:
            self._notifier.watchdog()
            if self._needs_time():
                self._notifier.extend(EXTENSION_S)
            self._tell_status()
            await asyncio.sleep(interval)
        await asyncio.Event().wait()  # nobody listens, and nobody need be told so twice

    def _tell_status(self) -> None:
        status = self._status()
        if status != self._told:
            self._told = status
            self._notifier.status(status)

    def ready(self) -> None:
        self._notifier.ready(self._status())

    def stopping(self) -> None:
        self._notifier.stopping(self._status())

    def reloading(self) -> None:
        """Until :meth:`reloaded`, in the same breath: systemd waits for both."""
        self._notifier.reloading("reloading")

    def reloaded(self) -> None:
        if self._health.state is not DaemonState.STARTING:
            self._notifier.ready(self._status())
