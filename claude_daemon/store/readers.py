"""Reading beside the writer: few connections, each read one snapshot."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from sqlite3 import Connection
from typing import Concatenate, Final, ParamSpec, TypeVar

from claude_daemon.ports import StoreUnavailable
from claude_daemon.store.connection import connect_reader, transaction

THREADS: Final = 2
"""A read is mostly Python: a second thread lets short ones pass a long one, more would only share the interpreter."""

P = ParamSpec("P")
R = TypeVar("R")


class Readers:
    """Connections that cannot write; they are open from construction until :meth:`close`."""

    def __init__(self, path: Path) -> None:
        self.error: str | None = None
        """Why the last read failed."""
        self._idle: SimpleQueue[Connection] = SimpleQueue()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="store-reader")
        for _ in range(THREADS):
            self._idle.put(connect_reader(path))

    async def read(self, query: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """What ``query`` finds in one read transaction. Raises StoreUnavailable."""

        def run() -> R:
            db = self._idle.get()
            try:
                with transaction(db):
                    found = query(db, *args, **kwargs)
                self.error = None
                return found
            except sqlite3.Error as error:
                self.error = f"the store cannot be read: {error}"
                raise StoreUnavailable(self.error) from error
            finally:
                self._idle.put(db)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, run)
        except RuntimeError as error:
            raise StoreUnavailable("the store is closed") from error

    def close(self) -> None:
        """Waits for the reads that are under way. Blocks."""
        self._threads.shutdown()
        while not self._idle.empty():
            self._idle.get().close()
