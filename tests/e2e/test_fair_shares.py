"""A trust domain that floods the daemon leaves another one its turn, and its warm process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.e2e.test_keys import PATIENCE_S, caller, chat, create
from tests.support import DaemonProcess

FLOOD = 50
LONG = "[[tokens=400]] [[pace=100ms]]"
"""Longer than the test: a turn of the flood ends where the test says so."""


async def running(http: aiohttp.ClientSession) -> list[str]:
    """Ids of the caller's tasks that have begun."""
    async with http.get("/v1/tasks?state=running&limit=100") as response:
        return [task["id"] for task in (await response.json())["data"]]


async def process_of(daemon: DaemonProcess, before: set[str]) -> dict[str, Any]:
    """The one idle process that is bound now and was not before."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            idle = [one for one in await daemon.workers() if one["state"] == "idle" and one["bound"] is not None]
            fresh = [one for one in idle if one["id"] not in before]
            if len(fresh) == 1:
                return fresh[0]
            await asyncio.sleep(0.01)


@pytest.fixture
async def loud(daemon: DaemonProcess) -> AsyncIterator[dict[str, Any]]:
    """A key whose tasks end with the test."""
    made = await create(daemon, "loud")
    yield made
    await daemon.control(f"keys/{made['id']}/revoke", "POST", {})
    async with asyncio.timeout(PATIENCE_S):
        while (await daemon.control("status"))["queue"]["running"]:
            await asyncio.sleep(0.01)


async def test_a_single_chat_has_the_next_place_and_its_own_warm_process_while_another_domain_floods(
    daemon: DaemonProcess, loud: dict[str, Any]
) -> None:
    quiet = await create(daemon, "quiet")
    bound = {one["id"] for one in await daemon.workers() if one["bound"] is not None}
    async with caller(daemon, quiet["key"]) as mine, caller(daemon, loud["key"]) as flood:
        await chat(mine, "[[text=first]]", "be brief")
        warm = await process_of(daemon, bound)
        assert (await daemon.chat("[[text=later]]")).status == 200  # so that it is not the last one that was used
        tasks = [{"prompt": LONG, "system": f"flood {n % 7}", "priority": 10} for n in range(FLOOD)]
        async with flood.post("/v1/batches", json={"tasks": tasks}) as response:
            assert response.status == 202, await response.text()
        async with asyncio.timeout(PATIENCE_S):
            while len(await running(flood)) < 2:
                await asyncio.sleep(0.01)
        answer = asyncio.ensure_future(chat(mine, "[[text=second]]", "be brief"))
        freed = False
        async with asyncio.timeout(PATIENCE_S):
            while not answer.done():
                if not freed and (await daemon.control("status"))["queue"]["waiting"]:
                    (task, *_) = await running(flood)  # it has every place: now one is free
                    await daemon.control(f"tasks/{task}/cancel", "POST", {})
                    freed = True
                await asyncio.sleep(0.01)
        assert await answer == "second"
        (after,) = [one for one in await daemon.workers() if one["id"] == warm["id"]]
        assert (after["pid"], after["turns"]) == (warm["pid"], 2)
        async with flood.get("/v1/tasks?state=queued&limit=100") as response:
            assert len((await response.json())["data"]) > FLOOD // 2  # the flood goes on
