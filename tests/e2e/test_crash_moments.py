"""kill -9 at moments that no load meets by chance: each held open until the client has seen what it must rely on."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from claude_daemon.offline import OfflineModel
from tests.e2e.test_crash import TERMINAL, Service
from tests.e2e.test_engine_requests import asked_with
from tests.support import DaemonProcess, share_probe, sse

pytestmark = [pytest.mark.crash, pytest.mark.timeout(150)]

PATIENCE_S = 40.0
ANSWER_S = 0.5
"""How long an answer that must not come is waited for: one that goes out too early takes some milliseconds."""


@asynccontextmanager
async def service(
    home: Path, model: OfflineModel, warm: DaemonProcess, crash_at: str, **first: str
) -> AsyncIterator[Service]:
    """A daemon whose first life ends at this point, and which is started again after it."""
    share_probe(warm, home)
    found = Service(home, model, {}, first)
    running = asyncio.create_task(found.run(crash_at))
    try:
        yield found
    finally:
        running.cancel()
        await asyncio.wait({running})
        if found.daemon is not None:
            await found.daemon.stop()


async def submit(daemon: DaemonProcess, prompt: str) -> str | None:
    """The acknowledged task, None where the daemon went away before it told one."""
    try:
        async with daemon.http.post("/v1/tasks", json={"prompt": prompt}) as response:
            return str((await response.json())["id"]) if response.status == 202 else None
    except aiohttp.ClientError:
        return None


async def second_life(found: Service) -> DaemonProcess:
    async with asyncio.timeout(PATIENCE_S):
        while not found.killed:
            await asyncio.sleep(0.01)
        return await found.serving()


async def ended(daemon: DaemonProcess, task_id: str) -> dict[str, Any]:
    """The task at its end; told as it is if it comes to none."""
    try:
        async with asyncio.timeout(PATIENCE_S), daemon.http.get(f"/v1/tasks/{task_id}/events") as response:
            assert response.status == 200, f"the acknowledged task {task_id} is gone"
            await sse(response)
    except TimeoutError:
        pass
    async with daemon.http.get(f"/v1/tasks/{task_id}") as response:
        task: dict[str, Any] = await response.json()
    assert f"task.{task['state']}" in TERMINAL, f"the task came to no end: {task}"
    return task


def query(home: Path, sql: str, *given: object) -> list[Mapping[str, Any]]:
    with closing(sqlite3.connect(f"file:{home / '.claude-daemon' / 'daemon.db'}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return connection.execute(sql, given).fetchall()


async def test_what_a_killed_attempt_had_used_is_counted(
    tmp_path: Path, model: OfflineModel, daemon: DaemonProcess
) -> None:
    """It dies in mid-stream, a moment after its usage was kept."""
    async with service(tmp_path, model, daemon, "spent:after:1") as found:
        task_id = await submit(await found.serving(), "[[tokens=40]] [[pace=50ms]]")
        assert task_id is not None
        task = await ended(await second_life(found), task_id)
    assert (task["state"], task["attempt"]) == ("succeeded", 2)
    attempts = query(tmp_path, "SELECT attempt, ended, usage FROM attempts WHERE task_id = ? ORDER BY fence", task_id)
    assert [(row["attempt"], row["ended"]) for row in attempts] == [(1, "requeued"), (2, "succeeded")]
    assert attempts[0]["usage"] is not None, "it was killed before anything was used: this tests nothing"
    counted = query(tmp_path, "SELECT * FROM ledger WHERE task_id = ? ORDER BY attempt", task_id)
    assert [row["attempt"] for row in counted] == [1, 2], "an attempt that used something is not counted"
    used = orjson.loads(attempts[0]["usage"])
    assert used["output_tokens"] < 40, "it was killed after its end: this tests nothing"
    told = {name: counted[0][name] for name in used.keys() & counted[0].keys()}
    assert told.items() <= used.items() and any(told.values()), "what the killed attempt used is counted otherwise"


async def test_a_cancellation_that_was_acknowledged_outlives_the_daemon(
    tmp_path: Path, model: OfflineModel, daemon: DaemonProcess
) -> None:
    """It dies after it has told the client, and before the attempt's end is stored."""
    seen = tmp_path / "acknowledged"
    async with service(tmp_path, model, daemon, "settle:before:1", CRASH_WHEN=str(seen)) as found:
        first = await found.serving()
        prompt = "unwanted [[tokens=40]] [[pace=50ms]]"
        task_id = await submit(first, prompt)
        assert task_id is not None
        await model.wait_until(lambda m: bool(asked_with(m, "unwanted")))
        asked = len(asked_with(model, "unwanted"))
        async with first.http.post(f"/v1/tasks/{task_id}/cancel") as response:
            assert response.status == 200
            assert (await response.json())["cancel_requested_at"] is not None
        seen.touch()
        task = await ended(await second_life(found), task_id)
    assert task["state"] == "cancelled", "a cancellation that was acknowledged is forgotten"
    assert task["attempt"] == 1, "a task that was cancelled ran again"
    assert len(asked_with(model, "unwanted")) == asked, "the model was asked again for a task that was cancelled"


async def test_no_task_is_acknowledged_before_it_is_durable(
    tmp_path: Path, model: OfflineModel, daemon: DaemonProcess
) -> None:
    """It dies before the commit, and leaves time for an answer that should have waited for it."""
    async with service(tmp_path, model, daemon, "enqueue:before:1", CRASH_AFTER_S=str(ANSWER_S)) as found:
        task_id = await submit(await found.serving(), "[[text=early]]")
        again = await second_life(found)
        if task_id is not None:
            async with again.http.get(f"/v1/tasks/{task_id}") as response:
                assert response.status == 200, f"{task_id} was acknowledged, and is gone"
        kept = query(tmp_path, "SELECT id FROM tasks")
    assert (task_id, kept) == (None, [])


async def test_an_attempt_that_was_put_back_can_write_nothing_any_more(
    tmp_path: Path, model: OfflineModel, daemon: DaemonProcess
) -> None:
    """The daemon dies with an attempt under way; the next one puts it back, and each attempt has a fence of its own."""
    sql = "SELECT fence FROM attempts WHERE task_id = ? ORDER BY fence"
    async with service(tmp_path, model, daemon, "append:after:2") as found:
        task_id = await submit(await found.serving(), "[[tokens=40]] [[pace=50ms]]")
        assert task_id is not None
        again = await second_life(found)
        async with asyncio.timeout(PATIENCE_S):
            while len(fences := [row["fence"] for row in query(tmp_path, sql, task_id)]) < 2:
                await asyncio.sleep(0.01)
        # one for the claim of the first, one for putting it back, one for the claim of the second
        assert fences == [fences[0], fences[0] + 2], "putting a task back did not move its fence"
        task = await ended(again, task_id)
    assert (task["state"], task["attempt"]) == ("succeeded", 2)
