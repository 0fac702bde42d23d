"""What a drain owes to those at its edges: a panic in the lame duck, who comes while it goes on, half a request."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing

import pytest

from tests.conftest import StartDaemon
from tests.e2e.test_operations import LONG, post, running, submit, until_state
from tests.support import sse

PATIENCE_S = 20.0
LAME_DUCK = {"engine.workers": 1, "drain.lame_duck_s": 3600}


async def test_a_panic_waits_for_no_lame_duck(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon(LAME_DUCK)
    response = await running(daemon)
    await post(daemon, "panic")
    assert (await daemon.chat("Hello")).status == 503
    async with asyncio.timeout(PATIENCE_S):
        assert (await sse(response))[-1][0] == "error"
    assert (await daemon.control("status"))["queue"]["paused"]


async def test_a_panic_that_the_store_does_not_take_cuts_all_the_same_and_says_so(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({**LAME_DUCK, "store.stall_s": 1})
    task_id = await submit(daemon, "Hello [[tokens=3]]")
    await until_state(daemon, task_id, "succeeded")
    response = await running(daemon)
    with closing(sqlite3.connect(daemon.home / ".claude-daemon" / "daemon.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        told = await post(daemon, "panic")
        assert (told["status"], told["code"]) == (503, "store_unavailable")
        assert "could not be stored" in told["detail"]
        async with asyncio.timeout(PATIENCE_S):
            assert (await sse(response))[-1][0] == "error"
        assert (await daemon.control("status"))["queue"]["paused"]


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_stop_that_does_not_wait_waits_for_no_lame_duck(start_daemon: StartDaemon, mode: str) -> None:
    daemon = await start_daemon(LAME_DUCK)
    response = await running(daemon, LONG)
    await post(daemon, "stop", mode=mode, wait=False)
    async with asyncio.timeout(PATIENCE_S):
        assert (await sse(response))[-1][0] == "error"
    assert await daemon.ended() == 0
