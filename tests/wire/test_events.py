"""What followers of a task are told."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.core.event import MESSAGE, MESSAGE_EVENT, RETRY, TASK_SUCCEEDED, Emission
from claude_daemon.wire.events import MAX_DATA_BYTES, bounded, encoded, parts
from tests.wire.streams import MESSAGES, stream_of


def told(type: str, data: dict[str, Any]) -> dict[str, Any] | None:
    public = encoded("task_1", 7, 12.5, Emission(type, data))
    if public is None:
        return None
    kind, raw = public
    event: dict[str, Any] = orjson.loads(raw)
    assert event["type"] == kind
    return event


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
    assert told(MESSAGE_EVENT, data) == {"task": "task_1", "seq": 7, "type": type, "at": 12.5, "data": expected}


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
    assert told(MESSAGE_EVENT, data) is None


@pytest.mark.parametrize("type", [MESSAGE, RETRY, TASK_SUCCEEDED, "task.queued", "text.reset"])
def test_our_own_events_pass(type: str) -> None:
    assert told(type, {"x": 1}) == {"task": "task_1", "seq": 7, "type": type, "at": 12.5, "data": {"x": 1}}


def test_a_time_is_told_to_the_millisecond() -> None:
    public = encoded("task_1", 7, 1_700_000_000.123456, Emission(RETRY, {}))
    assert public is not None and b'"at":1700000000.123,' in public[1]


def test_an_event_has_no_line_break_whatever_it_says() -> None:
    public = encoded("task_1", 7, 0.0, Emission(MESSAGE_EVENT, delta("text_delta", text="a\nb\r\nc\u2028d")))
    assert public is not None and not {*b"\r\n"} & {*public[1]}


@given(MESSAGES, st.integers(1, 20))
def test_the_deltas_joined_are_the_texts_of_the_message(message: dict[str, Any], size: int) -> None:
    texts = {"text.delta": "", "thinking.delta": "", "usage": ""}
    for event in stream_of(message, size):
        one = told(MESSAGE_EVENT, event)
        if one is not None:
            texts[one["type"]] += one["data"].get("text", "")
    for kind in ("text", "thinking"):
        assert texts[f"{kind}.delta"] == "".join(b[kind] for b in message["content"] if b["type"] == kind)


# Pieces


# characters of every length in UTF-8 and in JSON, where a control character is six bytes
ALPHABET = 'a"\\\n\x00\x1f\x7fé€\u2028\ufffd😀\U0010ffff'
LONG = st.builds(
    lambda unit, size: (unit * (size // len(unit) + 1))[:size],
    st.text(st.sampled_from(ALPHABET) | st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50),
    st.integers(0, 50_000) | st.sampled_from([8191, 8192, 8193, 16384, 16385]),
)
FIELDS = {"text_delta": "text", "thinking_delta": "thinking"}


@given(LONG, st.sampled_from(sorted(FIELDS)))
def test_a_delta_in_pieces_is_told_whole_whatever_its_characters(text: str, kind: str) -> None:
    whole = Emission(MESSAGE_EVENT, delta(kind, **{FIELDS[kind]: text}))
    pieces = parts(whole)
    events = [told(piece.type, dict(piece.data)) for piece in pieces]
    data = [event["data"] for event in events if event is not None]
    assert "".join(one["text"] for one in data) == text
    for one in data:
        assert set(one) == {"text"}
        assert len(orjson.dumps(one)) <= MAX_DATA_BYTES
    assert [{**piece.data, "delta": None} for piece in pieces] == [{**whole.data, "delta": None}] * len(pieces)


@pytest.mark.parametrize("character", ["a", "\x00", "😀"])
def test_a_huge_delta_is_no_more_events_than_it_needs(character: str) -> None:
    pieces = parts(Emission(MESSAGE_EVENT, delta("text_delta", text=character * 100_000)))
    assert len(pieces) == 13  # 8192 characters each


@pytest.mark.parametrize(
    "emission",
    [
        Emission(MESSAGE_EVENT, delta("text_delta", text="x" * 8192), b"raw"),
        Emission(MESSAGE_EVENT, delta("text_delta", text="")),
        Emission(MESSAGE_EVENT, delta("input_json_delta", partial_json="x" * 100_000)),
        Emission(MESSAGE_EVENT, delta("signature_delta", signature="x" * 100_000)),
        Emission(MESSAGE_EVENT, {"type": "ping"}),
        Emission(MESSAGE, {"content": [{"type": "text", "text": "x" * 100_000}]}),
        Emission(RETRY, {"reason": "x" * 100_000}),
    ],
)
def test_what_is_small_or_no_delta_that_is_told_stays_as_it_is(emission: Emission) -> None:
    (only,) = parts(emission)
    assert only is emission


# Bounds


@pytest.mark.parametrize(
    "data",
    [
        {"text": "x" * 100_000},
        {"text": "\x00" * 100_000},
        {"text": "😀" * 100_000},
        {"content": [{"type": "text", "text": "y" * 50_000} for _ in range(9)], "id": "msg_1"},
        {"content": ["z" * 20] * 60_000},
        {"k" * 70_000: 1},
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


@pytest.mark.parametrize(
    ("type", "data"),
    [
        (MESSAGE_EVENT, delta("text_delta", text="ab" * 100_000)),
        (RETRY, {"text": "ab" * 100_000}),
    ],
)
def test_what_is_huge_and_not_in_pieces_is_cut_and_keeps_its_beginning(type: str, data: dict[str, Any]) -> None:
    event = told(type, data)
    assert event is not None
    assert event["data"]["truncated"] is True
    assert event["data"]["text"].startswith("abab")
