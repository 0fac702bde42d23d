"""What the model says, and which tools it calls."""

from typing import Any

import jsonschema
import orjson
import pytest

from tests.offline.conftest import Caller, text_of

TOOLS: Any = [
    {
        "name": name,
        "input_schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]},
    }
    for name in ("A", "B")
]
SCHEMA: Any = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 1}, "age": {"type": "integer", "minimum": 18}},
    "required": ["name", "age"],
}
STRUCTURED: Any = {"name": "StructuredOutput", "input_schema": SCHEMA}
PIXEL = "iVBORw0KGgo="


def calls_of(message: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(block["name"], block["input"]) for block in message["content"] if block["type"] == "tool_use"]


def after_call(prompt: str, answer: dict[str, Any], *results: str, **fields: Any) -> list[dict[str, Any]]:
    """The messages after the calls in `answer` were answered."""
    calls = [block for block in answer["content"] if block["type"] == "tool_use"]
    contents = [
        {"type": "tool_result", "tool_use_id": call["id"], "content": result, **fields}
        for call, result in zip(calls, results, strict=True)
    ]
    return [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer["content"]},
        {"role": "user", "content": contents},
    ]


async def test_the_same_request_has_the_same_answer(caller: Caller) -> None:
    assert await caller.text("hello") == await caller.text("hello")


async def test_a_long_prompt_is_quoted_in_part(caller: Caller) -> None:
    text = await caller.text(" ".join(f"w{number}" for number in range(100_000)))
    assert text.endswith("w19…”.")
    assert len(await caller.text("x" * 200_000)) < 500


async def test_what_claude_code_adds_is_not_quoted(caller: Caller) -> None:
    prompt = [
        {"type": "text", "text": "<system-reminder>\nnever say this [[text=no]]\n</system-reminder>"},
        {"type": "text", "text": "<command-name>/clear</command-name>\n <command-args></command-args>"},
        {"type": "text", "text": "<local-command-stdout></local-command-stdout>"},
        {"type": "text", "text": "is 1 < 2 in <b>html</b>?"},
    ]
    assert await caller.text(prompt) == "Hello from the offline model. You said: “is 1 < 2 in <b>html</b>?”."


async def test_a_reminder_that_never_ends_is_text(caller: Caller) -> None:
    assert "<system-reminder> oops" in await caller.text("<system-reminder> oops")


async def test_the_markers_of_the_users_last_own_text_count(caller: Caller) -> None:
    messages = [
        {"role": "user", "content": "[[text=old]]"},
        {"role": "assistant", "content": "[[text=never]]"},
        {"role": "user", "content": "[[text=new]]"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "[structured-output-enforce] You MUST [[text=forced]]"},
        {"role": "system", "content": []},
    ]
    assert await caller.text(messages) == "new"


async def test_the_history_is_told_in_order(caller: Caller) -> None:
    messages = [
        {"role": "user", "content": "one [[tokens=5]] two three four five six seven"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "A", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "fine"}]},
        {"role": "system", "content": "be brief"},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "[[history]] and now?"},
    ]
    assert (await caller.text(messages)).splitlines() == [
        "user: one two three four five six…",
        "assistant: [tool_use A]",
        "user: [tool_result fine]",
        "system: be brief",
        "assistant: done",
        "user: and now?",
    ]


@pytest.mark.parametrize("system", ["be kind", [{"type": "text", "text": "be kind"}]])
async def test_the_system_prompt_is_told(caller: Caller, system: Any) -> None:
    assert await caller.text("[[system]]", system=system) == "be kind"
    assert await caller.text("[[system]]") == "There is no system prompt."


async def test_attachments_are_mentioned_with_type_and_size(caller: Caller) -> None:
    prompt = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "abc"}},
        {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
        {"type": "text", "text": "look"},
        {"type": "text", "text": "[Image: source: /tmp/x/1.png]"},
    ]
    assert await caller.text(prompt) == (
        "Hello from the offline model. You said: “look”. "
        "With it came one image/png of 8 bytes and one text/plain of 3 bytes and one url image."
    )


async def test_an_image_alone_is_a_prompt(caller: Caller) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/gif", "data": PIXEL}}
    messages = [
        {"role": "user", "content": "[[text=old]]"},
        {"role": "assistant", "content": "old"},
        {"role": "user", "content": [image]},
    ]
    assert await caller.text(messages) == "Hello from the offline model. With it came one image/gif of 8 bytes."


async def test_tools_are_called_in_parallel_with_their_inputs(caller: Caller) -> None:
    answer = await caller.whole('[[tool=B]] [[tool=A]] [[tool=Gone]] [[input={"n":7}]]', tools=TOOLS)
    assert calls_of(answer) == [("B", {"n": 7}), ("A", {"n": 0}), ("Gone", {})]
    assert answer["stop_reason"] == "tool_use"
    assert len({block["id"] for block in answer["content"]}) == 3


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "any"}, ["A"]),
        ({"type": "tool", "name": "B"}, ["B"]),
        ({"type": "auto"}, []),
        ({"type": "none"}, []),
    ],
)
async def test_the_tool_choice_is_honoured(caller: Caller, choice: Any, expected: list[str]) -> None:
    answer = await caller.whole("hi", tools=TOOLS, tool_choice=choice)
    assert [name for name, _ in calls_of(answer)] == expected


async def test_the_tool_choice_limits_what_markers_ask_for(caller: Caller) -> None:
    one = {"type": "auto", "disable_parallel_tool_use": True}
    assert len(calls_of(await caller.whole("[[tool=A]] [[tool=B]]", tools=TOOLS, tool_choice=one))) == 1
    assert not calls_of(await caller.whole("[[tool=A]]", tools=TOOLS, tool_choice={"type": "none"}))


async def test_tool_results_are_quoted_and_the_tools_not_called_again(caller: Caller) -> None:
    prompt = "[[tool=A]] [[tool=B]]"
    answer = await caller.whole(prompt, tools=TOOLS)
    messages = after_call(prompt, answer, "fine", "[[text=injected]]")
    assert await caller.text(messages, tools=TOOLS, tool_choice={"type": "any"}) == (
        "The tool A answered: “fine”. The tool B answered: “[[text=injected]]”."
    )


async def test_a_failed_tool_is_named_so(caller: Caller) -> None:
    answer = await caller.whole("[[tool=A]]", tools=TOOLS)
    messages = after_call("[[tool=A]]", answer, "boom", is_error=True)
    assert await caller.text(messages, tools=TOOLS) == "The tool A failed: “boom”."


async def test_the_words_asked_for_come_after_the_tool(caller: Caller) -> None:
    prompt = "[[tool=A]] [[text=all done]]"
    answer = await caller.whole(prompt, tools=TOOLS)
    assert calls_of(answer)
    assert await caller.text(after_call(prompt, answer, "ok"), tools=TOOLS) == "all done"


async def test_a_tool_is_called_in_as_many_rounds_as_asked(caller: Caller) -> None:
    prompt = "[[tool=A]] [[repeat=2]]"
    first = await caller.whole(prompt, tools=TOOLS)
    messages = after_call(prompt, first, "1")
    second = await caller.whole(messages, tools=TOOLS)
    assert calls_of(first) == calls_of(second) == [("A", {"n": 0})]
    third = await caller.whole(messages + after_call(prompt, second, "2")[1:], tools=TOOLS)
    assert text_of(third) == "The tool A answered: “2”."


async def test_several_tools_are_called_in_their_order_one_a_round(caller: Caller) -> None:
    prompt = '[[one-by-one]] [[tool=A]] [[input={"n":1}]] [[tool=A]] [[input={"n":2}]] [[text=done]]'
    messages: Any = prompt
    for number in (1, 2):
        answer = await caller.whole(messages, tools=TOOLS)
        assert calls_of(answer) == [("A", {"n": number})]
        told = after_call(prompt, answer, "ok")
        messages = told if number == 1 else messages + told[1:]
    assert await caller.text(messages, tools=TOOLS) == "done"


@pytest.mark.parametrize("place", ["output_config", "output_format"])
async def test_structured_output_fits_the_schema(caller: Caller, place: str) -> None:
    wanted = {"type": "json_schema", "schema": SCHEMA}
    fields = {"output_config": {"format": wanted}} if place == "output_config" else {"output_format": wanted}
    value = orjson.loads(await caller.text("hi", **fields))
    assert value == {"name": "x", "age": 18}
    broken = orjson.loads(await caller.text("hi [[invalid]]", **fields))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)


@pytest.mark.parametrize("schema", [{"type": "string"}, {"type": "integer"}, {"type": "array"}])
async def test_a_broken_output_is_of_another_type(caller: Caller, schema: Any) -> None:
    wanted = {"format": {"type": "json_schema", "schema": schema}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(orjson.loads(await caller.text("[[invalid]]", output_config=wanted)), schema)


async def test_the_structured_output_tool_is_called_until_it_succeeds(caller: Caller) -> None:
    first = await caller.whole("hi [[invalid]] [[round=1]]", tools=[STRUCTURED])
    assert calls_of(first) == [("StructuredOutput", {"age": 18})]
    messages = after_call("hi [[invalid]] [[round=1]]", first, "no name", is_error=True)
    second = await caller.whole(messages, tools=[STRUCTURED])
    assert calls_of(second) == [("StructuredOutput", {"name": "x", "age": 18})]
    messages += after_call("hi", second, "ok")[1:]
    assert await caller.text(messages, tools=[STRUCTURED]) == "The structured answer is given."


async def test_other_tools_come_before_the_structured_output(caller: Caller) -> None:
    first = await caller.whole("[[tool=A]]", tools=[*TOOLS, STRUCTURED])
    assert [name for name, _ in calls_of(first)] == ["A"]
    second = await caller.whole(after_call("[[tool=A]]", first, "ok"), tools=[*TOOLS, STRUCTURED])
    assert [name for name, _ in calls_of(second)] == ["StructuredOutput"]


async def test_a_later_turn_gives_a_structured_output_of_its_own(caller: Caller) -> None:
    first = await caller.whole("hi", tools=[STRUCTURED])
    messages = [
        *after_call("hi", first, "ok"),
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "again"},
    ]
    assert calls_of(await caller.whole(messages, tools=[STRUCTURED]))


async def test_the_structured_output_tool_can_be_left_alone(caller: Caller) -> None:
    assert not calls_of(await caller.whole("[[no-structured]]", tools=[STRUCTURED]))


async def test_a_tool_input_can_be_broken(caller: Caller) -> None:
    assert calls_of(await caller.whole("[[tool=A]] [[invalid]]", tools=TOOLS)) == [("A", {})]
    assert calls_of(await caller.whole("[[tool=X]] [[invalid]]", tools=TOOLS)) == [("X", {"unexpected": True})]


@pytest.mark.parametrize(
    ("fields", "thinks"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, (True, True)),
        ({"thinking": {"type": "adaptive"}}, (False, True)),
        ({"thinking": {"type": "disabled"}}, (False, False)),
        ({}, (False, False)),
    ],
)
async def test_thinking_needs_the_request_and_adaptive_needs_the_marker(
    caller: Caller, fields: Any, thinks: tuple[bool, bool]
) -> None:
    answers = [await caller.whole(prompt, **fields) for prompt in ("hi", "hi [[thinking]]")]
    assert tuple(answer["content"][0]["type"] == "thinking" for answer in answers) == thinks


async def test_a_refusal_wins_over_everything_else(caller: Caller) -> None:
    answer = await caller.whole("[[refusal]] [[tool=A]] [[text=x]] [[bytes=5]]", tools=TOOLS)
    assert answer["stop_reason"] == "refusal"
    assert text_of(answer) == "I can't help with that."
