"""What may happen to the store's file, on the real daemon: full, corrupt, newer, restored."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from claude_daemon.offline import OfflineModel
from tests.conftest import StartDaemon
from tests.e2e.test_engine_requests import asked_with
from tests.support import BIN, DaemonProcess, share_probe

PATIENCE_S = 30.0
MOUNTED = """
set -e
mount --make-rprivate /
mount -t tmpfs -o size=3m,mode=0700 tmpfs "$1"
echo mounted
read -r _
"""


def claude_daemon(home: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {"HOME": str(home), "PATH": f"{BIN}:/usr/bin:/bin", "LANG": "C.UTF-8", "CLAUDE_DAEMON_HTTP__PORT": "0"}
    return subprocess.run([BIN / "claude-daemon", *args], env=env, capture_output=True, text=True, timeout=60)


async def ended(daemon: DaemonProcess, task_id: str) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        async with daemon.http.get(f"/v1/tasks/{task_id}/events") as response:
            await response.read()
        async with daemon.http.get(f"/v1/tasks/{task_id}") as response:
            document: dict[str, Any] = await response.json()
            return document


async def submit(daemon: DaemonProcess, prompt: str) -> tuple[int, dict[str, Any]]:
    async with daemon.http.post("/v1/tasks", json={"prompt": prompt}) as response:
        return response.status, await response.json(content_type=None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A disk of 3 MB in a mount namespace that outlives its daemons, as the tests see it; what has a daemon keep its
    database there."""
    if sys.platform != "linux" or os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("nsenter")):
        pytest.skip("needs a mount of its own: sudo .venv/bin/python -m pytest tests/e2e/test_store_faults.py")
    path = tmp_path / "disk"
    path.mkdir()
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", MOUNTED, "sh", str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == b"mounted\n"
        program = ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "--", str(BIN / "claude-daemon"))
        environ = {"CLAUDE_DAEMON_STORE__PATH": str(path / "daemon.db")}
        yield Path(f"/proc/{holder.pid}/root") / str(path).lstrip("/"), {"program": program, "environ": environ}
        holder.stdin.close()  # which ends it


def fill(disk: Path) -> Path:
    """Writes until there is no room for another page."""
    file = disk / "filler"
    with file.open("wb", buffering=0) as filler:
        for size in (65_536, 4096, 1):
            try:
                while True:
                    filler.write(b"x" * size)
            except OSError as error:
                assert error.errno == errno.ENOSPC
    return file


@pytest.mark.system
async def test_a_full_disk_refuses_what_it_cannot_keep_and_mends_by_itself(
    start_daemon: StartDaemon, small_disk: tuple[Path, dict[str, Any]]
) -> None:
    disk, fields = small_disk
    daemon = await start_daemon({"engine.workers": 2}, **fields)
    status, kept = await submit(daemon, "[[text=kept]]")
    assert status == 202
    assert (await ended(daemon, kept["id"]))["state"] == "succeeded"
    filler = fill(disk)
    refused: dict[str, Any] = {}
    accepted: list[str] = []
    async with asyncio.timeout(PATIENCE_S):
        while not refused:  # what is left of the WAL takes some more
            status, body = await submit(daemon, "[[text=late]] " + "x" * 100_000)
            if status == 202:
                accepted.append(body["id"])
            else:
                refused = body
    assert (status, refused["code"]) == (503, "store_unavailable")
    async with daemon.http.get("/live") as response:
        assert response.status == 200
    async with asyncio.timeout(PATIENCE_S):
        while (await daemon.control("ready"))["status"] == "pass":  # checks are read once a second
            await asyncio.sleep(0.05)
    async with daemon.http.get("/health") as response:
        assert (await response.json(content_type=None))["checks"]["store"]["status"] == "fail"
    await measured(daemon, "fail")
    async with daemon.http.get(f"/v1/tasks/{kept['id']}") as response:
        assert (await response.json())["result"]["text"] == "kept"  # reads go on
    response = await daemon.chat("Hello")
    assert (response.status, (await response.json())["error"]["type"]) == (503, "overloaded_error")
    await daemon.logged("store.failed")
    filler.unlink()
    await daemon.logged("store.recovered")
    await measured(daemon, "pass")
    async with asyncio.timeout(PATIENCE_S):
        while (await daemon.control("ready"))["status"] != "pass":
            await asyncio.sleep(0.05)
    for task_id in accepted:  # what was acknowledged ends, however full the disk was
        assert (await ended(daemon, task_id))["state"] == "succeeded"
    status, last = await submit(daemon, "[[text=again]]")
    assert (status, (await ended(daemon, last["id"]))["state"]) == (202, "succeeded")
    async with daemon.http.get("/v1/tasks?limit=100") as response:
        listed = {task["id"] for task in (await response.json())["data"]}
    assert listed == {kept["id"], last["id"], *accepted}


async def measured(daemon: DaemonProcess, status: str) -> None:
    """Once the check of the disk has this status: it is measured every five seconds."""
    async with asyncio.timeout(PATIENCE_S):
        while (await daemon.control("health"))["checks"]["disk"]["status"] != status:
            await asyncio.sleep(0.05)


async def ready(daemon: DaemonProcess, status: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await daemon.control("ready"))["status"] != status:  # checks are read once a second
            await asyncio.sleep(0.05)


async def started(daemon: DaemonProcess, model: OfflineModel, mark: str) -> str:
    """A task that takes some seconds, once the model has been asked."""
    status, task = await submit(daemon, f"{mark} [[tokens=60]] [[pace=50ms]]")
    assert status == 202
    await model.wait_until(lambda m: bool(asked_with(m, mark)))
    return str(task["id"])


@pytest.mark.system
async def test_a_disk_that_is_full_at_the_start_holds_recovery_up_and_no_more(
    start_daemon: StartDaemon, model: OfflineModel, small_disk: tuple[Path, dict[str, Any]]
) -> None:
    disk, fields = small_disk
    daemon = await start_daemon(**fields)
    task_id = await started(daemon, model, "cut short")
    await daemon.stop(signal.SIGKILL)
    filler = fill(disk)
    again = await start_daemon(home=daemon.home, **fields)
    await ready(again, "fail")
    async with again.http.get("/live") as response:
        assert response.status == 200
    async with again.http.get(f"/v1/tasks/{task_id}") as response:
        assert (await response.json())["state"] == "running"  # as it was left: nothing can be written
    status, refused = await submit(again, "[[text=late]]")
    assert (status, refused["code"]) == (503, "store_unavailable")
    filler.unlink()
    await again.logged("task.recovered", task_id=task_id)
    await ready(again, "pass")
    task = await ended(again, task_id)
    assert (task["state"], task["attempt"]) == ("succeeded", 2)


@pytest.mark.system
async def test_a_cancellation_that_cannot_be_stored_is_refused_and_stops_the_work(
    start_daemon: StartDaemon, model: OfflineModel, small_disk: tuple[Path, dict[str, Any]]
) -> None:
    disk, fields = small_disk
    daemon = await start_daemon(**fields)
    task_id = await started(daemon, model, "to be cancelled")
    filler = fill(disk)
    async with asyncio.timeout(PATIENCE_S):
        while (await submit(daemon, "[[text=late]] " + "x" * 100_000))[0] == 202:  # what is left of the WAL
            pass
    async with daemon.http.post(f"/v1/tasks/{task_id}/cancel") as response:
        assert (response.status, (await response.json())["code"]) == (503, "store_unavailable")
    filler.unlink()
    task = await ended(daemon, task_id)
    assert task["state"] == "cancelled"
    await ready(daemon, "pass")


async def test_a_store_that_cannot_be_read_is_told_and_comes_back(start_daemon: StartDaemon) -> None:
    """The file's pages are zeroed under a running daemon, and put back."""
    daemon = await start_daemon()
    status, task = await submit(daemon, "[[text=kept]] " + "x" * 500_000)
    assert status == 202
    async with asyncio.timeout(PATIENCE_S), daemon.http.get(f"/v1/tasks/{task['id']}/events") as response:
        await response.read()
    await daemon.control("backup", "POST", {"path": str(daemon.home / "copy.db")})  # all of it is on the disk now
    files = [daemon.home / ".claude-daemon" / name for name in ("daemon.db", "daemon.db-wal")]
    whole = {file: file.read_bytes() for file in files}
    for file, content in whole.items():
        overwrite(file, content[:4096] + bytes(max(0, len(content) - 4096)))
    async with daemon.http.get(f"/v1/tasks/{task['id']}") as response:
        assert (response.status, (await response.json())["code"]) == (503, "store_unavailable")
    await ready(daemon, "fail")
    async with daemon.http.get("/live") as response:
        assert response.status == 200
    for file, content in whole.items():
        overwrite(file, content)
    await ready(daemon, "pass")
    async with daemon.http.get(f"/v1/tasks/{task['id']}") as response:
        assert (await response.json())["result"]["text"] == "kept"


def overwrite(file: Path, content: bytes) -> None:
    """In place, as a failing disk would."""
    with file.open("r+b") as opened:
        opened.write(content)


def a_database(home: Path) -> Path:
    directory = home / ".claude-daemon"
    directory.mkdir(mode=0o700)
    return directory / "daemon.db"


def test_a_corrupt_store_is_78_and_says_what_to_do(tmp_path: Path) -> None:
    database = a_database(tmp_path)
    database.write_bytes(b"this is no database, and never was one" * 100)
    result = claude_daemon(tmp_path, "run", "--offline")
    assert result.returncode == 78
    assert str(database) in result.stderr
    assert "restore a backup" in result.stderr
    assert "Traceback" not in result.stderr
    assert database.read_bytes().startswith(b"this is no database")


def test_a_newer_store_is_78_and_stays_as_it_is(tmp_path: Path) -> None:
    database = a_database(tmp_path)
    from claude_daemon.store.schema import APPLICATION_ID

    connection = sqlite3.connect(database)
    connection.execute("CREATE TABLE tasks (id)")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 99")
    connection.commit()
    connection.close()
    before = database.read_bytes()
    for command in (["run", "--offline"], ["migrate"], ["migrate", "--check"]):
        result = claude_daemon(tmp_path, *command)
        assert (result.returncode, "newer claude-daemon" in result.stderr) == (78, True)
    assert database.read_bytes() == before


def test_migrate_tells_what_there_is_to_do(tmp_path: Path) -> None:
    result = claude_daemon(tmp_path, "migrate", "--check")
    assert (result.returncode, "up to date" in result.stdout) == (0, True)


async def test_a_backup_is_restored_with_its_queue_paused(
    start_daemon: StartDaemon, model: OfflineModel, tmp_path: Path
) -> None:
    daemon = await start_daemon()
    await daemon.control("queue/pause", "POST")
    _, waiting = await submit(daemon, "[[text=from the backup]]")
    copy = tmp_path / "copy.db"
    answer = await daemon.control("backup", "POST", {"path": str(copy)})
    assert (answer["path"], answer["size_bytes"]) == (str(copy), copy.stat().st_size)
    assert copy.stat().st_mode & 0o777 == 0o600
    assert (await daemon.control("backup", "POST", {"path": str(copy)}))["code"] == "conflict"
    await daemon.control("queue/resume", "POST")
    assert (await ended(daemon, waiting["id"]))["state"] == "succeeded"
    result = claude_daemon(daemon.home, "migrate", "--check")
    assert (result.returncode, "up to date" in result.stdout) == (0, True), result.stderr  # it only looks
    result = claude_daemon(daemon.home, "restore", str(copy))
    assert (result.returncode, "already running" in result.stderr) == (73, True)
    await daemon.stop()
    result = claude_daemon(daemon.home, "restore", str(copy))
    assert result.returncode == 0, result.stderr
    assert "queue paused" in result.stdout
    again = await start_daemon(home=daemon.home)
    queue = (await again.control("status"))["queue"]
    assert (queue["paused"], queue["queued"]) == (True, 1)
    async with again.http.get(f"/v1/tasks/{waiting['id']}") as response:
        assert (await response.json())["state"] == "queued"  # as it was then
    await again.control("queue/resume", "POST")
    assert (await ended(again, waiting["id"]))["result"]["text"] == "from the backup"


def test_what_is_no_backup_is_not_restored(tmp_path: Path) -> None:
    database = a_database(tmp_path)
    no_backup = tmp_path / "no.db"
    no_backup.write_bytes(b"nothing of ours" * 100)
    for file in (no_backup, tmp_path / "not-there.db"):
        result = claude_daemon(tmp_path, "restore", str(file))
        assert (result.returncode, str(file) in result.stderr) == (78, True)
    assert not database.exists()


async def test_a_store_is_private_and_one_file_after_a_stop(
    daemon: DaemonProcess, model: OfflineModel, tmp_path: Path
) -> None:
    """A home that was never used has no store yet: its first start makes one, 0600."""
    share_probe(daemon, tmp_path)
    fresh = await DaemonProcess(tmp_path, model, {"engine.workers": 1, "engine.spares": 0}).start()
    files = sorted((tmp_path / ".claude-daemon").glob("daemon.db*"))
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600] * len(files)
    assert await fresh.stop() == 0
    assert sorted(file.name for file in (tmp_path / ".claude-daemon").glob("daemon.db*")) == ["daemon.db"]
