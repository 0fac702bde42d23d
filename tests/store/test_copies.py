"""Backups while the store is written, and what is put back from them."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from contextlib import closing
from pathlib import Path

import pytest

from claude_daemon.core.event import first_seq
from claude_daemon.core.task import Outcome, Task
from claude_daemon.ports import StoreBroken
from claude_daemon.store import SqliteStore, copies, restore
from claude_daemon.store.connection import connect
from tests.store.files import dump, killed, mode, sql
from tests.store.samples import CANCELLED, FAILED, LIMITS, event, found, put, settlement, start, task
from tests.store.test_files import JOIN_AND_DIE

WRITERS = 8

COPY_AND_DIE = """
import os, signal, sys
from contextlib import closing
from pathlib import Path
from claude_daemon.store import copies
from claude_daemon.store.connection import connect
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
Path.replace = Path.hardlink_to = die
with closing(connect(Path(sys.argv[1]))) as db:
    copies.copy(db, Path(sys.argv[2]), overwrite=False)
"""


def no_hard_links(path: Path, target: Path) -> None:
    raise PermissionError(1, "Operation not permitted", str(path))


class TestBackup:
    async def test_a_copy_is_complete_and_private(self, store: SqliteStore, tmp_path: Path) -> None:
        await put(store, task())
        to = tmp_path / "backups" / "today.db"
        to.parent.mkdir()
        size = await store.backup(to)
        assert size == to.stat().st_size and mode(to) == 0o600
        assert [file.name for file in to.parent.iterdir()] == ["today.db"]
        assert dump(to) == dump(store.path)

    async def test_it_is_of_one_moment_while_others_write(self, store: SqliteStore, tmp_path: Path) -> None:
        numbers = itertools.count()
        written: list[int] = []
        over = asyncio.Event()

        async def write() -> None:
            while not over.is_set():
                number = next(numbers)
                await put(store, task(f"task_{number}", created_at=float(number), metadata={"pad": "x" * 2000}))
                written.append(number)

        writing = asyncio.gather(*(write() for _ in range(WRITERS)))
        while len(written) < 2000:  # more than one step of a copy
            await store.get("task_0")
        before = set(written)
        await store.backup(tmp_path / "copy.db")
        during = len(written) - len(before)
        over.set()
        await writing
        rows = dump(tmp_path / "copy.db")
        assert before <= {int(row[1].removeprefix("task_")) for row in rows["tasks"]}
        assert len(rows["tasks"]) == len(rows["specs"]) == len(rows["events"]) == len(rows["audit"])
        assert during > 0

    async def test_what_is_there_is_not_overwritten(self, store: SqliteStore, tmp_path: Path) -> None:
        to = tmp_path / "copy.db"
        to.write_text("precious")
        with pytest.raises(FileExistsError):
            await store.backup(to)
        assert to.read_text() == "precious"

    async def test_where_it_cannot_be_written_nothing_is_left(self, store: SqliteStore, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            await store.backup(tmp_path / "nowhere" / "copy.db")

    async def test_one_that_is_given_up_leaves_nothing(self, store: SqliteStore, tmp_path: Path) -> None:
        await put(store, task())
        with closing(connect(store.path)) as db, pytest.raises(InterruptedError):
            copies.copy(db, tmp_path / "copy.db", going_on=lambda: False)
        assert not [file for file in tmp_path.iterdir() if "copy" in file.name]

    async def test_one_that_is_killed_has_taken_no_name_and_is_swept_away(
        self, store: SqliteStore, tmp_path: Path
    ) -> None:
        to = tmp_path / "backups" / "copy.db"
        to.parent.mkdir()
        assert killed("-c", COPY_AND_DIE, store.path, to) == []
        assert not to.exists()
        (left,) = to.parent.iterdir()
        young, foreign = to.with_name(".copy.db.0.tmp"), to.with_name(".copy.tmp")
        long_ago = time.time() - 2 * copies.ABANDONED_SECONDS
        for file in (young, foreign):
            file.touch()
        for file in (left, foreign):
            os.utime(file, (long_ago, long_ago))
        await store.backup(to)
        assert set(to.parent.iterdir()) == {to, young, foreign}  # one that somebody may be making stays

    async def test_where_there_are_no_hard_links_it_is_made_all_the_same(
        self, store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Path, "hardlink_to", no_hard_links)
        to = tmp_path / "copy.db"
        await store.backup(to)
        assert dump(to) == dump(store.path)
        with pytest.raises(FileExistsError):
            await store.backup(to)


class TestRestore:
    @pytest.fixture
    async def backup(self, tmp_path: Path) -> Path:
        """Of a store with one task in it."""
        store = SqliteStore.open(tmp_path / "other.db")
        await put(store, task())
        await store.backup(tmp_path / "backup.db")
        assert await store.close()
        return tmp_path / "backup.db"

    async def test_the_backup_is_in_place_and_its_queue_paused(self, backup: Path, tmp_path: Path) -> None:
        path = tmp_path / "daemon.db"
        before = backup.read_bytes()
        assert restore(backup, path) is None
        assert mode(path) == 0o600 and backup.read_bytes() == before
        store = SqliteStore.open(path)
        assert await store.paused() and (await found(store)).id == "task_1"
        assert await store.close()

    async def test_the_file_from_before_is_kept_with_all_that_was_in_it(self, backup: Path, tmp_path: Path) -> None:
        path = tmp_path / "daemon.db"
        assert killed("-c", JOIN_AND_DIE, path) == []
        kept = restore(backup, path)
        assert kept is not None and kept.parent == path.parent
        assert dump(kept)["nodes"] == [("node_1", 1.0)] and dump(path)["nodes"] == []
        again = restore(backup, path)
        assert again is not None and again != kept

    async def test_where_there_are_no_hard_links_the_file_from_before_is_kept_as_a_copy(
        self, backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Path, "hardlink_to", no_hard_links)
        path = tmp_path / "daemon.db"
        assert killed("-c", JOIN_AND_DIE, path) == []
        kept = restore(backup, path)
        assert kept is not None and mode(kept) == 0o600
        assert dump(kept)["nodes"] == [("node_1", 1.0)] and dump(path)["nodes"] == []

    @pytest.mark.parametrize("outcome", [FAILED, CANCELLED], ids=lambda outcome: outcome.state)
    async def test_what_is_tried_again_after_it_is_told_under_numbers_that_nobody_has_met(
        self, tmp_path: Path, outcome: Outcome
    ) -> None:
        store = SqliteStore.open(tmp_path / "other.db")
        await store.settle(settlement(await start(store), outcome))
        await store.backup(tmp_path / "backup.db")
        met = await store.retry("task_1", event(first_seq(2)), LIMITS)  # goes on after the backup
        assert isinstance(met, Task) and await store.close()
        restore(tmp_path / "backup.db", tmp_path / "daemon.db")
        store = SqliteStore.open(tmp_path / "daemon.db")
        assert (await found(store)).fence > met.fence
        assert await store.close()

    async def test_a_corrupt_file_is_kept_too(self, backup: Path, tmp_path: Path) -> None:
        path = tmp_path / "daemon.db"
        path.write_text("garbage")
        path.with_name("daemon.db-wal").write_text("more of it")
        kept = restore(backup, path)
        assert kept is not None and kept.read_text() == "garbage"
        store = SqliteStore.open(path)
        assert (await found(store)).id == "task_1"
        assert await store.close()

    @pytest.mark.parametrize("fault", ["missing", "empty", "garbage", "newer", "foreign"])
    async def test_what_is_no_good_backup_changes_nothing(self, backup: Path, tmp_path: Path, fault: str) -> None:
        path = tmp_path / "daemon.db"
        path.write_text("present")
        match fault:
            case "missing":
                backup.unlink()
            case "empty":
                backup.write_bytes(b"")
            case "garbage":
                backup.write_bytes(b"garbage" * 1000)
            case "newer":
                sql(backup, "PRAGMA user_version = 99")
            case _:
                sql(backup, "PRAGMA application_id = 7")
        before = {file.name for file in tmp_path.iterdir()}
        with pytest.raises(StoreBroken) as refused:
            restore(backup, path)
        assert "restore a backup" not in str(refused.value)  # that is what was asked for
        assert path.read_text() == "present"
        assert {file.name for file in tmp_path.iterdir()} == before

    async def test_a_backup_that_is_corrupt_is_refused(self, backup: Path, tmp_path: Path) -> None:
        root = sql(backup, "SELECT rootpage FROM sqlite_master WHERE name = 'tasks'")[0]
        content = bytearray(backup.read_bytes())
        content[(root - 1) * 4096 : root * 4096] = b"\xa5" * 4096
        backup.write_bytes(content)
        with pytest.raises(StoreBroken, match="is corrupt"):
            restore(backup, tmp_path / "daemon.db")
        assert not (tmp_path / "daemon.db").exists()
