"""A stream folded into the message it tells."""

from __future__ import annotations

from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from claude_daemon.core.message import MessageBuilder, usage_of
from claude_daemon.core.task import Usage
from tests.wire.streams import MESSAGES, stream_of

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


@given(MESSAGES, st.integers(1, 50))
def test_the_events_of_a_message_build_that_message(message: dict[str, Any], size: int) -> None:
    builder = MessageBuilder()
    for event in stream_of(message, size):
        assert not builder.complete
        builder.add(event)
    assert builder.complete
    assert builder.message == message
    assert builder.text() == "".join(block["text"] for block in message["content"] if block["type"] == "text")
    Message.model_validate(builder.message)


@given(MESSAGES)
def test_our_streams_are_streams_of_the_messages_api(message: dict[str, Any]) -> None:
    for event in stream_of(message, 7):
        if event["type"] != "ping":
            EVENT.validate_python(event)


def start(block: dict[str, Any]) -> MessageBuilder:
    builder = MessageBuilder()
    builder.add({"type": "message_start", "message": {"id": "msg_1", "usage": {"input_tokens": 1}}})
    builder.add({"type": "content_block_start", "index": 0, "content_block": block})
    return builder


def test_text_is_there_before_its_block_is_closed() -> None:
    builder = start({"type": "text", "text": "a"})
    builder.add({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "b"}})
    assert builder.text() == "ab"
    builder.add({"type": "content_block_stop", "index": 0})
    assert builder.text() == "ab"


def test_citations_are_collected_where_the_block_starts_with_null() -> None:
    builder = start({"type": "text", "text": "", "citations": None})
    for n in range(2):
        builder.add({"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": n}})
    assert builder.message["content"][0]["citations"] == [0, 1]


def test_unknown_events_and_deltas_change_nothing() -> None:
    builder = start({"type": "text", "text": "a"})
    builder.add({"type": "galaxy"})
    builder.add({"type": "content_block_delta", "index": 0, "delta": {"type": "galaxy_delta"}})
    builder.add({"type": "content_block_stop", "index": 0})
    assert builder.message["content"] == [{"type": "text", "text": "a"}]


@pytest.mark.parametrize("value", [-5, True, 1.5, "7", 10**9, 10**30])
def test_a_count_that_cannot_be_counts_as_nothing_and_makes_the_usage_doubtful(value: object) -> None:
    found = usage_of({"input_tokens": value, "output_tokens": 3})
    assert found == Usage(output_tokens=3, model_calls=1, doubtful=1)
    assert (found + found).doubtful == 2
    assert "doubtful" not in found.told


def test_a_count_that_is_absent_counts_as_nothing() -> None:
    assert usage_of({"input_tokens": None, "output_tokens": 3}) == Usage(output_tokens=3, model_calls=1)
