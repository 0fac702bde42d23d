"""Chat Completions requests: what is honoured, what is refused by name, and what they become."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.wire import openai
from claude_daemon.wire.anthropic import MessagesRequest, text_lane_unsupported
from claude_daemon.wire.openai_translate import DEFAULT_MAX_TOKENS, Translated
from claude_daemon.wire.parse import validate

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
PNG = "data:image/png;base64,iVBORw0KGgo="


def translate(*messages: dict[str, Any], **extra: Any) -> Translated:
    body = {"model": "m", "messages": list(messages) or [USER]} | extra
    translated = openai.to_messages(openai.parse_request(orjson.dumps(body)))
    validate(MessagesRequest, translated.request)
    return translated


def request(*messages: dict[str, Any], **extra: Any) -> dict[str, Any]:
    return translate(*messages, **extra).request


def refused(*messages: dict[str, Any], **extra: Any) -> Failure:
    with pytest.raises(Refusal) as refusal:
        translate(*messages, **extra)
    return refusal.value.failure


def test_the_least_request_becomes_the_least_messages_request() -> None:
    translated = translate()
    assert translated.request == {
        "model": "m",
        "max_tokens": DEFAULT_MAX_TOKENS,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    }
    assert (translated.stream, translated.include_usage, translated.output_schema) == (False, False, None)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_completion_tokens": 9, "max_tokens": 9}, {"max_tokens": 9}),
        ({"stop": "x"}, {"stop_sequences": ["x"]}),
        ({"stop": ["x", "y"]}, {"stop_sequences": ["x", "y"]}),
        ({"temperature": 0, "top_p": 0.5}, {"temperature": 0, "top_p": 0.5}),
        ({"user": "u"}, {"metadata": {"user_id": "u"}}),
        ({"user": "u", "safety_identifier": "s"}, {"metadata": {"user_id": "s"}}),
        ({"service_tier": "auto"}, {"service_tier": "auto"}),
        ({"service_tier": "default"}, {"service_tier": "standard_only"}),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        (
            {"reasoning_effort": "high"},
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}},
        ),
        ({"stream": True}, {"stream": True}),
        ({"tools": [TOOL], "tool_choice": "none"}, {"tool_choice": {"type": "none"}}),
        ({"tools": [TOOL], "tool_choice": "auto"}, {"tool_choice": {"type": "auto"}}),
        ({"tools": [TOOL], "tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            {"tool_choice": {"type": "tool", "name": "f"}},
        ),
        (
            {"tools": [TOOL], "parallel_tool_calls": False},
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ),
        (
            {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False},
            {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}},
        ),
        (
            {"tools": [TOOL]},
            {"tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]},
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]},
            {"tools": [{"name": "f", "input_schema": {"type": "object", "properties": {}}, "strict": True}]},
        ),
    ],
)
def test_a_parameter_is_translated(extra: dict[str, Any], expected: dict[str, Any]) -> None:
    assert request(**extra).items() >= expected.items()


@pytest.mark.parametrize(
    "extra",
    [
        {
            "n": 1,
            "store": False,
            "logprobs": False,
            "frequency_penalty": 0,
            "presence_penalty": 0.0,
            "logit_bias": {},
        },
        {"metadata": {"a": "b"}, "prompt_cache_key": "k", "modalities": ["text"], "verbosity": "medium"},
        {"response_format": {"type": "text"}, "stop": None, "seed": None, "tools": None, "temperature": None},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "stop": [], "functions": []},
        {"parallel_tool_calls": False, "tool_choice": "none"},
        {"stream_options": {"include_usage": True, "include_obfuscation": False}},
    ],
)
def test_what_asks_for_nothing_is_accepted_and_leaves_nothing(extra: dict[str, Any]) -> None:
    assert request(**extra) == request()


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"store": True}, "store"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"frequency_penalty": 0.1}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"seed": 1}, "seed"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {}}, "audio"),
        ({"prediction": {}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"moderation": {}}, "moderation"),
        ({"functions": [{}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"verbosity": "low"}, "verbosity"),
        ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"temperature": 1.1}, "temperature"),
        ({"reasoning_effort": "minimal"}, "reasoning_effort"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}, "function": {"name": "x"}}]}, "tools.0.type"),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.type"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"messages": [USER | {"name": "bob"}]}, "messages.0.name"),
        ({"messages": [USER, {"role": "function", "name": "f", "content": "x"}]}, "messages.1.role"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0.content.0"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}],
                    }
                ]
            },
            "messages.0.content.0.image_url.detail",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(extra: dict[str, Any], param: str) -> None:
    failure = refused(**extra)
    assert failure.code is Code.UNSUPPORTED_PARAMETER, failure
    assert failure.param == param


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}, USER]}, "messages.0.role"),
        ({"messages": [USER | {"content": ""}]}, "messages.0.content"),
        ({"messages": [USER | {"content": []}]}, "messages.0.content"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"content": "x"}]}, "messages.0.role"),
        (
            {"messages": [USER, {"role": "tool", "tool_call_id": "c9", "content": "x"}]},
            "messages.1.tool_call_id",
        ),
        (
            {
                "messages": [
                    {"role": "system", "content": [{"type": "image_url", "image_url": {"url": PNG}}]},
                    USER,
                ]
            },
            "messages.0.content.0.type",
        ),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, None),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [" "]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
            "tool_choice.function.name",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_what_makes_no_sense_is_invalid(extra: dict[str, Any], param: str | None) -> None:
    failure = refused(**extra)
    assert failure.code is Code.INVALID_REQUEST
    assert failure.param == param


def test_json_object_is_refused_with_what_to_send_instead() -> None:
    assert '{"type": "json_schema"}' in refused(response_format={"type": "json_object"}).message


@pytest.mark.parametrize(("arguments", "words"), [("{", "not valid JSON"), ("[1]", "must be a JSON object")])
def test_bad_arguments_of_a_tool_call_are_a_fault_at_their_path(arguments: str, words: str) -> None:
    call = CALL | {"function": {"name": "f", "arguments": arguments}}
    failure = refused(USER, {"role": "assistant", "tool_calls": [CALL, call]}, USER)
    assert failure.param == "messages.1.tool_calls.1.function.arguments"
    assert words in failure.message


def test_every_fault_of_a_conversation_is_told() -> None:
    failure = refused(
        {"role": "tool", "tool_call_id": "x", "content": "r"}, USER | {"content": ""}, tool_choice="required"
    )
    assert [fault.path for fault in failure.faults] == [
        "messages.0.tool_call_id",
        "messages.1.content",
        "tool_choice",
    ]


def test_system_and_developer_messages_are_joined_in_order_wherever_they_stand() -> None:
    got = request(
        {"role": "system", "content": "a"},
        USER,
        {"role": "developer", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": ""}]},
        USER,
    )
    assert got["system"] == [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert [message["role"] for message in got["messages"]] == ["user"]


def test_a_round_of_tools_becomes_blocks_and_results_share_one_user_message() -> None:
    second = CALL | {"id": "c2", "function": {"name": "f", "arguments": ""}}
    got = request(
        USER,
        {
            "role": "assistant",
            "content": "wait",
            "tool_calls": [CALL, second],
            "reasoning_content": "hm",
            "annotations": [],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "two"}], "name": "f"},
        USER,
        tools=[TOOL],
    )
    assert got["messages"][1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "wait"},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "c2", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "one"},
                {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "two"}]},
                {"type": "text", "text": "hi"},
            ],
        },
    ]


def test_an_answer_of_ours_can_be_sent_back_as_it_came() -> None:
    message = {"content": [{"type": "text", "text": "yes"}], "stop_reason": "end_turn", "usage": {}}
    ours = openai.completion(message, id="chatcmpl-1", created=1, model="m")["choices"][0]["message"]
    assert request(USER, ours, USER)["messages"][1]["content"] == [{"type": "text", "text": "yes"}]


def part(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": kind, kind: value}]}


@pytest.mark.parametrize(
    ("message", "block"),
    [
        (
            part("image_url", {"url": PNG, "detail": "auto"}),
            {
                "type": "image",
                "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
            },
        ),
        (
            part("image_url", {"url": "https://x/y.png"}),
            {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}},
        ),
        (
            part("file", {"file_data": "data:application/pdf;name=a.pdf;base64,JVBE", "filename": "a.pdf"}),
            {
                "type": "document",
                "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"},
                "title": "a.pdf",
            },
        ),
    ],
)
def test_images_and_files_become_blocks(message: dict[str, Any], block: dict[str, Any]) -> None:
    assert request(message)["messages"][0]["content"] == [block]


@pytest.mark.parametrize(
    "message",
    [
        part("image_url", {"url": "file:///etc/passwd"}),
        part("image_url", {"url": "data:image/svg+xml;base64,AA=="}),
        part("image_url", {"url": "data:image/png,plain"}),
        part("file", {"file_data": "data:text/plain;base64,AA=="}),
        part("file", {"file_data": "AA=="}),
    ],
)
def test_other_urls_and_types_are_faults(message: dict[str, Any]) -> None:
    assert refused(message).code is Code.INVALID_REQUEST


def test_a_schema_is_asked_for_and_kept_for_the_check() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"name": "x", "description": "A thing.", "schema": schema, "strict": True}
    translated = translate(response_format={"type": "json_schema", "json_schema": wanted})
    expected = {"description": "A thing.", **schema}
    assert translated.output_schema == expected
    assert translated.request["output_config"] == {"format": {"type": "json_schema", "schema": expected}}
    assert text_lane_unsupported(translated.request) is None


def test_usage_is_included_only_in_a_stream_that_asks_for_it() -> None:
    assert translate(stream=True, stream_options={"include_usage": True}).include_usage
    assert not translate(stream=True).include_usage
    assert not translate(stream_options={"include_usage": True}).include_usage


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ({"stop": "x"}, "stop"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"temperature": 0.5}, "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "not a name"}}]}, "tools"),
        ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "messages"),
    ],
)
def test_the_text_lane_refuses_in_the_clients_own_words(extra: dict[str, Any], name: str) -> None:
    found = text_lane_unsupported(request(**extra))
    assert found is not None
    failure = openai.in_client_words(found)
    assert failure.param == name
    assert failure.message.startswith(f"`{name}` is not supported")


def test_other_failures_keep_their_words() -> None:
    failure = Failure(code=Code.INVALID_REQUEST, message="`thinking` is odd", param="thinking")
    assert openai.in_client_words(failure) is failure
