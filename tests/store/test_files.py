"""Opening: what is ours, whole and of today; what is older becomes so, and anything else is refused and left alone."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from claude_daemon.ports import StoreBroken, StoreUnavailable
from claude_daemon.store import SqliteStore, migrate, needs_migration, schema
from claude_daemon.store.connection import connect_writer
from tests.store.files import dump, killed, mode, sql
from tests.store.samples import found, put, task

OLD = schema.known_migrations()
SPENT_BEFORE = [(0, "a", 1), (1, "b", 2), (90_000, "a", 4), (2, "a", "NULL")]
"""At, key, micro-USD."""
LATEST = len(OLD)
NEW = [*OLD, "ALTER TABLE nodes ADD COLUMN version TEXT; UPDATE nodes SET version = 'old';"]
BAD = [*OLD, "ALTER TABLE nodes ADD COLUMN version TEXT; INSERT INTO nowhere VALUES (1);"]

JOIN_AND_DIE = """
import asyncio, os, signal, sys
from pathlib import Path
from claude_daemon.store import SqliteStore
async def main():
    await SqliteStore.open(Path(sys.argv[1])).join("node_1", 1.0)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "daemon.db"


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


async def made(path: Path) -> Path:
    """A store's file with one task in it."""
    store = SqliteStore.open(path)
    await put(store, task())
    assert await store.close()
    return path


class TestOpening:
    @pytest.mark.usefixtures("open_umask")
    async def test_nobody_else_may_read_what_is_made(self, path: Path) -> None:
        store = SqliteStore.open(path)
        await put(store, task())
        assert {file.name: mode(file) for file in path.parent.iterdir()} == {
            "daemon.db": 0o600,
            "daemon.db-wal": 0o600,
            "daemon.db-shm": 0o600,
        }
        await store.close()

    async def test_a_file_that_others_could_read_is_closed_to_them(self, path: Path) -> None:
        await made(path)
        path.chmod(0o644)
        store = SqliteStore.open(path)
        assert mode(path) == 0o600
        await store.close()

    async def test_it_opens_what_was_closed_and_what_was_killed(self, path: Path) -> None:
        await made(path)
        assert killed("-c", JOIN_AND_DIE, path) == []
        assert path.with_name("daemon.db-wal").stat().st_size > 0
        store = SqliteStore.open(path)
        assert (await found(store)).id == "task_1"
        assert await store.close()
        assert dump(path)["nodes"] == [("node_1", 1.0)]

    async def test_an_empty_file_is_a_new_store(self, path: Path) -> None:
        path.touch()
        assert not needs_migration(path)
        await made(path)

    async def test_it_is_marked_as_ours_with_its_schema(self, path: Path) -> None:
        await made(path)
        assert sql(path, "PRAGMA application_id") == (schema.APPLICATION_ID,)
        assert sql(path, "PRAGMA user_version") == (len(schema.known_migrations()),)

    async def test_a_newer_one_is_refused_and_left_alone(self, path: Path) -> None:
        await made(path)
        sql(path, "PRAGMA user_version = 99")
        before = path.read_bytes()
        with pytest.raises(StoreBroken, match="newer claude-daemon"):
            SqliteStore.open(path)
        assert path.read_bytes() == before

    def test_what_is_no_database_is_refused_and_left_alone(self, path: Path) -> None:
        path.write_text("a letter to somebody " * 1000)
        before = path.read_bytes()
        with pytest.raises(StoreBroken, match="is not a database"):
            SqliteStore.open(path)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("version", [0, 1])
    def test_another_programs_database_is_refused(self, path: Path, version: int) -> None:
        sql(path, "CREATE TABLE bookmarks (url TEXT)", f"PRAGMA user_version = {version}")
        with pytest.raises(StoreBroken, match="another program"):
            SqliteStore.open(path)
        assert list(dump(path)) == ["bookmarks"]

    @pytest.mark.parametrize("damage", ["a page", "the end", "the schema"])
    async def test_a_corrupt_one_is_refused(self, path: Path, damage: str) -> None:
        await made(path)
        content = bytearray(path.read_bytes())
        match damage:
            case "a page":
                root = sql(path, "SELECT rootpage FROM sqlite_master WHERE name = 'tasks'")[0]
                content[(root - 1) * 4096 : root * 4096] = b"\xa5" * 4096
            case "the end":
                del content[-3 * 4096 :]
            case _:
                content[100:4096] = b"\xa5" * 3996
        path.write_bytes(content)
        with pytest.raises(StoreBroken, match="is corrupt"):
            SqliteStore.open(path)
        assert path.read_bytes() == content

    def test_what_cannot_be_opened_is_told(self, path: Path) -> None:
        path.mkdir()
        with pytest.raises(StoreBroken, match="cannot be opened"):
            SqliteStore.open(path)

    def test_where_there_is_no_wal_there_is_no_store(self) -> None:
        with pytest.raises(StoreBroken, match="use a local one"):
            connect_writer(Path(":memory:"))

    async def test_one_that_somebody_holds_is_unavailable(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        await made(path)
        monkeypatch.setattr("claude_daemon.store.connection.BUSY_SECONDS", 0.0)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StoreUnavailable, match="locked"):
                SqliteStore.open(path)


class TestMigrations:
    @pytest.fixture
    def old(self, path: Path) -> Path:
        """A file of the first schema, its last words still in the WAL."""
        schema.open_current(path, OLD).close()
        assert killed("-c", JOIN_AND_DIE, path) == []
        return path

    def test_an_older_one_is_migrated_with_its_rows(self, old: Path) -> None:
        schema.open_current(old, NEW).close()
        assert dump(old)["nodes"] == [("node_1", 1.0, "old")]
        assert sql(old, "PRAGMA user_version") == (LATEST + 1,)

    @pytest.mark.usefixtures("open_umask")
    def test_before_that_it_is_copied_beside_whole(self, old: Path) -> None:
        before = dump(old)
        kept = migrate(old, NEW)
        assert kept == old.with_name(f"daemon.db.v{LATEST}.bak")
        assert mode(kept) == 0o600 and dump(kept) == before
        assert sql(kept, "PRAGMA user_version") == (LATEST,)
        assert {file.name for file in old.parent.iterdir()} == {"daemon.db", f"daemon.db.v{LATEST}.bak"}

    def test_one_of_today_is_neither_copied_nor_changed(self, old: Path) -> None:
        assert migrate(old, OLD) is None
        assert not old.with_name(f"daemon.db.v{LATEST}.bak").exists()

    def test_a_migration_that_fails_has_changed_nothing(self, old: Path) -> None:
        before = dump(old)
        for _ in range(2):
            with pytest.raises(StoreBroken, match="nowhere"):
                schema.open_current(old, BAD)
            assert dump(old) == before and sql(old, "PRAGMA user_version") == (LATEST,)
        assert migrate(old, NEW) is not None

    def test_many_are_applied_one_by_one(self, old: Path) -> None:
        schema.open_current(old, [*NEW, "UPDATE nodes SET version = version || 'er';"]).close()
        assert dump(old)["nodes"] == [("node_1", 1.0, "older")]
        assert sql(old, "PRAGMA user_version") == (LATEST + 2,)

    def test_whether_it_is_needed_is_told_without_doing_it(self, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert not needs_migration(old)
        monkeypatch.setattr(schema, "known_migrations", lambda: NEW)
        assert needs_migration(old) and sql(old, "PRAGMA user_version") == (LATEST,)
        migrate(old)
        assert not needs_migration(old)

    async def test_that_is_told_while_a_daemon_has_it_open(self, old: Path) -> None:
        wal = old.with_name("daemon.db-wal").read_bytes()
        assert wal and not needs_migration(old)
        assert old.with_name("daemon.db-wal").read_bytes() == wal  # a look moves nothing into the file
        store = SqliteStore.open(old)
        await put(store, task())
        assert not needs_migration(old)
        assert (await found(store)).id == "task_1" and await store.close()

    def test_where_there_is_no_file_nothing_is_to_be_done(self, path: Path) -> None:
        assert not needs_migration(path) and migrate(path) is None
        assert not path.exists()

    def test_what_was_spent_before_there_were_budgets_counts(self, path: Path) -> None:
        number = next(number for number, script in enumerate(OLD) if "CREATE TABLE spending" in script)
        schema.open_current(path, OLD[:number]).close()
        columns = "at, task_id, attempt, key_id, trust_domain, model, lane, input_tokens, output_tokens, "
        columns += "cache_creation_input_tokens, cache_read_input_tokens, model_calls, cost_micro_usd"
        rows = [f"({at}, 't', 1, '{key}', 'd', 'm', 'text', 0, 0, 0, 0, 1, {cost})" for at, key, cost in SPENT_BEFORE]
        sql(path, f"INSERT INTO ledger ({columns}) VALUES {', '.join(rows)}")
        schema.open_current(path, OLD).close()
        assert sorted(dump(path)["spending"]) == [
            ("all", "", "1970-01-01", 3),
            ("all", "", "1970-01-02", 4),
            ("domain", "d", "1970-01-01", 3),
            ("domain", "d", "1970-01-02", 4),
            ("key", "a", "1970-01-01", 1),
            ("key", "a", "1970-01-02", 4),
            ("key", "b", "1970-01-01", 2),
        ]

    def test_scripts_are_numbered_without_a_gap(self, tmp_path: Path) -> None:
        for name in ("0001.sql", "0002.sql"):
            (tmp_path / name).write_text(f"-- {name}")
        assert schema.known_migrations(tmp_path) == ["-- 0001.sql", "-- 0002.sql"]
        (tmp_path / "0004.sql").touch()
        with pytest.raises(ValueError, match="one by one"):
            schema.known_migrations(tmp_path)

    def test_the_first_schema_has_every_table(self, old: Path) -> None:
        nouns = "tasks attempts events keys ledger audit sessions approvals nodes batches webhooks meta"
        assert set(nouns.split()) <= dump(old).keys()
        for table in ("tasks", "ledger", "audit", "sessions"):
            with closing(sqlite3.connect(old)) as db:
                columns = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
            assert {"key_id", "trust_domain"} <= columns
