"""Whose turn it is in a session, against the plainest model of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.service.turns import Turns


def test_the_first_of_a_session_begins_and_the_next_when_it_leaves() -> None:
    turns = Turns()
    turns.enter("a", ["s"])
    turns.enter("b", ["s"])
    turns.enter("c", ["t"])
    assert [turns.may_begin(task) for task in "abc"] == [True, False, True]
    assert list(turns.leave("a")) == ["b"]
    assert turns.may_begin("b")


def test_who_enters_again_keeps_its_place() -> None:
    turns = Turns()
    for task in "aba":
        turns.enter(task, ["s"])
    assert (turns.may_begin("a"), turns.may_begin("b")) == (True, False)


def test_who_leaves_from_the_middle_lets_nobody_begin() -> None:
    turns = Turns()
    for task in "abc":
        turns.enter(task, ["s"])
    assert list(turns.leave("b")) == []
    assert list(turns.leave("a")) == ["c"]


def test_a_fork_waits_for_both_and_lets_its_source_go_on_when_it_has_its_copy() -> None:
    turns = Turns()
    turns.enter("turn", ["source"])
    turns.enter("fork", ["copy", "source"])
    turns.enter("next", ["source"])
    turns.enter("on", ["copy"])
    assert not turns.may_begin("fork")
    assert list(turns.leave("turn")) == ["fork"]
    assert list(turns.leave("fork", "source")) == ["next"]
    assert turns.may_begin("fork")
    assert list(turns.leave("fork")) == ["on"]


def test_a_task_without_a_session_waits_for_nobody() -> None:
    turns = Turns()
    turns.enter("a", [])
    assert turns.may_begin("a")
    assert list(turns.leave("a")) == []


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.sets(st.sampled_from("xyz"), min_size=1)), max_size=30))
def test_everybody_has_a_turn_and_nothing_is_left(entries: list[tuple[str, set[str]]]) -> None:
    turns = Turns()
    for task, sessions in entries:
        turns.enter(task, sorted(sessions))
    left = {task for task, _ in entries}
    while left:
        ready = {task for task in left if turns.may_begin(task)}
        assert ready, "nobody may begin"
        task = min(ready)
        told = turns.leave(task)
        left.discard(task)
        assert set(told) == {other for other in left if turns.may_begin(other)} - ready
    assert not any(session in turns for session in "xyz")
