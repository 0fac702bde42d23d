"""The schema: numbered migrations, which of them a file has seen, and whether it is one of ours and whole.

``PRAGMA user_version`` is the number of the last migration, ``PRAGMA application_id`` marks the file as ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from sqlite3 import Connection
from typing import Final

from claude_daemon.ports import StoreBroken
from claude_daemon.store import copies
from claude_daemon.store.connection import ADVICE, connect, connect_writer, create_private, opening

APPLICATION_ID: Final = int.from_bytes(b"cld1", "big")
MIGRATIONS: Final = Path(__file__).parent / "migrations"
_MAX_FAULTS: Final = 3  # of a corrupt file: enough to see that it is


def known_migrations(directory: Path = MIGRATIONS) -> Sequence[str]:
    """The scripts, in order: ``0001.sql`` first. Raises ValueError when a number is missing."""
    files = sorted(directory.glob("*.sql"))
    expected = [f"{number:04}.sql" for number in range(1, len(files) + 1)]
    if [file.name for file in files] != expected:
        raise ValueError(f"{directory}: the migrations are not numbered one by one")
    return [file.read_text() for file in files]


def open_current(path: Path, migrations: Sequence[str]) -> Connection:
    """The writer's connection to a file that is checked and of today's schema.

    Made where there is none, migrated where it is older. Raises StoreBroken, StoreUnavailable.
    """
    with opening(path):
        create_private(path)
        found = inspect(path, migrations)
        if found:
            _keep_before_migration(path, found, migrations)
        db = connect_writer(path)
        try:
            _migrate(db, found, migrations)
        except BaseException:
            db.close()
            raise
        return db


def inspect(path: Path, migrations: Sequence[str], *, whole: bool = True, advice: str = ADVICE) -> int:
    """The version of a file's schema, 0 for an empty one. ``whole``: every page of it is looked at; else it is only
    read, and somebody may have it open.

    Raises StoreBroken for a file that is not ours, newer than this code, or corrupt, with advice for who brought it.
    """
    with opening(path, advice), closing(connect(path, read_only=not whole)) as db:
        version = int(_pragma(db, "user_version"))
        if version == 0 and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            return 0
        if _pragma(db, "application_id") != APPLICATION_ID:
            raise StoreBroken(f"{path} is a database of another program")
        if version > len(migrations):
            raise StoreBroken(
                f"{path} was written by a newer claude-daemon (schema {version}, this one knows {len(migrations)}): "
                f"install that one again, or {advice}"
            )
        if whole:
            _check_integrity(path, db, advice)
        return version


def _check_integrity(path: Path, db: Connection, advice: str) -> None:
    faults = [str(row[0]) for row in db.execute(f"PRAGMA quick_check({_MAX_FAULTS})")]
    if faults != ["ok"]:
        raise StoreBroken(f"{path} is corrupt ({'; '.join(faults)}): {advice}")


def _pragma(db: Connection, name: str) -> int:
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _keep_before_migration(path: Path, found: int, migrations: Sequence[str]) -> Path | None:
    """Copies a file that is about to be changed; where to, None if it is not."""
    if found == len(migrations):
        return None
    kept = path.with_name(f"{path.name}.v{found}.bak")
    with closing(connect(path)) as db:
        copies.copy(db, kept)
    return kept


def _migrate(db: Connection, found: int, migrations: Sequence[str]) -> None:
    """Each migration is one transaction, its number included."""
    for number, script in enumerate(migrations[found:], found + 1):
        marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
        try:
            db.executescript(f"BEGIN IMMEDIATE; {script}\n{marks} COMMIT;")
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")


def needs_migration(path: Path) -> bool:
    """Whether the next start would migrate the file; False where there is none yet. A daemon may be running.

    Raises StoreBroken, StoreUnavailable.
    """
    if not path.exists():
        return False
    migrations = known_migrations()
    return 0 < inspect(path, migrations, whole=False) < len(migrations)


def migrate(path: Path, migrations: Sequence[str] | None = None) -> Path | None:
    """Brings a file to today's schema; where the copy from before is, None if nothing had to be done.

    Raises StoreBroken, StoreUnavailable. Nobody else may have the file open.
    """
    migrations = known_migrations() if migrations is None else migrations
    with opening(path):
        if not path.exists() or not (found := inspect(path, migrations)):
            return None
        if (kept := _keep_before_migration(path, found, migrations)) is not None:
            with closing(connect_writer(path)) as db:
                _migrate(db, found, migrations)
        return kept
