"""SQLite connections as we use them, and what SQLite's errors mean to us."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection
from typing import Final

from claude_daemon.ports import StoreBroken, StoreUnavailable

FILE_MODE: Final = 0o600
SIDES: Final = ("-wal", "-shm")
"""What SQLite keeps beside its file; it gives them the file's mode."""

BUSY_SECONDS: Final = 5.0
"""Somebody may look at the file with the sqlite3 shell; who holds it for longer is an outage, and is told as one."""
CACHE_KIB: Final = 2 * 1024
"""For each connection: the inner pages of every index. The rest is in the kernel's cache, which is nobody's RSS."""
WAL_LIMIT_BYTES: Final = 64 * 1024 * 1024
"""What the WAL is cut back to once it was larger, because a long read kept it from being emptied."""

_STORAGE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_READONLY,
    }
)
_PASSING: Final = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM}
)

_PASSING_ERRNO: Final = frozenset({errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOSPC})


def primary_code(error: BaseException) -> int | None:
    """SQLite's primary result code; None where the error is not SQLite's own."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def of_storage(error: BaseException) -> bool:
    """Whether disk, file or memory failed, and not what was asked of them."""
    return primary_code(error) in _STORAGE


ADVICE: Final = "restore a backup in its place"
"""What somebody can do about a store's file that is no good."""


@contextmanager
def opening(path: Path, advice: str = ADVICE) -> Iterator[None]:
    """Errors of SQLite and of files, in words: StoreUnavailable for what may pass, else StoreBroken, with advice."""
    try:
        yield
    except sqlite3.Error as error:
        if primary_code(error) in _PASSING:
            raise StoreUnavailable(f"{path} cannot be opened now: {error}") from error
        if primary_code(error) == sqlite3.SQLITE_NOTADB:
            raise StoreBroken(f"{path} is not a database: {advice}") from error
        if primary_code(error) == sqlite3.SQLITE_CORRUPT:
            raise StoreBroken(f"{path} is corrupt ({error}): {advice}") from error
        raise StoreBroken(f"{path} cannot be opened: {error}") from error
    except OSError as error:
        if error.errno in _PASSING_ERRNO:
            raise StoreUnavailable(f"{path} cannot be opened now: {error.strerror or error}") from error
        raise StoreBroken(f"{path} cannot be opened: {error.strerror or error}") from error


def create_private(path: Path) -> None:
    """Makes sure that the file is there and that nobody else may read it or what SQLite keeps beside it."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE))
    for file in (path, *(side(path, name) for name in SIDES)):
        if file.exists() and file.stat().st_mode & 0o077:
            file.chmod(FILE_MODE)


def side(path: Path, name: str) -> Path:
    return path.with_name(path.name + name)


def connect(path: Path, *, read_only: bool = False) -> Connection:
    """A connection that any thread may use, one at a time; transactions are ours to begin and to end.

    ``read_only``: not even what is in the WAL is moved into the file when it is closed.
    """
    where = f"{path.absolute().as_uri()}?mode=ro" if read_only else path
    db = sqlite3.connect(where, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=read_only)
    db.row_factory = sqlite3.Row
    return db


def connect_writer(path: Path) -> Connection:
    """The one connection that writes; it puts the file into WAL mode. Raises StoreBroken where that cannot be had."""
    db = connect(path)
    try:
        if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise StoreBroken(f"{path} is on a file system that cannot share memory (a network's?): use a local one")
        db.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute(
            "PRAGMA secure_delete = FAST"
        )  # what was purged does not stay in free pages, where that costs nothing
        db.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        db.close()
        raise
    return db


def connect_reader(path: Path) -> Connection:
    db = connect(path)
    try:
        db.execute("PRAGMA query_only = ON")
        db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        db.close()
        raise
    return db


@contextmanager
def transaction(db: Connection, begin: str = "BEGIN") -> Iterator[None]:
    """Committed at the end, rolled back on any error."""
    db.execute(begin)
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
