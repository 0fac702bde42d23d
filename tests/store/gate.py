"""A writer that commits when the test says so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from sqlite3 import Connection
from typing import TypeVar

from claude_daemon.store import SqliteStore
from claude_daemon.store.verbs import Call
from tests.store.samples import PATIENCE_S

R = TypeVar("R")


class Gate:
    """An observer that stops the writer before a commit, and notes what was committed together."""

    def __init__(self) -> None:
        self.commits: list[list[str]] = []
        self._before: list[str] = []
        self._stopped = threading.Event()
        self._open = threading.Event()
        self._open.set()

    def __call__(self, verb: str, moment: str) -> None:
        if moment == "before":
            self._before.append(verb)
            self._stopped.set()
            assert self._open.wait(PATIENCE_S)
        elif self._before:
            self.commits.append(self._before)
            self._before = []

    def shut(self) -> None:
        self._stopped.clear()
        self._open.clear()

    async def stopped(self) -> None:
        """Once the writer stands before a commit: whatever is called now goes into a later one."""
        assert await asyncio.to_thread(self._stopped.wait, PATIENCE_S)

    def open(self) -> None:
        self._open.set()


async def write(
    store: SqliteStore, apply: Callable[[Connection], R], *, exempt: bool = False, relaxed: bool = False, size: int = 0
) -> R:
    """A verb of the test's own, in the writer's transaction."""
    return await store._writer.do(Call("test", exempt, relaxed, apply), size)


async def fill_up(store: SqliteStore) -> None:
    """From now on no page more than there are: whatever needs room finds the disk full."""
    await write(store, lambda db: db.execute(f"PRAGMA max_page_count = {pages(db)}").fetchone())


async def make_room(store: SqliteStore) -> None:
    """Not by a verb, which would wait behind those that are kept: SQLite takes this between two transactions."""
    await asyncio.to_thread(store._writer._db.execute, "PRAGMA max_page_count = 1000000")


def pages(db: Connection) -> int:
    return int(db.execute("PRAGMA page_count").fetchone()[0])
