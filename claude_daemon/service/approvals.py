"""Calls that wait for somebody's word. Each belongs to one attempt and ends with it; whoever follows comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.event import APPROVAL_REQUESTED, APPROVAL_RESOLVED, Emission
from claude_daemon.ports import Answer, Clock, Ids, Question

NO_APPROVAL: Final = Failure(code=Code.NOT_FOUND, message="There is no such approval.")
MAX_ANSWERED: Final = 32
"""Of one attempt: so many are remembered for whoever sends the same answer again."""
_ENDED: Final = "ended"
_TIMEOUT: Final = "timeout"

Tell = Callable[[Emission], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is asked, of whom it may be told: times in seconds since the epoch. ``given`` is the call's input, ``diff``
    what it would change in a file, where that is known."""

    id: str
    task_id: str
    tool: str
    tool_use_id: str
    given: Mapping[str, Any] = field(repr=False)
    cwd: str | None
    diff: str | None = field(repr=False)
    requested_at: float
    expires_at: float

    def document(self) -> dict[str, Any]:
        return {
            "approval": self.id,
            "tool": self.tool,
            "tool_use_id": self.tool_use_id,
            "input": dict(self.given),
            "cwd": self.cwd,
            **({"diff": self.diff} if self.diff is not None else {}),
            "expires_at": self.expires_at,
        }


@dataclass(slots=True)
class Waiting:
    """An approval on its way; ``resolved`` once somebody has answered."""

    approval: Asked
    tell: Tell
    answer: Callable[[Answer], None]
    expiry: asyncio.TimerHandle
    resolved: Answer | None = None


class Approvals:
    """Those of all attempts that run now. ``timeout_s``: a call that nobody has answered by then is denied."""

    def __init__(self, *, timeout_s: float, now: Clock, ids: Ids) -> None:
        self.timeout_s = timeout_s
        self._now = now
        self._ids = ids
        self._of: dict[str, dict[str, Waiting]] = {}

    def ask(self, task_id: str, question: Question, tell: Tell, answer: Callable[[Answer], None]) -> Callable[[], None]:
        """Tells the task's followers what is asked. ``answer`` is called once, later; not after what is returned, which
        takes the question back, was called."""
        at = self._now()
        approval = Asked(
            id=self._ids("appr"),
            task_id=task_id,
            tool=question.tool,
            tool_use_id=question.tool_use_id,
            given=question.given,
            cwd=question.cwd,
            diff=question.diff,
            requested_at=at,
            expires_at=at + self.timeout_s,
        )
        expiry = asyncio.get_running_loop().call_later(self.timeout_s, self._expire, approval)
        waiting = Waiting(approval, tell, answer, expiry)
        self._of.setdefault(task_id, {})[approval.id] = waiting
        tell(Emission(APPROVAL_REQUESTED, approval.document()))
        return lambda: self._withdraw(waiting)

    def of(self, task_id: str) -> list[Asked]:
        """What the task waits for now."""
        return [waiting.approval for waiting in self._of.get(task_id, {}).values() if waiting.resolved is None]

    def every(self) -> list[Asked]:
        return [approval for task_id in self._of for approval in self.of(task_id)]

    def resolve(self, task_id: str, approval_id: str, answer: Answer, by: str) -> Asked:
        """``by``: who it was, as the events tell it. Raises Refusal for one that is not there, or was answered
        otherwise; the same answer again changes nothing."""
        waiting = self.check(task_id, approval_id, answer)
        if waiting.resolved is None:
            self._settle(waiting, answer, by)
            waiting.answer(answer)
        return waiting.approval

    def check(self, task_id: str, approval_id: str, answer: Answer) -> Waiting:
        """Raises Refusal as :meth:`resolve` would."""
        waiting = self._of.get(task_id, {}).get(approval_id)
        if waiting is None:
            raise Refusal(NO_APPROVAL)
        if waiting.resolved is not None and waiting.resolved.allow is not answer.allow:
            told = "allowed" if waiting.resolved.allow else "denied"
            raise Refusal.because(Code.CONFLICT, f"The call was {told} already.")
        return waiting

    def forget(self, task_id: str) -> None:
        """The attempt is over, and with it what it asked."""
        for waiting in self._of.pop(task_id, {}).values():
            if waiting.resolved is None:
                self._settle(waiting, Answer(allow=False, message="the attempt has ended"), _ENDED)

    def _withdraw(self, waiting: Waiting) -> None:
        if waiting.resolved is None:
            self._settle(waiting, Answer(allow=False, message="the call was taken back"), _ENDED)

    def _expire(self, approval: Asked) -> None:
        waiting = self._of.get(approval.task_id, {}).get(approval.id)
        if waiting is not None and waiting.resolved is None:
            answer = Answer(allow=False, message=f"nobody allowed it within {self.timeout_s:g} s")
            self._settle(waiting, answer, _TIMEOUT)
            waiting.answer(answer)

    def _forget_oldest(self, task_id: str) -> None:
        """Of those that were answered; what they asked may be large, and an attempt may ask all day."""
        attempt = self._of.get(task_id, {})
        answered = [approval_id for approval_id, waiting in attempt.items() if waiting.resolved is not None]
        for approval_id in answered[:-MAX_ANSWERED]:
            del attempt[approval_id]

    def _settle(self, waiting: Waiting, answer: Answer, by: str) -> None:
        waiting.resolved = answer
        waiting.expiry.cancel()
        self._forget_oldest(waiting.approval.task_id)
        told = {"approval": waiting.approval.id, "allow": answer.allow, "message": answer.message, "by": by}
        waiting.tell(Emission(APPROVAL_RESOLVED, told))
