"""Tasks: what was asked, what became of it, and the moves between.

A chat is a task that keeps no transcript. :class:`TaskSpec` is what was asked and never changes; :class:`Task` is
changed only by :func:`advance` and :func:`evolve`, which return a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from claude_daemon.core.agent import AgentSpec
from claude_daemon.core.errors import Failure, IllegalMove
from claude_daemon.core.session import SessionTurn


class Kind(StrEnum):
    CHAT = "chat"
    TASK = "task"


class Lane(StrEnum):
    """The way a task is run (DESIGN.md, "Four lanes")."""

    DIRECT = "direct"
    TEXT = "text"
    AGENT = "agent"
    SESSION = "session"


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def terminal(self) -> bool:
        return not MOVES[self]


MOVES: Mapping[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.FAILED}),
    # back to queued: the lease was lost and a rerun is safe
    State.RUNNING: frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.QUEUED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}


class Effects(StrEnum):
    """Whether an attempt may have changed something outside of the daemon: only one that has not may be rerun."""

    NONE = "none"
    POSSIBLE = "possible"


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one or more model calls, as the Messages API counts them.

    ``input_tokens`` excludes what was written to or read from the prompt cache. ``doubtful``: calls of which something
    was told that cannot be, and is counted as 0; nobody outside is told of it.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    model_calls: int = 0
    doubtful: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_creation_input_tokens=self.cache_creation_input_tokens + other.cache_creation_input_tokens,
            cache_read_input_tokens=self.cache_read_input_tokens + other.cache_read_input_tokens,
            model_calls=self.model_calls + other.model_calls,
            doubtful=self.doubtful + other.doubtful,
        )

    @property
    def told(self) -> dict[str, int]:
        """As followers and owners are told it."""
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "cache_creation_input_tokens": self.cache_creation_input_tokens,
            "cache_read_input_tokens": self.cache_read_input_tokens,
            "model_calls": self.model_calls,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """What was asked; immutable.

    ``request`` is a Messages API request body (the inner form every dialect is translated to), with ``model``
    already resolved from aliases. ``headers`` are the client's ``anthropic-*`` headers, passed on by the direct
    lane. ``stream`` tells whether the caller wants events as they come or one ``message``. ``output_schema`` is the
    JSON schema that the answer's text must satisfy, or None. ``timeout_seconds`` counts from the submission.
    ``agent``: tools, directories and limits, for the agent lane and sessions. ``session``: the conversation that it
    continues. ``webhook`` is the URL that is told the end.
    ``metadata`` is the client's own, kept and given back as it is. ``traceparent``: the span of the request that it
    came with (:mod:`~claude_daemon.core.trace`).
    """

    kind: Kind
    lane: Lane
    request: Mapping[str, Any] = field(repr=False)
    key_id: str
    trust_domain: str
    request_id: str
    stream: bool = True
    headers: Mapping[str, str] | None = None
    output_schema: Mapping[str, Any] | None = None
    timeout_seconds: float | None = None
    priority: int = 0
    webhook: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    agent: AgentSpec | None = None
    session: SessionTurn | None = None
    traceparent: str | None = None

    @property
    def model(self) -> str:
        return str(self.request["model"])

    @property
    def models(self) -> frozenset[str]:
        """Its own, and those of its subagents."""
        others = () if self.agent is None else self.agent.agents
        return frozenset({self.model, *(agent.model for agent in others if agent.model is not None)})

    @property
    def sessions(self) -> tuple[str, ...]:
        """Those that it has to itself when it begins."""
        return () if self.session is None else self.session.sessions


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a task ended. ``failure`` is set if and only if the state is failed or cancelled; else ValueError.

    ``text`` is the whole answer of a task (a chat keeps none), ``structured`` the same as the JSON value that its
    schema asked for, ``diff`` what an agent changed with its file tools and ``files`` where. ``cost_micro_usd`` None:
    the model's price is not known.
    """

    state: State
    usage: Usage = Usage()
    stop_reason: str | None = None
    failure: Failure | None = None
    text: str | None = field(default=None, repr=False)
    structured: Any = field(default=None, repr=False)
    diff: str | None = field(default=None, repr=False)
    files: tuple[str, ...] = ()
    cost_micro_usd: int | None = None

    def __post_init__(self) -> None:
        if not self.state.terminal:
            raise ValueError(f"{self.state} is no end")
        if (self.failure is None) != (self.state is State.SUCCEEDED):
            raise ValueError(f"{self.state} {'without' if self.failure is None else 'with'} a failure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task at one moment. Times are seconds since the epoch (for people, never for durations).

    ``attempt`` counts claims. ``fence`` grows with each claim and with each end that comes from outside of an attempt;
    whoever holds an older one can change nothing. ``effects`` is the current attempt's. ``last_seq`` is the number of
    the last event that the store has.
    """

    id: str
    spec: TaskSpec
    state: State = State.QUEUED
    attempt: int = 0
    fence: int = 0
    effects: Effects = Effects.NONE
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    cancel_requested_at: float | None = None
    outcome: Outcome | None = None
    last_seq: int = 0
    batch_id: str | None = None


def evolve(task: Task, **changes: Any) -> Task:
    """The task with some fields changed; the state only by :func:`advance`."""
    if "state" in changes:
        raise IllegalMove("a task's state is changed by advance()")
    return replace(task, **changes)


def advance(task: Task, to: State, **changes: Any) -> Task:
    """The task moved to another state; raises IllegalMove for a move that :data:`MOVES` does not have."""
    if to not in MOVES[task.state]:
        raise IllegalMove(f"task {task.id}: {task.state} -> {to}")
    return replace(task, state=to, **changes)
