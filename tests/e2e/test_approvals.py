"""An agent that asks: told to whoever follows, answered from anywhere, and over with its attempt."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, closing
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from tests.e2e.agents import Agents, call, ended, told
from tests.e2e.test_keys import caller, create
from tests.support import BIN, DaemonProcess

pytestmark = pytest.mark.engine

PATIENCE_S = 40.0
ASKING = {"tools": {"approval": "ask"}}
WRITE = f"{call('Bash', command='touch written; echo done')} [[tokens=2]]"


async def events_of(daemon: DaemonProcess, task_id: str, after: int = 0) -> AsyncIterator[dict[str, Any]]:
    async with daemon.http.get(f"/v1/tasks/{task_id}/events?after={after}") as response:
        async for raw in response.content:
            if raw.startswith(b"data: "):
                yield orjson.loads(raw.removeprefix(b"data: "))


async def asked(daemon: DaemonProcess, task_id: str, number: int = 1) -> list[dict[str, Any]]:
    """What the task asks, once so many calls wait."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(cast(Any, events_of(daemon, task_id))) as events:
        async for event in events:
            assert event["type"] not in ("task.succeeded", "task.failed"), event
            if event["type"] == "approval.requested":
                found.append(event["data"])
                if len(found) == number:
                    break
    return found


def calls_in_audit(daemon: DaemonProcess, task_id: str) -> list[str]:
    """The tools that the task called, as the audit has it."""
    with closing(sqlite3.connect(daemon.home / ".claude-daemon" / "daemon.db")) as db:
        called = "SELECT details FROM audit WHERE act = 'tool.called' AND task_id = ? ORDER BY rowid"
        rows = db.execute(called, (task_id,))
        return [orjson.loads(details)["tool"] for (details,) in rows]


async def waits(daemon: DaemonProcess) -> str:
    """The approval that waits, once one does. A daemon that is killed may not have written down that it asked."""
    async with asyncio.timeout(PATIENCE_S):
        while not (waiting := (await daemon.control("approvals"))["data"]):
            await asyncio.sleep(0.02)
    (one,) = waiting
    return str(one["approval"])


async def submit(daemon: DaemonProcess, prompt: str, **fields: Any) -> str:
    task = await daemon.control("tasks?detach=true", "POST", {"prompt": prompt, **ASKING, **fields})
    assert "id" in task, task
    return str(task["id"])


async def answer(daemon: DaemonProcess, task_id: str, approval: str, allow: bool, message: str = "") -> dict[str, Any]:
    body = {"allow": allow, "message": message}
    said: dict[str, Any] = await daemon.control(f"tasks/{task_id}/approvals/{approval}", "POST", body)
    return said


async def test_a_call_that_was_allowed_is_made(workshop: DaemonProcess, repository: Path) -> None:
    task_id = await submit(workshop, WRITE, cwd=str(repository))
    (question,) = await asked(workshop, task_id)
    assert (question["tool"], question["cwd"]) == ("Bash", str(repository))
    assert question["input"]["command"] == "touch written; echo done"
    assert not (repository / "written").exists()
    waiting = (await workshop.control("approvals"))["data"]
    assert [(entry["task"], entry["approval"]) for entry in waiting] == [(task_id, question["approval"])]
    said = await answer(workshop, task_id, question["approval"], True)
    assert (said["object"], said["allow"], said["task"]) == ("approval", True, task_id)
    task, events = await ended(workshop, task_id)
    assert task["state"] == "succeeded", task
    assert (repository / "written").exists()
    (resolved,) = told(events, "approval.resolved")
    assert (resolved["allow"], resolved["by"]) == (True, f"uid {os.getuid()}")
    assert (await answer(workshop, task_id, question["approval"], True))[
        "code"
    ] == "not_found"  # it ended with its task


async def test_a_call_that_was_denied_is_not_made_and_the_model_is_told_why(
    workshop: DaemonProcess,
    repository: Path,
) -> None:
    task_id = await submit(workshop, WRITE, cwd=str(repository))
    (question,) = await asked(workshop, task_id)
    await answer(workshop, task_id, question["approval"], False, "not on a Friday")
    task, events = await ended(workshop, task_id)
    assert task["state"] == "succeeded", task
    (result,) = told(events, "tool.result")
    assert result["is_error"]
    assert "not on a Friday" in result["content"]
    assert not (repository / "written").exists()


async def test_nobodys_answer_is_a_denial(agents: Agents, repository: Path) -> None:
    daemon = await agents({"engine.approval_timeout_s": 1})
    task, events = await ended(daemon, await submit(daemon, WRITE, cwd=str(repository)))
    assert task["state"] == "succeeded", task
    (resolved,) = told(events, "approval.resolved")
    assert (resolved["allow"], resolved["by"]) == (False, "timeout")
    assert not (repository / "written").exists()


async def test_each_of_several_calls_is_asked_for_and_what_a_rule_allows_is_not(
    workshop: DaemonProcess,
    repository: Path,
) -> None:
    """Claude Code asks for the calls of one answer one after the other where they may change something."""
    both = f"{call('Bash', command='touch one')} {call('Bash', command='touch two')} [[tokens=2]]"
    calls = f"{call('Bash', command='echo free')} {both}"
    tools = {"allow": ["Bash(echo free)"], "approval": "ask"}
    task_id = await submit(workshop, calls, cwd=str(repository), tools=tools)
    (first,) = await asked(workshop, task_id)
    await answer(workshop, task_id, first["approval"], False)
    first, second = await asked(workshop, task_id, 2)
    await answer(workshop, task_id, second["approval"], True)
    task, events = await ended(workshop, task_id)
    assert task["state"] == "succeeded", task
    assert [question["input"]["command"] for question in (first, second)] == ["touch one", "touch two"]
    assert {path.name for path in repository.iterdir()} == {"hello.txt", "two"}
    assert [result["is_error"] for result in told(events, "tool.result")] == [False, True, False]


async def test_it_ends_with_the_task(workshop: DaemonProcess, repository: Path) -> None:
    task_id = await submit(workshop, WRITE, cwd=str(repository))
    (question,) = await asked(workshop, task_id)
    await workshop.control(f"tasks/{task_id}/cancel", "POST")
    task, events = await ended(workshop, task_id)
    assert task["state"] == "cancelled"
    assert [resolved["by"] for resolved in told(events, "approval.resolved")] == ["ended"]
    assert (await answer(workshop, task_id, question["approval"], True))["code"] == "not_found"
    assert (await workshop.control("approvals"))["data"] == []
    assert not (repository / "written").exists()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGQUIT])
@pytest.mark.parametrize("tool", ["Bash", "Write"])
async def test_a_task_that_waits_for_an_answer_has_done_nothing_and_runs_again(
    agents: Agents, repository: Path, tool: str, how: signal.Signals
) -> None:
    """The daemon dies, or stops, while somebody is asked; what was asked ends with the attempt."""
    written = repository / "written"
    given = {"Bash": {"command": "touch written"}, "Write": {"file_path": str(written), "content": ""}}[tool]
    daemon = await agents()
    task_id = await submit(daemon, f"{call(tool, **given)} [[tokens=2]]", cwd=str(repository))
    (question,) = await asked(daemon, task_id)
    assert await daemon.stop(how) in (0, -how)
    again = await agents()
    second = await waits(again)
    assert (await answer(again, task_id, question["approval"], True))["code"] == "not_found"
    await answer(again, task_id, second, True)
    task, events = await ended(again, task_id)
    assert (task["state"], task["attempt"]) == ("succeeded", 2), (task, events)
    assert written.exists()
    assert calls_in_audit(again, task_id) == [tool, tool]


async def test_a_task_that_waits_runs_again_as_often_as_others_do(agents: Agents, repository: Path) -> None:
    task_id = None
    for attempt in (1, 2):
        daemon = await agents({"queue.max_attempts": 2})
        task_id = task_id or await submit(daemon, WRITE, cwd=str(repository))
        await waits(daemon)
        assert (await daemon.control(f"tasks/{task_id}"))["attempt"] == attempt
        await daemon.stop(signal.SIGKILL)
    task, _ = await ended(await agents({"queue.max_attempts": 2}), str(task_id))
    assert (task["state"], task["error"]["code"], task["attempt"]) == ("failed", "interrupted", 2)
    assert not (repository / "written").exists()


async def test_a_call_that_was_allowed_never_runs_twice_though_the_daemon_is_killed(
    agents: Agents, repository: Path
) -> None:
    """Right after the effect, and the model has not heard of it yet."""
    daemon = await agents()
    prompt = call("Bash", command="echo ran >> effects; sleep 600")
    task_id = await submit(daemon, prompt, cwd=str(repository))
    (question,) = await asked(daemon, task_id)
    await answer(daemon, task_id, question["approval"], True)
    effects = repository / "effects"
    async with asyncio.timeout(PATIENCE_S):
        while not (effects.exists() and effects.read_text()):  # the shell opens it before it writes
            await asyncio.sleep(0.02)
    await daemon.stop(signal.SIGKILL)
    task, _ = await ended(await agents(), task_id)
    assert (task["state"], task["error"]["code"], task["attempt"]) == ("failed", "interrupted", 1), task
    assert effects.read_text() == "ran\n"


async def test_a_call_that_was_denied_leaves_nothing_that_could_not_be_done_again(
    workshop: DaemonProcess, repository: Path
) -> None:
    task_id = await submit(workshop, WRITE, cwd=str(repository))
    (question,) = await asked(workshop, task_id)
    await answer(workshop, task_id, question["approval"], False)
    assert (await ended(workshop, task_id))[0]["state"] == "succeeded"
    with closing(sqlite3.connect(workshop.home / ".claude-daemon" / "daemon.db")) as db:
        assert db.execute("SELECT effects FROM tasks WHERE id = ?", (task_id,)).fetchall() == [("none",)]
    assert calls_in_audit(workshop, task_id) == ["Bash"]


@pytest.mark.parametrize("tool", ["Write", "Edit"])
async def test_what_would_change_in_a_file_is_told_with_the_question(
    workshop: DaemonProcess, repository: Path, tool: str
) -> None:
    hello = repository / "hello.txt"
    given = {
        "Write": {"file_path": str(hello), "content": "hello\nworld\n"},
        "Edit": {"file_path": str(hello), "old_string": "hello\n", "new_string": "hello\nworld\n"},
    }[tool]
    read = call("Read", file_path=str(hello))
    prompt = f"[[one-by-one]] {read} {call(tool, **given)} [[tokens=2]]"
    task_id = await submit(workshop, prompt, cwd=str(repository))
    (question,) = await asked(workshop, task_id)
    assert question["diff"] == "--- a/hello.txt\n+++ b/hello.txt\n@@ -1 +1,2 @@\n hello\n+world\n"
    assert (await workshop.control("approvals"))["data"][0]["diff"] == question["diff"]
    await answer(workshop, task_id, question["approval"], True)
    task, events = await ended(workshop, task_id)
    assert task["result"]["diff"] == question["diff"], (task, events)
    assert hello.read_text() == "hello\nworld\n"


async def test_a_subagents_call_is_asked_for_like_the_tasks_own(workshop: DaemonProcess, repository: Path) -> None:
    helper = {"helper": {"description": "Helps.", "prompt": "You are the helper."}}
    inner = f"{call('Write', file_path=str(repository / 'made'), content='x')} [[tokens=2]]"
    prompt = f"{call('Agent', description='d', prompt=inner, subagent_type='helper')} [[tokens=2]]"
    task_id = await submit(workshop, prompt, cwd=str(repository), agents=helper)
    (question,) = await asked(workshop, task_id)
    await answer(workshop, task_id, question["approval"], True)
    task, events = await ended(workshop, task_id)
    assert task["state"] == "succeeded", (task, events)
    kinds = [event["type"] for event in events]
    (use,) = [event["data"] for event in events[: kinds.index("approval.requested")] if "parent" in event["data"]]
    assert (use["id"], use["name"]) == (question["tool_use_id"], "Write")
    assert (repository / "made").read_text() == "x"
    assert task["result"]["files"] == [str(repository / "made")]


async def test_the_next_message_of_its_session_takes_no_question_back(
    workshop: DaemonProcess, repository: Path
) -> None:
    first = await submit(workshop, WRITE, cwd=str(repository), session={})
    (question,) = await asked(workshop, first)
    session = {"id": (await workshop.control(f"tasks/{first}"))["session_id"]}
    second = await submit(workshop, "[[history]] and then?", session=session)
    other, _ = await ended(workshop, await submit(workshop, "somebody else's", session={}))  # all that could begin has
    assert other["state"] == "succeeded"
    assert (await workshop.control(f"tasks/{second}"))["state"] == "queued"
    assert [one["approval"] for one in (await workshop.control("approvals"))["data"]] == [question["approval"]]
    assert (await answer(workshop, first, question["approval"], True))["allow"]
    tasks = [(await ended(workshop, task_id))[0] for task_id in (first, second)]
    assert [task["state"] for task in tasks] == ["succeeded", "succeeded"], tasks
    assert (repository / "written").exists()
    assert "and then?" in tasks[1]["result"]["text"]


async def test_what_is_denied_by_a_rule_is_not_asked_for(workshop: DaemonProcess, repository: Path) -> None:
    tools = {"approval": "ask", "deny": ["Bash(touch written)", "Write"]}
    prompt = f"{call('Bash', command='touch written')} [[tokens=2]]"
    task, events = await ended(workshop, await submit(workshop, prompt, cwd=str(repository), tools=tools))
    assert (task["state"], told(events, "approval.requested")) == ("succeeded", []), events
    assert [result["is_error"] for result in told(events, "tool.result")] == [True]
    assert not (repository / "written").exists()


@pytest.mark.parametrize("way", ["http", "websocket"])
async def test_only_a_key_with_the_scope_answers_and_only_for_its_own(
    workshop: DaemonProcess,
    repository: Path,
    way: str,
) -> None:
    full, other = [await create(workshop, f"{name}-{way}", role="full") for name in ("full", "other")]
    standard = await create(workshop, f"standard-{way}")
    body = {"prompt": WRITE, "cwd": str(repository), **ASKING}

    async def submitted(session: Any) -> tuple[str, str]:
        async with session.post("/v1/tasks", json=body) as response:
            task_id = str((await response.json())["id"])
        while not (waiting := (await workshop.control("approvals"))["data"]):
            await asyncio.sleep(0.02)
        return task_id, waiting[0]["approval"]

    async def answered(session: Any, task_id: str, approval: str) -> str:
        if way == "http":
            path = f"/v1/tasks/{task_id}/approvals/{approval}"
            async with session.post(path, json={"allow": True}) as response:
                return str((await response.json()).get("code", "done"))
        async with session.ws_connect("/v1/stream", protocols=["claude-daemon.v1"]) as socket:
            await socket.send_json({"op": "approve", "task": task_id, "approval": approval, "allow": True})
            said = await socket.receive_json()
            return "done" if said["op"] == "ack" else str(said["error"]["code"])

    async with (
        asyncio.timeout(PATIENCE_S),
        caller(workshop, full["key"]) as mine,
        caller(workshop, other["key"]) as theirs,
        caller(workshop, standard["key"]) as without,
    ):
        task_id, approval = await submitted(without)
        assert await answered(without, task_id, approval) == "forbidden"
        assert await answered(theirs, task_id, approval) == "not_found"
        await answer(workshop, task_id, approval, False)
        while (await workshop.control("approvals"))["data"]:
            await asyncio.sleep(0.02)
        task_id, approval = await submitted(mine)
        assert await answered(theirs, task_id, approval) == "not_found"
        assert await answered(mine, task_id, approval) == "done"
        async with mine.get(f"/v1/tasks/{task_id}/events") as response:
            assert b"task.succeeded" in await response.read()
    assert (repository / "written").exists()


Terminal = Callable[[str], Awaitable[str]]


@pytest.mark.parametrize(("key", "written"), [("y", True), ("n", False)])
async def test_claudectl_asks_on_a_terminal(
    workshop: DaemonProcess,
    repository: Path,
    key: str,
    written: bool,
) -> None:
    ours, theirs = pty.openpty()
    argv = [str(BIN / "claudectl"), "run", WRITE, "--approval", "ask", "--cwd", str(repository)]
    env = {"HOME": str(workshop.home), "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "TERM": "dumb"}
    process = subprocess.Popen(argv, env=env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen = b""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while b"Allow this call?" not in seen:
                seen += await asyncio.to_thread(os.read, ours, 4096)
            os.write(ours, f"{key}\n".encode())
            while process.poll() is None:
                try:
                    seen += await asyncio.to_thread(os.read, ours, 4096)
                except OSError:  # the other end is closed
                    process.wait(10)
    finally:
        process.kill()
        os.close(ours)
    assert process.returncode == 0, seen.decode()
    assert b"may it run Bash: touch written; echo done" in seen
    assert (repository / "written").exists() is written
