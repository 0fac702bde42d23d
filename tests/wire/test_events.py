"""What followers of a task are told."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.core.event import MESSAGE, MESSAGE_EVENT, RETRY, TASK_SUCCEEDED, Event
from claude_daemon.wire.events import MAX_DATA_BYTES, PublicEvents, bounded
from tests.wire.streams import MESSAGES, stream_of


def told(type: str, data: dict[str, Any]) -> list[dict[str, Any]]:
    return PublicEvents("task_1").feed(Event(7, type, data), 12.5)


def delta(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kind, **fields}}


@pytest.mark.parametrize(
    ("data", "type", "expected"),
    [
        (delta("text_delta", text="a"), "text.delta", {"text": "a"}),
        (delta("thinking_delta", thinking="b"), "thinking.delta", {"text": "b"}),
        (
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "c"}},
            "text.delta",
            {"text": "c"},
        ),
        (
            {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}},
            "usage",
            {"output_tokens": 5},
        ),
    ],
)
def test_the_inner_stream_is_told_under_our_names(data: dict[str, Any], type: str, expected: dict[str, Any]) -> None:
    assert told(MESSAGE_EVENT, data) == [{"task": "task_1", "seq": 7, "type": type, "at": 12.5, "data": expected}]


@pytest.mark.parametrize(
    "data",
    [
        {"type": "ping"},
        {"type": "message_start", "message": {}},
        {"type": "message_stop"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t"}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        delta("signature_delta", signature="s"),
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
    ],
)
def test_the_rest_of_the_inner_stream_is_not_told(data: dict[str, Any]) -> None:
    assert told(MESSAGE_EVENT, data) == []


@pytest.mark.parametrize("type", [MESSAGE, RETRY, TASK_SUCCEEDED, "task.queued", "text.reset"])
def test_our_own_events_pass(type: str) -> None:
    assert told(type, {"x": 1}) == [{"task": "task_1", "seq": 7, "type": type, "at": 12.5, "data": {"x": 1}}]


@given(MESSAGES, st.integers(1, 20))
def test_the_deltas_joined_are_the_texts_of_the_message(message: dict[str, Any], size: int) -> None:
    public = PublicEvents("task_1")
    texts = {"text.delta": "", "thinking.delta": "", "usage": ""}
    for seq, event in enumerate(stream_of(message, size)):
        for one in public.feed(Event(seq, MESSAGE_EVENT, event), 0.0):
            texts[one["type"]] += one["data"].get("text", "")
    for kind in ("text", "thinking"):
        assert texts[f"{kind}.delta"] == "".join(b[kind] for b in message["content"] if b["type"] == kind)


@pytest.mark.parametrize(
    "data",
    [
        {"text": "x" * 100_000},
        {"text": "\x00" * 100_000},
        {"text": "😀" * 100_000},
        {"content": [{"type": "text", "text": "y" * 50_000} for _ in range(9)], "id": "msg_1"},
        {"content": ["z" * 20] * 60_000},
    ],
)
def test_data_is_bounded_and_says_how_large_it_was(data: dict[str, Any]) -> None:
    cut = bounded(data)
    assert len(orjson.dumps(cut)) <= MAX_DATA_BYTES
    assert cut["truncated"] is True
    assert cut["size_bytes"] == len(orjson.dumps(data))


def test_data_that_fits_is_the_same_object() -> None:
    data = {"text": "x" * 60_000}
    assert bounded(data) is data


def test_a_huge_delta_is_cut_and_keeps_its_beginning() -> None:
    data = told(MESSAGE_EVENT, delta("text_delta", text="ab" * 100_000))[0]["data"]
    assert data["truncated"] is True
    assert data["text"].startswith("abab")
