"""Text from elsewhere made safe for a terminal."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudectl.clean import MAX_STRING, Cleaner, clean, clean_line

CONTROLS = [chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\n\t"]

SEQUENCES = [
    "\x1b[31m",
    "\x1b[38;2;1;2;3m",
    "\x1b[?25l",
    "\x1b[2 q",
    "\x9b1;1H",
    "\x1b]0;title\x07",
    "\x1b]52;c;ZXZpbA==\x1b\\",
    "\x1b]8;;https://example.com\x9c",
    "\x9d0;title\x9c",
    "\x1bPq#0;2;0\x1b\\",
    "\x1b_payload\x1b\\",
    "\x1b^private\x1b\\",
    "\x1bXstring\x1b\\",
    "\x1bc",
    "\x1b(B",
    "\x1b7",
]


def feed_all(pieces: list[str]) -> str:
    cleaner = Cleaner()
    return "".join(map(cleaner.feed, pieces)) + cleaner.flush()


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: f"{ord(control):#04x}")
def test_no_control_character_survives(control: str) -> None:
    assert control not in clean(f"a{control}b\n")
    assert control not in feed_all([f"a{control}", "b\n"])


def test_newline_tab_and_every_printable_character_survive() -> None:
    text = "déjà\tvu — 日本語 🙂\u00a0\u200d\n\n"
    assert clean(text) == text
    assert feed_all(list(text)) == text


@pytest.mark.parametrize("sequence", SEQUENCES, ids=ascii)
def test_an_escape_sequence_goes_as_a_whole(sequence: str) -> None:
    assert clean(f"a{sequence}b") == "ab"


@pytest.mark.parametrize("sequence", SEQUENCES, ids=ascii)
def test_a_sequence_goes_wherever_its_pieces_are_split(sequence: str) -> None:
    text = f"a{sequence}b"
    for first, second in itertools.combinations_with_replacement(range(len(text) + 1), 2):
        assert feed_all([text[:first], text[first:second], text[second:]]) == "ab"


def test_an_unfinished_sequence_is_held_until_it_is_decided() -> None:
    cleaner = Cleaner()
    assert cleaner.feed("a\x1b[3") == "a"
    assert cleaner.feed("1mb") == "b"
    assert cleaner.feed("c\x1b]0;never ended") == "c"
    assert cleaner.flush() == ""


def test_a_stray_introducer_does_not_swallow_the_answer() -> None:
    assert clean("\x1b]0;title\nthe answer") == "\nthe answer"
    assert clean("\x1b]" + "x" * (MAX_STRING + 5)) == "x" * 5


@given(st.lists(st.text(alphabet="a1;[]P\\\x1b\x9b\x9d\x9c\x07\n\t \r\x00m~", max_size=12), max_size=6))
def test_the_split_never_changes_the_result(pieces: list[str]) -> None:
    assert feed_all(pieces) == clean("".join(pieces))


def test_a_name_cannot_fake_a_line_of_ours() -> None:
    assert clean_line("w_1\nw_2  idle\r\x1b[1A") == "w_1 w_2 idle"
