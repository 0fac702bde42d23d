"""What can go wrong, as data.

A request that is turned away before it runs raises :class:`Refusal`; a task that ran and failed ends with an
:class:`~claude_daemon.core.task.Outcome`. Both carry a :class:`Failure`, whose :class:`Code` is stable: clients,
logs and exit codes depend on it. ``api.errors`` maps codes to HTTP, and nothing else does.

::

    Exception
    ├── Refusal           a Failure on its way to the caller
    └── IllegalMove       a state machine was asked for a move its table does not have: our own bug
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Code(StrEnum):
    """The stable name of a failure."""

    # the request itself
    INVALID_REQUEST = "invalid_request"
    BAD_CONFIGURATION = "bad_configuration"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    LANE_UNAVAILABLE = "lane_unavailable"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    FROM_WORKER = "from_worker"
    NOT_FOUND = "not_found"
    MODEL_NOT_FOUND = "model_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    BODY_TOO_LARGE = "body_too_large"
    REQUEST_TIMEOUT = "request_timeout"
    HOST_NOT_ALLOWED = "host_not_allowed"
    ORIGIN_NOT_ALLOWED = "origin_not_allowed"
    CONTROL_VERSION = "control_version"
    CONFLICT = "conflict"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    QUEUE_FULL = "queue_full"
    RATE_LIMITED = "rate_limited"
    BUDGET_EXHAUSTED = "budget_exhausted"
    # our own state
    DRAINING = "draining"
    OVERLOADED = "overloaded"
    QUEUE_TIMEOUT = "queue_timeout"
    NOT_READY = "not_ready"
    STORE_UNAVAILABLE = "store_unavailable"
    INTERNAL = "internal"
    # the upstream Messages API
    UPSTREAM_INVALID_REQUEST = "upstream_invalid_request"
    UPSTREAM_NOT_FOUND = "upstream_not_found"
    UPSTREAM_TOO_LARGE = "upstream_too_large"
    UPSTREAM_CREDENTIAL = "upstream_credential_refused"
    UPSTREAM_RATE_LIMITED = "upstream_rate_limited"
    UPSTREAM_OVERLOADED = "upstream_overloaded"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_CUT = "upstream_cut"
    UPSTREAM_MALFORMED = "upstream_malformed"
    # the run
    ENGINE_CRASHED = "engine_crashed"
    ENGINE_UNAVAILABLE = "engine_unavailable"
    ANSWER_DIVERGED = "answer_diverged"
    SCHEMA_MISMATCH = "schema_mismatch"
    STALLED = "stalled"
    DEADLINE = "deadline"
    MAX_TURNS = "max_turns"
    DISK_QUOTA = "disk_quota"
    MEMORY_LIMIT = "memory_limit"
    MAX_COST = "max_cost"
    SANDBOX_UNAVAILABLE = "sandbox_unavailable"
    MCP_UNAVAILABLE = "mcp_unavailable"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong with an input: where (a dotted path) and what."""

    path: str
    message: str


UPSTREAM_SAID_NO: Final = frozenset(
    {
        Code.UPSTREAM_INVALID_REQUEST,
        Code.UPSTREAM_NOT_FOUND,
        Code.UPSTREAM_TOO_LARGE,
        Code.UPSTREAM_CREDENTIAL,
        Code.UPSTREAM_RATE_LIMITED,
        Code.UPSTREAM_OVERLOADED,
        Code.UPSTREAM_ERROR,
        Code.UPSTREAM_UNREACHABLE,
    }
)
"""The upstream has answered with an error of its own, or was not reached: it has answered nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why something did not happen.

    ``message`` is a sentence for the caller; it never holds a secret or a traceback. ``retry_after_seconds`` is
    set where waiting helps. ``param`` names the offending parameter, ``faults`` all of them for bad input.
    """

    code: Code
    message: str
    retry_after_seconds: float | None = None
    param: str | None = None
    faults: tuple[Fault, ...] = ()


class Refusal(Exception):
    """A request turned away before it ran, or a client turned away at the edge."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure

    @classmethod
    def because(
        cls, code: Code, message: str, *, param: str | None = None, retry_after_seconds: float | None = None
    ) -> Refusal:
        return cls(Failure(code=code, message=message, param=param, retry_after_seconds=retry_after_seconds))


class IllegalMove(Exception):
    """A state machine was asked for a move that its table does not have; nothing has changed."""


def failure_of_upstream_status(status: int, message: str, retry_after_seconds: float | None = None) -> Failure:
    """The failure that an error status of the Messages API means to our caller.

    >>> failure_of_upstream_status(529, "Overloaded").code
    <Code.UPSTREAM_OVERLOADED: 'upstream_overloaded'>
    """
    codes = {
        400: Code.UPSTREAM_INVALID_REQUEST,
        404: Code.UPSTREAM_NOT_FOUND,
        413: Code.UPSTREAM_TOO_LARGE,
        401: Code.UPSTREAM_CREDENTIAL,
        403: Code.UPSTREAM_CREDENTIAL,
        429: Code.UPSTREAM_RATE_LIMITED,
        529: Code.UPSTREAM_OVERLOADED,
    }
    code = codes.get(status)
    if code is None:
        code = Code.UPSTREAM_INVALID_REQUEST if 400 <= status < 500 else Code.UPSTREAM_ERROR
    return Failure(code=code, message=message, retry_after_seconds=retry_after_seconds)
