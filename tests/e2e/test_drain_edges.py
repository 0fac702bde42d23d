"""What a drain owes to those at its edges: a panic in the lame duck, who comes while it goes on, half a request."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.conftest import StartDaemon
from tests.e2e.test_operations import LONG, post, running, submit, until_state
from tests.e2e.test_stream import Client, client
from tests.support import DaemonProcess, sse

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


async def until_closed(ws: Client) -> list[dict[str, Any]]:
    """All that is said until the daemon says goodbye."""
    told = []
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            told.append(await ws.receive())
    assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
    return told


async def next_drain(ws: Client) -> dict[str, Any]:
    while (message := await ws.receive())["op"] != "drain":
        pass
    return message


async def waiting(daemon: DaemonProcess) -> str:
    """A task that waits: the queue is paused."""
    await post(daemon, "queue/pause")
    return await submit(daemon, "Hello [[tokens=3]]")


async def test_who_subscribes_during_a_drain_is_told_where_to_go_on(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    task_id = await waiting(daemon)
    await post(daemon, "drain", deadline_s=60, wait=False)
    async with client(daemon) as ws:
        assert (await ws.ask(op="subscribe", task=task_id))["op"] == "ack"
        queued, drain = await until_closed(ws)
    assert queued["type"] == "task.queued"
    assert (drain["op"], drain["cursors"]) == ("drain", {task_id: queued["seq"]})
    assert drain["retry_after_ms"] > 0
    await post(daemon, "undrain")
    await post(daemon, "queue/resume")
    async with client(daemon) as ws:
        await ws.send(op="subscribe", task=task_id, after=queued["seq"])
        assert (await ws.events(task_id))[task_id][-1]["type"] == "task.succeeded"


async def test_who_follows_a_task_that_waits_is_told_once_when_a_drain_begins(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    task_id = await waiting(daemon)
    async with client(daemon) as ws:
        await ws.send(op="subscribe", task=task_id)
        assert [(await ws.receive())["op"] for _ in range(2)] == ["ack", "event"]
        await post(daemon, "drain", deadline_s=60, wait=False)
        (drain,) = await until_closed(ws)
    assert set(drain["cursors"]) == {task_id}


async def test_every_drain_tells_those_who_outlast_it(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.workers": 1})
    async with client(daemon) as ws:
        ack = await ws.ask(op="submit", task={"prompt": LONG})
        await until_state(daemon, ack["task"], "running")
        for _ in range(2):
            await post(daemon, "drain", deadline_s=60, wait=False)
            assert set((await next_drain(ws))["cursors"]) == {ack["task"]}
            assert (await post(daemon, "undrain"))["state"] in ("ready", "degraded")
    await post(daemon, f"tasks/{ack['task']}/cancel")


async def test_who_was_told_and_subscribes_again_is_told_again(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.workers": 1})
    async with client(daemon) as ws:
        runs = (await ws.ask(op="submit", task={"prompt": LONG}))["task"]
        await until_state(daemon, runs, "running")
        waits = (await ws.ask(op="submit", task={"prompt": "Hello [[tokens=3]]"}))["task"]
        while (message := await ws.receive())["task"] != waits:
            pass
        assert message["type"] == "task.queued"
        await post(daemon, "drain", deadline_s=60, wait=False)
        drain = await next_drain(ws)
        assert set(drain["cursors"]) == {runs, waits}
        await ws.send(op="subscribe", task=waits, after=drain["cursors"][waits])
        again = await next_drain(ws)
    assert again["cursors"] == {waits: drain["cursors"][waits]}
    await post(daemon, f"tasks/{runs}/cancel")


async def test_half_a_request_is_answered_at_the_deadline_and_holds_no_stop(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"drain.deadline_s": 1, "drain.kill_grace_s": 20})
    host, port = daemon.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/messages HTTP/1.1\r\nHost: {host}\r\nx-api-key: {daemon.key}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
    async with asyncio.timeout(PATIENCE_S):
        while (await daemon.control("connections"))["connections"][0]["state"] != "active":
            await asyncio.sleep(0.02)
    began = asyncio.get_running_loop().time()
    assert daemon.process is not None
    daemon.process.terminate()
    async with asyncio.timeout(PATIENCE_S):
        answer = await reader.read()
        assert await daemon.process.wait() == 0
    assert answer.startswith(b"HTTP/1.1 503 ") and b"Connection: close" in answer
    assert asyncio.get_running_loop().time() - began < 15  # the grace is for what runs
    writer.close()
