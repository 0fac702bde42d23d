"""The audit on the real daemon: sealed from the first record on, and verified over the control socket."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from claude_daemon.core.audit import Anchor
from tests.conftest import StartDaemon
from tests.support import DaemonProcess


def database(daemon: DaemonProcess) -> Path:
    return daemon.home / ".claude-daemon" / "daemon.db"


async def submit(daemon: DaemonProcess) -> str:
    async with daemon.http.post("/v1/tasks", json={"prompt": "Hello"}) as response:
        task_id = (await response.json())["id"]
    async with daemon.http.get(f"/v1/tasks/{task_id}/events") as response:
        await response.read()  # to its end
    return str(task_id)


async def test_what_is_done_is_a_chain_that_outlives_restarts(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    task_id = await submit(daemon)
    made = await daemon.control("keys", "POST", {"name": "alice"})
    records = (await daemon.control("audit"))["data"]
    assert [(record["n"], record["act"]) for record in records] == [
        (1, "task.accepted"),
        (2, "task.ended"),
        (3, "key.created"),
    ]
    assert records[1]["task_id"] == task_id and records[1]["trust_domain"] == "default"
    assert records[2]["details"]["name"] == "alice" and made["key"] not in str(records)
    assert (await daemon.control("audit?act=key"))["data"] == records[2:]
    first = await daemon.control("audit/verify")
    assert first["ok"] and first["records"] == 3
    anchor = first["head"]
    assert await daemon.stop() == 0
    assert (daemon.home / ".claude-daemon" / "audit.key").stat().st_mode & 0o777 == 0o600
    heads = [line["head"] for line in daemon.log() if line["event"] == "audit.head"]
    assert heads and Anchor.parse(heads[-1]).n > 3  # the drain's own record is the last

    await daemon.start()
    again = await daemon.control(f"audit/verify?anchor={anchor}")
    assert again["ok"] and again["records"] > 3
    assert (await daemon.control(f"audit/verify?anchor={heads[-1]}"))["ok"]
    assert (await daemon.control("health"))["checks"]["audit"]["status"] == "pass"


async def test_whoever_changes_the_file_is_found_out(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    await submit(daemon)
    anchor = (await daemon.control("audit/verify"))["head"]
    await daemon.stop()
    with closing(sqlite3.connect(database(daemon))) as db, db:
        db.execute("UPDATE audit SET key_id = 'somebody else' WHERE n = 1")
    await daemon.start()
    found = await daemon.control("audit/verify")
    assert (found["ok"], found["at"], found["broken"]) == (False, 1, "it was changed, or sealed with another audit.key")
    await daemon.stop()
    with closing(sqlite3.connect(database(daemon))) as db, db:
        db.execute("DELETE FROM audit")
    await daemon.start()
    assert "before the anchor" in (await daemon.control(f"audit/verify?anchor={anchor}"))["broken"]


async def test_bad_questions_are_named(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    for path, param in (
        ("audit?limit=0", "limit"),
        ("audit?colour=red", "colour"),
        ("audit/verify?anchor=x", "anchor"),
    ):
        answer = await daemon.control(path)
        assert answer["status"] == 400 and param in str(answer), answer
