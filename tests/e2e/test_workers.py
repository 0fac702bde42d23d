"""Every lane's processes together: how many turns there are, what an operator sees of them, and does to them."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.e2e.agents import Agents, call, ended, run, told
from tests.support import BIN, DaemonProcess, text_of

pytestmark = pytest.mark.engine

PATIENCE_S = 30.0
BASH = {"allow": ["Bash"]}


def held(go: Path) -> str:
    """A prompt whose turn lasts until this file is there."""
    return f"{call('Bash', command=f'touch {go}.awaited; until [ -e {go} ]; do sleep 0.05; done')} [[tokens=1]]"


async def submit(daemon: DaemonProcess, prompt: str, **fields: Any) -> dict[str, Any]:
    task: dict[str, Any] = await daemon.control("tasks?detach=true", "POST", {"prompt": prompt, **fields})
    assert "id" in task, task
    return task


async def holding(daemon: DaemonProcess, go: Path, **fields: Any) -> dict[str, Any]:
    """A task that has a turn until ``go`` is there."""
    task = await submit(daemon, held(go), tools=BASH, cwd=str(go.parent), **fields)
    await until(Path(f"{go}.awaited").exists)
    return task


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


async def listed(daemon: DaemonProcess, **fields: Any) -> dict[str, Any]:
    """The one process that is so, once it is."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            for one in await daemon.workers():
                if all(one[name] == value for name, value in fields.items()):
                    return one
            await asyncio.sleep(0.02)


async def gone(daemon: DaemonProcess, *workers: dict[str, Any]) -> None:
    """Waits until none of these is listed."""
    ids = {worker["id"] for worker in workers}
    async with asyncio.timeout(PATIENCE_S):
        while ids & {one["id"] for one in await daemon.workers()}:
            await asyncio.sleep(0.02)


async def turns(daemon: DaemonProcess) -> tuple[int, int]:
    found = (await daemon.control("status"))["turns"]
    return found["running"], found["limit"]


async def test_every_lanes_processes_are_listed_with_whose_they_are(agents: Agents, repository: Path) -> None:
    daemon = await agents({"engine.workers": 3})
    task = await holding(daemon, repository / "go")
    kept, _ = await run(daemon, "hello", session={})
    text = await listed(daemon, lane="text", state="idle")
    agent = await listed(daemon, lane="agent", state="busy")
    session = await listed(daemon, lane="session", state="idle")
    assert (text["task_id"], text["session_id"], text["start"]) == (None, None, None)
    assert (agent["task_id"], agent["start"], agent["pid"] > 0) == (task["id"], "cold", True)
    assert (session["session_id"], session["turns"], session["task_id"]) == (kept["session_id"], 1, None)
    # the sandbox's own process is a megabyte; what counts is what runs within
    assert min(agent["rss_mb"], session["rss_mb"]) > 50
    process = await asyncio.create_subprocess_exec(
        str(BIN / "claudectl"), "--socket", str(daemon.socket), "workers", "list", stdout=PIPE
    )
    shown = (await process.communicate())[0].decode()
    assert {text["id"], agent["id"], session["id"], task["id"], kept["session_id"]} <= set(shown.split())
    (repository / "go").touch()
    done, events = await ended(daemon, task["id"])
    assert done["state"] == "succeeded"
    assert told(events, "task.started")[0]["worker"] == agent["id"]


async def test_the_process_of_a_task_is_told_when_it_begins(agents: Agents) -> None:
    daemon = await agents()
    session: dict[str, Any] = {}
    for start in ("cold", "warm"):
        task, events = await run(daemon, "hello", session=session)
        (began,) = told(events, "task.started")
        kept = await listed(daemon, lane="session", state="idle")
        assert (began["start"], began["worker"]) == (start, kept["id"])
        session = {"id": task["session_id"]}
    _, events = await run(daemon, call("Bash", command="true"), tools=BASH)
    assert told(events, "task.started")[0]["worker"].startswith("wrk_")


async def test_there_are_so_many_turns_over_all_lanes(agents: Agents, repository: Path) -> None:
    daemon = await agents({"engine.workers": 1})
    agent = await holding(daemon, repository / "go")
    assert await turns(daemon) == (1, 1)
    session = await submit(daemon, "hello", session={})
    chat = asyncio.ensure_future(daemon.chat("Hello [[tokens=3]]"))
    async with asyncio.timeout(PATIENCE_S):
        while (await daemon.control("status"))["queue"] != {"waiting": 1, "running": 1, "queued": 1, "paused": False}:
            await asyncio.sleep(0.02)
    (repository / "go").touch()
    response = await chat
    assert (response.status, text_of(await response.json())) == (200, "Hello from the")
    done = [(await ended(daemon, task["id"]))[0] for task in (agent, session)]
    assert [task["state"] for task in done] == ["succeeded", "succeeded"]
    settled = [line["lane"] for line in daemon.log() if line["event"] == "task.settled"]
    assert settled == ["agent", "text", "session"]  # a chat goes first, for somebody sits and waits for it
    async with asyncio.timeout(PATIENCE_S):
        while await turns(daemon) != (0, 1):
            await asyncio.sleep(0.02)


async def test_to_scale_makes_room_for_every_lane(agents: Agents, repository: Path) -> None:
    daemon = await agents({"engine.workers": 1})
    agent = await holding(daemon, repository / "go")
    chat = asyncio.ensure_future(daemon.chat("Hello [[tokens=3]]"))
    async with asyncio.timeout(PATIENCE_S):
        while not (await daemon.control("status"))["queue"]["waiting"]:
            await asyncio.sleep(0.02)
    await daemon.control("workers/scale", "POST", {"workers": 2})
    assert (await chat).status == 200
    assert (await turns(daemon))[1] == 2
    (repository / "go").touch()
    assert (await ended(daemon, agent["id"]))[0]["state"] == "succeeded"


async def test_an_agent_that_asks_the_daemon_for_the_only_place_ends_all_the_same(agents: Agents) -> None:
    """Its own turn has it; the chat that it waits for is told so after its time."""
    daemon = await agents({"engine.workers": 1, "queue.wait_timeout_s": 0.3})
    body = orjson.dumps({"model": "sonnet", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}).decode()
    ask = (
        f"curl -s --max-time 20 {daemon.url}/v1/messages -H 'x-api-key: {daemon.key}' -H 'Claude-Daemon-Lane: text' "
        "-H 'content-type: application/json' "
        f"-d '{body}'"
    )
    task, events = await run(daemon, f"{call('Bash', command=ask)} [[tokens=2]]", tools=BASH)
    assert task["state"] == "succeeded"
    (result,) = told(events, "tool.result")
    assert "no place became free" in str(result["content"])


async def test_kill_ends_a_turn_and_what_is_kept(workshop: DaemonProcess, repository: Path) -> None:
    kept, _ = await run(workshop, "my word is amber", session={})
    for lane, session in (("agent", None), ("session", {"id": kept["session_id"]})):
        go = repository / f"never-{lane}"
        fields = {"session": session} if session else {}
        task = await submit(workshop, held(go), tools=BASH, **({} if session else {"cwd": str(repository)}), **fields)
        worker = await listed(workshop, lane=lane, state="busy", task_id=task["id"])
        told_state = await workshop.control(f"workers/{worker['id']}/kill", "POST", {})
        assert told_state["id"] == worker["id"]
        await workshop.control(f"tasks/{task['id']}/cancel", "POST")  # whether or not another try was made
        assert (await ended(workshop, task["id"]))[0]["state"] in ("failed", "cancelled")
        await gone(workshop, worker)
    again, _ = await run(workshop, "[[history]] on", session={"id": kept["session_id"]})
    assert "my word is amber" in again["result"]["text"]


async def test_recycle_replaces_what_is_kept_and_spares_of_every_lane(agents: Agents, repository: Path) -> None:
    daemon = await agents({"engine.workers": 3, "engine.spares": 1})
    kept, _ = await run(daemon, "my word is amber", session={})
    for _ in range(2):
        await run(daemon, f"{call('Bash', command='true')} [[tokens=1]]", tools=BASH)
    spare = await listed(daemon, lane="agent", state="idle")
    held_task = await holding(daemon, repository / "go")
    busy = await listed(daemon, lane="agent", state="busy")
    session = await listed(daemon, lane="session", state="idle")
    recycled = (await daemon.control("workers/recycle", "POST", {"rolling": True}))["recycling"]
    assert {spare["id"], session["id"], busy["id"]} <= set(recycled)
    await gone(daemon, spare, session)
    new = await listed(daemon, lane="agent", state="idle")
    assert new["id"] != spare["id"]
    answer = await daemon.control(f"workers/{busy['id']}/recycle", "POST", {})
    assert answer == {"id": busy["id"], "state": "busy"}
    (repository / "go").touch()
    assert (await ended(daemon, held_task["id"]))[0]["state"] == "succeeded"
    again, events = await run(daemon, "[[history]] on", session={"id": kept["session_id"]})
    assert (told(events, "task.started")[0]["start"], again["state"]) == ("cold", "succeeded")
    assert "my word is amber" in again["result"]["text"]


async def test_a_sessions_process_is_replaced_after_so_many_turns_and_nothing_is_forgotten(agents: Agents) -> None:
    daemon = await agents({"engine.max_turns_per_worker": 2})
    session: dict[str, Any] = {}
    starts, said = [], ""
    for number in range(4):
        task, events = await run(daemon, f"[[history]] word{number}", session=session)
        starts.append(told(events, "task.started")[0]["start"])
        session, said = {"id": task["session_id"]}, task["result"]["text"]
        await daemon.logged("task.settled", task_id=task["id"])
    assert starts == ["cold", "warm", "cold", "warm"]
    assert all(f"word{number}" in said for number in range(4))


async def test_a_directory_that_is_not_there_is_refused_when_the_task_comes(
    workshop: DaemonProcess, repository: Path
) -> None:
    for name, value in (("cwd", "gone"), ("add_dirs", ["gone"]), ("cwd", "hello.txt")):
        at = [str(repository / part) for part in value] if isinstance(value, list) else str(repository / value)
        refused = await workshop.control("tasks?detach=true", "POST", {"prompt": "hello", name: at})
        assert (refused["code"], refused["errors"][0]["path"]) == ("invalid_request", name), refused
