"""What the service needs to have a task run.

``engine`` and ``upstream`` implement :class:`Engine`; ``upstream.broker`` implements :class:`Gateway`, which the
engine's workers talk to. Clock and ids are plain callables.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeGuard, runtime_checkable

from claude_daemon.core.errors import Failure, Fault
from claude_daemon.core.event import Emission
from claude_daemon.core.lifecycle import Check
from claude_daemon.core.room import Room
from claude_daemon.core.task import Lane, Outcome, TaskSpec, Usage

Clock = Callable[[], float]
"""Seconds; ``time.time`` for people, ``time.monotonic`` for durations: the parameter's name says which."""

Ids = Callable[[str], str]
"""A fresh id with the given prefix, e.g. ``task_01…``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The last thing an engine's run yields: how it ended.

    ``again``: it failed for a reason of the engine's own, which the next try will not meet; where nothing has been told
    yet, nobody need see it.
    """

    outcome: Outcome
    again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """One part's health: a status, a sentence for people, and details for those who may see them."""

    status: Check
    reason: str = ""
    details: Mapping[str, Any] | None = None


class Lease(Protocol):
    """The right to run one task on an engine, held from dispatch until :meth:`run` has ended or :meth:`release`."""

    @property
    def start(self) -> str:
        """How the task found its process (``warm``, ``lent``, ``spare``, ``cold``), or ``direct``."""

    @property
    def worker_id(self) -> str | None: ...

    @property
    def usage(self) -> Usage:
        """What the task has used so far, for one that is cut short: its end tells nothing then."""

    def run(self) -> AsyncIterator[Sequence[Emission | Ended]]:
        """Runs the task. Yields batches of what happened, the last one ending in exactly one :class:`Ended`.

        A failure of the upstream or the process is an :class:`Ended`, never an exception. Closing the iterator
        (or cancelling the task that reads it) interrupts the turn and gives the lease back.
        """

    def release(self) -> None:
        """Gives an unused lease back."""


class Gate(Protocol):
    """Told of a tool call before it is made. Each says why it must not be, or None once all is written down that must
    be known of it."""

    async def called(self, tool: str, given: Mapping[str, Any], *, asked: bool) -> str | None:
        """The model calls a tool with this input. ``asked``: it is not made before :meth:`allowed` was told of it."""

    async def allowed(self, tool: str) -> str | None:
        """A call that was asked for has been allowed, and is about to be made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A tool call that no rule allows: may it be made? ``cwd`` is where, None in a directory of the attempt's own.
    ``diff``: what it would change in a file, where that is known."""

    tool: str
    tool_use_id: str
    given: Mapping[str, Any] = field(repr=False)
    cwd: str | None
    diff: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """``message`` is told to the model with a denial."""

    allow: bool
    message: str = ""


Ask = Callable[[Question, Callable[[Answer], None]], Callable[[], None]]
"""Asks somebody; the answer comes later, once. What is returned takes the question back: then no answer comes."""


@runtime_checkable
class GatedLease(Lease, Protocol):
    """A lease whose run may call tools. Both are set before :meth:`~Lease.run`; without a ``gate`` no tool runs, and
    without ``ask`` whatever no rule allows is denied."""

    gate: Gate | None
    ask: Ask | None


@runtime_checkable
class CopyingLease(Lease, Protocol):
    """A lease that may begin with a copy of another session. ``copied`` is called with that session's id once it may
    go on."""

    copied: Callable[[str], None]


class NotYet(Exception):
    """There is a place, and the task waits for something of its own: nobody else waits for that behind it."""


Spending = Callable[[Usage], Failure | None]
"""Asked before each model call of a task with what it has used so far: why it may spend no more, or None."""


@runtime_checkable
class MeteredLease(Lease, Protocol):
    """A lease whose run may make several model calls, each metered. ``spending`` is set before :meth:`~Lease.run`;
    without it nothing bounds them."""

    spending: Spending | None


def is_gated(lease: Lease) -> TypeGuard[GatedLease]:
    return _is_a(lease, GatedLease)


def is_copying(lease: Lease) -> TypeGuard[CopyingLease]:
    return _is_a(lease, CopyingLease)


def is_metered(lease: Lease) -> TypeGuard[MeteredLease]:
    return _is_a(lease, MeteredLease)


_KINDS: Final[dict[tuple[type, type], bool]] = {}


def _is_a(lease: Lease, kind: type) -> bool:
    """Found out once for each class: a protocol's ``isinstance`` reads every attribute that it names, and each request
    asks three times."""
    known = type(lease), kind
    if known not in _KINDS:
        _KINDS[known] = isinstance(lease, kind)
    return _KINDS[known]


class Engine(Protocol):
    """One lane. ``room``: its places; lanes that share them share the order in which they are given."""

    lane: Lane

    @property
    def room(self) -> Room: ...

    def unsupported(self, spec: TaskSpec) -> Failure | None:
        """Why this lane cannot run the task as asked, naming the parameter; None if it can. Changes nothing."""

    def approximated(self, spec: TaskSpec) -> Sequence[str]:
        """Parameters that this lane honours only approximately, e.g. ``max_tokens``. Pure."""

    def lease(self, spec: TaskSpec) -> Lease | None:
        """A place for the task now, or None: there is none, or no process for it yet. Raises NotYet. In either case
        ``room`` tells when to ask again. Synchronous."""

    def unavailable(self) -> Failure | None:
        """Why no place will come soon, so that nobody waits for one; None while one may."""

    def health(self) -> Mapping[str, HealthReport]:
        """Checks by name (``engine``, ``worker_pool``)."""


class Schemas(Protocol):
    """JSON schemas that clients send: judged where they can be stopped, within a bound of time."""

    async def check(self, schema: object) -> Sequence[Fault]:
        """What is wrong with a schema itself; empty if it can be used. Raises Refusal if nobody can tell now."""

    async def validate(self, schema: Mapping[str, Any], text: str) -> Failure | None:
        """Why a text is not the JSON that the schema asks for; None if it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loan:
    """What a worker that is lent sends in the place of what it is bound to.

    ``own`` is its own system prompt, ``asked`` the one that is asked for; either may be empty. ``schema`` is the JSON
    schema of the answer, as JSON, or None. ``tool_choice`` is put beside the tools where there are any, as JSON.
    """

    own: str
    asked: str
    schema: bytes | None = None
    tool_choice: bytes | None = None


Limit = Callable[[Usage], str | None]
"""Asked before each model call with what the turn has used so far: why there is to be no further one, or None."""


class Account(Protocol):
    """One worker's standing with the gateway: its token, its meter, and the error it saw last."""

    base_url: str
    token: str
    forbids: Callable[[str], str | None] | None
    """Why this model, as the upstream names it, is none that may answer in this turn. Its answers are cut before any of
    them is passed on: whoever has the token could ask for it."""
    forbidden: str | None
    """Why an answer was cut in this turn."""

    def begin(
        self,
        request_id: str = "",
        loan: Loan | None = None,
        limit: Limit | None = None,
        *,
        ends_with_tools: bool = False,
    ) -> None:
        """A new turn, on behalf of this request: the meter is at zero, model calls are allowed.

        ``loan``: every call of the turn is sent with another system prompt or schema than the worker's own. ``limit``
        is asked before each call. ``ends_with_tools``: a model call that ends in tool calls is the turn's last.
        """

    def bar(self, reason: str) -> None:
        """No further model call until :meth:`begin`; calls under way are cut."""

    @property
    def usage(self) -> Usage:
        """What this turn's model calls used so far."""

    @property
    def failure(self) -> Failure | None:
        """The upstream's last error in this turn, None if its last call went well."""

    def close(self) -> None:
        """The token is void from now on."""


class Gateway(Protocol):
    """The loopback door through which workers reach the Messages API, without holding the credential."""

    def open(self, worker_id: str, *, canned: bool = False) -> Account:
        """An account for one worker. ``canned``: calls are answered by the gateway itself, for probes."""
