"""The real Anthropic SDK on the model."""

from typing import Any

import anthropic
import pydantic
import pytest

from claude_daemon.offline import OfflineModel

WEATHER: Any = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "minLength": 2}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
HELLO: Any = [{"role": "user", "content": "hello"}]


async def test_a_message_is_answered_with_text_that_quotes_it(sdk: anthropic.AsyncAnthropic) -> None:
    answer = await sdk.messages.create(model="claude-opus-5", max_tokens=100, messages=HELLO)
    assert answer.content[0].type == "text"
    assert answer.content[0].text == "Hello from the offline model. You said: “hello”."
    assert (answer.model, answer.role, answer.stop_reason) == ("claude-opus-5", "assistant", "end_turn")
    assert answer.id.startswith("msg_")
    assert answer._request_id is not None
    assert answer._request_id.startswith("req_")


async def test_a_stream_accumulates_to_the_same_message(sdk: anthropic.AsyncAnthropic) -> None:
    whole = await sdk.messages.create(model="m", max_tokens=100, messages=HELLO)
    async with sdk.messages.stream(model="m", max_tokens=100, messages=HELLO) as stream:
        pieces = [piece async for piece in stream.text_stream]
        streamed = await stream.get_final_message()
    assert [block.type for block in streamed.content] == [block.type for block in whole.content] == ["text"]
    assert [block.text for block in (*streamed.content, *whole.content) if block.type == "text"] == [
        "".join(pieces)
    ] * 2
    assert (streamed.stop_reason, streamed.usage) == (whole.stop_reason, whole.usage)
    assert len(pieces) == streamed.usage.output_tokens


async def test_a_tool_loop_runs_to_its_end(sdk: anthropic.AsyncAnthropic) -> None:
    messages: Any = [{"role": "user", "content": "weather please"}]
    asked = await sdk.messages.create(
        model="m", max_tokens=100, messages=messages, tools=[WEATHER], tool_choice={"type": "any"}
    )
    call = asked.content[0]
    assert call.type == "tool_use"
    assert (asked.stop_reason, call.name, call.input) == ("tool_use", "get_weather", {"city": "xx"})
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny, 21 degrees"}
    messages += [{"role": "assistant", "content": asked.content}, {"role": "user", "content": [result]}]
    async with sdk.messages.stream(model="m", max_tokens=100, messages=messages, tools=[WEATHER]) as stream:
        told = await stream.get_final_message()
    assert told.stop_reason == "end_turn"
    assert told.content[0].type == "text"
    assert told.content[0].text == "The tool get_weather answered: “sunny, 21 degrees”."


async def test_a_tool_input_is_streamed_in_pieces(sdk: anthropic.AsyncAnthropic) -> None:
    prompt: Any = [{"role": "user", "content": '[[tool=get_weather]] [[input={"city":"San Francisco, California"}]]'}]
    async with sdk.messages.stream(model="m", max_tokens=100, messages=prompt, tools=[WEATHER]) as stream:
        pieces = [event.partial_json async for event in stream if event.type == "input_json"]
        call = (await stream.get_final_message()).content[0]
    assert len(pieces) > 2
    assert call.type == "tool_use"
    assert call.input == {"city": "San Francisco, California"}


async def test_thinking_comes_first_and_is_signed(sdk: anthropic.AsyncAnthropic) -> None:
    async with sdk.messages.stream(
        model="m", max_tokens=2000, messages=HELLO, thinking={"type": "enabled", "budget_tokens": 1024}
    ) as stream:
        kinds = [event.type async for event in stream]
        answer = await stream.get_final_message()
    thinking, text = answer.content
    assert thinking.type == "thinking"
    assert thinking.thinking == "The user wrote “hello” and I should answer briefly."
    assert thinking.signature
    assert text.type == "text"
    assert kinds.index("thinking") < kinds.index("signature") < kinds.index("text")


async def test_structured_output_is_parsed(sdk: anthropic.AsyncAnthropic) -> None:
    class Person(pydantic.BaseModel):
        name: str
        age: int
        tags: list[str]

    answer = await sdk.messages.parse(model="m", max_tokens=100, messages=HELLO, output_format=Person)
    assert answer.parsed_output == Person(name="", age=0, tags=[])


async def test_a_refusal_says_so(sdk: anthropic.AsyncAnthropic) -> None:
    prompt: Any = [{"role": "user", "content": "[[refusal]]"}]
    async with sdk.messages.stream(model="m", max_tokens=100, messages=prompt) as stream:
        answer = await stream.get_final_message()
    assert answer.stop_reason == "refusal"
    assert answer.stop_details is not None
    assert answer.stop_details.type == "refusal"


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (400, anthropic.BadRequestError, "invalid_request_error"),
        (401, anthropic.AuthenticationError, "authentication_error"),
        (403, anthropic.PermissionDeniedError, "permission_error"),
        (404, anthropic.NotFoundError, "not_found_error"),
        (413, anthropic.RequestTooLargeError, "request_too_large"),
        (429, anthropic.RateLimitError, "rate_limit_error"),
        (500, anthropic.InternalServerError, "api_error"),
        (529, anthropic.InternalServerError, "overloaded_error"),
    ],
)
async def test_an_error_is_the_sdks_own(
    sdk: anthropic.AsyncAnthropic, status: int, error: type[anthropic.APIStatusError], kind: str
) -> None:
    with pytest.raises(error) as caught:
        await sdk.messages.create(
            model="m", max_tokens=9, messages=[{"role": "user", "content": f"[[error={status}]]"}]
        )
    assert (caught.value.status_code, caught.value.type) == (status, kind)
    assert caught.value.request_id is not None


async def test_a_retry_after_a_fault_that_happens_once_succeeds(model: OfflineModel) -> None:
    prompt: Any = [{"role": "user", "content": "[[error=429]] [[retry-after=0]] [[times=2]] again"}]
    async with anthropic.AsyncAnthropic(base_url=model.base_url, api_key=model.api_key, max_retries=2) as sdk:
        answer = await sdk.messages.create(model="m", max_tokens=100, messages=prompt)
    assert answer.stop_reason == "end_turn"
    assert len(model.requests) == 3


async def test_an_error_event_in_mid_stream_is_raised(sdk: anthropic.AsyncAnthropic) -> None:
    pieces: list[str] = []
    prompt: Any = [{"role": "user", "content": "[[error-event=3]]"}]
    with pytest.raises(anthropic.APIStatusError) as caught:
        async with sdk.messages.stream(model="m", max_tokens=100, messages=prompt) as stream:
            async for piece in stream.text_stream:
                pieces += [piece]
    assert caught.value.type == "overloaded_error"
    assert len(pieces) == 3


async def test_a_wrong_key_is_refused(model: OfflineModel) -> None:
    async with anthropic.AsyncAnthropic(base_url=model.base_url, api_key="sk-wrong", max_retries=0) as sdk:
        with pytest.raises(anthropic.AuthenticationError):
            await sdk.messages.create(model="m", max_tokens=9, messages=HELLO)


async def test_the_key_is_a_bearer_token_too(model: OfflineModel) -> None:
    async with anthropic.AsyncAnthropic(
        base_url=model.base_url, api_key=None, auth_token=model.api_key, max_retries=0
    ) as sdk:
        assert (await sdk.messages.create(model="m", max_tokens=9, messages=HELLO)).content


async def test_models_are_listed_and_found(sdk: anthropic.AsyncAnthropic) -> None:
    listed = [entry.id async for entry in await sdk.models.list()]
    assert {"claude-opus-5", "claude-sonnet-5", "claude-haiku-4-5"} <= set(listed)
    assert (await sdk.models.retrieve("claude-sonnet-5")).display_name == "Claude Sonnet 5"
    with pytest.raises(anthropic.NotFoundError):
        await sdk.models.retrieve("claude-none")
    with pytest.raises(anthropic.NotFoundError, match="claude-does-not-exist"):
        await sdk.messages.create(model="claude-does-not-exist", max_tokens=9, messages=HELLO)


async def test_counted_tokens_are_those_of_the_answer(sdk: anthropic.AsyncAnthropic) -> None:
    counted = await sdk.messages.count_tokens(model="m", messages=HELLO, system="be kind", tools=[WEATHER])
    answer = await sdk.messages.create(model="m", max_tokens=9, messages=HELLO, system="be kind", tools=[WEATHER])
    assert counted.input_tokens == answer.usage.input_tokens > 20


async def test_the_beta_surface_is_the_same(sdk: anthropic.AsyncAnthropic) -> None:
    answer = await sdk.beta.messages.create(
        model="m", max_tokens=100, messages=HELLO, betas=["effort-2025-11-24"], extra_query={"beta": "true"}
    )
    assert answer.content[0].type == "text"
