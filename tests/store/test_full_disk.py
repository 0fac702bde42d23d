"""A disk that is really full: a file system of two megabytes, of a process of its own."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from tests.store.files import run

MOUNT = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs -o size=2m none "$0"; exec "$@"']

SCENE = """
import asyncio, sys
from pathlib import Path
from claude_daemon.core.event import first_seq
from claude_daemon.ports import StoreUnavailable
from claude_daemon.store import SqliteStore
from tests.store.samples import append, audit, event, found, put, seqs, settlement, start, task

def fill(ballast):
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            pass

async def main(disk):
    store = SqliteStore.open(disk / "daemon.db")
    claimed = await start(store)
    fill(disk / "ballast")
    accepted = ["task_1"]
    try:
        while True:  # what there is of the WAL is still good
            name = f"task_{len(accepted) + 1}"
            await put(store, task(name, metadata={"pad": "x" * 10_000}))
            accepted.append(name)
    except StoreUnavailable as error:
        assert "full" in str(error), error
    assert await store.get(name) is None
    assert not await store.check() and store.status().error is not None
    seq = first_seq(1)
    kept = asyncio.gather(
        append(store, "task_1", 1, [event(seq, size=50_000)]), store.settle(settlement(claimed, event=event(seq + 1)))
    )
    try:
        await store.record(audit("act"))
    except StoreUnavailable:
        pass
    assert not kept.done()
    assert (await found(store)).state == "running"
    try:
        await store.backup(disk / "copy.db")
    except OSError as error:
        print(error.errno, flush=True)
    (disk / "ballast").unlink()
    assert await kept == [True, True]
    assert await store.check() and store.status().error is None
    await put(store, task("task_last"))
    assert await store.close()
    store = SqliteStore.open(disk / "daemon.db")
    assert await seqs(store, after=first_seq(0)) == [seq, seq + 1]
    assert [one.id for one in await store.queued()] == [*accepted[1:], "task_last"]
    assert sorted(file.name for file in disk.iterdir()) == ["daemon.db", "daemon.db-shm", "daemon.db-wal"]
    assert await store.close()

asyncio.run(main(Path(sys.argv[1])))
"""

FULL_AT_START = """
import sys
from pathlib import Path
from claude_daemon.ports import StoreUnavailable
from claude_daemon.store import SqliteStore
disk = Path(sys.argv[1])
(disk / "ballast").write_bytes(b"x" * (2 * 1024 * 1024))
try:
    SqliteStore.open(disk / "daemon.db")
except StoreUnavailable as error:
    print(error)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("needs Linux and unshare")
    if run("-c", "pass", before=[*MOUNT, str(tmp_path)]).returncode != 0:
        pytest.skip("needs the right to mount")
    return tmp_path


def test_a_full_disk_is_survived(disk: Path) -> None:
    ended = run("-c", SCENE, disk, before=[*MOUNT, str(disk)])
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["28"]  # ENOSPC, of the backup


def test_a_disk_that_is_full_at_the_start_is_no_broken_store(disk: Path) -> None:
    ended = run("-c", FULL_AT_START, disk, before=[*MOUNT, str(disk)])
    assert ended.returncode == 0, ended.stderr
    assert "cannot be opened now" in ended.stdout
