"""A body's bytes become an instance, or every fault in it at once."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest

from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.wire.anthropic import MessagesRequest, parse_count_tokens, parse_messages
from claude_daemon.wire.openai_request import ChatCompletionRequest
from claude_daemon.wire.parse import MAX_DEPTH, MAX_FAULTS, load, parse

MESSAGES: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def refused(model: type, body: object) -> Failure:
    with pytest.raises(Refusal) as refusal:
        parse(model, body if isinstance(body, bytes) else orjson.dumps(body))
    return refusal.value.failure


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b'{"a": 1,\n "b":}', "(byte 14, line 2, column 6)"),
        ('{"é": x}'.encode(), "byte 7,"),
        (b'{"a": NaN}', "not valid JSON"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"a": "\\udc00x"}', "half of a surrogate pair"),
        (b'{"a": "\xed\xa0\x80"}', "not valid UTF-8: see byte 7"),
        (b'{"a": "\xff"}', "not valid UTF-8: see byte 7"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"[]", "must be a JSON object, not an array"),
        (b"null", "not null"),
        (b"true", "not a boolean"),
        (b"7", "not a number"),
        (b'{"a": 1} x', "not valid JSON"),
        (b"[" * 5000, "not valid JSON"),
    ],
)
def test_a_body_that_is_no_json_object_is_refused_with_the_place(body: bytes, words: str) -> None:
    failure = refused(MessagesRequest, body)
    assert failure.code is Code.INVALID_REQUEST
    assert words in failure.message


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


def test_nesting_is_bounded_and_what_is_allowed_can_be_written_again() -> None:
    assert orjson.dumps(load(nested(MAX_DEPTH)))
    with pytest.raises(Refusal, match="nested more than"):
        load(nested(MAX_DEPTH + 1))
    assert load(b'{"a":[' + b"[]," * 1000 + b"1]}")


def test_all_faults_are_told_at_once_with_dotted_paths() -> None:
    body = MESSAGES | {
        "max_tokens": "5",
        "stream": 1,
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "robot", "content": "hi"},
            {"role": "user", "content": [{"text": "no type"}, 3]},
            {"role": "user", "content": 7},
        ],
    }
    failure = refused(MessagesRequest, body)
    assert [fault.path for fault in failure.faults] == [
        "messages.1.role",
        "messages.2.content.0.type",
        "messages.2.content.1",
        "messages.3.content",
        "max_tokens",
        "stream",
    ]
    assert failure.param == "messages.1.role"
    assert "messages.2.content.0.type: This field is required." in failure.message
    assert failure.message.endswith("(and 1 more)")


def test_a_million_faults_are_told_in_part() -> None:
    failure = refused(MessagesRequest, MESSAGES | {"messages": [0] * 1000})
    assert len(failure.faults) == MAX_FAULTS
    assert failure.message.endswith("(and many more)")


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (MessagesRequest, MESSAGES | {"messages": [{"role": "user", "content": [{}] * 300_000}]}),
        (MessagesRequest, MESSAGES | {"messages": [{"role": "user", "content": [0] * 100}] * 3000}),
        (
            MessagesRequest,
            MESSAGES | {"tools": [0] * 300_000, "stop_sequences": [0] * 300_000, "system": [0] * 300_000},
        ),
        (ChatCompletionRequest, CHAT | {"messages": [{"role": "user", "content": [{}] * 300_000}]}),
        (ChatCompletionRequest, CHAT | {"tools": [0] * 300_000, "stop": [0] * 300_000}),
        (ChatCompletionRequest, CHAT | {"messages": [CHAT["messages"][0] | {f"k{n}": 0 for n in range(90)}] * 3000}),
        (ChatCompletionRequest, CHAT | {f"k{n}": 0 for n in range(300_000)}),
        (ChatCompletionRequest, CHAT | {"metadata": {f"k{n}": 0 for n in range(300_000)}}),
    ],
)
def test_a_body_made_of_faults_costs_no_more_than_one_made_of_text(model: type, body: dict[str, Any]) -> None:
    """Each of these has 300,000; when all are collected, such a body takes seconds."""
    raw = orjson.dumps(body)
    before = time.process_time()
    failure = refused(model, raw)
    assert time.process_time() - before < 1
    assert len(failure.faults) <= MAX_FAULTS


def test_a_message_never_repeats_what_the_client_sent() -> None:
    failure = refused(MessagesRequest, MESSAGES | {"model": ["sk-secret"], "system": 5})
    assert "secret" not in failure.message


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"temprature": 1}, "Did you mean `temperature`?"),
        ({"max_token": 1}, "Did you mean `max_tokens`?"),
        ({"whatever": 1}, "This parameter is not known here."),
    ],
)
def test_an_unknown_openai_parameter_is_refused_by_name(extra: dict[str, Any], words: str) -> None:
    failure = refused(ChatCompletionRequest, CHAT | extra)
    assert failure.code is Code.UNSUPPORTED_PARAMETER
    assert failure.param == next(iter(extra))
    assert words in failure.message


def test_a_wrong_value_beside_an_unknown_name_makes_the_request_invalid() -> None:
    failure = refused(ChatCompletionRequest, CHAT | {"whatever": 1, "stream": "yes"})
    assert failure.code is Code.INVALID_REQUEST
    assert {fault.path for fault in failure.faults} == {"whatever", "stream"}


def test_the_messages_body_comes_back_as_it_was_sent_unknown_fields_included() -> None:
    body = MESSAGES | {
        "zeta": {"b": [1.5, None]},
        "alpha": 1,
        "tools": [{"type": "new_tool_20300101", "x": 1}],
    }
    body["messages"] = [{"role": "user", "content": [{"type": "hologram", "q": 1}], "id": 9}]
    raw = orjson.dumps(body)
    assert orjson.dumps(parse_messages(raw)) == raw
    assert orjson.dumps(parse_count_tokens(raw)) == raw


def test_counting_tokens_needs_no_limit() -> None:
    body = {k: v for k, v in MESSAGES.items() if k != "max_tokens"}
    assert parse_count_tokens(orjson.dumps(body)) == body
    assert refused(MessagesRequest, body).param == "max_tokens"
