"""The measured scene of a stop: twenty requests in flight, a WebSocket, an SSE stream, SIGTERM. ``make bench`` has the
figures; here it is what comes, and in which order."""

from __future__ import annotations

import asyncio
import re
from functools import partial
from typing import Any

import orjson

from tests.conftest import StartDaemon
from tests.load.scene import REQUESTS, Scene, Seen, Server
from tests.support import DaemonProcess

PATIENCE_S = 20.0


async def submit(daemon: DaemonProcess, prompt: str) -> str:
    async with daemon.http.post("/v1/tasks", json={"prompt": prompt}) as response:
        assert response.status == 202, await response.text()
        return str((await response.json())["id"])


async def until_running(daemon: DaemonProcess, count: int) -> None:
    """Nothing tells that a request has arrived which is not answered yet."""
    async with asyncio.timeout(PATIENCE_S):
        while (await daemon.control("status"))["queue"]["running"] != count:
            await asyncio.sleep(0.02)


async def played(daemon: DaemonProcess, running: str, queued: str) -> Seen:
    """The signal comes when the task and all twenty requests run."""
    assert daemon.process is not None
    scene = Scene(
        Server.daemon(daemon.url, daemon.key, running, queued),
        moment=partial(until_running, daemon, REQUESTS + 1),
        stop=daemon.process.terminate,
        ended=daemon.ended,
    )
    async with asyncio.timeout(3 * PATIENCE_S):
        return await scene.play()


def last_words(said: str) -> dict[str, Any]:
    """Of an SSE stream: what its last event is, and says."""
    fields = dict(re.findall(r"^(\w+): (.*)$", said, re.MULTILINE))
    return {**fields, "data": orjson.loads(fields["data"])}


async def test_sigterm_with_twenty_requests_in_flight_drops_none_and_tells_everybody(start_daemon: StartDaemon) -> None:
    settings = {"engine.workers": 1, "engine.direct_max": REQUESTS, "engine.stall_timeout_s": 60}
    daemon = await start_daemon(settings)
    running = await submit(daemon, "Speak slowly. [[tokens=50]] [[pace=100ms]]")
    await until_running(daemon, 1)
    queued = await submit(daemon, "And then? [[tokens=2]]")
    seen = await played(daemon, running, queued)

    assert len(seen.answered_s) == REQUESTS
    assert seen.status == 0
    assert [refused.well for refused in seen.new_work] == [True] * len(seen.new_work)
    assert seen.new_work

    assert seen.notice["op"] == "drain"
    assert set(seen.notice["cursors"]) == {running, queued}
    assert seen.notice["retry_after_ms"] > 0
    assert seen.close_code == 1001

    told = last_words(seen.said)
    assert told["event"] == "drain"
    assert (told["data"]["task"], told["data"]["cursor"]) == (queued, seen.notice["cursors"][queued])
    assert int(told["retry"]) == told["data"]["retry_after_ms"]

    assert seen.notice_s is not None and seen.end_s is not None and seen.exit_s is not None
    assert max(seen.notice_s, seen.end_s) < min(seen.answered_s)
    assert max(seen.answered_s) < seen.exit_s
    settled = {line["task_id"]: line["state"] for line in daemon.log() if line["event"] == "task.settled"}
    assert settled[running] == "succeeded"
    assert queued not in settled
