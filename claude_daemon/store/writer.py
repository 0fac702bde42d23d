"""The one thread that writes: a FIFO of verbs, committed in groups.

- Whatever waits when a commit is over goes into the next one, in the order of the calls, within bounds. So one flush of
  the disk serves all who wait for it, and nobody waits for more company.
- Each verb has its own savepoint: one that is wrong in itself fails alone.
- When disk, file or memory fail, nothing of the group has happened. The verbs that may fail do so; those that are
  exempt go back to the head of the FIFO, in order, and are tried again until that works or the writer is closed.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from typing import Any, Final, TypeVar

from claude_daemon.core.retry import Backoff
from claude_daemon.ports import StoreUnavailable
from claude_daemon.store.connection import of_storage, side
from claude_daemon.store.figures import Figures
from claude_daemon.store.verbs import Call

MAX_BATCH_ITEMS: Final = 512
"""In one commit: beyond some hundred the flush is shared so widely that more only adds to everybody's waiting."""
MAX_BATCH_BYTES: Final = 4 * 1024 * 1024
"""In one commit: about what a disk writes in the time of a flush. A verb that is larger has a commit of its own."""
MAX_BACKLOG_ITEMS: Final = 20_000
"""Waiting: twice the queue that is allowed by default; more is not load but a disk that has stopped."""
MAX_BACKLOG_BYTES: Final = 64 * 1024 * 1024
"""Waiting: what a small machine can spare. What is exempt is not turned away; its callers hold back by themselves."""
CLOSE_GRACE_S: Final = 5.0
"""How long a store that fails is tried at the end: less than a service manager waits before it kills."""
OVERHEAD_BYTES: Final = 500
"""Of one verb, beside what it carries."""
BACKOFF: Final = Backoff(first_seconds=0.05, limit_seconds=0.5)
"""Behind a verb that is kept all others wait, so it is tried again soon; a full disk fails at once and costs little."""

Observer = Callable[[str, str], None]
"""Called on the writer's thread around each commit, for each verb in it: its name, "before" or "after"."""
Committed = Callable[[float, int], None]
"""Called on the writer's thread after each commit: the seconds that it took, and how many verbs were in it."""

R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Item:
    """A verb that waits. ``reply`` is called in ``loop`` with result and error, once it is over; where ``quiet``, only
    with an error."""

    call: Call[Any]
    size: int
    loop: asyncio.AbstractEventLoop
    reply: Callable[[Any, Exception | None], None]
    quiet: bool = False
    result: Any = None
    error: Exception | None = None


class Writer:
    """Owns its connection and its thread, which runs from construction until :meth:`close`."""

    def __init__(
        self,
        db: Connection,
        path: Path,
        observer: Observer | None = None,
        committed: Committed = lambda seconds, items: None,
    ) -> None:
        self.figures = Figures()
        self._committed = committed
        self._db = db
        self._path = path
        self._inode = _inode(path)
        self._observer = observer
        self._synchronous = ""
        self._changed = threading.Condition()
        # what follows is guarded by it
        self._waiting: deque[_Item] = deque()
        self._backlog_items = 0
        self._backlog_bytes = 0
        self._error: str | None = None
        self._failures = 0
        self._retry_at: float | None = None
        self._closing_at: float | None = None
        self._lost = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    # from any loop

    def do(self, call: Call[R], size: int = 0) -> asyncio.Future[R]:
        """The result, once it is durable. A caller that gives up waiting changes nothing: the verb happens.

        Raises StoreUnavailable at once when too much waits, or after :meth:`close`.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[R] = loop.create_future()

        def reply(result: R, error: Exception | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self._put(_Item(call, size + OVERHEAD_BYTES, loop, reply))
        return future

    def tell(self, call: Call[R], size: int, told: Callable[[R], None], failed: R) -> None:
        """As :meth:`do`, for one who does not wait: ``told`` is called in this loop.

        After an error of the verb itself it hears ``failed``, and the loop's exception handler the error. When the
        writer is closed before the verb is durable it hears nothing.
        """
        loop = asyncio.get_running_loop()

        def reply(result: R, error: Exception | None) -> None:
            if isinstance(error, StoreUnavailable):
                return
            told(result if error is None else failed)
            if error is not None:
                raise error

        self._put(_Item(call, size + OVERHEAD_BYTES, loop, reply))

    def leave(self, call: Call[None]) -> None:
        """As :meth:`tell`, for one who need not hear of it."""
        self._put(_Item(call, OVERHEAD_BYTES, asyncio.get_running_loop(), _complain, quiet=True))

    def hurry(self) -> None:
        """Ends the wait before the next attempt of a store that has failed."""
        with self._changed:
            self._retry_at = None
            self._changed.notify()

    @property
    def error(self) -> str | None:
        """Why nothing can be made durable now."""
        return self._error

    @property
    def backlog(self) -> int:
        return self._backlog_items

    def close(self) -> bool:
        """Commits what waits, and ends the thread; whether all of it was saved. Blocks. Again: the same answer."""
        with self._changed:
            if self._closing_at is None:
                self._closing_at = time.monotonic()
            self._retry_at = None
            self._changed.notify()
        self._thread.join()
        return not self._lost

    def _put(self, item: _Item) -> None:
        with self._changed:
            if self._closing_at is not None:
                raise StoreUnavailable("the store is closed")
            full = self._backlog_items >= MAX_BACKLOG_ITEMS or self._backlog_bytes >= MAX_BACKLOG_BYTES
            if full and not item.call.exempt:
                raise StoreUnavailable(self._error or "the store is too slow: too much waits to be written")
            self._waiting.append(item)
            self._backlog_items += 1
            self._backlog_bytes += item.size
            self._changed.notify()

    # on the writer's thread

    def _run(self) -> None:
        batch: Sequence[_Item] = ()
        try:
            while batch := self._next_batch():
                self._commit_or_keep(batch)
        except BaseException as error:  # a bug of ours, or of an observer: nobody may wait for ever
            self._give_up(f"the store's writer has ended: {type(error).__name__}: {error}", batch)
            raise
        finally:
            self._end()

    def _next_batch(self) -> Sequence[_Item]:
        """Waits for verbs and takes the first of them, within bounds; empty once there is nothing left to do."""
        with self._changed:
            while True:
                if self._waiting and self._retry_at is None:
                    return self._take()
                if self._closing_at is not None and not self._waiting:
                    return ()
                if self._closing_at is not None and time.monotonic() - self._closing_at >= CLOSE_GRACE_S:
                    break
                self._wait()
        self._give_up(self._error or "the store is closed")
        return ()

    def _wait(self) -> None:
        """Until something has changed, or the next attempt is due."""
        if self._retry_at is None:
            self._changed.wait()
            return
        left = self._retry_at - time.monotonic()
        if left > 0:
            self._changed.wait(left)
        else:
            self._retry_at = None

    def _take(self) -> Sequence[_Item]:
        batch = [self._waiting.popleft()]
        size = batch[0].size
        while self._waiting and len(batch) < MAX_BATCH_ITEMS and size + self._waiting[0].size <= MAX_BATCH_BYTES:
            batch.append(self._waiting.popleft())
            size += batch[-1].size
        return batch

    def _commit_or_keep(self, batch: Sequence[_Item]) -> None:
        self.figures.began()
        try:
            self._commit(batch)
        except (sqlite3.Error, OSError) as error:
            self.figures.failed()
            with suppress(sqlite3.Error):
                self._roll_back()
            self._failed(batch, error)
        else:
            seconds = self.figures.committed(_size(side(self._path, "-wal")))
            self._committed(seconds, len(batch))
            with self._changed:
                self._error = None
                self._failures = 0
            self._over(batch)

    def _commit(self, batch: Sequence[_Item]) -> None:
        """Raises sqlite3.Error or OSError when nothing of it has happened."""
        self._roll_back()
        if _inode(self._path) != self._inode:
            raise FileNotFoundError(f"{self._path.name} was moved away or deleted while it was in use")
        self._flush("NORMAL" if all(item.call.relaxed for item in batch) else "FULL")
        self._db.execute("BEGIN IMMEDIATE")
        for item in batch:
            self._apply(item)
        self._observe(batch, "before")
        self._db.execute("COMMIT")
        self._observe(batch, "after")

    def _apply(self, item: _Item) -> None:
        item.error = None
        self._db.execute("SAVEPOINT verb")
        try:
            item.result = item.call.apply(self._db)
        except Exception as error:  # the verb's own; what the storage did fails everybody
            if of_storage(error):
                raise
            item.error = error
            self._db.execute("ROLLBACK TO verb")
        self._db.execute("RELEASE verb")

    def _flush(self, synchronous: str) -> None:
        """Whether commits wait for the disk; cannot be changed within a transaction."""
        if synchronous != self._synchronous:
            self._db.execute(f"PRAGMA synchronous = {synchronous}")
            self._synchronous = synchronous

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _observe(self, batch: Sequence[_Item], moment: str) -> None:
        if self._observer is not None:
            for item in batch:
                self._observer(item.call.verb, moment)

    def _failed(self, batch: Sequence[_Item], error: Exception) -> None:
        kept = [item for item in batch if item.call.exempt]
        turned_away = [item for item in batch if not item.call.exempt]
        reason = f"the store cannot be written: {error}"
        for item in turned_away:
            item.result, item.error = None, StoreUnavailable(reason)
        with self._changed:
            self._error = reason
            self._failures += 1
            self._waiting.extendleft(reversed(kept))
            if kept:
                self._retry_at = time.monotonic() + BACKOFF.delay(self._failures, 1.0)
        self._over(turned_away)

    def _give_up(self, reason: str, begun: Sequence[_Item] = ()) -> None:
        with self._changed:
            self._error = reason
            self._closing_at = self._closing_at or time.monotonic()
            lost, self._waiting = [*begun, *self._waiting], deque()
            self._lost = bool(lost)
        for item in lost:
            item.result, item.error = None, StoreUnavailable(reason)
        self._over(lost)

    def _over(self, items: Sequence[_Item]) -> None:
        """They wait no longer; one call tells all of a loop."""
        with self._changed:
            self._backlog_items -= len(items)
            self._backlog_bytes -= sum(item.size for item in items)
        loops: dict[asyncio.AbstractEventLoop, list[_Item]] = {}
        for item in items:
            if item.error is not None or not item.quiet:
                loops.setdefault(item.loop, []).append(item)
        for loop, theirs in loops.items():
            with suppress(RuntimeError):  # it is closed: nobody waits there
                loop.call_soon_threadsafe(_reply, loop, theirs)

    def _end(self) -> None:
        with suppress(sqlite3.Error):
            self._roll_back()
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._db.close()


def _complain(result: object, error: Exception | None) -> None:
    """In the name of nobody; a store that is closed has said so."""
    if error is not None and not isinstance(error, StoreUnavailable):
        raise error


def _reply(loop: asyncio.AbstractEventLoop, items: Sequence[_Item]) -> None:
    for item in items:
        try:
            item.reply(item.result, item.error)
        except Exception as error:  # one caller's trouble is not the next one's
            loop.call_exception_handler({"message": f"after {item.call.verb}", "exception": error})


def _inode(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
