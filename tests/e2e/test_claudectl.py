"""claudectl as it is installed, on a real daemon: what it draws, what it asks, what it lists."""

from __future__ import annotations

import asyncio
import json

from tests.support import BIN, DaemonProcess

ALL = ["live", "ready", "direct", "text", "stream", "task", "websocket", "agent", "session"]


async def claudectl(daemon: DaemonProcess, *args: str, **environ: str) -> tuple[int, str]:
    running = await asyncio.create_subprocess_exec(
        BIN / "claudectl",
        "--socket",
        daemon.socket,
        *args,
        env={**daemon.environment(), **environ},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await running.communicate()
    assert running.returncode is not None
    return running.returncode, out.decode()


async def test_test_asks_in_every_lane_and_leaves_nothing(daemon: DaemonProcess) -> None:
    before = (await daemon.control("sessions"))["data"]
    lanes = (await daemon.control("status"))["lanes"]
    code, out = await claudectl(daemon, "test", "--json", "--timeout", "55")
    document = json.loads(out)
    results = {result["name"]: result for result in document["tests"]}
    assert list(results) == ALL
    assert lanes == ["direct", "text", "agent", "session"]
    assert {name: result["detail"] for name, result in results.items() if result["status"] != "ok"} == {}
    assert (code, document["ok"]) == (0, True)
    streamed = {name for name, result in results.items() if result["first_delta_seconds"] is not None}
    assert streamed == {"stream", "task", "websocket", "agent", "session"}
    assert (await daemon.control("sessions"))["data"] == before


async def test_test_tells_what_fails_and_why(daemon: DaemonProcess) -> None:
    names = ["live", "direct", "stream", "task", "websocket", "agent"]
    code, out = await claudectl(daemon, "test", *names, "--model", "gpt-4", "--json")
    told = {result["name"]: (result["status"], result["detail"]) for result in json.loads(out)["tests"]}
    assert code == 1
    assert told.pop("live")[0] == "ok"
    assert told["direct"][1].startswith("HTTP 404: ")
    assert all(status == "failed" and "gpt-4" in detail for status, detail in told.values())


async def test_top_shows_a_task_while_it_runs(daemon: DaemonProcess) -> None:
    chat = asyncio.create_task(daemon.chat("Hello. [[hang]]"))
    running: list[str] = []
    async with asyncio.timeout(20):
        while not running:
            code, out = await claudectl(daemon, "top", "--once", COLUMNS="200")
            assert code == 0
            tasks = out.partition("Tasks that run")[2].partition("Workers")[0]
            running = [line for line in tasks.splitlines() if " text " in line]
    assert " chat " in running[0]
    assert " local " in running[0]
    chat.cancel()
    await asyncio.gather(chat, return_exceptions=True)


async def test_status_and_config_tell_what_is_in_force(daemon: DaemonProcess) -> None:
    code, out = await claudectl(daemon, "status")
    assert code == 0
    assert daemon.url in out
    assert await claudectl(daemon, "config", "engine.workers") == (0, "3\n")
    code, out = await claudectl(daemon, "config", "--changed")
    assert "environment CLAUDE_DAEMON_ENGINE__WORKERS" in out
    assert daemon.model.api_key not in out
