"""A task on its way, and the ways in which it ends."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from claude_daemon.core.budget import usd
from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.event import (
    MESSAGE,
    MESSAGE_EVENT,
    TASK_CANCELLED,
    TASK_FAILED,
    TASK_SUCCEEDED,
    Emission,
    Event,
)
from claude_daemon.core.task import Kind, Lane, Outcome, State, Task, Usage
from claude_daemon.ports import Lease
from claude_daemon.service.queue import CHAT_PRIORITY
from claude_daemon.service.tail import Tail

INTERNAL: Final = Failure(code=Code.INTERNAL, message="Something went wrong here. The log has it by task id.")
CANCELLED: Final = Failure(code=Code.CANCELLED, message="the task was cancelled")
REVOKED: Final = Failure(code=Code.CANCELLED, message="this was cancelled: its key was revoked")
INTERRUPTED: Final = Failure(
    code=Code.INTERRUPTED,
    message="the daemon stopped before the answer was complete",
    retry_after_seconds=1.0,
)
LATE: Final = Failure(code=Code.DEADLINE, message="the task did not end within its timeout_s")
STALLED: Final = Failure(code=Code.STORE_UNAVAILABLE, message="the task's events could not be made durable")
SAID: Final = Failure(
    code=Code.INTERRUPTED,
    message="the turn was cut short, and its session holds its message already: it is not said a second time",
)
LOST: Final = Failure(code=Code.INTERRUPTED, message="the task is held by somebody else now")

_TERMINAL_EVENT: Final[Mapping[State, str]] = {
    State.SUCCEEDED: TASK_SUCCEEDED,
    State.FAILED: TASK_FAILED,
    State.CANCELLED: TASK_CANCELLED,
}


class Ticket:
    """A durable task that waits: as little as decides who is next, for there may be ten thousand of them.

    ``queued_at`` is monotonic seconds; ``task`` is there while it is among the next. ``sessions``: those that it has to
    itself when it begins.
    """

    __slots__ = ("id", "key_id", "lane", "priority", "queued_at", "reading", "sessions", "task", "trust_domain")

    def __init__(
        self,
        task_id: str,
        lane: Lane,
        key_id: str,
        trust_domain: str,
        priority: int,
        queued_at: float,
        sessions: tuple[str, ...] = (),
    ) -> None:
        self.id = task_id
        self.lane = lane
        self.key_id = key_id
        self.trust_domain = trust_domain
        self.priority = priority
        self.queued_at = queued_at
        self.sessions = sessions
        self.task: Task | None = None
        self.reading = False


class Run:
    """A task's state now, its events, and how its attempt goes. ``tail``: of a durable task, the one that is held."""

    def __init__(self, task: Task, monotonic: float, tail: Tail | None = None) -> None:
        self.task = task
        self.tail = tail or Tail()
        self.context = contextvars.Context() if self.durable else contextvars.copy_context()
        """An attempt's: a chat's is its submitter's, a durable task's is nobody's, whoever frees the place for it."""
        self.queued_at = monotonic
        self.started_at: float | None = None
        """Monotonic seconds at which its last attempt has begun."""
        self.start: str | None = None
        self.worker_id: str | None = None
        self.lease: Lease | None = None
        """What its attempt runs on, while there is one."""
        self.first_delta_at: float | None = None
        self.ending: Failure | None = None
        """Why it is being cut short, once somebody asked for that."""
        self.attempt: asyncio.Task[None] | None = None
        self.expiry: asyncio.TimerHandle | None = None
        """A chat's, while it waits."""
        self.claimed = not self.durable
        """Whether the attempt is ours: until then nothing of it may be told, and it is not cancelled but waited for."""
        self.put_off = False
        """Nobody could tell whether it is ours, so it is to be tried again later."""
        self.spent = Usage()
        """What the store was told that the attempt has used."""
        self._text: list[str] = []

    @property
    def durable(self) -> bool:
        return self.task.spec.kind is Kind.TASK

    @property
    def priority(self) -> int:
        return self.task.spec.priority + (0 if self.durable else CHAT_PRIORITY)

    @property
    def key_id(self) -> str:
        return self.task.spec.key_id

    @property
    def trust_domain(self) -> str:
        return self.task.spec.trust_domain

    @property
    def lane(self) -> Lane:
        return self.task.spec.lane

    @property
    def waited_seconds(self) -> float | None:
        """For its last attempt, since it was queued; None where none has begun."""
        return None if self.started_at is None else self.started_at - self.queued_at

    @property
    def first_delta_seconds(self) -> float | None:
        """Until its first word, since it was queued; None where there was none."""
        return None if self.first_delta_at is None else self.first_delta_at - self.queued_at

    @property
    def usage(self) -> Usage:
        """What the attempt under way has used so far, as far as it is known."""
        return Usage() if self.lease is None else self.lease.usage

    def follow(self, after: int = 0) -> AsyncIterator[list[Event]]:
        """A chat's events, see :meth:`Tail.follow`."""
        return self.tail.follow(after)

    def heard(self, emission: Emission) -> None:
        """Keeps a durable task's text, which is its result; a chat's words are nobody's but its caller's."""
        if not self.durable:
            return
        if emission.type == MESSAGE:
            blocks = emission.data.get("content", ())
            self._text += [block["text"] for block in blocks if block.get("type") == "text"]
        elif emission.type == MESSAGE_EVENT and emission.data.get("type") == "content_block_delta":
            self._text.append(emission.data["delta"].get("text", ""))

    @property
    def text(self) -> str:
        return "".join(self._text)


def ended_with(failure: Failure) -> Outcome:
    """The end of a task that did not succeed."""
    return Outcome(state=State.CANCELLED if failure.code is Code.CANCELLED else State.FAILED, failure=failure)


def cut_short(run: Run) -> Outcome:
    """The end of a run that was cut short; when nobody said why, it is the daemon that goes down."""
    return ended_with(run.ending or INTERRUPTED)


def last_event(outcome: Outcome) -> Emission:
    """What a task's followers are told of its end."""
    told: dict[str, Any] = {"stop_reason": outcome.stop_reason, "usage": outcome.usage.told}
    if outcome.cost_micro_usd is not None:
        told["cost_usd"] = usd(outcome.cost_micro_usd)
    if outcome.failure is not None:
        told["error"] = {"code": outcome.failure.code.value, "message": outcome.failure.message}
    return Emission(_TERMINAL_EVENT[outcome.state], told)
