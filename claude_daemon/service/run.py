"""A task on its way, and the ways in which it ends."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict
from typing import Any, Final

from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.event import TASK_CANCELLED, TASK_FAILED, TASK_SUCCEEDED, Emission, Event
from claude_daemon.core.task import Outcome, State, Task
from claude_daemon.service.tail import Tail

INTERNAL: Final = Failure(code=Code.INTERNAL, message="Something went wrong here. The log has it by task id.")
CANCELLED: Final = Failure(code=Code.CANCELLED, message="the task was cancelled")
INTERRUPTED: Final = Failure(
    code=Code.INTERRUPTED,
    message="the daemon stopped before the answer was complete",
    retry_after_seconds=1.0,
)

_TERMINAL_EVENT: Final[Mapping[State, str]] = {
    State.SUCCEEDED: TASK_SUCCEEDED,
    State.FAILED: TASK_FAILED,
    State.CANCELLED: TASK_CANCELLED,
}


class Run:
    """A task's state now, its events, and how its attempt goes."""

    def __init__(self, task: Task, monotonic: float) -> None:
        self.task = task
        self.tail = Tail()
        self.context = contextvars.copy_context()
        """The submitter's, so that the attempt's log lines carry its ids whoever frees the place."""
        self.queued_at = monotonic
        self.start: str | None = None
        self.worker_id: str | None = None
        self.first_delta_at: float | None = None
        self.ending: Failure | None = None
        """Why it is being cut short, once somebody asked for that."""
        self.attempt: asyncio.Task[None] | None = None
        self.expiry: asyncio.TimerHandle | None = None

    @property
    def priority(self) -> int:
        return self.task.spec.priority

    @property
    def key_id(self) -> str:
        return self.task.spec.key_id

    def follow(self, after: int = 0) -> AsyncIterator[list[Event]]:
        """The task's events, see :meth:`Tail.follow`."""
        return self.tail.follow(after)


def ended_with(failure: Failure) -> Outcome:
    """The end of a task that did not succeed."""
    return Outcome(state=State.CANCELLED if failure.code is Code.CANCELLED else State.FAILED, failure=failure)


def cut_short(run: Run) -> Outcome:
    """The end of a run that was cut short; when nobody said why, it is the daemon that goes down."""
    return ended_with(run.ending or INTERRUPTED)


def last_event(outcome: Outcome) -> Emission:
    """What a task's followers are told of its end."""
    told: dict[str, Any] = {"stop_reason": outcome.stop_reason, "usage": asdict(outcome.usage)}
    if outcome.failure is not None:
        told["error"] = {"code": outcome.failure.code.value, "message": outcome.failure.message}
    return Emission(_TERMINAL_EVENT[outcome.state], told)
