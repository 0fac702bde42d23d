"""Anthropic's own Python SDK on the real daemon, on both lanes."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import anthropic
import orjson
import pydantic
import pytest
from anthropic.types import Message, RawMessageStreamEvent

from claude_daemon.offline import OfflineModel
from tests.e2e.sdk import (
    REMOTE_REF,
    WEATHER_SCHEMA,
    anthropic_sdk,
    asked,
    base64_of,
    blocks,
    both_lanes,
    pdf,
    png,
    said,
    unique,
    user,
)
from tests.support import DaemonProcess

EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(RawMessageStreamEvent)
WEATHER: Any = {"name": "get_weather", "description": "The weather in a city.", "input_schema": WEATHER_SCHEMA}


class Person(pydantic.BaseModel):
    name: str
    age: int
    tags: list[str]


def input_tokens(usage: Any) -> int:
    """All of them: Claude Code marks most of its prompt for the cache."""
    return int(usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens)


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


# answers


@both_lanes
async def test_an_answer_is_the_same_streamed_and_not(daemon: DaemonProcess, lane: str) -> None:
    prompt = user("Tell me something [[tokens=12]]")
    async with anthropic_sdk(daemon, lane) as sdk:
        whole = await sdk.messages.create(model="sonnet", max_tokens=100, messages=prompt)
        async with sdk.messages.stream(model="sonnet", max_tokens=100, messages=prompt) as stream:
            pieces = [piece async for piece in stream.text_stream]
            streamed = await stream.get_final_message()
    assert text_of(whole) == text_of(streamed) == "".join(pieces)
    assert text_of(whole).startswith("Hello from the offline model. You said: “Tell me something”.")
    assert len(pieces) > 1
    assert whole.stop_reason == streamed.stop_reason == "end_turn"
    assert whole.usage.output_tokens == streamed.usage.output_tokens == 12
    assert input_tokens(whole.usage) > 0
    if lane == "direct":  # a worker that was cleared says so upstream, in a few words more than a fresh one
        assert input_tokens(streamed.usage) == input_tokens(whole.usage)
    assert whole.model == streamed.model == "claude-sonnet-5-5"
    assert whole.id.startswith("msg_")


@both_lanes
async def test_a_whole_answer_has_every_field_that_the_sdk_wants(daemon: DaemonProcess, lane: str) -> None:
    response = await daemon.chat("Hello", lane=lane)
    message = Message.model_validate(await response.json())
    assert (message.type, message.role, message.stop_sequence) == ("message", "assistant", None)


@both_lanes
async def test_the_events_come_in_the_order_of_the_messages_api(daemon: DaemonProcess, lane: str) -> None:
    body = {"model": "sonnet", "max_tokens": 100, "stream": True, "messages": user("Count [[tokens=3]]")}
    response = await daemon.http.post("/v1/messages", json=body, headers={"Claude-Daemon-Lane": lane})
    events = [frame.split("\ndata: ") for frame in (await response.text()).split("\n\n") if frame]
    assert [head for head, _ in events if head != "event: ping"] == [
        "event: message_start",
        "event: content_block_start",
        *["event: content_block_delta"] * 3,
        "event: content_block_stop",
        "event: message_delta",
        "event: message_stop",
    ]
    for head, data in events:
        if head != "event: ping":
            assert f"event: {EVENT.validate_json(data).type}" == head
    assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert response.headers["X-Accel-Buffering"] == "no"


async def test_the_direct_lane_passes_the_upstreams_bytes_on(daemon: DaemonProcess, model: OfflineModel) -> None:
    body = {
        "model": "claude-sonnet-5",
        "max_tokens": 3000,
        "stream": True,
        "thinking": {"type": "enabled", "budget_tokens": 1024},
        "tools": [WEATHER],
        "messages": user("Think, then [[tool=get_weather]] [[tool=get_weather]]"),
    }
    headers = {"x-api-key": model.api_key, "anthropic-version": "2023-06-01"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{model.base_url}/v1/messages", json=body, headers=headers) as straight,
        daemon.http.post("/v1/messages", json=body, headers={"Claude-Daemon-Lane": "direct"}) as through,
    ):
        expected, got = await straight.read(), await through.read()
    assert len(got) == len(expected) > 2000
    assert _without_ids(got) == _without_ids(expected)


def _without_ids(stream: bytes) -> list[bytes]:
    """The lines, with the ids that are new for every answer cut out."""
    lines = []
    for line in stream.split(b"\n"):
        for prefix in (b'"msg_', b'"toolu_'):
            before, found, after = line.partition(prefix)
            line = before + found + after[after.find(b'"') :] if found else line
        lines.append(line)
    return lines


@both_lanes
async def test_the_synchronous_client_works_too(daemon: DaemonProcess, lane: str) -> None:
    def ask() -> tuple[str, str]:
        options: dict[str, Any] = {"api_key": daemon.key, "max_retries": 0, "base_url": daemon.url}
        with anthropic.Anthropic(**options, default_headers={"Claude-Daemon-Lane": lane}) as sdk:
            whole = sdk.messages.create(model="haiku", max_tokens=50, messages=user("sync"))
            with sdk.messages.stream(model="haiku", max_tokens=50, messages=user("sync")) as stream:
                return text_of(whole), "".join(stream.text_stream)

    whole, streamed = await asyncio.to_thread(ask)
    assert whole == streamed == "Hello from the offline model. You said: “sync”."


# what is asked


@both_lanes
async def test_five_turns_arrive_upstream_in_their_order(daemon: DaemonProcess, model: OfflineModel, lane: str) -> None:
    last = unique("and the fifth question")
    turns: list[Any] = []
    for n in range(1, 5):
        turns += [
            {"role": "user", "content": f"question {n}"},
            {"role": "assistant", "content": [{"type": "text", "text": f"answer {n}"}]},
        ]
    turns.append({"role": "user", "content": [{"type": "text", "text": last}]})
    async with anthropic_sdk(daemon, lane) as sdk:
        await sdk.messages.create(model="sonnet", max_tokens=100, messages=turns)
    pairs = [(r, t) for n in range(1, 5) for r, t in (("user", f"question {n}"), ("assistant", f"answer {n}"))]
    assert said(asked(model, last).body) == [*pairs, ("user", last)]


@both_lanes
@pytest.mark.parametrize("form", ["string", "blocks"])
async def test_a_system_prompt_reaches_the_model(daemon: DaemonProcess, lane: str, form: str) -> None:
    texts = ["You are a lighthouse.", "You never say so."]
    system: Any = "\n\n".join(texts) if form == "string" else [{"type": "text", "text": text} for text in texts]
    async with anthropic_sdk(daemon, lane) as sdk:
        answer = await sdk.messages.create(model="sonnet", max_tokens=100, messages=user("[[system]]"), system=system)
    assert [line for line in text_of(answer).splitlines() if line][-2:] == texts


@both_lanes
async def test_an_image_and_a_document_arrive_unchanged(daemon: DaemonProcess, model: OfflineModel, lane: str) -> None:
    prompt = unique("What do you see?")
    image = {"type": "base64", "media_type": "image/png", "data": base64_of(png())}
    document = {"type": "base64", "media_type": "application/pdf", "data": base64_of(pdf())}
    content: Any = [
        {"type": "image", "source": image},
        {"type": "document", "source": document},
        {"type": "text", "text": prompt},
    ]
    async with anthropic_sdk(daemon, lane) as sdk:
        answer = await sdk.messages.create(model="sonnet", max_tokens=100, messages=user(content))
    body = asked(model, prompt).body
    assert [block["source"] for block in blocks(body, "image")] == [image]
    assert [block["source"] for block in blocks(body, "document")] == [document]
    assert f"one image/png of {len(png())} bytes and one application/pdf" in text_of(answer)


# the answer's form


@both_lanes
async def test_a_schema_gives_an_answer_that_the_sdk_parses(daemon: DaemonProcess, lane: str) -> None:
    async with anthropic_sdk(daemon, lane) as sdk:
        answer = await sdk.messages.parse(model="sonnet", max_tokens=500, messages=user("Who?"), output_format=Person)
    assert answer.parsed_output == Person(name="", age=0, tags=[])
    assert answer.stop_reason == "end_turn"


@both_lanes
async def test_a_schema_can_be_streamed(daemon: DaemonProcess, lane: str) -> None:
    form: Any = {"format": {"type": "json_schema", "schema": WEATHER_SCHEMA}}
    async with (
        anthropic_sdk(daemon, lane) as sdk,
        sdk.messages.stream(model="sonnet", max_tokens=500, messages=user("Where?"), output_config=form) as stream,
    ):
        answer = await stream.get_final_message()
    assert orjson.loads(text_of(answer)) == {"city": "xx"}
    assert answer.stop_reason == "end_turn"


async def test_a_structured_answer_has_every_field_that_the_sdk_wants(daemon: DaemonProcess) -> None:
    form = {"format": {"type": "json_schema", "schema": WEATHER_SCHEMA}}
    message = Message.model_validate(await (await daemon.chat("Where?", output_config=form)).json())
    assert message.model == "claude-sonnet-5-5"
    assert message.id.startswith("msg_")


@pytest.mark.parametrize(
    ("lane", "mark", "reason"),
    # on the text lane a form is whole or not at all: there, a limit is told as approximated
    [
        ("direct", "[[refusal]]", "refusal"),
        ("text", "[[refusal]]", "refusal"),
        ("direct", "[[tokens=9]]", "max_tokens"),
    ],
)
async def test_an_answer_that_was_refused_or_cut_short_is_not_held_against_its_schema(
    daemon: DaemonProcess, lane: str, mark: str, reason: str
) -> None:
    form: Any = {"format": {"type": "json_schema", "schema": WEATHER_SCHEMA}}
    async with anthropic_sdk(daemon, lane) as sdk:
        message = await sdk.messages.create(
            model="sonnet", max_tokens=500 if reason == "refusal" else 1, messages=user(mark), output_config=form
        )
    assert message.stop_reason == reason


async def test_an_answer_against_its_schema_is_a_502_on_the_text_lane(daemon: DaemonProcess) -> None:
    form: Any = {"format": {"type": "json_schema", "schema": WEATHER_SCHEMA}}
    async with anthropic_sdk(daemon, "text") as sdk:
        with pytest.raises(anthropic.InternalServerError) as caught:
            await sdk.messages.create(
                model="sonnet", max_tokens=500, messages=user("Where? [[no-structured]]"), output_config=form
            )
    assert caught.value.status_code == 502
    assert caught.value.type == "api_error"


@pytest.mark.parametrize(
    ("form", "word"),
    [
        ({"type": "json_schema", "schema": REMOTE_REF}, "properties.a.$ref"),
        ({"type": "json_schema", "schema": {"type": "nothing"}}, "output_config.format.schema"),
        ({"type": "json_schema", "schema": True}, "JSON object"),
        ({"type": "json_schema"}, "output_config.format.schema"),
        ({"type": "grammar", "schema": {}}, "output_config.format"),
    ],
)
async def test_a_schema_that_cannot_be_used_is_a_400_that_names_it(daemon: DaemonProcess, form: Any, word: str) -> None:
    async with anthropic_sdk(daemon, "text") as sdk:
        with pytest.raises(anthropic.BadRequestError) as caught:
            await sdk.messages.create(
                model="sonnet", max_tokens=500, messages=user("Where?"), output_config={"format": form}
            )
    assert caught.value.type == "invalid_request_error"
    assert word in caught.value.message


# tools


async def test_a_tool_round_trip(daemon: DaemonProcess) -> None:
    messages = user("weather please")
    async with anthropic_sdk(daemon, "direct") as sdk:
        called = await sdk.messages.create(
            model="sonnet", max_tokens=100, messages=messages, tools=[WEATHER], tool_choice={"type": "any"}
        )
        call = called.content[0]
        assert call.type == "tool_use"
        assert (called.stop_reason, call.name, call.input) == ("tool_use", "get_weather", {"city": "xx"})
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
        messages += [{"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
        told = await sdk.messages.create(model="sonnet", max_tokens=100, messages=messages, tools=[WEATHER])
    assert text_of(told) == "The tool get_weather answered: “sunny”."


async def test_parallel_tool_calls_are_accumulated_from_the_stream(daemon: DaemonProcess) -> None:
    inputs = [{"city": "San Francisco, California"}, {"city": "Reykjavík", "days": 3}]
    marks = " ".join(f"[[tool=get_weather]] [[input={orjson.dumps(value).decode()}]]" for value in inputs)
    async with (
        anthropic_sdk(daemon, "direct") as sdk,
        sdk.messages.stream(model="sonnet", max_tokens=200, messages=user(marks), tools=[WEATHER]) as stream,
    ):
        pieces = [event.partial_json async for event in stream if event.type == "input_json"]
        message = await stream.get_final_message()
    assert len(pieces) > 4
    assert [block.input for block in message.content if block.type == "tool_use"] == inputs
    assert message.stop_reason == "tool_use"


# parameters


@both_lanes
async def test_thinking_comes_before_the_text(daemon: DaemonProcess, lane: str) -> None:
    async with (
        anthropic_sdk(daemon, lane) as sdk,
        sdk.messages.stream(
            model="sonnet",
            max_tokens=4000,
            messages=user("hello [[thinking]]"),
            thinking={"type": "enabled", "budget_tokens": 2000},
        ) as stream,
    ):
        kinds = [event.type async for event in stream]
        message = await stream.get_final_message()
    thinking, text = message.content
    assert thinking.type == "thinking"
    assert thinking.thinking == "The user wrote “hello” and I should answer briefly."
    assert thinking.signature
    assert text.type == "text"
    assert kinds.index("thinking") < kinds.index("signature") < kinds.index("text")


@both_lanes
async def test_no_thinking_is_shown_that_nobody_asked_for(daemon: DaemonProcess, lane: str) -> None:
    async with anthropic_sdk(daemon, lane) as sdk:
        message = await sdk.messages.create(model="sonnet", max_tokens=100, messages=user("hello [[thinking]]"))
    assert [block.type for block in message.content] == ["text"]


async def test_cached_tokens_are_told(daemon: DaemonProcess) -> None:
    system: Any = [{"type": "text", "text": unique("long " * 2000), "cache_control": {"type": "ephemeral"}}]
    async with anthropic_sdk(daemon, "direct") as sdk:
        first, second = [
            (await sdk.messages.create(model="sonnet", max_tokens=50, messages=user("hi"), system=system)).usage
            for _ in range(2)
        ]
    assert first.cache_creation_input_tokens
    assert second.cache_read_input_tokens == first.cache_creation_input_tokens


@both_lanes
async def test_max_tokens_ends_the_answer(daemon: DaemonProcess, model: OfflineModel, lane: str) -> None:
    prompt = unique("Go on [[tokens=400]]")
    async with anthropic_sdk(daemon, lane) as sdk:
        raw = await sdk.messages.with_raw_response.create(model="sonnet", max_tokens=20, messages=user(prompt))
        message = await raw.parse()
    assert message.stop_reason == "max_tokens"
    assert 0 < len(text_of(message).split()) < 100
    assert raw.headers.get("Claude-Daemon-Approximated") == (None if lane == "direct" else "max_tokens")
    asked(model, prompt)  # one model call, not several


async def test_stop_sequences_and_temperature_are_honoured_on_the_direct_lane(
    daemon: DaemonProcess, model: OfflineModel
) -> None:
    prompt = unique("one [[text=alpha beta gamma]]")
    async with anthropic_sdk(daemon, "direct") as sdk:
        message = await sdk.messages.create(
            model="sonnet",
            max_tokens=50,
            messages=user(prompt),
            stop_sequences=["beta"],
            extra_body={"temperature": 0.25},
        )
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "beta")
    assert text_of(message) == "alpha "
    assert asked(model, prompt).body["temperature"] == 0.25


@pytest.mark.parametrize(
    ("name", "value"),
    [("stop_sequences", ["beta"]), ("temperature", 0.5), ("top_k", 5), ("a_field_of_tomorrow", 1)],
)
async def test_what_the_text_lane_cannot_honour_is_refused_by_name(
    daemon: DaemonProcess, name: str, value: object
) -> None:
    async with anthropic_sdk(daemon, "text") as sdk:
        with pytest.raises(anthropic.BadRequestError, match=f"`{name}` is not supported on the text lane"):
            await sdk.messages.create(model="sonnet", max_tokens=50, messages=user("hi"), extra_body={name: value})


@both_lanes
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_refusal_is_an_answer(daemon: DaemonProcess, lane: str, streamed: bool) -> None:
    async with anthropic_sdk(daemon, lane) as sdk:
        if streamed:
            async with sdk.messages.stream(model="sonnet", max_tokens=50, messages=user("[[refusal]]")) as stream:
                message: Any = await stream.get_final_message()
        else:
            message = await sdk.messages.create(model="sonnet", max_tokens=50, messages=user("[[refusal]]"))
    assert message.stop_reason == "refusal"
    assert text_of(message) == "I can't help with that."


async def test_what_we_never_heard_of_reaches_the_upstream_unchanged(
    daemon: DaemonProcess, model: OfflineModel
) -> None:
    prompt = unique("hello")
    said_of_tomorrow: Any = [{"type": "text", "text": prompt, "of_tomorrow": 1}]
    unknown = {"field": [1, 2.5, None, {"ü": True}], "big": 2**53 + 1}
    async with anthropic_sdk(daemon, "direct") as sdk:
        await sdk.beta.messages.create(
            model="sonnet",
            max_tokens=50,
            messages=user(said_of_tomorrow),
            betas=["one-2099-01-01", "two-2099-01-01"],
            extra_headers={"anthropic-of-tomorrow": "yes", "cookie": "secret=1", "x-custom": "stays here"},
            extra_body={"unknown": unknown},
        )
    seen = asked(model, prompt)
    assert seen.headers["anthropic-beta"] == "one-2099-01-01,two-2099-01-01"
    assert seen.headers["anthropic-of-tomorrow"] == "yes"
    assert seen.headers["anthropic-version"] == sdk.default_headers["anthropic-version"]
    assert seen.body["unknown"] == unknown
    assert seen.body["messages"][0]["content"][0]["of_tomorrow"] == 1
    assert seen.headers["x-api-key"] == model.api_key
    assert not {"cookie", "x-custom"} & seen.headers.keys()
    assert daemon.key not in repr(seen.headers.values())


async def test_a_header_sent_twice_is_one_list_upstream(daemon: DaemonProcess, model: OfflineModel) -> None:
    prompt = unique("hello")
    headers = [("anthropic-beta", "one"), ("anthropic-beta", "two"), ("Claude-Daemon-Lane", "direct")]
    body = {"model": "sonnet", "max_tokens": 9, "messages": user(prompt)}
    async with daemon.http.post("/v1/messages", json=body, headers=headers) as response:
        assert response.status == 200
    assert asked(model, prompt).headers["anthropic-beta"] == "one, two"


# models and tokens


async def test_models_are_listed_and_found(daemon: DaemonProcess) -> None:
    async with anthropic_sdk(daemon, None) as sdk:
        listed = [entry async for entry in await sdk.models.list()]
        assert {"sonnet", "opus", "haiku", "claude-sonnet-5-5"} <= {entry.id for entry in listed}
        assert all(entry.display_name and entry.created_at for entry in listed)
        assert (await sdk.models.retrieve("sonnet")).id == "sonnet"
        with pytest.raises(anthropic.NotFoundError):
            await sdk.models.retrieve("gpt-0")


async def test_tokens_are_counted_by_the_upstream(daemon: DaemonProcess) -> None:
    async with anthropic_sdk(daemon, "direct") as sdk:
        counted = await sdk.messages.count_tokens(
            model="sonnet", messages=user("how many?"), system="be kind", tools=[WEATHER]
        )
        answer = await sdk.messages.create(
            model="sonnet", max_tokens=9, messages=user("how many?"), system="be kind", tools=[WEATHER]
        )
        with pytest.raises(anthropic.BadRequestError):
            await sdk.messages.count_tokens(model="sonnet", messages=[])
        with pytest.raises(anthropic.NotFoundError):
            await sdk.messages.count_tokens(model="gpt-0", messages=user("how many?"))
    assert counted.input_tokens == answer.usage.input_tokens > 20


# lanes


@pytest.mark.parametrize(
    ("wanted", "taken"), [(None, "direct"), ("auto", "direct"), ("direct", "direct"), ("text", "text")]
)
async def test_the_answer_names_the_lane_it_took(daemon: DaemonProcess, wanted: str | None, taken: str) -> None:
    async with anthropic_sdk(daemon, wanted) as sdk:
        raw = await sdk.messages.with_raw_response.create(model="sonnet", max_tokens=9, messages=user("[[text=hi]]"))
    assert raw.headers["Claude-Daemon-Lane"] == taken
    assert raw.headers["X-Task-ID"].startswith("task_")
    assert "server" not in raw.headers
