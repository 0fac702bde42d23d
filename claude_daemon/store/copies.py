"""Consistent copies of a database, made while others write to it."""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from sqlite3 import Connection
from typing import Final

from claude_daemon.store.connection import FILE_MODE, SIDES, connect, primary_code, side, transaction

STEP_PAGES: Final = 1024
"""Some 4 MiB: between two steps a copy can be given up."""
ABANDONED_SECONDS: Final = 3600.0
"""A copy that is being made is written to all the time: one that nobody has touched for an hour was killed."""


def copy(
    source: Connection,
    to: Path,
    *,
    overwrite: bool = True,
    change: Callable[[Connection], None] | None = None,
    going_on: Callable[[], bool] = lambda: True,
) -> int:
    """Writes all that ``source`` sees at one moment into one file, 0600 and flushed; its size in bytes.

    The file appears at ``to`` when it is complete, and not at all on any error. ``change`` alters the copy before that.
    The source is one connection's snapshot: in WAL mode whoever writes goes on. What copies to the same place have left
    that were killed is swept away.
    Raises FileExistsError without ``overwrite``, InterruptedError when not ``going_on``, OSError.
    """
    if not overwrite and to.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(to))
    _sweep(to)
    temporary = to.with_name(f".{to.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE))
        _fill(source, temporary, change, going_on)
        size = flush(temporary)
        if overwrite:
            temporary.replace(to)
        else:
            _take_name(temporary, to)
        flush(to.parent)
        return size
    except sqlite3.Error as error:
        full = primary_code(error) == sqlite3.SQLITE_FULL
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error), str(to)) from error
    finally:
        for file in (temporary, *(side(temporary, name) for name in SIDES)):
            file.unlink(missing_ok=True)


def _take_name(temporary: Path, to: Path) -> None:
    """Raises FileExistsError. In one step, so that a kill leaves the whole copy or no file at all."""
    try:
        to.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # there are no hard links here: whoever makes the file in this very moment loses it
        if to.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(to)) from None
        temporary.replace(to)


def _sweep(to: Path) -> None:
    """Removes the temporary files of copies that were killed, as far as we may."""
    abandoned = time.time() - ABANDONED_SECONDS
    endings = (".tmp", *(f".tmp{name}" for name in SIDES))
    with suppress(OSError):
        for file in to.parent.iterdir():
            left = file.name.startswith(f".{to.name}.") and file.name.endswith(endings)
            if left and file.lstat().st_mtime < abandoned:
                file.unlink()


def _fill(
    source: Connection, to: Path, change: Callable[[Connection], None] | None, going_on: Callable[[], bool]
) -> None:
    def progress(status: int, remaining: int, total: int) -> None:
        if not going_on():
            raise InterruptedError(errno.EINTR, "the copy was given up", str(to))

    with closing(connect(to)) as target:
        target.execute("PRAGMA synchronous = OFF")  # flushed once, when it is complete
        # Within one read transaction: a copy begins again whenever somebody has written between two of its steps.
        with transaction(source):
            source.execute("SELECT 1 FROM sqlite_master").fetchone()
            source.backup(target, pages=STEP_PAGES, progress=progress)
        if change is not None:
            change(target)
        target.execute("PRAGMA journal_mode = DELETE")  # one file, complete without a WAL


def flush(path: Path) -> int:
    """Makes a file, or the names in a directory, survive a crash of the machine; its size in bytes."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        return os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
