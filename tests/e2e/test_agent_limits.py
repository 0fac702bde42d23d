"""What ends an agent, and what holds while it runs: limits, rules, crashes, and who its tasks belong to."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import orjson
import pytest

from claude_daemon.offline import OfflineModel
from tests.e2e.agents import Agents, call, ended, run, told
from tests.e2e.test_agent_confinement import _POLL_S, PATIENCE_S, _cli_of, ended_by
from tests.e2e.test_engine_requests import asked_with
from tests.support import DaemonProcess, sse

pytestmark = pytest.mark.engine

PRICES = '[prices."sonnet"]\ninput = 3000\noutput = 15000\ncache_write = 3000\ncache_read = 3000\n'
"""A thousand times what a model costs: one call is some dollars."""
BASH = {"allow": ["Bash"]}
ONCE = "echo ran >> effects"


async def appears(path: Path) -> None:
    """Waits for a file that a tool makes."""
    async with asyncio.timeout(PATIENCE_S):
        while not path.exists():
            await asyncio.sleep(_POLL_S)


async def submitted(daemon: DaemonProcess, prompt: str, **fields: Any) -> str:
    task = await daemon.control("tasks?detach=true", "POST", {"prompt": prompt, **fields})
    assert "id" in task, task
    return str(task["id"])


async def killed(daemon: DaemonProcess) -> None:
    """SIGKILL, and started again where it was."""
    assert daemon.process is not None
    daemon.process.kill()
    await daemon.ended()
    await daemon.start()


def calls(model: OfflineModel, word: str) -> int:
    """Model calls of the task whose prompt has this word."""
    return len(asked_with(model, word))


# once, whatever happens


async def test_a_tool_with_effects_never_runs_twice_though_the_daemon_is_killed(
    agents: Agents,
    repository: Path,
    model: OfflineModel,
) -> None:
    """Right after the effect, and the model has not heard of it yet."""
    daemon = await agents()
    prompt = f"append-once {call('Bash', command=f'{ONCE}; touch begun; sleep 600')}"
    task_id = await submitted(daemon, prompt, tools=BASH, cwd=str(repository))
    await appears(repository / "begun")
    asked = calls(model, "append-once")
    await killed(daemon)
    task, events = await ended(daemon, task_id)
    assert (task["state"], task["error"]["code"], task["attempt"]) == ("failed", "interrupted", 1), task
    assert "not run a second time" in task["error"]["message"]
    assert len(told(events, "tool.use")) == 1
    assert (await run(daemon, "[[tokens=1]]", tools=BASH, cwd=str(repository)))[0]["state"] == "succeeded"
    assert (repository / "effects").read_text() == "ran\n"
    assert calls(model, "append-once") == asked


async def test_a_task_that_has_only_read_runs_again_when_the_daemon_is_killed(
    agents: Agents,
    repository: Path,
    model: OfflineModel,
) -> None:
    daemon = await agents()
    paths = {
        "Read": {"file_path": str(repository / "hello.txt")},
        "Grep": {"pattern": "hel"},
        "Glob": {"pattern": "*.txt"},
    }
    tools = " ".join(call(tool, **given) for tool, given in paths.items())
    prompt = f"only-read {tools} [[tokens=60]] [[pace=50ms]]"
    task_id = await submitted(daemon, prompt, tools={"allow": list(paths)}, cwd=str(repository))
    async with asyncio.timeout(PATIENCE_S):
        await model.wait_until(lambda m: calls(m, "only-read") == 2)  # the tools have run
    await killed(daemon)
    task, events = await ended(daemon, task_id)
    assert (task["state"], task["attempt"]) == ("succeeded", 2), task
    assert len(told(events, "text.reset")) == 1
    again = [event["type"] for event in events].index("text.reset")  # what came before may have been lost with the kill
    results = told(events[again:], "tool.result")
    assert [result["is_error"] for result in results] == [False] * 3, events


async def test_claude_code_killed_in_mid_tool_fails_the_task_and_the_next_one_runs(
    agents: Agents,
    repository: Path,
) -> None:
    daemon = await agents()
    prompt = call("Bash", command=f"{ONCE}; touch begun; sleep 600")
    task_id = await submitted(daemon, prompt, tools=BASH, cwd=str(repository))
    await appears(repository / "begun")
    os.kill(_cli_of(daemon.home), signal.SIGKILL)
    task, _ = await ended(daemon, task_id)
    assert (task["state"], task["error"]["code"], task["attempt"]) == ("failed", "engine_crashed", 1), task
    assert (await run(daemon, "[[tokens=1]]", tools=BASH, cwd=str(repository)))[0]["state"] == "succeeded"
    assert (repository / "effects").read_text() == "ran\n"
    async with asyncio.timeout(PATIENCE_S):  # a place is free once its process is gone
        while (await daemon.control("status"))["agents"]["running"]:
            await asyncio.sleep(_POLL_S)


async def test_a_cancelled_task_ends_in_the_middle_of_a_tool(workshop: DaemonProcess, repository: Path) -> None:
    prompt = call("Bash", command="touch begun; sleep 600")
    task_id = await submitted(workshop, prompt, tools=BASH, cwd=str(repository))
    await appears(repository / "begun")
    await workshop.control(f"tasks/{task_id}/cancel", "POST", {})
    task, _ = await ended(workshop, task_id)
    assert (task["state"], task["usage"]["model_calls"]) == ("cancelled", 1), task
    async with asyncio.timeout(PATIENCE_S):
        while (await workshop.control("status"))["agents"]["running"]:
            await asyncio.sleep(_POLL_S)


# limits


async def test_no_model_is_called_once_the_cost_is_spent(
    agents: Agents,
    repository: Path,
    model: OfflineModel,
) -> None:
    daemon = await agents()  # at the list price
    prompt = f"spend-it {call('Bash', command=ONCE)} [[repeat=5]] [[tokens=1]]"
    task, _ = await run(daemon, prompt, tools=BASH, cwd=str(repository), max_cost_usd=0.00001)
    assert (task["state"], task["error"]["code"]) == ("failed", "max_cost"), task
    assert (calls(model, "spend-it"), task["usage"]["model_calls"]) == (1, 1)
    assert task["cost_usd"] > 0.00001
    task, _ = await run(
        daemon, prompt.replace("spend-it", "rich-one"), tools=BASH, cwd=str(repository), max_cost_usd=9999
    )
    assert (task["state"], calls(model, "rich-one")) == ("succeeded", 6), task


async def test_an_agent_has_as_many_turns_as_it_was_given(
    workshop: DaemonProcess,
    repository: Path,
    model: OfflineModel,
) -> None:
    prompt = f"turn-around {call('Bash', command=ONCE)} [[repeat=9]] [[tokens=1]]"
    task, _ = await run(workshop, prompt, tools=BASH, cwd=str(repository), max_turns=3)
    assert (task["state"], task["error"]["code"]) == ("failed", "max_turns"), task
    assert calls(model, "turn-around") <= 4  # the one that begins meanwhile is cut
    assert (repository / "effects").read_text() == "ran\n" * 3


async def test_a_task_ends_at_its_timeout_though_a_tool_is_at_work(workshop: DaemonProcess, repository: Path) -> None:
    prompt = call("Bash", command=f"{ONCE}; sleep 600")
    task, _ = await run(workshop, prompt, tools=BASH, cwd=str(repository), timeout_s=8)
    assert (task["state"], task["error"]["code"], task["attempt"]) == ("failed", "deadline", 1), task
    assert task["finished_at"] - task["created_at"] < 8 + 5
    assert (repository / "effects").read_text() == "ran\n"


DEAR = """
import json, os, sys, urllib.request
base, key = os.environ["ANTHROPIC_BASE_URL"], os.environ["ANTHROPIC_API_KEY"]
body = {"model": sys.argv[1], "max_tokens": 9, "messages": [{"role": "user", "content": "from a command"}]}
asked = urllib.request.Request(base + "/v1/messages", json.dumps(body).encode(), {"x-api-key": key})
asked.add_header("content-type", "application/json")
print("answered", json.load(urllib.request.urlopen(asked))["model"])
"""
OPUS = PRICES.replace("sonnet", "opus").replace("15000", "90000")


@pytest.mark.parametrize(("asked", "dear"), [("claude-opus-5-5", True), ("claude-sonnet-5-5", False)])
async def test_a_command_gets_no_answer_of_a_model_that_is_dearer_than_the_tasks(
    agents: Agents, repository: Path, asked: str, dear: bool
) -> None:
    """It has the worker's token, by which it could ask the broker for anything."""
    daemon = await agents(toml=PRICES + OPUS)
    (repository / "ask.py").write_text(DEAR)
    prompt = f"{call('Bash', command=f'python3 ask.py {asked}')} [[tokens=1]]"
    task, events = await run(daemon, prompt, tools={"allow": ["Bash"]}, cwd=str(repository))
    said = "".join(result["content"] for result in told(events, "tool.result"))
    assert (f"answered {asked}" in said) is not dear, events
    if dear:
        assert (task["state"], task["error"]["code"]) == ("failed", "forbidden"), task
        assert f"{asked}, which is dearer" in task["error"]["message"]
    else:
        assert task["state"] == "succeeded", task


async def test_a_command_gets_no_answer_of_a_model_that_the_role_of_its_key_may_not_use(
    agents: Agents, repository: Path, model: OfflineModel
) -> None:
    """It costs no more than the task's own."""
    role = '[roles.narrow]\ntools = ["Bash"]\nmodels = ["sonnet"]\n'
    daemon = await agents(toml=role)
    key = (await daemon.control("keys", "POST", {"name": "narrow", "role": "narrow"}))["key"]
    (repository / "ask.py").write_text(DEAR)
    for asked, state, code in (("claude-haiku-5-5", "failed", "forbidden"), ("claude-sonnet-5-5", "succeeded", None)):
        prompt = f"narrow-{state} {call('Bash', command=f'python3 ask.py {asked}')} [[tokens=1]]"
        body = {"prompt": prompt, "tools": {"allow": ["Bash(python3 *)"]}, "cwd": str(repository)}
        headers = {"Authorization": f"Bearer {key}"}
        async with daemon.http.post("/v1/tasks", json=body, headers=headers) as response:
            assert response.status == 202, await response.text()
            task = (await response.json())["id"]
        async with daemon.http.get(f"/v1/tasks/{task}/events", headers=headers) as response:
            events = [data for _, data in await sse(response)]
        done = await daemon.control(f"tasks/{task}")
        said = "".join(result["content"] for result in told(events, "tool.result"))
        assert (f"answered {asked}" in said) is (code is None), events
        assert (done["state"], (done["error"] or {}).get("code")) == (state, code), done
        if code is not None:
            assert f"{asked}, which the role of its key may not use" in done["error"]["message"]
    asked_for = {r.body["model"] for r in model.requests if r.body and "narrow-succeeded" in str(r.body["messages"])}
    assert asked_for == {"claude-sonnet-5-5"}  # Claude Code itself asks for no other


# rules


async def test_a_deny_rule_wins_over_auto_and_what_no_rule_allows_is_denied(
    agents: Agents,
    repository: Path,
) -> None:
    daemon = await agents()
    touch = call("Bash", command="touch denied")
    task, events = await run(
        daemon,
        f"{touch} {call('Bash', command='touch allowed')} [[tokens=1]]",
        tools={"approval": "auto", "deny": ["Bash(touch denied)"]},
        cwd=str(repository),
    )
    assert [result["is_error"] for result in told(events, "tool.result")] == [True, False], events
    (denied,) = told(events, "tool.denied")
    assert (denied["name"], denied["id"]) == ("Bash", told(events, "tool.use")[0]["id"])
    assert ((repository / "denied").exists(), (repository / "allowed").exists()) == (False, True)
    records = (await daemon.control("audit?act=tool"))["data"]
    assert [(record["act"], record["task_id"]) for record in records if record["act"] == "tool.denied"] == [
        ("tool.denied", task["id"])
    ]
    assert (records[-1]["details"]["tool"], records[-1]["trust_domain"]) == ("Bash", "default")
    task, events = await run(
        daemon, f"{touch} [[tokens=1]]", tools={"allow": ["Read", "Bash(echo *)"]}, cwd=str(repository)
    )
    assert (task["state"], len(told(events, "tool.denied"))) == ("succeeded", 1), events
    task, events = await run(daemon, f"{touch} [[tokens=1]]", tools={"allow": ["Read"]}, cwd=str(repository))
    assert all(result["is_error"] for result in told(events, "tool.result"))
    assert not (repository / "denied").exists()


async def test_files_that_changed_are_told_and_come_with_the_result(workshop: DaemonProcess, repository: Path) -> None:
    new, old = repository / "new.txt", repository / "hello.txt"
    edit = call("Edit", file_path=str(old), old_string="hello", new_string="bye")
    steps = f"{call('Read', file_path=str(old))} {edit} {call('Write', file_path=str(new), content='x')}"
    tools = {"allow": ["Read", "Edit", "Write", "Bash"]}
    prompt = f"[[one-by-one]] {steps} {call('Bash', command='touch unknown')} [[tokens=1]]"
    task, events = await run(workshop, prompt, tools=tools, cwd=str(repository))
    assert task["state"] == "succeeded", (task, events)
    assert [event["path"] for event in told(events, "file.changed")] == [str(old), str(new)]
    assert task["result"]["files"] == [str(old), str(new)]


# answers


async def test_an_agent_answers_in_the_asked_form(workshop: DaemonProcess, repository: Path) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    read = call("Read", file_path=str(repository / "hello.txt"))
    wish = {"tools": {"allow": ["Read"]}, "cwd": str(repository), "schema": schema}
    task, events = await run(workshop, read, **wish)
    assert task["state"] == "succeeded", (task, events)
    result = task["result"]
    assert (type(result["structured"]["n"]), result["stop_reason"]) == (int, "end_turn")
    task, _ = await run(workshop, f"{read} [[no-structured]]", **wish)
    assert (task["state"], task["error"]["code"]) == ("failed", "schema_mismatch"), task


async def test_a_stream_that_is_cut_takes_back_what_it_said(workshop: DaemonProcess, repository: Path) -> None:
    bash = call("Bash", command=ONCE)
    task, events = await run(
        workshop, f"{bash} [[tokens=9]] [[cut=3]] [[times=1]] [[round=2]]", tools=BASH, cwd=str(repository)
    )
    assert task["state"] == "succeeded", (task, events)
    kinds = [event["type"] for event in events]
    assert "text.reset" in kinds
    after = events[kinds.index("text.reset") :]
    assert "".join(event["data"]["text"] for event in after if event["type"] == "text.delta") == task["result"]["text"]
    assert (repository / "effects").read_text() == "ran\n"


async def test_an_overloaded_upstream_is_asked_again_and_the_tool_is_not(
    workshop: DaemonProcess,
    repository: Path,
) -> None:
    bash = call("Bash", command=ONCE)
    prompt = f"{bash} [[tokens=2]] [[error=529]] [[times=1]] [[round=2]]"
    task, events = await run(workshop, prompt, tools=BASH, cwd=str(repository))
    assert task["state"] == "succeeded", (task, events)
    assert len(told(events, "retry")) == 1
    assert (repository / "effects").read_text() == "ran\n"


# whose it is

LEAVE = (
    "echo {marker} | tee ~/left $TMPDIR/left left > /dev/null; "
    "echo {marker} > $CLAUDE_CONFIG_DIR/left; echo $CLAUDE_DAEMON_WORKER $CLAUDE_CONFIG_DIR $HOME $PWD"
)
FIND = "grep -rlsF {marker} ~ $TMPDIR $CLAUDE_CONFIG_DIR . {home}; echo $CLAUDE_DAEMON_WORKER"


@pytest.mark.parametrize("sandbox", ["bwrap", "none"])
async def test_keys_of_different_domains_share_no_process_and_no_directory(
    agents: Agents,
    model: OfflineModel,
    sandbox: str,
) -> None:
    """Neither one after the other nor at once; one's marker is not even in what the model is told for the other."""
    daemon = await agents({"engine.sandbox": sandbox})
    headers = {}
    for name in ("ann", "bob"):
        made = await daemon.control("keys", "POST", {"name": name, "role": "standard"})
        headers[name] = {"Authorization": f"Bearer {made['key']}"}
    markers = {name: f"marker-of-{name}-{sandbox}" for name in headers}
    other = {"ann": "bob", "bob": "ann"}

    async def asked(name: str, command: str, words: str) -> list[str]:
        """What the command said."""
        prompt = f"{words} {call('Bash', command=command)} [[tokens=1]]"
        async with daemon.http.post(
            "/v1/tasks", json={"prompt": prompt, "tools": BASH}, headers=headers[name]
        ) as response:
            task_id = (await response.json())["id"]
        task, events = await ended_by(daemon, task_id, headers[name])
        assert task["state"] == "succeeded", (task, events)
        (result,) = told(events, "tool.result")
        return str(result["content"]).split()

    async def chat(name: str, words: str) -> None:
        body = {"model": "sonnet", "max_tokens": 9, "messages": [{"role": "user", "content": words}]}
        lane = {"Claude-Daemon-Lane": "text", **headers[name]}
        async with daemon.http.post("/v1/messages", json=body, headers=lane) as response:
            assert response.status == 200, await response.text()

    first = len(model.requests)
    await asyncio.gather(*(chat(name, markers[name]) for name in headers))
    left = await asyncio.gather(*(asked(name, LEAVE.format(marker=markers[name]), markers[name]) for name in headers))
    # what is looked for is put together only there, or it would be found in the prompt
    halves = {name: f"'marker-of-'{other[name]}" for name in headers}
    found = await asyncio.gather(
        *(asked(name, FIND.format(marker=halves[name], home=daemon.home), f"search-{name}") for name in headers)
    )
    workers = [said[0] for said in left] + [said[-1] for said in found]
    assert len(set(workers)) == 4, "two tasks had one process"
    first_of, second_of = (set(said[1:]) for said in left)
    assert (len(first_of), first_of & second_of) == (3, set()), left
    if sandbox == "bwrap":
        assert [said[:-1] for said in found] == [[], []]
    for request in model.requests[first:]:
        told_model = orjson.dumps(request.body).decode()
        assert sum(marker in told_model for marker in markers.values()) <= 1
    engine = daemon.home / ".claude-daemon" / "engine"
    async with asyncio.timeout(PATIENCE_S):
        while (await daemon.control("status"))["agents"]["running"]:  # what they have left is being removed
            await asyncio.sleep(0.02)
    # os.walk does not mind what goes while it looks
    assert not [top for top, _, names in os.walk(engine) if "left" in names]
