"""Putting a backup in the place of the store's file."""

from __future__ import annotations

import shutil
from contextlib import closing, suppress
from pathlib import Path
from sqlite3 import Connection, Error
from typing import Final

from claude_daemon.ports import StoreBroken
from claude_daemon.store import copies, meta
from claude_daemon.store.connection import SIDES, connect, side
from claude_daemon.store.schema import inspect, known_migrations

FENCE_STRIDE: Final = 1 << 20
"""More attempts than a task can have made between a backup and its restoration."""
_ADVICE: Final = "take another backup"


def restore(backup: Path, path: Path) -> Path | None:
    """Puts a copy of a backup in the file's place, with the queue paused; where the file from before is kept.

    Nothing has changed when it raises StoreBroken (the backup is none, corrupt, or newer than this code) or OSError.
    Nobody may have the file open. None: there was no file before.
    """
    if not backup.is_file():
        raise StoreBroken(f"{backup}: there is no such backup")
    if inspect(backup, known_migrations(), advice=_ADVICE) == 0:
        raise StoreBroken(f"{backup} is empty: that is no backup")
    ready = path.with_name(f"{path.name}.restoring")
    try:
        with closing(connect(backup)) as db:
            copies.copy(db, ready, change=_begin_anew)
        kept = _keep(path) if path.exists() else None
        ready.replace(path)
    finally:
        ready.unlink(missing_ok=True)
    copies.flush(path.parent)
    return kept


def _begin_anew(db: Connection) -> None:
    """The queue rests, and what may still run, or be tried again, is told under numbers that nobody has met: followers
    hold cursors of attempts that were made after the backup."""
    meta.pause(db, True)
    db.execute("UPDATE tasks SET fence = fence + ? WHERE kind = 'task' AND state <> 'succeeded'", (FENCE_STRIDE,))


def _keep(path: Path) -> Path:
    """Moves the WAL away, which must never meet another file, and gives the file itself a second name, or a copy."""
    with suppress(Error), closing(connect(path)) as db:  # a corrupt one is kept as it is, WAL and all
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    kept = _free_name(path)
    try:
        kept.hardlink_to(path)
    except OSError:  # there are no hard links here (vfat, some network mounts)
        shutil.copy2(path, kept)
        copies.flush(kept)
    for name in SIDES:
        with suppress(FileNotFoundError):
            side(path, name).rename(side(kept, name))
    return kept


def _free_name(path: Path) -> Path:
    number = 1
    while (kept := path.with_name(f"{path.name}.replaced-{number}")).exists():
        number += 1
    return kept
