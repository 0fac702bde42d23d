"""Exactly what goes over the wire."""

from typing import Any

import pytest

from claude_daemon.offline import OfflineModel
from tests.offline.conftest import Caller, deltas, request, text_of

NO_CACHE = {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0}


@pytest.fixture
async def model() -> Any:
    async with OfflineModel(record=True, ids=lambda prefix: f"{prefix}_1") as model:
        yield model


async def test_the_events_of_a_text_answer(caller: Caller) -> None:
    events = [event.data for event in await caller.events("[[text=Hi there]]", model="m")]
    start: dict[str, Any] = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 1,
            "cache_creation": NO_CACHE,
            "service_tier": "standard",
        },
    }
    assert events == [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": " there"}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {
                "input_tokens": 5,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 2,
            },
        },
        {"type": "message_stop"},
    ]


async def test_every_event_is_named_by_its_type(caller: Caller) -> None:
    events = await caller.events("[[thinking]] [[tool=A]]", thinking={"type": "adaptive"})
    assert [event.type for event in events] == [event.data["type"] for event in events]


async def test_the_events_of_thinking_and_a_tool_call(caller: Caller) -> None:
    events = await caller.events('[[thinking]] [[tool=A]] [[input={"a":1}]]', thinking={"type": "adaptive"})
    blocks = [event.data["content_block"] for event in events if event.type == "content_block_start"]
    assert blocks == [
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "tool_use", "id": "toolu_1", "name": "A", "input": {}},
    ]
    moves = [event.data for event in events if event.type.startswith("content_block_")]
    thought = [move["delta"]["type"] for move in moves if move["index"] == 0 and "delta" in move]
    assert thought[-1] == "signature_delta"
    assert set(thought[:-1]) == {"thinking_delta"}
    called = [move["delta"] for move in moves if move["index"] == 1 and "delta" in move]
    assert called[0] == {"type": "input_json_delta", "partial_json": ""}
    assert "".join(delta["partial_json"] for delta in called) == '{"a":1}'
    assert events[-2].data["delta"]["stop_reason"] == "tool_use"


async def test_an_empty_answer_has_no_block_and_one_token(caller: Caller) -> None:
    events = await caller.events("[[text=]]")
    assert [event.type for event in events] == ["message_start", "ping", "message_delta", "message_stop"]
    assert events[2].data["usage"]["output_tokens"] == 1
    assert (await caller.whole("[[text=]]"))["content"] == []


async def test_an_answer_not_streamed_is_one_message(caller: Caller) -> None:
    assert await caller.whole("[[text=Hi there]]", model="m") == {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "Hi there"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 5,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 2,
            "cache_creation": NO_CACHE,
            "service_tier": "standard",
        },
    }


@pytest.mark.parametrize("tokens", [1, 5, 9, 20, 500])
async def test_a_reply_has_as_many_tokens_and_deltas_as_asked(caller: Caller, tokens: int) -> None:
    events = await caller.events(f"hello [[tokens={tokens}]]")
    assert len(deltas(events)) == events[-2].data["usage"]["output_tokens"] == tokens


@pytest.mark.parametrize(("max_tokens", "reason"), [(1, "max_tokens"), (7, "max_tokens"), (8, "end_turn")])
async def test_max_tokens_is_honoured_exactly(caller: Caller, max_tokens: int, reason: str) -> None:
    events = await caller.events("hi [[tokens=8]]", max_tokens=max_tokens)
    assert len(deltas(events)) == max_tokens
    assert events[-2].data["delta"]["stop_reason"] == reason
    whole = await caller.whole("hi [[tokens=8]]", max_tokens=max_tokens)
    assert (text_of(whole), whole["stop_reason"]) == ("".join(deltas(events)), reason)


async def test_max_tokens_can_end_a_tool_call_or_the_thinking(caller: Caller) -> None:
    prompt = '[[thinking]] [[tool=A]] [[input={"city":"San Francisco, California"}]]'
    for max_tokens, kinds in ((3, ["thinking"]), (5, ["thinking", "tool_use"])):
        answer = await caller.whole(prompt, thinking={"type": "adaptive"}, max_tokens=max_tokens)
        assert [block["type"] for block in answer["content"]] == kinds
        assert (answer["stop_reason"], answer["usage"]["output_tokens"]) == ("max_tokens", max_tokens)


async def test_a_stop_sequence_ends_the_answer_before_it_is_said(caller: Caller) -> None:
    answer = await caller.whole("[[text=one two three four]]", stop_sequences=["four", "wo th"])
    assert text_of(answer) == "one t"
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "wo th")
    assert answer["usage"]["output_tokens"] == 2


async def test_a_stop_sequence_at_the_very_start_leaves_nothing(caller: Caller) -> None:
    answer = await caller.whole("[[text=stop]]", stop_sequences=["stop"])
    assert (answer["content"], answer["stop_reason"]) == ([], "stop_sequence")


async def test_max_tokens_before_the_stop_sequence_wins(caller: Caller) -> None:
    answer = await caller.whole("[[text=one two three]]", stop_sequences=["three"], max_tokens=1)
    assert (answer["stop_reason"], answer["stop_sequence"]) == ("max_tokens", None)


@pytest.mark.parametrize("size", [1, 65_536, 1_000_001])
async def test_a_reply_has_as_many_bytes_as_asked_in_large_deltas(caller: Caller, size: int) -> None:
    pieces = deltas(await caller.events(f"[[bytes={size}]]"))
    assert sum(map(len, pieces)) == size
    assert len(pieces) == -(-size // 65_536)


@pytest.mark.parametrize(("kind", "expected"), [("negative", -2), ("absurd", 10**15)])
async def test_usage_lies_when_asked_to(caller: Caller, kind: str, expected: int) -> None:
    prompt = f"[[text=Hi there]] [[usage={kind}]]"
    assert (await caller.events(prompt))[-2].data["usage"]["output_tokens"] == expected
    assert (await caller.whole(prompt))["usage"]["output_tokens"] == expected


async def test_usage_is_absent_everywhere_when_asked_to(caller: Caller) -> None:
    events = await caller.events("[[usage=absent]]")
    assert "usage" not in events[0].data["message"]
    assert "usage" not in events[-2].data
    assert "usage" not in await caller.whole("[[usage=absent]]")


async def test_a_marked_prefix_is_written_to_the_cache_once_and_then_read(caller: Caller) -> None:
    marked = {"cache_control": {"type": "ephemeral"}}
    system = [{"type": "text", "text": "s" * 400, **marked}]
    first = [{"role": "user", "content": [{"type": "text", "text": "u" * 40, **marked}]}]
    longer = [
        {"role": "user", "content": "u" * 40},
        {"role": "assistant", "content": "a" * 20},
        {
            "role": "user",
            "content": [{"type": "text", "text": "v" * 40, **marked}, {"type": "text", "text": "w" * 8}],
        },
    ]
    seen = []
    for messages in (first, first, longer, longer):
        usage = (await caller.whole(messages, system=system))["usage"]
        seen.append((usage["input_tokens"], usage["cache_creation_input_tokens"], usage["cache_read_input_tokens"]))
    assert seen == [(0, 110, 0), (0, 0, 110), (2, 15, 110), (2, 0, 125)]


async def test_another_model_or_another_prefix_has_a_cache_of_its_own(caller: Caller) -> None:
    for model, text in (("a", "x" * 40), ("b", "x" * 40), ("a", "y" * 40)):
        usage = (await caller.whole(text, model=model, cache_control={"type": "ephemeral"}))["usage"]
        assert (usage["cache_creation_input_tokens"], usage["cache_read_input_tokens"]) == (10, 0)


async def test_the_body_is_chunked_and_the_answer_says_which_request_it_was(caller: Caller) -> None:
    async with caller.post(request("hi", stream=True)) as response:
        assert response.headers["transfer-encoding"] == "chunked"
        assert response.headers["request-id"] == "req_1"
