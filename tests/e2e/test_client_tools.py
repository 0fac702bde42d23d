"""A client's own tools on the text lane: the official SDKs' loops through the real CLI."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import anthropic
import openai
import orjson
import pytest

from claude_daemon.offline import OfflineModel
from tests.conftest import StartDaemon
from tests.e2e.sdk import WEATHER_SCHEMA, anthropic_sdk, asked, blocks, openai_sdk, unique, user
from tests.support import DaemonProcess

pytestmark = pytest.mark.engine

UPSTREAM = "mcp__c__get_weather"
WEATHER: Any = {"name": "get_weather", "description": "The weather in a city.", "input_schema": WEATHER_SCHEMA}
FUNCTION: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather in a city.", "parameters": WEATHER_SCHEMA},
}
CITIES = [{"city": "San Francisco, California"}, {"city": "Reykjavík", "days": 3}]
CALL = f"[[tool={UPSTREAM}]]"
TWO_CALLS = " ".join(f"{CALL} [[input={orjson.dumps(city).decode()}]]" for city in CITIES)


def named(name: str, description: str = "") -> Any:
    return {"name": name, "description": description, "input_schema": {"type": "object", "properties": {}}}


def offered(body: Mapping[str, Any]) -> list[str]:
    return [tool["name"] for tool in body.get("tools") or ()]


def calls_of(model: OfflineModel, mark: str) -> int:
    """How often the upstream was asked on behalf of one prompt."""
    return sum(1 for r in model.requests if r.body and mark in orjson.dumps(r.body).decode())


async def test_a_loop_of_the_anthropic_sdk(daemon: DaemonProcess, model: OfflineModel) -> None:
    prompt = unique("weather please")
    messages = user(f"{prompt} {CALL}")
    async with anthropic_sdk(daemon, "text") as sdk:
        called = await sdk.messages.create(model="sonnet", max_tokens=100, messages=messages, tools=[WEATHER])
        (call,) = called.content
        assert call.type == "tool_use"
        assert (called.stop_reason, call.name, call.input) == ("tool_use", "get_weather", {"city": "xx"})
        assert called.usage.output_tokens > 0
        assert calls_of(model, prompt) == 1
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        messages += [{"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
        told = await sdk.messages.create(model="sonnet", max_tokens=100, messages=messages, tools=[WEATHER])
    assert told.content[0].type == "text"
    assert told.content[0].text == f"The tool {UPSTREAM} answered: “sunny”."
    assert told.stop_reason == "end_turn"
    assert calls_of(model, prompt) == 2
    sent = model.requests[-1].body
    assert [(block["id"], block["name"], block["input"]) for block in blocks(sent, "tool_use")] == [
        (call.id, UPSTREAM, {"city": "xx"})
    ]
    assert [(block["tool_use_id"], block["content"]) for block in blocks(sent, "tool_result")] == [(call.id, "sunny")]
    (tool,) = sent["tools"]
    assert (tool["name"], tool["description"], tool["input_schema"]) == (
        UPSTREAM,
        WEATHER["description"],
        WEATHER_SCHEMA,
    )


async def test_a_loop_of_the_openai_sdk_with_parallel_calls(daemon: DaemonProcess, model: OfflineModel) -> None:
    prompt = unique("weather in two places")
    messages = user(f"{prompt} {TWO_CALLS}")
    async with openai_sdk(daemon, "text") as sdk:
        called = await sdk.chat.completions.create(model="sonnet", messages=messages, tools=[FUNCTION])
        message = called.choices[0].message
        calls = [call for call in message.tool_calls or () if call.type == "function"]
        assert called.choices[0].finish_reason == "tool_calls"
        assert [(call.function.name, orjson.loads(call.function.arguments)) for call in calls] == [
            ("get_weather", city) for city in CITIES
        ]
        messages.append(message.model_dump(exclude_none=True))
        for number, call in enumerate(calls):
            messages.append({"role": "tool", "tool_call_id": call.id, "content": f"weather {number}"})
        told = await sdk.chat.completions.create(model="sonnet", messages=messages, tools=[FUNCTION])
    assert told.choices[0].message.content == (
        f"The tool {UPSTREAM} answered: “weather 0”. The tool {UPSTREAM} answered: “weather 1”."
    )
    assert told.choices[0].finish_reason == "stop"
    assert calls_of(model, prompt) == 2


async def test_parallel_calls_are_streamed_piece_by_piece(daemon: DaemonProcess) -> None:
    async with (
        anthropic_sdk(daemon, "text") as sdk,
        sdk.messages.stream(model="sonnet", max_tokens=200, messages=user(TWO_CALLS), tools=[WEATHER]) as stream,
    ):
        pieces = [event.partial_json async for event in stream if event.type == "input_json"]
        message = await stream.get_final_message()
    assert len(pieces) > 4
    assert [(b.name, b.input) for b in message.content if b.type == "tool_use"] == [("get_weather", c) for c in CITIES]
    assert message.stop_reason == "tool_use"
    async with (
        openai_sdk(daemon, "text") as theirs,
        theirs.chat.completions.stream(model="sonnet", messages=user(TWO_CALLS), tools=[FUNCTION]) as chunks,
    ):
        parts = [e.arguments_delta async for e in chunks if e.type == "tool_calls.function.arguments.delta"]
        final = await chunks.get_final_completion()
    assert len(parts) > 4
    calls = final.choices[0].message.tool_calls or []
    assert [orjson.loads(call.function.arguments) for call in calls] == CITIES
    assert final.choices[0].finish_reason == "tool_calls"


async def test_a_list_of_tools_is_never_another_requests(start_daemon: StartDaemon, model: OfflineModel) -> None:
    """One place only: whatever is warm, lent or new, the upstream sees the tools of the request and no other."""
    daemon = await start_daemon({"engine.workers": 1, "engine.spares": 0})
    async with anthropic_sdk(daemon, "text") as sdk:
        for number, tools in enumerate([["one"], [], ["two", "three"], ["one"], ["one"], []]):
            prompt = unique(f"list {number}")
            extra: dict[str, Any] = {"tools": [named(name) for name in tools]} if tools else {}
            await sdk.messages.create(model="sonnet", max_tokens=100, messages=user(prompt), system="Own.", **extra)
            assert offered(asked(model, prompt).body) == [f"mcp__c__{name}" for name in sorted(tools)]


async def test_the_same_tools_find_their_warm_process_under_another_prompt(
    start_daemon: StartDaemon, model: OfflineModel
) -> None:
    daemon = await start_daemon({"engine.workers": 1, "engine.spares": 0})
    async with anthropic_sdk(daemon, "text") as sdk:
        for system in ("First.", "Second.", "First."):
            prompt = unique("same tools")
            await sdk.messages.create(
                model="sonnet", max_tokens=100, messages=user(prompt), system=system, tools=[WEATHER]
            )
            sent = asked(model, prompt).body
            assert (sent["system"][-1]["text"], offered(sent)) == (system, [UPSTREAM])
    starts = (await daemon.control("status"))["starts"]
    assert (starts["warm"], starts["lent"]) == (1, 1)


async def test_a_loop_goes_on_in_another_process(start_daemon: StartDaemon, model: OfflineModel) -> None:
    daemon = await start_daemon({"engine.workers": 2, "engine.spares": 1})
    messages = user(f"{unique('moving on')} {CALL}")
    async with anthropic_sdk(daemon, "text") as sdk:
        called = await sdk.messages.create(model="sonnet", max_tokens=100, messages=messages, tools=[WEATHER])
        before = {worker["pid"] for worker in await daemon.workers()}
        await daemon.control("workers/recycle", "POST", {"rolling": False})
        async with asyncio.timeout(15):
            while before & {worker["pid"] for worker in await daemon.workers()}:
                await asyncio.sleep(0.02)
        call = called.content[0]
        assert call.type == "tool_use"
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain", "is_error": True}
        messages += [{"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
        told = await sdk.messages.create(model="sonnet", max_tokens=100, messages=messages, tools=[WEATHER])
    assert told.content[0].type == "text"
    assert told.content[0].text == f"The tool {UPSTREAM} failed: “rain”."


@pytest.mark.parametrize(
    ("choice", "upstream", "stop"),
    [
        ({"type": "auto"}, None, "end_turn"),
        ({"type": "any"}, {"type": "any"}, "tool_use"),
        ({"type": "none"}, {"type": "none"}, "end_turn"),
        ({"type": "tool", "name": "get_weather"}, {"type": "tool", "name": UPSTREAM}, "tool_use"),
        (
            {"type": "auto", "disable_parallel_tool_use": True},
            {"type": "auto", "disable_parallel_tool_use": True},
            "end_turn",
        ),
    ],
)
async def test_a_choice_of_tools_is_put_in_place_by_the_broker(
    daemon: DaemonProcess, model: OfflineModel, choice: Any, upstream: Any, stop: str
) -> None:
    prompt = unique("choose")
    async with anthropic_sdk(daemon, "text") as sdk:
        answer = await sdk.messages.create(
            model="sonnet", max_tokens=100, messages=user(prompt), tools=[WEATHER], tool_choice=choice
        )
    assert (asked(model, prompt).body.get("tool_choice"), answer.stop_reason) == (upstream, stop)


async def test_thinking_stays_in_front_of_the_calls_it_led_to(daemon: DaemonProcess, model: OfflineModel) -> None:
    messages = user(f"{unique('think first')} [[thinking]] {CALL}")
    options: Any = {"thinking": {"type": "enabled", "budget_tokens": 1024}, "tools": [WEATHER], "max_tokens": 2000}
    async with anthropic_sdk(daemon, "text") as sdk:
        called = await sdk.messages.create(model="sonnet", messages=messages, **options)
        assert [block.type for block in called.content] == ["thinking", "tool_use"]
        call = called.content[1]
        assert call.type == "tool_use"
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        messages += [{"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
        await sdk.messages.create(model="sonnet", messages=messages, **options)
    spoken = [m for m in model.requests[-1].body["messages"] if m["role"] == "assistant"]
    assert [block["type"] for block in spoken[0]["content"]] == ["thinking", "tool_use"]


@pytest.mark.parametrize(
    ("marks", "code"),
    [
        (f"{CALL} {CALL} [[cut=3]] [[times=1]]", "upstream_cut"),
        (f"{CALL} {CALL} [[malformed=3]] [[times=1]]", "upstream"),
        ("[[tool=nonsense]]", "upstream_error"),
    ],
)
async def test_a_broken_call_fails_the_turn_at_once_and_asks_nobody_again(
    daemon: DaemonProcess, model: OfflineModel, marks: str, code: str
) -> None:
    prompt = unique("broken call")
    async with asyncio.timeout(10):
        response = await daemon.chat(f"{prompt} {marks}", tools=[WEATHER])
    assert response.status >= 500, await response.text()
    assert calls_of(model, prompt) == 1
    async with anthropic_sdk(daemon, "text") as sdk:
        again = await sdk.messages.create(model="sonnet", max_tokens=100, messages=user("and now"), tools=[WEATHER])
    assert again.stop_reason == "end_turn"


async def test_an_answer_that_was_not_streamed_is_told_all_the_same(daemon: DaemonProcess) -> None:
    async with anthropic_sdk(daemon, "text") as sdk, asyncio.timeout(20):
        called = await sdk.messages.create(
            model="sonnet",
            max_tokens=2000,
            thinking={"type": "enabled", "budget_tokens": 1024},
            messages=user(f"{unique('once broken')} [[thinking]] {TWO_CALLS} [[malformed=2]] [[times=1]]"),
            tools=[WEATHER],
        )
    assert [b.type for b in called.content] == ["thinking", "tool_use", "tool_use"]
    assert [(b.name, b.input) for b in called.content if b.type == "tool_use"] == [("get_weather", c) for c in CITIES]
    assert called.stop_reason == "tool_use"


async def test_without_the_capability_tools_are_refused_by_name(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.without": "client_tools"})
    async with anthropic_sdk(daemon, "text") as sdk:
        with pytest.raises(anthropic.BadRequestError, match="`tools` is not supported on the text lane"):
            await sdk.messages.create(model="sonnet", max_tokens=100, messages=user("hi"), tools=[WEATHER])
    async with openai_sdk(daemon, "text") as theirs:
        with pytest.raises(openai.BadRequestError, match="`tools` is not supported on the text lane") as caught:
            await theirs.chat.completions.create(model="sonnet", messages=user("hi"), tools=[FUNCTION])
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tools")


async def test_a_login_has_tools_too_and_no_choice_among_them(start_daemon: StartDaemon, model: OfflineModel) -> None:
    """No broker stands between: no second model call is made all the same."""
    daemon = await start_daemon(environ={"ANTHROPIC_API_KEY": "", "CLAUDE_CODE_OAUTH_TOKEN": model.api_key})
    prompt = unique("with a login")
    messages = user(f"{prompt} {TWO_CALLS}")
    async with anthropic_sdk(daemon, None) as sdk:
        called = await sdk.messages.create(model="sonnet", max_tokens=100, messages=messages, tools=[WEATHER])
        calls = [block for block in called.content if block.type == "tool_use"]
        assert [(call.name, call.input) for call in calls] == [("get_weather", city) for city in CITIES]
        assert calls_of(model, prompt) == 1
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"} for call in calls]
        messages += [{"role": "assistant", "content": called.content}, {"role": "user", "content": results}]
        told = await sdk.messages.create(model="sonnet", max_tokens=100, messages=messages, tools=[WEATHER])
        assert told.stop_reason == "end_turn"
        choices: list[tuple[Any, str]] = [
            ({"type": "any"}, "tool_choice"),
            ({"type": "auto", "disable_parallel_tool_use": True}, "tool_choice.disable_parallel_tool_use"),
        ]
        for choice, path in choices:
            with pytest.raises(anthropic.BadRequestError, match=f"`{path}` is not supported on the text lane"):
                await sdk.messages.create(
                    model="sonnet",
                    max_tokens=9,
                    messages=user("hi"),
                    tools=[WEATHER],
                    tool_choice=choice,
                )


async def test_what_is_not_exact_is_refused_or_named(daemon: DaemonProcess) -> None:
    strict: Any = {"type": "function", "function": {**FUNCTION["function"], "strict": True}}
    async with openai_sdk(daemon, "text") as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(model="sonnet", messages=user("hi"), tools=[strict])
        assert "strict" in raw.headers["Claude-Daemon-Approximated"].split(", ")
    async with anthropic_sdk(daemon, "text") as theirs:
        refused: list[tuple[Any, str]] = [
            (named("long", "x" * 4097), "tools.0.description"),
            ({"name": "any", "input_schema": {"type": "object", "anyOf": [{}]}}, "tools.0.input_schema.anyOf"),
            ({"type": "web_search_20250305", "name": "web_search"}, "tools.0.type"),
        ]
        for tool, path in refused:
            with pytest.raises(anthropic.BadRequestError, match=f"`{path}` is not supported on the text lane"):
                await theirs.messages.create(
                    model="sonnet",
                    max_tokens=100,
                    messages=user("hi"),
                    tools=cast(Any, [tool]),
                )
