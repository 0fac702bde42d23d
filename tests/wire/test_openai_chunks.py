"""Messages API streams and messages as OpenAI's chunks and completions."""

from __future__ import annotations

import timeit
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from claude_daemon.wire.openai import ChunkStream, completion, encode
from claude_daemon.wire.openai_answer import FINISH
from tests.wire.streams import MESSAGES, STOPS, stream_of

NAMES: dict[str, Any] = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": "claude"}
TEXT_DELTA = {
    "type": "content_block_delta",
    "index": 0,
    "delta": {"type": "text_delta", "text": 'say "hé"\n'},
}


def chunks_of(message: dict[str, Any], size: int = 5, *, include_usage: bool = False) -> list[dict[str, Any]]:
    stream = ChunkStream(**NAMES, include_usage=include_usage)
    return [chunk for event in stream_of(message, size) for chunk in stream.feed(event)]


def joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client makes of chunks, as a completion's message and finish reason."""
    texts: dict[str, str | None] = {"content": None, "reasoning_content": None}
    calls: dict[int, dict[str, Any]] = {}
    finish = None
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        delta, finish = choice["delta"], choice["finish_reason"] or finish
        for name in texts.keys() & delta.keys():
            texts[name] = (texts[name] or "") + delta[name]
        for call in delta.get("tool_calls", ()):
            known = calls.setdefault(
                call["index"], {"id": call.get("id"), "name": call["function"].get("name"), "arguments": ""}
            )
            known["arguments"] += call["function"]["arguments"]
    return {"texts": texts, "calls": [calls[n] for n in range(len(calls))], "finish": finish}


@given(MESSAGES, st.integers(1, 50), st.booleans())
def test_chunks_joined_are_the_message(message: dict[str, Any], size: int, include_usage: bool) -> None:
    chunks = chunks_of(message, size, include_usage=include_usage)
    told = joined(chunks)
    blocks = message["content"]
    assert told["texts"]["content"] == "".join(b["text"] for b in blocks if b["type"] == "text")
    assert (told["texts"]["reasoning_content"] or "") == "".join(
        b["thinking"] for b in blocks if b["type"] == "thinking"
    )
    assert [(call["id"], call["name"], orjson.loads(call["arguments"])) for call in told["calls"]] == [
        (block["id"], block["name"], block["input"]) for block in blocks if block["type"] == "tool_use"
    ]
    assert told["finish"] == FINISH[message["stop_reason"]]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)


@given(MESSAGES, st.booleans())
def test_encoded_chunks_are_the_same_chunks(message: dict[str, Any], include_usage: bool) -> None:
    plain, fast = (ChunkStream(**NAMES, include_usage=include_usage) for _ in range(2))
    for event in stream_of(message, 3):
        expected = plain.feed(event)
        lines = fast.feed_encoded(event).split(b"\n\n")[:-1]
        assert [orjson.loads(line.removeprefix(b"data: ")) for line in lines] == expected


@given(MESSAGES)
def test_a_completion_says_what_the_chunks_say(message: dict[str, Any]) -> None:
    whole = completion(message, **NAMES)
    ChatCompletion.model_validate(whole)
    chunks = chunks_of(message, include_usage=True)
    told, choice = joined(chunks), whole["choices"][0]
    assert (choice["message"]["content"] or "") == told["texts"]["content"]
    calls = [{"id": call["id"], **call["function"]} for call in choice["message"].get("tool_calls", ())]
    assert calls == told["calls"]
    assert choice["finish_reason"] == told["finish"]
    assert whole["usage"] == chunks[-1]["usage"]


def test_the_first_chunk_gives_the_role_and_the_finish_comes_last() -> None:
    message = {
        "content": [{"type": "text", "text": "hello"}],
        "stop_reason": "end_turn",
        "usage": {"output_tokens": 2},
    }
    deltas = [(c["choices"][0]["delta"], c["choices"][0]["finish_reason"]) for c in chunks_of(message)]
    assert deltas == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "hello"}, None),
        ({}, "stop"),
    ]


def test_usage_is_null_until_the_last_chunk_which_has_no_choices() -> None:
    message = {
        "content": [],
        "stop_reason": "end_turn",
        "usage": {
            "input_tokens": 1,
            "cache_creation_input_tokens": 20,
            "cache_read_input_tokens": 300,
            "output_tokens": 4000,
        },
    }
    *others, last = chunks_of(message, include_usage=True)
    assert all(chunk["usage"] is None for chunk in others)
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 321,
        "completion_tokens": 4000,
        "total_tokens": 4321,
        "prompt_tokens_details": {"cached_tokens": 300},
    }
    assert all("usage" not in chunk for chunk in chunks_of(message))


def test_thinking_tokens_are_told_as_reasoning_where_they_are_known() -> None:
    usage = {"input_tokens": 1, "output_tokens": 9, "output_tokens_details": {"thinking_tokens": 5}}
    whole = completion({"content": [], "stop_reason": "end_turn", "usage": usage}, **NAMES)
    assert whole["usage"]["completion_tokens_details"] == {"reasoning_tokens": 5}


@pytest.mark.parametrize("stop", STOPS)
def test_every_stop_reason_has_a_finish_reason(stop: str) -> None:
    assert FINISH[stop] in ("stop", "length", "tool_calls", "content_filter")


def test_parallel_tool_calls_count_from_nought_whatever_blocks_stand_between() -> None:
    blocks = [
        {"type": "text", "text": "x"},
        {"type": "tool_use", "id": "a", "name": "f", "input": {}},
        {"type": "text", "text": "y"},
        {"type": "tool_use", "id": "b", "name": "g", "input": {"k": 1}},
    ]
    message = {"content": blocks, "stop_reason": "tool_use", "usage": {"output_tokens": 1}}
    calls = joined(chunks_of(message))["calls"]
    assert calls == [
        {"id": "a", "name": "f", "arguments": "{}"},
        {"id": "b", "name": "g", "arguments": '{"k":1}'},
    ]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "ping"},
        {"type": "error", "error": {"type": "overloaded_error", "message": "x"}},
        {"type": "galaxy"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "server_tool_use", "id": "s"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "s"}},
        {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "input_json_delta", "partial_json": "{"},
        },
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5}},
        {"type": "message_stop"},
    ],
)
def test_what_means_no_chunk_gives_none(event: dict[str, Any]) -> None:
    assert ChunkStream(**NAMES).feed(event) == []
    assert ChunkStream(**NAMES).feed_encoded(event) == b""


def test_text_in_the_start_of_a_block_is_told() -> None:
    stream = ChunkStream(**NAMES)
    started = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "x"}}
    assert stream.feed(started)[0]["choices"][0]["delta"] == {"content": "x"}


def test_a_text_delta_takes_less_than_the_budget() -> None:
    """3 µs, and some room for a busy machine."""
    stream = ChunkStream(**NAMES, include_usage=True)
    assert stream.feed_encoded(TEXT_DELTA) == encode(stream.feed(TEXT_DELTA)[0])
    for feed in ("feed", "feed_encoded"):
        timer = timeit.Timer(f"{feed}(event)", globals={feed: getattr(stream, feed), "event": TEXT_DELTA})
        assert min(timer.repeat(number=2000, repeat=5)) / 2000 < 10e-6
