"""The store's upkeep: what is too old goes, the queue rests when told to, copies are made."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

from claude_daemon.ports import Clock, Store, StoreUnavailable
from claude_daemon.service.dispatch import Dispatcher

SWEEP_S: Final = 3600.0
"""Retention is told in days: an hour more is none."""
PURGE_AT_ONCE: Final = 200
"""Tasks deleted in one commit, events and all: what waits behind it waits some milliseconds."""
CHECK_S: Final = 2.0
"""How often a store that failed is tried again."""
_DAY_S: Final = 24 * 3600.0


class Upkeep:
    """``changed`` is told when the store fails or works again; ``told`` what is worth a log line. ``sweep_sessions``
    deletes sessions that nobody has used since then, and says how many."""

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        *,
        now: Clock,
        retention_days: int,
        draining: Callable[[], bool],
        changed: Callable[[], None],
        sweep_sessions: Callable[[float], Awaitable[int]],
        told: Callable[[str, dict[str, Any]], None] = lambda name, fields: None,
    ) -> None:
        self._store = store
        self._dispatcher = dispatcher
        self._now = now
        self.retention_days = retention_days
        self._draining = draining
        self._changed = changed
        self._sweep_sessions = sweep_sessions
        self._told = told
        self.paused = False

    def await_store(self) -> None:
        """Until :meth:`begin` nobody knows whether the queue is paused: no durable task is begun."""
        self.paused = True
        self._dispatcher.hold()

    def begin(self, *, paused: bool) -> None:
        """What the store says of its queue."""
        self.paused = paused
        if not paused and not self._draining():
            self._dispatcher.unhold()

    async def sweep(self) -> None:
        """Deletes what is older than it is kept, now and every hour; never ends."""
        while True:
            with contextlib.suppress(StoreUnavailable):  # the next sweep finds it still
                before = self._now() - self.retention_days * _DAY_S
                purged, sessions = await self.purge(before), await self._sweep_sessions(before)
                if purged or sessions:
                    self._told("store.swept", {"tasks": purged, "sessions": sessions})
            await asyncio.sleep(SWEEP_S)

    async def watch(self) -> None:
        """Tries a store that failed until it works, and says so; never ends."""
        failing = False
        while True:
            await asyncio.sleep(CHECK_S)
            error = self._store.status().error
            if error is not None and await self._store.check():
                error = None
            if error is not None and not failing:
                self._told("store.failed", {"error": error})
            elif error is None and failing:
                self._told("store.recovered", {})
            if failing != (error is not None):
                failing = error is not None
                self._changed()

    async def purge(self, before: float) -> int:
        """Deletes tasks that ended before then; how many. Raises StoreUnavailable."""
        total = 0
        while purged := await self._store.purge(before, PURGE_AT_ONCE):
            total += purged
        return total

    async def pause(self) -> None:
        """No durable task is begun until :meth:`resume`, restarts included. Raises StoreUnavailable."""
        await self._dispatcher.finish(self._pause())

    async def _pause(self) -> None:
        await self._store.pause(True)
        self.paused = True
        self._dispatcher.hold()

    async def resume(self) -> None:
        """Raises StoreUnavailable."""
        await self._dispatcher.finish(self._resume())

    async def _resume(self) -> None:
        await self._store.pause(False)
        self.paused = False
        if not self._draining():
            self._dispatcher.unhold()

    def undrained(self) -> None:
        """The drain is over: what it held back goes on, unless the queue is paused besides."""
        if not self.paused:
            self._dispatcher.unhold()

    async def backup(self, to: Path) -> int:
        """Raises FileExistsError, OSError."""
        size = await self._store.backup(to)
        with contextlib.suppress(StoreUnavailable):  # it is made, though the next daemon will not know of it
            await self._store.backed_up(self._now())
        return size
