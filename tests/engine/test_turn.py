"""One turn's messages to one answer, whatever the CLI retried, repeated or made up on the way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_daemon.core.errors import Code
from claude_daemon.core.event import RETRY
from claude_daemon.core.message import MessageBuilder
from claude_daemon.core.task import State
from claude_daemon.engine.turn import TurnReader

SUCCESS = {"type": "result", "subtype": "success", "result": "", "usage": {"input_tokens": 3, "output_tokens": 2}}


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "stream_event", "event": {"type": kind, **fields}}


def start(number: int = 1) -> dict[str, Any]:
    message = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "usage": {"input_tokens": 3},
    }
    return event("message_start", message=message)


def block(index: int, kind: str, pieces: Sequence[str], signature: str | None = None) -> Iterator[dict[str, Any]]:
    name = "thinking" if kind == "thinking" else "text"
    yield event("content_block_start", index=index, content_block={"type": kind, name: ""})
    for piece in pieces:
        yield event("content_block_delta", index=index, delta={"type": f"{name}_delta", name: piece})
    if signature is not None:
        delta = {"type": "signature_delta", "signature": signature}
        yield event("content_block_delta", index=index, delta=delta)
    yield event("content_block_stop", index=index)


def end(stop_reason: str = "end_turn") -> list[dict[str, Any]]:
    delta = {"stop_reason": stop_reason, "stop_sequence": None}
    return [event("message_delta", delta=delta, usage={"output_tokens": 2}), event("message_stop")]


def stream(pieces: Sequence[str], number: int = 1, stop_reason: str = "end_turn") -> list[dict[str, Any]]:
    return [start(number), *block(0, "text", pieces), *end(stop_reason)]


def assistant(content: object, number: int = 1, **fields: Any) -> dict[str, Any]:
    message = {"id": f"msg_{number}", "role": "assistant", "model": "m", "content": content}
    return {"type": "assistant", "message": message, **fields}


class Caller:
    """Reads a turn as a client would, and holds it to the order of the Messages API."""

    def __init__(self, **options: Any) -> None:
        self.reader = TurnReader(**options)
        self.builder = MessageBuilder()
        self.retries = 0
        self._open: int | None = None
        self._kinds: list[str] = []

    def hear(self, messages: Sequence[Mapping[str, Any]]) -> Caller:
        for message in messages:
            for emission in self.reader.feed(message):
                if emission.type == RETRY:
                    self.retries += 1
                else:
                    self._event(emission.data)
        return self

    def _event(self, data: Mapping[str, Any]) -> None:
        kind = data["type"]
        if kind == "message_start":
            assert not self._kinds
        else:
            assert self._kinds[0] == "message_start"
            assert "message_stop" not in self._kinds
        if kind == "content_block_start":
            assert self._open is None
            self._open = data["index"]
        elif kind in ("content_block_delta", "content_block_stop"):
            assert data["index"] == self._open
            self._open = None if kind == "content_block_stop" else self._open
        elif kind == "message_delta":
            assert self._open is None
        self._kinds.append(kind)
        self.builder.add(data)

    @property
    def text(self) -> str:
        return self.builder.text()

    @property
    def code(self) -> Code | None:
        assert self.reader.outcome is not None
        return self.reader.outcome.failure.code if self.reader.outcome.failure else None

    @property
    def stop_reason(self) -> str | None:
        assert self.reader.outcome is not None
        return self.reader.outcome.stop_reason


def test_a_plain_answer_is_passed_on_event_by_event() -> None:
    caller = Caller().hear([*stream(["Hel", "lo"]), assistant([{"type": "text", "text": "Hello"}]), SUCCESS])
    assert (caller.text, caller.stop_reason, caller.code) == ("Hello", "end_turn", None)
    assert caller.builder.complete
    assert caller.builder.message["usage"] == {"input_tokens": 3, "output_tokens": 2}


PIECES = st.lists(st.text("abß\n ", min_size=1, max_size=4), min_size=1, max_size=6)


def cut_up(text: str, cuts: Sequence[int]) -> list[str]:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(PIECES, min_size=1, max_size=3), st.lists(st.integers(0, 40), max_size=3), st.lists(st.integers(0, 30)))
@settings(deadline=None)
def test_a_message_cut_anywhere_and_repeated_is_told_once(
    blocks: list[list[str]], tries: list[int], cuts: list[int]
) -> None:
    """Each retry starts over, in other pieces; the blocks that a cut leaves open are ended by the CLI or not."""
    texts = ["".join(pieces) for pieces in blocks]

    def attempt(number: int) -> list[dict[str, Any]]:
        told = [start(number)]
        for index, text in enumerate(texts):
            told += block(index, "text", blocks[index] if number == 0 else cut_up(text, cuts))
        return [*told, *end()]

    caller = Caller()
    for number, at in enumerate(tries):
        caller.hear(attempt(number)[: 1 + at])
        caller.hear([{"type": "system", "subtype": "api_retry", "attempt": number + 1}])
    caller.hear([*attempt(len(tries)), SUCCESS])
    assert caller.code is None
    assert [b["text"] for b in caller.builder.message["content"]] == texts
    assert caller.builder.complete
    assert caller.retries == len(tries)


@given(PIECES, st.integers(0, 20), st.text("xyz", min_size=1, max_size=5))
def test_a_retry_that_says_something_else_is_an_error_and_no_text(pieces: list[str], at: int, other: str) -> None:
    given_text = "".join(pieces[: at % len(pieces) + 1])
    caller = Caller().hear([start(1), *list(block(0, "text", pieces))[: at % len(pieces) + 2]])
    caller.hear([*stream([other], number=2), SUCCESS])
    assert caller.code is Code.ANSWER_DIVERGED
    assert caller.text == given_text
    assert not caller.builder.complete


def test_a_retry_that_says_less_is_an_error() -> None:
    caller = Caller().hear([start(1), *list(block(0, "text", ["ab", "cd"]))[:3]])
    caller.hear([*stream(["ab"], number=2), SUCCESS])
    assert caller.code is Code.ANSWER_DIVERGED


def test_a_retry_that_says_less_and_stops_at_max_tokens_is_an_error_too() -> None:
    caller = Caller().hear([start(1), *list(block(0, "text", ["ab", "cd"]))[:3]])
    caller.hear([*stream(["ab"], number=2, stop_reason="max_tokens"), SUCCESS])
    assert caller.code is Code.ANSWER_DIVERGED


def test_a_retry_that_says_more_in_a_block_that_was_closed_is_an_error() -> None:
    caller = Caller().hear([start(1), *block(0, "text", ["ab"]), *list(block(1, "text", ["c"]))[:2]])
    caller.hear([start(2), *block(0, "text", ["abX"]), *block(1, "text", ["c"]), *end(), SUCCESS])
    assert caller.code is Code.ANSWER_DIVERGED


def test_a_retry_with_blocks_of_another_kind_is_an_error() -> None:
    caller = Caller(show_thinking=True).hear([start(1), *block(0, "thinking", ["hm"])])
    caller.hear([*stream(["hm"], number=2), SUCCESS])
    assert caller.code is Code.ANSWER_DIVERGED
    assert caller.reader.interrupt


def test_a_fallback_told_whole_goes_on_after_what_was_streamed() -> None:
    caller = Caller().hear([start(1), *list(block(0, "text", ["Hel"]))[:2]])
    caller.hear([assistant([{"type": "text", "text": "Hello"}], number=2), SUCCESS])
    assert (caller.text, caller.code) == ("Hello", None)
    assert caller.builder.complete


def test_a_fallback_told_in_one_message_a_block_is_one_answer() -> None:
    parts = [assistant([{"type": "text", "text": text}], number=2) for text in ("one ", "two")]
    caller = Caller().hear([*parts, SUCCESS])
    assert [b["text"] for b in caller.builder.message["content"]] == ["one ", "two"]


def test_a_fallback_repeats_thinking_that_was_shown() -> None:
    thought = {"type": "thinking", "thinking": "hmm", "signature": "sig"}
    caller = Caller(show_thinking=True).hear([start(1), *list(block(0, "thinking", ["hm"]))[:2]])
    caller.hear([assistant([thought, {"type": "text", "text": "yes"}], number=2), SUCCESS])
    assert caller.code is None
    assert caller.builder.message["content"] == [thought, {"type": "text", "text": "yes"}]


def test_a_fallback_that_differs_is_an_error() -> None:
    caller = Caller().hear([start(1), *list(block(0, "text", ["Hel"]))[:2]])
    caller.hear([assistant([{"type": "text", "text": "Goodbye"}], number=2), SUCCESS])
    assert caller.code is Code.ANSWER_DIVERGED


@pytest.mark.parametrize(
    "message",
    [
        {**assistant([{"type": "text", "text": "API Error: 500"}]), "error": "server_error"},
        {"type": "assistant", "message": {"model": "<synthetic>", "content": [{"type": "text", "text": "API Error"}]}},
        assistant([{"type": "text", "text": "of a tool's own agent"}], parent_tool_use_id="toolu_1"),
    ],
)
def test_what_the_cli_says_in_the_models_name_is_never_text(message: dict[str, Any]) -> None:
    result = {"type": "result", "subtype": "success", "is_error": True, "api_error_status": 500, "result": "API Error"}
    caller = Caller().hear([message, result])
    assert (caller.text, caller.code) == ("", Code.UPSTREAM_ERROR)


@pytest.mark.parametrize(
    ("result", "code"),
    [
        ({"is_error": True, "api_error_status": 429, "result": "slow down"}, Code.UPSTREAM_RATE_LIMITED),
        ({"is_error": True, "api_error_status": 400}, Code.UPSTREAM_INVALID_REQUEST),
        ({"is_error": True, "terminal_reason": "api_error", "result": "no route"}, Code.UPSTREAM_UNREACHABLE),
        ({"subtype": "error_during_execution", "errors": ["a", "b"]}, Code.UPSTREAM_ERROR),
        ({"num_turns": "many"}, Code.UPSTREAM_MALFORMED),
    ],
)
def test_how_a_result_failed_is_told(result: dict[str, Any], code: Code) -> None:
    caller = Caller().hear([{**SUCCESS, **result}])
    assert caller.code is code
    assert caller.reader.outcome is not None and caller.reader.outcome.state is State.FAILED


def test_thinking_is_hidden_unless_asked_for() -> None:
    told = [start(), *block(0, "thinking", ["hm"], "sig"), *block(1, "text", ["yes"]), *end(), SUCCESS]
    hidden = Caller().hear(told)
    assert hidden.builder.message["content"] == [{"type": "text", "text": "yes"}]
    shown = Caller(show_thinking=True).hear(told)
    assert shown.builder.message["content"][0] == {"type": "thinking", "thinking": "hm", "signature": "sig"}


@pytest.mark.parametrize("seen", [2, 3, 4])
def test_thinking_that_is_repeated_is_signed_once(seen: int) -> None:
    """Cut before the signature, after it, after the block."""
    thought = list(block(0, "thinking", ["hm"], "sig"))
    caller = Caller(show_thinking=True).hear([start(1), *thought[:seen]])
    caller.hear([start(2), *thought, *block(1, "text", ["yes"]), *end(), SUCCESS])
    assert caller.code is None
    assert caller.builder.message["content"][0] == {"type": "thinking", "thinking": "hm", "signature": "sig"}


def test_a_form_is_told_whole_from_the_result() -> None:
    told = [
        start(),
        *block(0, "text", ["I will call the tool"]),
        *end("tool_use"),
        {**SUCCESS, "structured_output": {"a": 1}},
    ]
    caller = Caller(structured=True, max_tokens=1).hear(told)
    assert (caller.text, caller.stop_reason) == ('{"a":1}', "end_turn")
    assert caller.builder.message["model"] == "m"


def test_a_form_that_never_came_is_an_error() -> None:
    caller = Caller(structured=True).hear([*stream(["no form"]), SUCCESS])
    assert (caller.text, caller.code) == ("", Code.SCHEMA_MISMATCH)


def test_a_form_that_the_model_never_gets_right_is_its_own_failure() -> None:
    result = {"type": "result", "subtype": "error_max_structured_output_retries", "is_error": True, "errors": ["no"]}
    caller = Caller(structured=True).hear([*stream(["no form"]), result])
    assert (caller.text, caller.code) == ("", Code.SCHEMA_MISMATCH)


@pytest.mark.parametrize("reason", ["max_tokens", "refusal", "model_context_window_exceeded"])
@pytest.mark.parametrize("structured", [False, True])
def test_a_final_stop_reason_ends_the_turn_there(reason: str, structured: bool) -> None:
    caller = Caller(structured=structured).hear(stream(["as far as"], stop_reason=reason))
    assert caller.reader.interrupt
    caller.hear([*stream(["the CLI goes on"], number=2), {**SUCCESS, "is_error": True}])
    assert (caller.text, caller.stop_reason) == ("" if structured else "as far as", reason)
    assert caller.builder.complete
    assert caller.builder.message["stop_reason"] == reason


def test_max_tokens_is_counted_where_the_model_does_not() -> None:
    caller = Caller(max_tokens=2).hear([start(), *block(0, "text", ["12345678", "9", "never told"])])
    assert caller.reader.interrupt
    caller.hear([assistant([{"type": "text", "text": "123456789 never told"}], number=3), SUCCESS])
    assert (caller.text, caller.stop_reason) == ("123456789", "max_tokens")


def test_a_turn_that_is_over_can_be_given_up_without_its_result() -> None:
    caller = Caller().hear(stream(["enough"], stop_reason="max_tokens"))
    for emission in caller.reader.give_up():
        caller._event(emission.data)
    assert (caller.stop_reason, caller.builder.complete) == ("max_tokens", True)


def test_a_turn_that_is_not_over_cannot_be_given_up() -> None:
    caller = Caller().hear([start()])
    assert caller.reader.give_up() == []
    assert caller.reader.outcome is None


def test_an_answer_that_never_streamed_is_told_from_the_result() -> None:
    caller = Caller().hear([{**SUCCESS, "result": "whole", "uuid": "u", "stop_reason": "end_turn"}])
    assert (caller.text, caller.stop_reason) == ("whole", "end_turn")


JUNK = st.recursive(
    st.none() | st.integers(-1, 2) | st.sampled_from(["text", "text_delta", "thinking", "message_start", "result"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["type", "index", "delta", "content_block", "message", "content", "text", "usage", "id", "event"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)
KINDS = ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "x"]
ILLEGAL = st.one_of(
    st.fixed_dictionaries({"type": st.sampled_from(["stream_event", "assistant", "system", "user"]), "event": JUNK}),
    st.builds(
        lambda kind, index, inner: event(kind, index=index, delta=inner, content_block=inner, message=inner),
        st.sampled_from(KINDS),
        st.integers(0, 2),
        JUNK,
    ),
    st.fixed_dictionaries({"type": st.just("assistant"), "message": JUNK}),
    st.sampled_from([*stream(["ab", "c"]), *block(1, "text", ["d"])]),
)


@given(st.lists(ILLEGAL, max_size=12), st.booleans(), st.booleans())
@settings(deadline=None)
def test_an_order_that_is_none_ends_the_turn_and_nothing_else(
    messages: list[dict[str, Any]], structured: bool, show_thinking: bool
) -> None:
    caller = Caller(structured=structured, show_thinking=show_thinking)
    caller.hear([*messages, SUCCESS])
    assert caller.reader.outcome is not None


def test_the_first_failure_stands() -> None:
    reader = TurnReader()
    reader.feed({"type": "stream_event"})
    reader.feed(SUCCESS)
    assert reader.outcome is not None and reader.outcome.failure is not None
    assert reader.outcome.failure.code is Code.UPSTREAM_MALFORMED
