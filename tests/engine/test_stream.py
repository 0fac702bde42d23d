"""Bytes of the CLI's stdout to messages, wherever the chunks are cut."""

from __future__ import annotations

import itertools

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.engine.stream import (
    CLEAR_LINE,
    LineFramer,
    LineTooLong,
    assistant_line,
    control_answer,
    control_line,
    decode,
    is_result,
    user_line,
)


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"x"))), st.lists(st.integers(0, 1000)))
def test_lines_come_out_whole_wherever_the_chunks_are_cut(lines: list[bytes], cuts: list[int]) -> None:
    data = b"".join(line + b"\n" for line in lines) + b"begun"
    framer = LineFramer()
    assert [line for chunk in split(data, cuts) for line in framer.feed(chunk)] == lines
    assert framer.feed(b"\n") == [b"begun"]


@given(st.integers(1, 12), st.lists(st.integers(0, 100)))
def test_a_line_over_the_cap_is_an_error_wherever_the_chunks_are_cut(length: int, cuts: list[int]) -> None:
    data = b"ok\n" + b"x" * length + b"\nok\n"
    framer = LineFramer(max_line_bytes=6)
    if length <= 6:
        assert [line for chunk in split(data, cuts) for line in framer.feed(chunk)] == [b"ok", b"x" * length, b"ok"]
    else:
        with pytest.raises(LineTooLong, match="longer than 6 bytes"):
            for chunk in split(data, cuts):
                framer.feed(chunk)


def test_a_line_of_many_chunks_is_not_copied_again_and_again() -> None:
    framer = LineFramer()
    for _ in range(20_000):
        assert framer.feed(b"x" * 1000) == []
    assert [len(line) for line in framer.feed(b"\n")] == [20_000_000]


@pytest.mark.parametrize(
    "line",
    [b"", b"note: something", b"{broken", b'["a list"]', b"12", b'{"a":' * 100_000, b'{"a":"\xff"}', b"\xef\xbb"],
)
def test_what_is_no_json_object_is_no_message(line: bytes) -> None:
    assert decode(line) is None


def test_a_line_may_end_in_crlf() -> None:
    framer = LineFramer()
    assert [decode(line) for line in framer.feed(b'{"type":"result"}\r\n')] == [{"type": "result"}]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_prompt_is_one_line_whatever_it_holds(text: str) -> None:
    line = user_line(text)
    assert line.count(b"\n") == 1
    assert orjson.loads(line) == {
        "type": "user",
        "message": {"role": "user", "content": text},
        "client_composed": True,
    }


def test_only_our_own_clear_is_a_command() -> None:
    assert "client_composed" not in orjson.loads(CLEAR_LINE)
    assert orjson.loads(user_line("earlier", query=False))["shouldQuery"] is False
    assert orjson.loads(assistant_line([{"type": "text", "text": "a"}]))["message"]["role"] == "assistant"


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        ({"type": "result"}, None),
        ({"type": "control_response"}, None),
        ({"type": "control_response", "response": "x"}, None),
        ({"type": "control_response", "response": {"subtype": "success"}}, ("", {"subtype": "success"})),
        (
            {"type": "control_response", "response": {"request_id": "a-1", "subtype": "error"}},
            ("a-1", {"request_id": "a-1", "subtype": "error"}),
        ),
    ],
)
def test_control_answers_are_told_from_the_rest(message: dict[str, object], answer: object) -> None:
    assert control_answer(message) == answer
    assert is_result(message) is (message["type"] == "result")


def test_a_control_request_carries_its_fields() -> None:
    request = orjson.loads(control_line("set_model-1", "set_model", model="opus"))
    assert request == {
        "type": "control_request",
        "request_id": "set_model-1",
        "request": {"subtype": "set_model", "model": "opus"},
    }
