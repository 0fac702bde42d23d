"""Calls that wait for somebody's word."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.event import Emission
from claude_daemon.ports import Answer, Question
from claude_daemon.service.approvals import MAX_ANSWERED, Approvals

CALL = Question(tool="Bash", tool_use_id="toolu_1", given={"command": "make"}, cwd="/srv/a")
YES, NO = Answer(allow=True), Answer(allow=False, message="not today")


class Asker:
    """An attempt that asks: what was told of it, and what it was answered."""

    def __init__(self, *, timeout_s: float = 60.0) -> None:
        self.told: list[Emission] = []
        self.answers: list[Answer] = []
        self.answered = asyncio.Event()
        numbers = count()
        self.approvals = Approvals(timeout_s=timeout_s, now=lambda: 1000.0, ids=lambda kind: f"{kind}_{next(numbers)}")

    def ask(self, task_id: str = "task_1") -> Callable[[], None]:
        return self.approvals.ask(task_id, CALL, self.told.append, self._answer)

    def _answer(self, answer: Answer) -> None:
        self.answers.append(answer)
        self.answered.set()

    def resolved(self) -> list[dict[str, Any]]:
        return [dict(emission.data) for emission in self.told if emission.type == "approval.resolved"]


async def test_what_is_asked_is_told_whole_and_with_its_end() -> None:
    asker = Asker()
    asker.ask()
    (told,) = asker.told
    assert told.type == "approval.requested"
    assert told.data == {
        "approval": "appr_0",
        "tool": "Bash",
        "tool_use_id": "toolu_1",
        "input": {"command": "make"},
        "cwd": "/srv/a",
        "expires_at": 1060.0,
    }
    assert [asked.id for asked in asker.approvals.of("task_1")] == ["appr_0"]


@pytest.mark.parametrize("answer", [YES, NO])
async def test_an_answer_reaches_the_call_once(answer: Answer) -> None:
    asker = Asker()
    asker.ask()
    for _ in range(2):  # the same again changes nothing
        asker.approvals.resolve("task_1", "appr_0", answer, "key_1")
    assert asker.answers == [answer]
    told = {"approval": "appr_0", "allow": answer.allow, "message": answer.message, "by": "key_1"}
    assert asker.resolved() == [told]
    assert asker.approvals.of("task_1") == []


async def test_another_answer_comes_too_late() -> None:
    asker = Asker()
    asker.ask()
    asker.approvals.resolve("task_1", "appr_0", NO, "key_1")
    with pytest.raises(Refusal) as refused:
        asker.approvals.resolve("task_1", "appr_0", YES, "key_2")
    assert (refused.value.failure.code, refused.value.failure.message) == (
        Code.CONFLICT,
        "The call was denied already.",
    )
    assert asker.answers == [NO]


@pytest.mark.parametrize(("task_id", "approval"), [("task_1", "appr_7"), ("task_2", "appr_0")])
async def test_one_that_is_not_there_is_not_found(task_id: str, approval: str) -> None:
    asker = Asker()
    asker.ask()
    with pytest.raises(Refusal) as refused:
        asker.approvals.resolve(task_id, approval, YES, "key_1")
    assert refused.value.failure.code is Code.NOT_FOUND
    assert asker.answers == []


async def test_nobodys_answer_is_a_denial_in_time() -> None:
    asker = Asker(timeout_s=0.01)
    asker.ask()
    async with asyncio.timeout(5):
        await asker.answered.wait()
    (answer,) = asker.answers
    assert (answer.allow, answer.message) == (False, "nobody allowed it within 0.01 s")
    assert [told["by"] for told in asker.resolved()] == ["timeout"]
    with pytest.raises(Refusal):
        asker.approvals.resolve("task_1", "appr_0", YES, "key_1")


async def test_several_wait_at_once_and_are_answered_in_any_order() -> None:
    asker = Asker()
    asker.ask()
    asker.ask()
    asker.ask("task_2")
    assert [asked.id for asked in asker.approvals.every()] == ["appr_0", "appr_1", "appr_2"]
    asker.approvals.resolve("task_1", "appr_1", YES, "key_1")
    assert [asked.id for asked in asker.approvals.every()] == ["appr_0", "appr_2"]


async def test_they_end_with_their_attempt_and_nobody_is_answered() -> None:
    asker = Asker()
    asker.ask()
    asker.ask("task_2")
    asker.approvals.forget("task_1")
    assert [told["by"] for told in asker.resolved()] == ["ended"]
    assert asker.answers == []
    assert [asked.task_id for asked in asker.approvals.every()] == ["task_2"]
    with pytest.raises(Refusal):
        asker.approvals.resolve("task_1", "appr_0", YES, "key_1")


async def test_a_question_that_was_taken_back_is_answered_no_more() -> None:
    asker = Asker()
    take_back = asker.ask()
    take_back()
    take_back()
    assert [told["by"] for told in asker.resolved()] == ["ended"]
    assert asker.answers == []


async def test_an_attempt_that_asks_all_day_is_remembered_by_its_last_answers() -> None:
    asker = Asker()
    asker.ask()
    for number in range(1, MAX_ANSWERED + 3):
        asker.ask()
        asker.approvals.resolve("task_1", f"appr_{number}", YES, "key_1")
    with pytest.raises(Refusal):
        asker.approvals.resolve("task_1", "appr_1", YES, "key_1")
    assert asker.approvals.resolve("task_1", f"appr_{MAX_ANSWERED}", YES, "key_1").id == f"appr_{MAX_ANSWERED}"
    assert [asked.id for asked in asker.approvals.of("task_1")] == ["appr_0"]


async def test_what_would_change_is_told_where_it_is_known() -> None:
    asker = Asker()
    question = replace(CALL, diff="--- a/x\n")
    asker.approvals.ask("task_1", question, asker.told.append, asker.answers.append)
    assert asker.told[0].data["diff"] == "--- a/x\n"
    assert "--- a/x" not in repr(asker.approvals.of("task_1"))
