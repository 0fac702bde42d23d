"""OpenAI's own Python SDK on the real daemon, on both lanes."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import orjson
import pydantic
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from claude_daemon.offline import OfflineModel
from tests.e2e.sdk import (
    BACKTRACKING,
    REMOTE_REF,
    WEATHER_SCHEMA,
    asked,
    base64_of,
    blocks,
    both_lanes,
    openai_sdk,
    pdf,
    png,
    said,
    unique,
    user,
)
from tests.support import DaemonProcess, sse

WEATHER: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather in a city.", "parameters": WEATHER_SCHEMA},
}


class Person(pydantic.BaseModel):
    name: str
    age: int
    tags: list[str]


def schema_format(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


async def chunks_of(stream: Any) -> list[ChatCompletionChunk]:
    return [chunk async for chunk in stream]


def text_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


# answers


@both_lanes
async def test_an_answer_is_the_same_streamed_and_not(daemon: DaemonProcess, lane: str) -> None:
    prompt = user("Tell me something [[tokens=12]]")
    async with openai_sdk(daemon, lane) as sdk:
        whole = await sdk.chat.completions.create(model="sonnet", messages=prompt)
        chunks = await chunks_of(await sdk.chat.completions.create(model="sonnet", messages=prompt, stream=True))
    assert whole.choices[0].message.content == text_of(chunks)
    assert text_of(chunks).startswith("Hello from the offline model. You said: “Tell me something”.")
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert whole.id.startswith("chatcmpl-")
    assert chunks[0].id.startswith("chatcmpl-")
    assert whole.model == "claude-sonnet-5-5"
    assert all(chunk.usage is None for chunk in chunks)


@both_lanes
async def test_whole_answers_and_chunks_have_every_field_that_the_sdk_wants(daemon: DaemonProcess, lane: str) -> None:
    headers = {"Claude-Daemon-Lane": lane}
    body: dict[str, Any] = {"model": "sonnet", "messages": user("Hello")}
    async with daemon.http.post("/v1/chat/completions", json=body, headers=headers) as response:
        ChatCompletion.model_validate(await response.json())
    async with daemon.http.post("/v1/chat/completions", json={**body, "stream": True}, headers=headers) as response:
        events = await sse(response)
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert events[-1] == ("message", "[DONE]")
    for _, chunk in events[:-1]:
        ChatCompletionChunk.model_validate(chunk)


@both_lanes
async def test_the_stream_helper_accumulates(daemon: DaemonProcess, lane: str) -> None:
    async with (
        openai_sdk(daemon, lane) as sdk,
        sdk.chat.completions.stream(model="sonnet", messages=user("Hello [[tokens=9]]")) as stream,
    ):
        pieces = [event.delta async for event in stream if event.type == "content.delta"]
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "".join(pieces)
    assert len(pieces) > 1


@both_lanes
async def test_the_synchronous_client_works_too(daemon: DaemonProcess, lane: str) -> None:
    def ask() -> tuple[str | None, str]:
        options: dict[str, Any] = {"api_key": daemon.key, "max_retries": 0, "base_url": f"{daemon.url}/v1"}
        with openai.OpenAI(**options, default_headers={"Claude-Daemon-Lane": lane}) as sdk:
            whole = sdk.chat.completions.create(model="haiku", messages=user("sync"))
            stream = sdk.chat.completions.create(model="haiku", messages=user("sync"), stream=True)
            return whole.choices[0].message.content, text_of(list(stream))

    whole, streamed = await asyncio.to_thread(ask)
    assert whole == streamed == "Hello from the offline model. You said: “sync”."


# what is asked


@both_lanes
async def test_five_turns_arrive_upstream_in_their_order(daemon: DaemonProcess, model: OfflineModel, lane: str) -> None:
    last = unique("and the fifth question")
    turns: list[Any] = []
    for n in range(1, 5):
        turns += [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": f"answer {n}"}]
    turns += [{"role": "user", "content": [{"type": "text", "text": last}]}]
    async with openai_sdk(daemon, lane) as sdk:
        await sdk.chat.completions.create(model="sonnet", messages=turns)
    pairs = [(r, t) for n in range(1, 5) for r, t in (("user", f"question {n}"), ("assistant", f"answer {n}"))]
    assert said(asked(model, last).body) == [*pairs, ("user", last)]


@both_lanes
async def test_system_and_developer_messages_are_the_system_prompt(daemon: DaemonProcess, lane: str) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "You are a lighthouse."},
        {"role": "developer", "content": [{"type": "text", "text": "You never say so."}]},
        *user("[[system]]"),
    ]
    async with openai_sdk(daemon, lane) as sdk:
        answer = await sdk.chat.completions.create(model="sonnet", messages=messages)
    lines = [line for line in (answer.choices[0].message.content or "").splitlines() if line]
    assert lines[-2:] == ["You are a lighthouse.", "You never say so."]


@both_lanes
async def test_an_image_and_a_file_arrive_unchanged(daemon: DaemonProcess, model: OfflineModel, lane: str) -> None:
    prompt = unique("What do you see?")
    content: Any = [
        {"type": "text", "text": prompt},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64_of(png())}", "detail": "high"}},
        {"type": "file", "file": {"file_data": f"data:application/pdf;base64,{base64_of(pdf())}", "filename": "a.pdf"}},
    ]
    async with openai_sdk(daemon, lane) as sdk:
        await sdk.chat.completions.create(model="sonnet", messages=user(content))
    body = asked(model, prompt).body
    image = {"type": "base64", "media_type": "image/png", "data": base64_of(png())}
    document = {"type": "base64", "media_type": "application/pdf", "data": base64_of(pdf())}
    assert [block["source"] for block in blocks(body, "image")] == [image]
    assert [block["source"] for block in blocks(body, "document")] == [document]


# the answer's form


@both_lanes
async def test_a_schema_gives_an_answer_that_the_sdk_parses(daemon: DaemonProcess, lane: str) -> None:
    async with openai_sdk(daemon, lane) as sdk:
        answer = await sdk.chat.completions.parse(model="sonnet", messages=user("Who?"), response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="", age=0, tags=[])
    assert answer.choices[0].finish_reason == "stop"


@both_lanes
async def test_a_schema_can_be_streamed(daemon: DaemonProcess, lane: str) -> None:
    async with openai_sdk(daemon, lane) as sdk:
        stream = await sdk.chat.completions.create(
            model="sonnet", messages=user("Where?"), response_format=schema_format(WEATHER_SCHEMA), stream=True
        )
        chunks = await chunks_of(stream)
    assert orjson.loads(text_of(chunks)) == {"city": "xx"}
    assert chunks[-1].choices[0].finish_reason == "stop"


@both_lanes
async def test_an_answer_against_its_schema_is_a_502(daemon: DaemonProcess, lane: str) -> None:
    prompt = "Where? [[invalid]]" if lane == "direct" else "Where? [[no-structured]]"
    async with openai_sdk(daemon, lane) as sdk:
        with pytest.raises(openai.InternalServerError) as caught:
            await sdk.chat.completions.create(
                model="sonnet", messages=user(prompt), response_format=schema_format(WEATHER_SCHEMA)
            )
    assert (caught.value.status_code, caught.value.code) == (502, "schema_mismatch")


async def test_a_stream_against_its_schema_ends_in_an_error_and_not_in_done(daemon: DaemonProcess) -> None:
    async with openai_sdk(daemon, "direct") as sdk:
        stream = await sdk.chat.completions.create(
            model="sonnet",
            messages=user("Where? [[invalid]]"),
            response_format=schema_format(WEATHER_SCHEMA),
            stream=True,
        )
        chunks: list[ChatCompletionChunk] = []
        with pytest.raises(openai.APIError) as caught:
            async for chunk in stream:
                chunks += [chunk]
    assert caught.value.code == "schema_mismatch"
    assert all(chunk.choices[0].finish_reason is None for chunk in chunks)


@both_lanes
@pytest.mark.parametrize(
    ("schema", "word"),
    [(REMOTE_REF, "response_format.json_schema.schema.properties.a.$ref"), ({"type": "nothing"}, "schema")],
)
async def test_a_schema_that_cannot_be_used_is_a_400_that_names_it(
    daemon: DaemonProcess, lane: str, schema: Any, word: str
) -> None:
    async with openai_sdk(daemon, lane) as sdk:
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.chat.completions.create(
                model="sonnet", messages=user("Where?"), response_format=schema_format(schema)
            )
    assert caught.value.code == "invalid_request"
    assert word in str(caught.value.param)
    assert word in caught.value.message


async def test_a_pattern_that_backtracks_stalls_nobody(daemon: DaemonProcess) -> None:
    text = '{"name":"' + "a" * 44 + '!"}'
    done = asyncio.Event()

    async def alive() -> int:
        answered = 0
        while not done.is_set():
            async with daemon.http.get("/live") as response:
                assert response.status == 200
            answered += 1
        return answered

    async with asyncio.TaskGroup() as group, openai_sdk(daemon, "direct") as sdk:
        probes = group.create_task(alive())
        with pytest.raises(openai.InternalServerError) as caught:
            await sdk.chat.completions.create(
                model="sonnet", messages=user(f"[[text={text}]]"), response_format=schema_format(BACKTRACKING)
            )
        done.set()
    assert caught.value.code == "schema_mismatch"
    assert "deadline" in caught.value.message
    assert probes.result() > 20  # in 2 seconds; a loop that stalls answers one


# tools


async def test_a_function_call_round_trip(daemon: DaemonProcess) -> None:
    messages = user("weather please")
    async with openai_sdk(daemon, "direct") as sdk:
        called = await sdk.chat.completions.create(
            model="sonnet", messages=messages, tools=[WEATHER], tool_choice="required"
        )
        (call,) = called.choices[0].message.tool_calls or []
        assert called.choices[0].finish_reason == "tool_calls"
        assert called.choices[0].message.content is None
        assert call.type == "function"
        assert (call.function.name, orjson.loads(call.function.arguments)) == ("get_weather", {"city": "xx"})
        answer = called.choices[0].message.model_dump(exclude_none=True)
        messages += [answer, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        told = await sdk.chat.completions.create(model="sonnet", messages=messages, tools=[WEATHER])
    assert told.choices[0].message.content == "The tool get_weather answered: “sunny”."
    assert told.choices[0].finish_reason == "stop"


async def test_parallel_calls_are_accumulated_from_the_stream(daemon: DaemonProcess) -> None:
    inputs = [{"city": "San Francisco, California"}, {"city": "Reykjavík", "days": 3}]
    marks = " ".join(f"[[tool=get_weather]] [[input={orjson.dumps(value).decode()}]]" for value in inputs)
    async with (
        openai_sdk(daemon, "direct") as sdk,
        sdk.chat.completions.stream(model="sonnet", messages=user(marks), tools=[WEATHER]) as stream,
    ):
        pieces = [e.arguments_delta async for e in stream if e.type == "tool_calls.function.arguments.delta"]
        final = await stream.get_final_completion()
    assert len(pieces) > 4
    calls = final.choices[0].message.tool_calls or []
    assert [orjson.loads(call.function.arguments) for call in calls] == inputs
    assert len({call.id for call in calls}) == 2
    assert final.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize(
    ("choice", "parallel", "upstream"),
    [
        (None, None, None),
        ("auto", False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("none", None, {"type": "none"}),
        ("required", None, {"type": "any"}),
        (
            {"type": "function", "function": {"name": "get_weather"}},
            None,
            {"type": "tool", "name": "get_weather"},
        ),
    ],
)
async def test_a_tool_choice_means_the_same_upstream(
    daemon: DaemonProcess, model: OfflineModel, choice: Any, parallel: bool | None, upstream: Any
) -> None:
    prompt = unique("choose")
    options: dict[str, Any] = {"tool_choice": choice, "parallel_tool_calls": parallel}
    async with openai_sdk(daemon, "direct") as sdk:
        answer = await sdk.chat.completions.create(
            model="sonnet",
            messages=user(prompt),
            tools=[WEATHER],
            **{name: value for name, value in options.items() if value is not None},
        )
    assert asked(model, prompt).body.get("tool_choice") == upstream
    forced = upstream is not None and upstream["type"] in ("any", "tool")
    assert answer.choices[0].finish_reason == ("tool_calls" if forced else "stop")


# parameters


async def test_reasoning_is_told_beside_the_text(daemon: DaemonProcess) -> None:
    thought = "The user wrote “hello” and I should answer briefly."
    async with openai_sdk(daemon, "direct") as sdk:
        options: dict[str, Any] = {"model": "sonnet", "messages": user("hello [[thinking]]"), "reasoning_effort": "low"}
        whole = await sdk.chat.completions.create(**options)
        chunks = await chunks_of(await sdk.chat.completions.create(**options, stream=True))
    assert (whole.choices[0].message.model_extra or {})["reasoning_content"] == thought
    pieces = [(chunk.choices[0].delta.model_extra or {}).get("reasoning_content") or "" for chunk in chunks]
    assert "".join(pieces) == thought
    assert whole.choices[0].message.content == text_of(chunks) == "Hello from the offline model. You said: “hello”."


@both_lanes
async def test_usage_is_told_and_at_the_end_of_a_stream_only_when_asked_for(daemon: DaemonProcess, lane: str) -> None:
    options: dict[str, Any] = {"model": "sonnet", "messages": user("Tell me [[tokens=12]]")}
    async with openai_sdk(daemon, lane) as sdk:
        whole = (await sdk.chat.completions.create(**options)).usage
        chunks = await chunks_of(
            await sdk.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
        )
    told = chunks[-1].usage
    assert whole is not None
    assert told is not None
    assert chunks[-1].choices == []
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert whole.completion_tokens == told.completion_tokens == 12
    assert whole.prompt_tokens > 0
    if lane == "direct":  # a worker that was cleared says so upstream, in a few words more than a fresh one
        assert told.prompt_tokens == whole.prompt_tokens
    assert told.total_tokens == told.prompt_tokens + told.completion_tokens


async def test_cached_tokens_are_told_on_the_text_lane(daemon: DaemonProcess) -> None:
    """Claude Code marks its prompt for the cache; a Chat Completions request has no way to."""
    messages: list[Any] = [{"role": "system", "content": unique("long " * 2000)}, *user("hi")]
    async with openai_sdk(daemon, "text") as sdk:
        usages = [(await sdk.chat.completions.create(model="sonnet", messages=messages)).usage for _ in range(3)]
    cached = [usage.prompt_tokens_details.cached_tokens for usage in usages if usage and usage.prompt_tokens_details]
    # a fresh process has a prefix of its own in its first turn: of three, two at least share theirs
    assert max(count or 0 for count in cached) > 1000
    assert all(usage is not None and usage.prompt_tokens > 2000 for usage in usages)


@both_lanes
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_a_limit_of_tokens_ends_the_answer(daemon: DaemonProcess, lane: str, name: str) -> None:
    async with openai_sdk(daemon, lane) as sdk:
        limit: dict[str, Any] = {name: 20}
        raw = await sdk.chat.completions.with_raw_response.create(
            model="sonnet", messages=user("Go on [[tokens=400]]"), **limit
        )
    answer = raw.parse()
    assert answer.choices[0].finish_reason == "length"
    assert 0 < len((answer.choices[0].message.content or "").split()) < 100
    assert raw.headers.get("Claude-Daemon-Approximated") == (None if lane == "direct" else "max_tokens")


@both_lanes
async def test_without_a_limit_nothing_is_approximated(daemon: DaemonProcess, lane: str) -> None:
    async with openai_sdk(daemon, lane) as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(model="sonnet", messages=user("hi"))
    assert "Claude-Daemon-Approximated" not in raw.headers


async def test_stop_and_temperature_are_honoured_on_the_direct_lane(daemon: DaemonProcess, model: OfflineModel) -> None:
    prompt = unique("one [[text=alpha beta gamma]]")
    async with openai_sdk(daemon, "direct") as sdk:
        answer = await sdk.chat.completions.create(
            model="sonnet", messages=user(prompt), stop="beta", temperature=0.25, user="somebody"
        )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == "alpha "
    body = asked(model, prompt).body
    assert (body["temperature"], body["stop_sequences"], body["metadata"]) == (0.25, ["beta"], {"user_id": "somebody"})


@pytest.mark.parametrize(
    ("name", "value"),
    [("stop", ["beta"]), ("temperature", 0.5), ("top_p", 0.5), ("reasoning_effort", "low")],
)
async def test_what_the_text_lane_cannot_honour_is_refused_by_the_clients_name(
    daemon: DaemonProcess, name: str, value: object
) -> None:
    option: dict[str, Any] = {name: value}
    async with openai_sdk(daemon, "text") as sdk:
        with pytest.raises(openai.BadRequestError, match=f"`{name}` is not supported on the text lane") as caught:
            await sdk.chat.completions.create(model="sonnet", messages=user("hi"), **option)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", name)


@both_lanes
@pytest.mark.parametrize(
    ("name", "value"), [("n", 2), ("seed", 7), ("logprobs", True), ("frequency_penalty", 0.5), ("tempratur", 1)]
)
async def test_what_no_lane_can_honour_is_refused_by_name(
    daemon: DaemonProcess, lane: str, name: str, value: object
) -> None:
    async with openai_sdk(daemon, lane) as sdk:
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.chat.completions.create(model="sonnet", messages=user("hi"), extra_body={name: value})
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", name)


@both_lanes
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_refusal_is_an_answer(daemon: DaemonProcess, lane: str, streamed: bool) -> None:
    async with openai_sdk(daemon, lane) as sdk:
        if streamed:
            stream = await sdk.chat.completions.create(model="sonnet", messages=user("[[refusal]]"), stream=True)
            chunks = await chunks_of(stream)
            reason, text = chunks[-1].choices[0].finish_reason, text_of(chunks)
        else:
            choice = (await sdk.chat.completions.create(model="sonnet", messages=user("[[refusal]]"))).choices[0]
            reason, text = choice.finish_reason, choice.message.content or ""
    assert (reason, text) == ("content_filter", "I can't help with that.")


# models and lanes


async def test_models_are_listed_and_found(daemon: DaemonProcess) -> None:
    async with openai_sdk(daemon, None) as sdk:
        listed = [entry async for entry in sdk.models.list()]
        assert {"sonnet", "opus", "haiku", "claude-sonnet-5-5"} <= {entry.id for entry in listed}
        assert all((entry.object, entry.owned_by) == ("model", "anthropic") and entry.created for entry in listed)
        assert (await sdk.models.retrieve("sonnet")).id == "sonnet"
        with pytest.raises(openai.NotFoundError) as caught:
            await sdk.models.retrieve("gpt-0")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("wanted", "taken"), [(None, "direct"), ("auto", "direct"), ("direct", "direct"), ("text", "text")]
)
async def test_the_answer_names_the_lane_it_took(daemon: DaemonProcess, wanted: str | None, taken: str) -> None:
    async with openai_sdk(daemon, wanted) as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(model="sonnet", messages=user("[[text=hi]]"))
    assert raw.headers["Claude-Daemon-Lane"] == taken
    assert raw.headers["X-Task-ID"].startswith("task_")
