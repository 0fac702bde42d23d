"""Watching a real daemon over its control socket: what happens, pictures of the whole, and its settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest

from tests.conftest import StartDaemon
from tests.support import DaemonProcess

HEADERS = {"Claude-Daemon-Control": "1"}
PATIENCE_S = 20.0


@asynccontextmanager
async def watching(daemon: DaemonProcess, query: str = "") -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """The lines of a stream of events, once it has begun."""

    async def lines(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
        async for line in response.content:
            yield orjson.loads(line)

    connector = aiohttp.UnixConnector(str(daemon.socket))
    async with (
        asyncio.timeout(PATIENCE_S),
        aiohttp.ClientSession("http://d", connector=connector, headers=HEADERS) as session,
        session.get(f"/control/v1/events{query}") as response,
    ):
        assert (response.status, response.headers["Content-Type"]) == (200, "application/x-ndjson")
        yield lines(response)


async def test_the_end_of_a_task_is_told_as_it_happens(daemon: DaemonProcess) -> None:
    async with watching(daemon) as lines:
        answer = await daemon.chat("Hello. [[tokens=3]]")
        assert answer.status == 200
        async for line in lines:
            if line["type"] == "task.settled" and line["data"]["task_id"] == answer.headers["X-Task-ID"]:
                break
        assert line["data"] | {"worker_id": "", "start": "", "model": ""} == {
            "task_id": answer.headers["X-Task-ID"],
            "kind": "chat",
            "lane": "text",
            "model": "",
            "key_id": "local",
            "worker_id": "",
            "start": "",
            "state": "succeeded",
            "code": None,
            "attempt": 1,
            "output_tokens": 3,
        }


async def test_a_picture_of_the_whole_comes_at_once_and_again(daemon: DaemonProcess) -> None:
    async with watching(daemon, "?interval_s=0.1") as lines:
        chat = asyncio.create_task(daemon.chat("Hello. [[hang]]", lane="text"))
        running: list[dict[str, Any]] = []
        async for line in lines:
            if line["type"] != "snapshot":
                continue
            assert line["data"].keys() >= {"status", "workers", "tasks", "more", "recent", "events"}
            assert line["data"]["status"]["state"] in ("ready", "degraded")
            running = [task for task in line["data"]["tasks"] if task["lane"] == "text"]
            if running:
                break
        (task,) = running
        assert (task["kind"], task["key_id"]) == ("chat", "local")
        worker = next(one for one in line["data"]["workers"] if one["id"] == task["worker_id"])
        assert worker["task_id"] == task["id"]
        chat.cancel()
        await asyncio.gather(chat, return_exceptions=True)


@pytest.mark.parametrize("interval", ["0", "0.09", "often", "nan", "inf", "3601"])
async def test_an_interval_that_is_none_is_refused(daemon: DaemonProcess, interval: str) -> None:
    told = await daemon.control(f"events?interval_s={interval}")
    assert (told["status"], told["code"]) == (400, "invalid_request")
    assert told["errors"] == [] or told["errors"][0]["path"] == "interval_s"


async def test_who_watches_sees_the_stop_and_does_not_hold_it_up(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    async with watching(daemon, "?interval_s=3600") as lines:
        assert (await anext(lines))["type"] == "snapshot"
        stopped = asyncio.create_task(daemon.stop())
        told = [line async for line in lines]
        states = [line["data"]["new"] for line in told if line["type"] == "daemon.state"]
        assert states[-1] == "stopping"
        assert (told[-1]["type"], told[-1]["data"]["status"]["state"]) == ("snapshot", "stopping")
        assert await stopped == 0


async def test_every_setting_is_told_with_its_origin_and_no_secret(daemon: DaemonProcess) -> None:
    document = await daemon.control("config")
    rows = {row["key"]: row for row in document["values"]}
    assert rows["engine.workers"] == {
        "key": "engine.workers",
        "value": 3,
        "text": "3",
        "default": "4",
        "origin": "environment CLAUDE_DAEMON_ENGINE__WORKERS",
        "layer": "environment",
        "changed": True,
        "in_force": None,
    }
    assert (rows["control.mode"]["value"], rows["control.mode"]["text"]) == (0o600, "0o600")
    assert (rows["http.allowed_hosts"]["layer"], rows["http.allowed_hosts"]["changed"]) == ("default", False)
    assert rows["credential"]["text"] == "api_key ***"
    assert (rows["log.format"]["origin"], document["profile"], document["file"]) == (
        "environment CLAUDE_DAEMON_LOG__FORMAT",
        "dev",
        None,
    )
    assert daemon.model.api_key not in str(document)
