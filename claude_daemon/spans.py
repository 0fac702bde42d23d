"""What traces tell of a request: its span at the edge, its wait for a place, its turn, and its calls to the upstream.

The ids are those that the daemon passes on and writes into its log (:mod:`~claude_daemon.core.trace`). A trace is told
if it is flagged as recorded: those that begin here are, of a caller's it is the caller who says.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

from claude_daemon.core.task import Outcome
from claude_daemon.core.trace import Trace
from claude_daemon.ports import Clock
from claude_daemon.service.run import Run
from claude_daemon.telemetry.tracing import Span

_TOLD_ROUTES: Final = "/v1/"
"""Probes and scrapes are nobody's request."""
_SERVER_ERROR: Final = 500
_TURN: Final[ContextVar[Trace | None]] = ContextVar("_TURN", default=None)
"""The span of the attempt under way, where it is told."""


class Teller(Protocol):
    """Takes spans that are over."""

    def tell(self, span: Span) -> None: ...


class Spans:
    """``now`` is seconds since the epoch."""

    def __init__(self, traces: Teller, *, now: Clock, monotonic: Clock) -> None:
        self._traces = traces
        self._now = now
        self._monotonic = monotonic
        self._turns: WeakKeyDictionary[Run, Trace] = WeakKeyDictionary()

    def access(self, own: str | None, above: str | None, method: str, route: str, status: int, seconds: float) -> None:
        """A request is over. ``own`` is its span and ``above`` its caller's, as ``traceparent`` has them."""
        span, caller = Trace.parse(own), Trace.parse(above)
        if span is None or not span.recorded or not route.startswith(_TOLD_ROUTES):
            return
        self._traces.tell(
            Span(
                name=f"{method} {route}",
                kind="server",
                trace_id=span.trace_id,
                span_id=span.span_id,
                parent_id=None if caller is None else caller.span_id,
                began_at=self._now() - seconds,
                seconds=seconds,
                attributes={"http.request.method": method, "http.route": route, "http.response.status_code": status},
                error=str(status) if status >= _SERVER_ERROR else None,
            )
        )

    def begins(self, run: Run) -> None:
        """An attempt; within its context, so that its calls are beneath it."""
        request = Trace.parse(run.task.spec.traceparent)
        if request is not None and request.recorded:
            turn = self._turns[run] = request.below(secrets.token_bytes)
            _TURN.set(turn)

    def settled(self, run: Run) -> None:
        """A chat or a task has ended: its wait, and its last attempt, are spans beneath its request's."""
        request, outcome = Trace.parse(run.task.spec.traceparent), run.task.outcome
        if request is None or not request.recorded or outcome is None:
            return
        now, monotonic = self._now(), self._monotonic()
        began = monotonic if run.started_at is None else run.started_at
        turn, error = self._turns.pop(run, None), None if outcome.failure is None else outcome.failure.code.value
        queue = request.below(secrets.token_bytes)
        waited_in_vain = error if turn is None else None
        self._tell(queue, "queue", now - (monotonic - run.queued_at), began - run.queued_at, error=waited_in_vain)
        if turn is not None:
            self._tell(turn, "turn", now - (monotonic - began), monotonic - began, _of_turn(run, outcome), error)

    def _tell(
        self,
        span: Trace,
        name: str,
        began_at: float,
        seconds: float,
        attributes: Mapping[str, str | int] = MappingProxyType({}),
        error: str | None = None,
    ) -> None:
        self._traces.tell(
            Span(
                name=name,
                kind="internal",
                trace_id=span.trace_id,
                span_id=span.span_id,
                parent_id=span.parent_id,
                began_at=began_at,
                seconds=seconds,
                attributes=attributes,
                error=error,
            )
        )

    def model_call(self, fields: Mapping[str, Any]) -> None:
        """A call to the upstream is over; told in the context of its turn."""
        turn = _TURN.get()
        if turn is None or "span_id" not in fields:
            return
        failure = fields["failure"]
        attributes: dict[str, str | int] = {
            "gen_ai.usage.input_tokens": fields["input_tokens"],
            "gen_ai.usage.output_tokens": fields["output_tokens"],
            "url.path": fields["path"],
        }
        if fields["model"] is not None:
            attributes["gen_ai.response.model"] = fields["model"]
        self._traces.tell(
            Span(
                name="model call",
                kind="client",
                trace_id=fields["trace_id"],
                span_id=fields["span_id"],
                parent_id=turn.span_id,
                began_at=self._now() - fields["seconds"],
                seconds=fields["seconds"],
                attributes=attributes,
                error=None if failure is None else str(failure),
            )
        )


def _of_turn(run: Run, outcome: Outcome) -> Mapping[str, str | int]:
    spec, usage = run.task.spec, outcome.usage
    worker = {} if run.worker_id is None else {"claude_daemon.worker_id": run.worker_id}
    return {
        "claude_daemon.task_id": run.task.id,
        "claude_daemon.kind": spec.kind.value,
        "claude_daemon.lane": spec.lane.value,
        "claude_daemon.start": run.start or "",
        "claude_daemon.attempt": run.task.attempt,
        "gen_ai.request.model": spec.model,
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
        **worker,
    }
