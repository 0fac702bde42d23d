"""Agents end to end: the real CLI with its tools, in the sandbox, on the offline model."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest

from claude_daemon.core.agent import TOOLS
from claude_daemon.offline import OfflineModel
from tests.e2e.agents import PATIENCE_S, Agents, call, run, told
from tests.e2e.test_engine_requests import asked_with
from tests.ordinary import give
from tests.support import DaemonProcess

pytestmark = pytest.mark.engine


async def test_an_agent_runs_a_command_where_it_was_told_to(workshop: DaemonProcess, repository: Path) -> None:
    prompt = f"{call('Bash', command='cat hello.txt > copy.txt && cat copy.txt')} [[tokens=3]]"
    task, events = await run(workshop, prompt, tools={"allow": ["Bash"]}, cwd=str(repository))
    assert task["state"] == "succeeded", (task, events)
    assert (task["lane"], task["usage"]["model_calls"]) == ("agent", 2)
    (use,) = told(events, "tool.use")
    assert use["name"] == "Bash"
    (result,) = told(events, "tool.result")
    assert (result["is_error"], result["content"].strip()) == (False, "hello"), result
    assert (repository / "copy.txt").read_text() == "hello\n"


async def test_every_tool_that_can_be_allowed_is_there(
    workshop: DaemonProcess, repository: Path, model: OfflineModel
) -> None:
    prompt = f"each-tool {call('TodoWrite', todos=[{'content': 'a', 'status': 'pending', 'activeForm': 'b'}])}"
    task, events = await run(workshop, prompt, tools={"allow": list(TOOLS)}, cwd=str(repository))
    assert task["state"] == "succeeded", (task, events)
    assert {tool["name"] for tool in asked_with(model, "each-tool")[0]["tools"]} == set(TOOLS)
    assert [result["is_error"] for result in told(events, "tool.result")] == [False]


async def test_a_command_that_fails_is_told_as_an_error(workshop: DaemonProcess, repository: Path) -> None:
    task, events = await run(workshop, call("Bash", command="cat nothing; exit 3"), tools={"allow": ["Bash"]})
    assert task["state"] == "succeeded", (task, events)
    (result,) = told(events, "tool.result")
    assert result["is_error"]
    assert "nothing" in result["content"]
    async with asyncio.timeout(PATIENCE_S):  # its place is free once its process is gone
        while (await workshop.control("status"))["agents"]["running"] != 0:
            await asyncio.sleep(0.02)


async def start_of(daemon: DaemonProcess, repository: Path, prompt: str = "[[text=yes]]", **fields: Any) -> str:
    task, events = await run(daemon, prompt, tools={"allow": ["Bash"]}, cwd=str(repository), **fields)
    assert task["state"] == "succeeded", task
    (started,) = told(events, "task.started")
    return str(started["start"])


async def spares(daemon: DaemonProcess, number: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await daemon.control("status"))["agents"]["spares"] != number:
            await asyncio.sleep(0.02)


async def test_a_shape_that_is_seen_often_finds_a_spare(agents: Agents, repository: Path) -> None:
    daemon = await agents({"engine.spares": 1})
    assert [await start_of(daemon, repository) for _ in range(2)] == ["cold", "cold"]
    await spares(daemon, 1)
    prompt = f"{call('Bash', command='cat hello.txt')} [[tokens=1]]"
    assert await start_of(daemon, repository, prompt, model="haiku", max_turns=5) == "spare"
    await spares(daemon, 1)
    assert await start_of(daemon, repository.parent) == "cold"  # another shape


async def test_a_spare_is_not_bound_to_a_directory_that_was_replaced(agents: Agents, repository: Path) -> None:
    daemon = await agents({"engine.spares": 1})
    for _ in range(2):
        await start_of(daemon, repository)
    await spares(daemon, 1)
    repository.rename(repository.with_name("old"))
    repository.mkdir()
    (repository / "hello.txt").write_text("new\n")
    give(repository)
    prompt = f"{call('Bash', command='cp hello.txt copy.txt')} [[tokens=1]]"
    assert await start_of(daemon, repository, prompt) == "cold"
    assert (repository / "copy.txt").read_text() == "new\n"


DEEP = "import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')"


async def test_what_an_agent_leaves_behind_is_removed_and_ends_no_daemon(agents: Agents, tmp_path: Path) -> None:
    """A directory that nobody may enter, and one deeper than a program recurses: where it worked, and beside it."""
    daemon = await agents({"engine.workers": 1})
    leave = f'mkdir -p shut/in; touch shut/in/file; chmod 0 shut/in shut; python3 -c "{DEEP}"'
    places = ("$PWD", "$CLAUDE_CONFIG_DIR")
    command = "; ".join(f"(cd {place} && {leave})" for place in places)
    for _ in range(2):
        task, events = await run(daemon, f"{call('Bash', command=command)} [[tokens=1]]", tools={"allow": ["Bash"]})
        assert task["state"] == "succeeded", (task, events)
        (result,) = told(events, "tool.result")
        assert not result["is_error"], result
    assert await daemon.stop() == 0
    for part in ("work", "homes"):
        assert list((tmp_path / "home" / ".claude-daemon" / "engine" / part).iterdir()) == []


async def test_without_hooks_a_task_counts_as_done_before_it_begins(agents: Agents, repository: Path) -> None:
    daemon = await agents({"engine.without": '["hooks"]'})
    prompt = f"{call('Bash', command='touch written')} [[tokens=1]]"
    task, _ = await run(daemon, prompt, tools={"approval": "auto"}, cwd=str(repository))
    assert task["state"] == "succeeded", task
    assert (repository / "written").exists()
    with closing(sqlite3.connect(daemon.home / ".claude-daemon" / "daemon.db")) as store:
        (effects,) = store.execute("SELECT effects FROM attempts WHERE task_id = ?", (task["id"],)).fetchone()
        audit = "SELECT details FROM audit WHERE act = 'tool.called' AND task_id = ? ORDER BY n"
        called = [orjson.loads(row[0])["tool"] for row in store.execute(audit, (task["id"],))]
    assert (effects, called) == ("possible", ["*", "Bash"])


async def test_an_answer_in_the_asked_form_is_no_turn_too_many(workshop: DaemonProcess, repository: Path) -> None:
    """Claude Code's own tool for it is a call like any other, and the last."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    task, events = await run(workshop, "A number.", tools={"allow": ["Read"]}, schema=schema, max_turns=1)
    assert task["state"] == "succeeded", (task, events)
    assert isinstance(task["result"]["structured"]["n"], int)
    assert task["usage"]["model_calls"] == 1


async def test_what_is_appended_stands_beside_claude_codes_own_prompt(
    workshop: DaemonProcess, repository: Path
) -> None:
    asked = {"tools": {"allow": ["Read"]}, "append_system": "APPENDED"}
    own, _ = await run(workshop, "[[system]] [[reply=echo]]", tools={"allow": ["Read"]})
    task, _ = await run(workshop, "[[system]] [[reply=echo]]", **asked)
    assert "APPENDED" in task["result"]["text"]
    assert len(task["result"]["text"]) > len(own["result"]["text"]) > 100


@pytest.mark.parametrize("where", ["big", "$CLAUDE_CONFIG_DIR/big"])
async def test_an_agent_that_fills_a_directory_that_we_made_is_ended(
    agents: Agents, repository: Path, where: str
) -> None:
    daemon = await agents({"agent.work_quota_mb": 8})
    fill = f"head -c 20000000 /dev/zero > {where}; sleep 600"
    cwd = {} if where == "big" else {"cwd": str(repository)}
    task, _ = await run(daemon, f"{call('Bash', command=fill, timeout=600000)}", tools={"allow": ["Bash"]}, **cwd)
    assert (task["state"], task["error"]["code"]) == ("failed", "disk_quota")
    assert "agent.work_quota_mb = 8" in task["error"]["message"]
