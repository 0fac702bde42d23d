"""Sessions end to end: the real CLI in its sandbox; the offline model's ``[[history]]`` tells what it was sent."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from claude_daemon.offline import OfflineModel
from tests.e2e.agents import Agents, call
from tests.ordinary import give
from tests.support import BIN, DaemonProcess, sse, text_of

pytestmark = pytest.mark.engine

PATIENCE_S = 60.0
Sessions = Agents


@pytest.fixture
def sessions(agents: Agents) -> Agents:
    """Daemons at one home, one after the other."""
    return agents


async def submit(daemon: DaemonProcess, prompt: str, session: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """The task as it was accepted. Over the control socket: whoever reaches that may use tools."""
    task: dict[str, Any] = await daemon.control(
        "tasks?detach=true", "POST", {"prompt": prompt, "session": session, **fields}
    )
    return task


async def events(daemon: DaemonProcess, task_id: str) -> list[dict[str, Any]]:
    async with asyncio.timeout(PATIENCE_S), daemon.http.get(f"/v1/tasks/{task_id}/events") as response:
        return [data for _, data in await sse(response)]


async def ended(daemon: DaemonProcess, task: dict[str, Any]) -> dict[str, Any]:
    """The task, and under ``start`` how its turn found its process."""
    assert "id" in task, task
    told = await events(daemon, task["id"])
    found: dict[str, Any] = await daemon.control(f"tasks/{task['id']}")
    starts = [event["data"]["start"] for event in told if event["type"] == "task.started"]
    return {**found, "start": starts[-1] if starts else None}


async def turn(daemon: DaemonProcess, prompt: str, session: dict[str, Any], **fields: Any) -> dict[str, Any]:
    task = await ended(daemon, await submit(daemon, prompt, session, **fields))
    assert task["state"] == "succeeded", task["error"]
    assert task["lane"] == "session"
    return task


def said(task: dict[str, Any]) -> list[str]:
    """The user's words that the model was sent, of a turn that asked for ``[[history]]``."""
    lines = str(task["result"]["text"]).splitlines()
    return [line.removeprefix("user: ") for line in lines if line.startswith("user: ")]


def held(go: Path) -> str:
    """A prompt whose turn lasts until this file is there."""
    given = orjson.dumps({"command": f"touch {go}.awaited; until [ -e {go} ]; do sleep 0.05; done"}).decode()
    return f"[[tool=Bash]] [[input={given}]] [[tokens=1]]"


async def runs(daemon: DaemonProcess, task_id: str) -> None:
    """Waits until the task's tool runs."""
    async with asyncio.timeout(PATIENCE_S), daemon.http.get(f"/v1/tasks/{task_id}/events") as response:
        async for line in response.content:
            if line.strip() == b"event: tool.use":
                return


async def awaits(go: Path) -> None:
    """Waits until the turn of :func:`held` has come so far: that a tool runs is durable by then."""
    async with asyncio.timeout(PATIENCE_S):
        while not Path(f"{go}.awaited").exists():
            await asyncio.sleep(0.02)


async def state_of(daemon: DaemonProcess, session_id: str) -> str:
    return str((await daemon.control(f"sessions/{session_id}"))["state"])


async def becomes(daemon: DaemonProcess, session_id: str, state: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await state_of(daemon, session_id) != state:
            await asyncio.sleep(0.02)


async def test_a_session_goes_on_where_it_was_on_the_same_process(workshop: DaemonProcess) -> None:
    first = await turn(workshop, "my word is amber", {}, system="be brief")
    assert first["session_id"].startswith("sess_")
    assert first["start"] == "cold"
    await becomes(workshop, first["session_id"], "warm")
    again = await turn(workshop, "which [[history]]", {"id": first["session_id"]}, model="haiku")
    assert (again["session_id"], again["start"]) == (first["session_id"], "warm")
    assert said(again) == ["my word is amber", "which"]
    assert again["model"] != first["model"]


async def test_a_session_whose_process_is_gone_is_resumed(sessions: Sessions) -> None:
    daemon = await sessions({"engine.idle_session_s": 0.1})
    first = await turn(daemon, "my word is amber", {}, system="be brief")
    await becomes(daemon, first["session_id"], "idle")
    again = await turn(daemon, "[[history]] [[system]] which", {"id": first["session_id"]})
    assert again["start"] == "cold"
    assert said(again)[0] == "my word is amber"
    assert "be brief" in again["result"]["text"]


async def test_a_session_goes_on_after_the_daemon_was_restarted_and_after_it_was_killed(sessions: Sessions) -> None:
    daemon = await sessions()
    first = await turn(daemon, "my word is amber", {})
    assert await daemon.stop() == 0
    daemon = await sessions()
    second = await turn(daemon, "and beryl", {"id": first["session_id"]})
    await daemon.stop(signal.SIGKILL)
    daemon = await sessions()
    third = await turn(daemon, "[[history]] which", {"id": first["session_id"]})
    assert (second["start"], third["start"]) == ("cold", "cold")
    assert said(third) == ["my word is amber", "and beryl", "which"]
    assert "assistant" in third["result"]["text"].splitlines()[-2]


async def test_a_fork_knows_what_was_and_goes_its_own_way(workshop: DaemonProcess) -> None:
    first = await turn(workshop, "my word is amber", {})
    fork = await turn(workshop, "[[history]] left", {"id": first["session_id"], "fork": True})
    assert fork["session_id"] != first["session_id"]
    assert said(fork) == ["my word is amber", "left"]
    there = await turn(workshop, "[[history]] right", {"id": first["session_id"]})
    assert said(there) == ["my word is amber", "right"]
    assert said(await turn(workshop, "[[history]] on", {"id": fork["session_id"]}))[:2] == ["my word is amber", "left"]
    listed = await workshop.control("sessions")
    assert [row["id"] for row in listed["data"]][:2] == [fork["session_id"], first["session_id"]]


async def test_what_its_first_turn_fixed_is_refused_by_name_when_it_is_another(
    workshop: DaemonProcess, repository: Path
) -> None:
    first = await turn(workshop, "hello", {}, cwd=str(repository), system="be brief")
    for name, other in (("cwd", str(repository.parent)), ("system", "be long"), ("add_dirs", [str(repository)])):
        refused = await submit(workshop, "hello", {"id": first["session_id"]}, **{name: other})
        assert (refused["code"], refused["errors"][0]["path"]) == ("invalid_request", name), refused
    assert (await turn(workshop, "on", {"id": first["session_id"]}, cwd=str(repository)))["start"] == "warm"


async def test_tools_are_those_of_the_turn(workshop: DaemonProcess, repository: Path) -> None:
    first = await turn(workshop, "hello", {}, cwd=str(repository))
    given = orjson.dumps({"command": "cat hello.txt > copy.txt"}).decode()
    second = await turn(
        workshop,
        f"[[tool=Bash]] [[input={given}]] [[tokens=2]]",
        {"id": first["session_id"]},
        tools={"allow": ["Bash"]},
    )
    assert second["start"] == "cold"
    assert (repository / "copy.txt").read_text() == "hello\n"
    third = await turn(workshop, "[[history]] and now", {"id": first["session_id"]})
    assert said(third)[0] == "hello"


async def test_two_turns_at_once_go_one_by_one_and_hold_up_nobody(workshop: DaemonProcess, repository: Path) -> None:
    first = await turn(workshop, "begin", {}, cwd=str(repository))
    name, go = {"id": first["session_id"]}, repository / "go"
    waits = [await submit(workshop, held(go), name, tools={"allow": ["Bash"]}), await submit(workshop, "turn 1", name)]
    await runs(workshop, waits[0]["id"])
    last = await submit(workshop, "[[history]] last", name, priority=10)
    other = await turn(workshop, "somebody else", {})
    assert (await workshop.control(f"tasks/{waits[0]['id']}"))["state"] == "running"
    assert (await workshop.control(f"tasks/{waits[1]['id']}"))["state"] == "queued"
    assert await state_of(workshop, first["session_id"]) == "running"
    assert other["session_id"] != first["session_id"]
    refused = await workshop.control(f"sessions/{first['session_id']}", "DELETE")
    assert refused["code"] == "conflict", refused
    go.touch()
    words = said(await ended(workshop, last))
    assert [word for word in words if word and not word.startswith("[")] == ["begin", "turn 1", "last"]


async def test_a_process_that_is_only_kept_makes_room(sessions: Sessions) -> None:
    daemon = await sessions({"engine.workers": 1})
    first, second = await turn(daemon, "one", {}), await turn(daemon, "two", {})
    await becomes(daemon, first["session_id"], "idle")
    assert said(await turn(daemon, "[[history]]  on", {"id": first["session_id"]}))[0] == "one"
    await becomes(daemon, second["session_id"], "idle")


async def test_a_session_whose_transcript_is_gone_does_not_begin_anew(sessions: Sessions) -> None:
    daemon = await sessions({"engine.idle_session_s": 0.1})
    first = await turn(daemon, "my word is amber", {})
    await becomes(daemon, first["session_id"], "idle")
    shutil.rmtree(daemon.home / ".claude-daemon" / "engine" / "sessions" / first["session_id"])
    task = await ended(daemon, await submit(daemon, "which", {"id": first["session_id"]}))
    assert (task["state"], task["error"]["code"]) == ("failed", "not_found")


@pytest.mark.parametrize("without", [["hooks"], ["set_model", "interrupt", "composed"]])
async def test_a_session_goes_on_with_a_cli_that_can_do_less(sessions: Sessions, without: list[str]) -> None:
    daemon = await sessions({"engine.without": orjson.dumps(without).decode()})
    first = await turn(daemon, "my word is amber", {})
    again = await turn(daemon, "[[history]] which", {"id": first["session_id"]}, model="haiku")
    assert said(again)[0].strip() == "my word is amber"
    body = {"model": "sonnet", "max_tokens": 9, "messages": [{"role": "user", "content": "[[history]] chat"}]}
    headers = {"X-Session-ID": first["session_id"]}
    async with daemon.http.post("/v1/messages", json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert "my word is amber" in text_of(await response.json())


async def test_a_session_whose_kept_process_is_killed_is_resumed(sessions: Sessions) -> None:
    daemon = await sessions()
    first = await turn(daemon, "my word is amber", {})
    await becomes(daemon, first["session_id"], "warm")
    assert daemon.process is not None
    killed = [pid for pid in descendants(daemon.process.pid) if "--session-id=" in command_of(pid)]
    assert killed
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    await becomes(daemon, first["session_id"], "idle")
    assert said(await turn(daemon, "[[history]] on", {"id": first["session_id"]}))[0] == "my word is amber"


async def test_a_panic_ends_the_processes_that_are_kept(sessions: Sessions) -> None:
    daemon = await sessions()
    first = await turn(daemon, "my word is amber", {})
    await becomes(daemon, first["session_id"], "warm")
    await daemon.control("panic", "POST")
    await becomes(daemon, first["session_id"], "idle")
    await daemon.control("undrain", "POST")
    await daemon.control("queue/resume", "POST")
    assert said(await turn(daemon, "[[history]] on", {"id": first["session_id"]}))[0] == "my word is amber"


async def test_claudectl_runs_lists_shows_and_deletes(sessions: Sessions) -> None:
    daemon = await sessions()
    first = await turn(daemon, "my word is amber", {})
    name = first["session_id"]

    async def ctl(*args: str) -> str:
        process = await asyncio.create_subprocess_exec(
            str(BIN / "claudectl"), "--socket", str(daemon.socket), *args, stdout=PIPE, stderr=PIPE
        )
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode()

    assert "user: my word is amber" in await ctl("run", "--session", name, "[[history]] on")
    assert name in await ctl("sessions", "list")
    assert (await ctl("sessions", "show", name)).startswith(name)
    assert await ctl("sessions", "delete", name, "--yes") == f"{name} deleted\n"
    assert await ctl("sessions", "list") == "no sessions\n"


def descendants(pid: int) -> list[int]:
    children = [
        int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
    ]
    return children + [deeper for child in children for deeper in descendants(child)]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


async def test_a_session_that_is_deleted_is_gone(workshop: DaemonProcess) -> None:
    first = await turn(workshop, "hello", {})
    directory = workshop.home / ".claude-daemon" / "engine" / "sessions" / first["session_id"]
    assert directory.exists()
    async with workshop.http.delete(f"/v1/sessions/{first['session_id']}") as response:
        assert (response.status, (await response.json())["deleted"]) == (200, True)
    assert not directory.exists()
    assert (await submit(workshop, "on", {"id": first["session_id"]}))["code"] == "not_found"
    async with workshop.http.delete(f"/v1/sessions/{first['session_id']}") as response:
        assert response.status == 404


async def test_a_turn_that_was_begun_is_not_said_twice_after_a_kill(sessions: Sessions) -> None:
    daemon = await sessions()
    first = await turn(daemon, "begin", {})
    hanging = await submit(daemon, "[[hang]] the one", {"id": first["session_id"]})
    async with asyncio.timeout(PATIENCE_S):
        home = daemon.home / ".claude-daemon" / "engine" / "sessions" / first["session_id"]
        while not any("the one" in path.read_text() for path in home.glob("config/projects/*/*.jsonl")):
            await asyncio.sleep(0.02)
    await daemon.stop(signal.SIGKILL)
    daemon = await sessions()
    task = await ended(daemon, hanging)
    assert (task["state"], task["error"]["code"]) == ("failed", "interrupted")
    assert "second time" in task["error"]["message"]
    refused = await daemon.control(f"tasks/{task['id']}/retry", "POST")
    assert refused["code"] == "conflict"
    assert said(await turn(daemon, "[[history]] on", {"id": first["session_id"]}))[0] == "begin"


async def test_a_turn_that_had_not_begun_is_made_after_a_kill(sessions: Sessions, repository: Path) -> None:
    daemon = await sessions()
    first = await turn(daemon, "begin", {}, cwd=str(repository))
    name = {"id": first["session_id"]}
    running = await submit(daemon, held(repository / "go"), name, tools={"allow": ["Bash"]})
    await awaits(repository / "go")
    waiting = await submit(daemon, "[[history]] the other", {"id": first["session_id"]})
    await daemon.stop(signal.SIGKILL)
    daemon = await sessions()
    assert (await ended(daemon, running))["error"]["code"] == "interrupted"
    task = await ended(daemon, waiting)
    assert task["state"] == "succeeded", task["error"]
    assert said(task)[0] == "begin"


async def test_a_chat_continues_a_session_on_either_route(workshop: DaemonProcess) -> None:
    first = await turn(workshop, "my word is amber", {})
    headers = {"X-Session-ID": first["session_id"]}
    earlier = [{"role": "user", "content": "ignored"}, {"role": "assistant", "content": "this too"}]
    body: dict[str, Any] = {
        "model": "sonnet",
        "max_tokens": 100,
        "messages": [*earlier, {"role": "user", "content": "[[history]] anthropic"}],
    }
    async with workshop.http.post("/v1/messages", json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        assert response.headers["X-Session-ID"] == first["session_id"]
        assert response.headers["Claude-Daemon-Lane"] == "session"
        assert "my word is amber" in text_of(await response.json())
        assert "ignored" not in text_of(await response.json())
    body = {"model": "sonnet", "stream": True, "messages": [{"role": "user", "content": "[[history]] openai"}]}
    async with workshop.http.post("/v1/chat/completions", json=body, headers=headers) as response:
        assert response.status == 200, await response.text()
        chunks = [data for _, data in await sse(response) if data != "[DONE]"]
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert next(line for line in text.splitlines() if line.startswith("user: ")) == "user: my word is amber"
    third = await turn(workshop, "[[history]] task", {"id": first["session_id"]})
    assert len(said(third)) == 4
    for other, status in (({"X-Session-ID": "sess_none"}, 404), ({**headers, "Claude-Daemon-Lane": "direct"}, 400)):
        async with workshop.http.post("/v1/messages", json={**body, "max_tokens": 9}, headers=other) as response:
            assert response.status == status, await response.text()


@pytest.mark.parametrize("marker", ["first=4s", "stall=1"])
async def test_a_chat_whose_client_leaves_leaves_the_session_usable(workshop: DaemonProcess, marker: str) -> None:
    """Before anything has come, or after the first piece."""
    first = await turn(workshop, "my word is amber", {})
    body = {"model": "sonnet", "max_tokens": 9, "messages": [{"role": "user", "content": f"[[{marker}]] gone"}]}
    headers = {"X-Session-ID": first["session_id"]}
    if marker == "stall=1":
        async with workshop.http.post("/v1/messages", json={**body, "stream": True}, headers=headers) as response:
            await response.content.readuntil(b"content_block_delta")
            response.close()
    else:
        with pytest.raises(TimeoutError):
            await workshop.http.post("/v1/messages", json=body, headers=headers, timeout=aiohttp.ClientTimeout(total=2))
    again = await turn(workshop, "[[history]] back", {"id": first["session_id"]})
    assert said(again)[0] == "my word is amber"


@pytest.mark.parametrize("plant", ["ln -s {victim} {held}", "mkfifo {held}"])
async def test_what_a_turn_leaves_leads_the_daemon_nowhere_in_the_next(
    sessions: Sessions, repository: Path, tmp_path: Path, plant: str
) -> None:
    """What is held against a project's settings is written for each process anew, by the daemon, which no sandbox
    holds; and no command changes it afterwards."""
    daemon = await sessions(toml="trusted = true\n")
    victim = tmp_path / "home" / "victim"
    victim.write_text("precious\n")
    give(victim)
    bash = {"tools": {"allow": ["Bash"]}}
    planted = plant.format(victim=victim, held="$CLAUDE_CONFIG_DIR/held.json")
    first = await turn(daemon, call("Bash", command=planted), {}, cwd=str(repository), **bash)
    tried = call("Bash", command="sh -c 'echo {} > $HOME/held.json' 2> held || true")
    session = {"id": first["session_id"]}
    again = await turn(daemon, tried, session, project_settings="all", **bash)
    assert again["start"] == "cold"
    assert victim.read_text() == "precious\n"
    assert "Read-only file system" in (repository / "held").read_text()


async def test_another_key_sees_nothing_of_a_session(workshop: DaemonProcess, model: OfflineModel) -> None:
    keys = [await workshop.control("keys", "POST", {"name": name, "role": "standard"}) for name in ("alice", "bob")]
    mark = "amber-4711"
    async with (
        aiohttp.ClientSession(workshop.url, headers={"x-api-key": keys[0]["key"]}) as alice,
        aiohttp.ClientSession(workshop.url, headers={"x-api-key": keys[1]["key"]}) as bob,
    ):

        async def done(who: aiohttp.ClientSession, body: dict[str, Any]) -> dict[str, Any]:
            async with who.post("/v1/tasks", json=body) as response:
                task = await response.json()
            async with asyncio.timeout(PATIENCE_S), who.get(f"/v1/tasks/{task['id']}/events") as response:
                await response.read()
            async with who.get(f"/v1/tasks/{task['id']}") as response:
                return dict(await response.json())

        hers = await done(alice, {"prompt": f"my word is {mark}", "session": {}})
        assert hers["state"] == "succeeded", hers
        name = hers["session_id"]
        for session in ({"id": name}, {"id": name, "fork": True}):
            async with bob.post("/v1/tasks", json={"prompt": "hello", "session": session}) as response:
                assert (response.status, (await response.json())["code"]) == (404, "not_found")
        for method in ("GET", "DELETE"):
            async with bob.request(method, f"/v1/sessions/{name}") as response:
                assert response.status == 404
        chat = {"model": "sonnet", "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
        async with bob.post("/v1/messages", json=chat, headers={"X-Session-ID": name}) as response:
            assert response.status == 404
        assert (await submit(workshop, "hello", {"id": name}))["code"] == "not_found"  # as local, which it is not
        before = len(model.requests)
        find = orjson.dumps({"command": f"grep -rl {mark[:5]} / --include=*.jsonl 2>/dev/null; env; true"}).decode()
        prompt = f"[[tool=Bash]] [[input={find}]] [[tokens=2]]"
        his = await done(bob, {"prompt": prompt, "session": {}, "tools": {"allow": ["Bash"]}})
        assert his["state"] == "succeeded", his
        async with bob.get("/v1/sessions") as response:
            assert [row["id"] for row in (await response.json())["data"]] == [his["session_id"]]
        assert his["session_id"] != name
        asked = [orjson.dumps(request.body).decode() for request in list(model.requests)[before:]]
        assert asked
        assert not any(mark in text or name in text for text in asked)
