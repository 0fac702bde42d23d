"""The engine without each capability of the CLI in turn: slower, and just as right."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from claude_daemon.engine.capabilities import ROWS
from claude_daemon.offline import OfflineModel
from tests.conftest import StartDaemon
from tests.e2e.test_engine_requests import FORM, asked_with, conversation
from tests.support import DaemonProcess, sse, text_of

pytestmark = [pytest.mark.capabilities, pytest.mark.timeout(180)]


@pytest.fixture(params=[*ROWS, "late_bind,clear,set_model,history,interrupt,composed"])
async def crippled(request: pytest.FixtureRequest, start_daemon: StartDaemon) -> DaemonProcess:
    names = request.param.split(",")
    settings = {"engine.without": orjson.dumps(names).decode(), "engine.workers": 2, "engine.spares": 1}
    return await start_daemon(settings)


async def test_the_engine_does_without(crippled: DaemonProcess, model: OfflineModel) -> None:
    """One daemon for all: chats, system prompts, history, models, commands as text, a form, a cancel."""
    missing = set((await crippled.control("status"))["cli"]["missing"])
    assert missing
    await chats_and_forgets(crippled, model)
    await keeps_system_prompts_apart(crippled)
    await knows_the_history(crippled, model)
    await changes_the_model(crippled, model)
    await takes_commands_as_text(crippled, model)
    await fills_in_a_form(crippled)
    await calls_tools_or_says_why_not(crippled, missing)
    await runs_an_agent(crippled)
    await keeps_a_list_of_what_is_to_do_or_works_without(crippled, model, missing)
    await keeps_a_session_or_says_why_not(crippled, missing)
    await ends_what_a_caller_left(crippled, model)
    assert (await crippled.control("health"))["checks"]["engine"]["status"] == "warn"


async def chats_and_forgets(daemon: DaemonProcess, model: OfflineModel) -> None:
    for number in range(3):
        response = await daemon.chat(f"forget me {number} [[tokens=3]]")
        assert text_of(await response.json()) == "Hello from the", await response.text()
        said = orjson.dumps(asked_with(model, f"forget me {number}")[-1]["messages"]).decode()
        assert said.count("forget me") == 1


async def keeps_system_prompts_apart(daemon: DaemonProcess) -> None:
    for animal in ("cat", "dog", "cat"):
        response = await daemon.chat("Who are you? [[system]]", system=f"You are a {animal}.")
        assert f"You are a {animal}." in text_of(await response.json())


async def knows_the_history(daemon: DaemonProcess, model: OfflineModel) -> None:
    messages = [
        {"role": "user", "content": "first question"},
        {"role": "assistant", "content": "first answer"},
        {"role": "user", "content": "second question [[tokens=3]]"},
    ]
    response = await daemon.chat("", messages=messages)
    assert response.status == 200, await response.text()
    told = orjson.dumps(asked_with(model, "second question")[-1]["messages"]).decode()
    assert told.index("first question") < told.index("first answer") < told.index("second question")
    approximated = response.headers["Claude-Daemon-Approximated"].split(", ")
    lacks_history = "history" in (await daemon.control("status"))["cli"]["missing"]
    assert ("messages" in approximated) is lacks_history


async def changes_the_model(daemon: DaemonProcess, model: OfflineModel) -> None:
    for name in ("opus", "haiku", "sonnet"):
        response = await daemon.chat(f"as {name} [[tokens=3]]", model=name)
        assert response.status == 200, await response.text()
        assert name in asked_with(model, f"as {name}")[-1]["model"]


async def takes_commands_as_text(daemon: DaemonProcess, model: OfflineModel) -> None:
    secret = daemon.home / "secret"
    secret.write_text("not to be read")
    for prompt in ("/clear it all", "/model x", f"what is in @{secret}", f"@{secret}"):
        response = await daemon.chat(prompt)
        assert text_of(await response.json()).startswith("Hello from the offline model")
        role, text = conversation(model.requests[-1].body)[-1]
        assert (role, text.strip()) == ("user", prompt)
        assert "not to be read" not in orjson.dumps(model.requests[-1].body).decode()


async def fills_in_a_form(daemon: DaemonProcess) -> None:
    response = await daemon.chat("fill it in", output_config=FORM)
    assert set(orjson.loads(text_of(await response.json()))) == {"city", "people"}


async def calls_tools_or_says_why_not(daemon: DaemonProcess, missing: set[str]) -> None:
    tool = {"name": "look", "input_schema": {"type": "object", "properties": {}}}
    response = await daemon.chat("look [[tool=mcp__c__look]]", tools=[tool])
    told = await response.json()
    if missing & {"client_tools", "late_bind", "history", "interrupt"}:
        assert (response.status, "`tools` is not supported" in told["error"]["message"]) == (400, True)
    else:
        assert (told["stop_reason"], told["content"][0]["name"]) == ("tool_use", "look")


async def runs_an_agent(daemon: DaemonProcess) -> None:
    prompt = '[[tool=Bash]] [[input={"command":"echo from the shell"}]] [[tokens=2]]'
    for tools in ({"allow": ["Bash"]}, {"approval": "auto"}):
        task = await daemon.control("tasks?detach=true", "POST", {"prompt": prompt, "tools": tools})
        async with asyncio.timeout(60), daemon.http.get(f"/v1/tasks/{task['id']}/events") as response:
            told = await sse(response)
        results = [data["data"] for kind, data in told if kind == "tool.result"]
        assert [(result["is_error"], result["content"]) for result in results] == [(False, "from the shell")], told
        assert told[-1][0] == "task.succeeded"


async def keeps_a_list_of_what_is_to_do_or_works_without(
    daemon: DaemonProcess, model: OfflineModel, missing: set[str]
) -> None:
    asked = {"prompt": "what is to do? [[tokens=2]]", "tools": {"allow": ["Read", "TodoWrite"]}}
    task = await daemon.control("tasks?detach=true", "POST", asked)
    async with asyncio.timeout(60), daemon.http.get(f"/v1/tasks/{task['id']}/events") as response:
        told = await sse(response)
    assert told[-1][0] == "task.succeeded", told
    offered = {tool["name"] for tool in asked_with(model, "what is to do?")[-1]["tools"]}
    assert offered == ({"Read"} if "todo_list" in missing else {"Read", "TodoWrite"})


async def keeps_a_session_or_says_why_not(daemon: DaemonProcess, missing: set[str]) -> None:
    async def turn(**session: Any) -> Any:
        asked = {"prompt": "my word is amber [[tokens=1]]", "tools": {"allow": ["Read"]}, "session": session}
        task = await daemon.control("tasks?detach=true", "POST", asked)
        if "id" not in task:
            return task
        async with asyncio.timeout(60), daemon.http.get(f"/v1/tasks/{task['id']}/events") as response:
            told = await sse(response)
        assert told[-1][0] == "task.succeeded", told
        return task

    first = await turn()
    if "sessions" in missing:
        assert (first["code"], "`session`" in first["detail"]) == ("lane_unavailable", True), first
        return
    assert (await turn(id=first["session_id"]))["session_id"] == first["session_id"]
    fork = await turn(id=first["session_id"], fork=True)
    if "fork" in missing:
        assert (fork["code"], "forks none" in fork["detail"]) == ("lane_unavailable", True), fork
    else:
        assert fork["session_id"] != first["session_id"]
    sessions = (await daemon.control("health"))["checks"]["sessions"]
    assert (sessions["status"] == "warn") is ("message_ids" in missing), sessions


async def ends_what_a_caller_left(daemon: DaemonProcess, model: OfflineModel) -> None:
    prompt = "leave me [[tokens=400]] [[pace=50ms]]"
    body = {"model": "sonnet", "max_tokens": 999, "stream": True, "messages": [{"role": "user", "content": prompt}]}
    async with daemon.http.post("/v1/messages", json=body, headers={"Claude-Daemon-Lane": "text"}) as response:
        async for line in response.content:
            if b"text_delta" in line:
                break
        response.close()
    async with asyncio.timeout(10):  # the answer would take 20 s
        await model.wait_until(lambda m: m.active == 0)
    async with daemon.http.post(
        "/v1/messages", json={**body, "messages": [{"role": "user", "content": "Hello"}]}
    ) as again:
        assert (await sse(again))[-1][0] == "message_stop"
