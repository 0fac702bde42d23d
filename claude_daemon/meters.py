"""What the daemon counts of its parts' doings: one method for each thing worth a number, as
:mod:`~claude_daemon.journal` has one for each thing worth a line."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any, Final, Protocol

from claude_daemon import journal
from claude_daemon.core.budget import Charge, usd
from claude_daemon.core.errors import Code
from claude_daemon.core.task import Kind, Lane, Outcome, Task
from claude_daemon.engine.pool import PoolEvent
from claude_daemon.ports import Clock
from claude_daemon.service.dispatch import Run
from claude_daemon.spans import Spans
from claude_daemon.telemetry.metrics import OTHER, Metrics

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS"})
"""A client may write anything for a method."""
_NO_ROUTE: Final = "none"
_OK: Final = "ok"
_RETIRED: Final = (
    ("served ", "turns"),
    ("older than ", "age"),
    ("grew to ", "memory"),
    ("crashed", "crashed"),
    ("room for ", "room"),
    ("closing", "closing"),
    ("killed", "operator"),
    ("an operator", "operator"),
    ("the configuration", "operator"),
    ("did not come back", "stuck"),
    ("was not cleared", "stuck"),
)
"""How the reasons of the pool begin, and what they are counted as."""


class Asked(Protocol):
    """What is counted of an HTTP request."""

    @property
    def method(self) -> str: ...


class Meters:
    """``models``: the ids of those that have a name here; any other is ``other``, since a client may ask for whatever
    begins with ``claude-``."""

    def __init__(self, metrics: Metrics, *, monotonic: Clock) -> None:
        self.metrics = metrics
        self.spans: Spans | None = None
        """Where traces are collected: told whatever else is counted here of requests, turns and calls."""
        self.models: frozenset[str] = frozenset()
        self._monotonic = monotonic
        self._begin()

    def _begin(self) -> None:
        """All that alerts look for."""
        metrics, refused = self.metrics, Code.UPSTREAM_CREDENTIAL.value
        metrics.upstream_calls.begin(*product(("direct", "cli"), (_OK, refused, Code.UPSTREAM_RATE_LIMITED.value)))
        metrics.tasks_ended.begin(*product(map(str, Kind), map(str, Lane), (refused,)))
        metrics.control_refused.begin(Code.FORBIDDEN.value, Code.FROM_WORKER.value)
        metrics.refused.begin(Code.UNAUTHENTICATED.value)
        metrics.http_requests.begin((_NO_ROUTE, OTHER, "5xx"))
        metrics.webhook_attempts.begin("delivered", "failed", "given_up")
        metrics.events.begin("audit.unwritten")

    # the edge

    def access(self, request: Asked, route: str | None, status: int, seconds: float) -> None:
        """A request to the public port is over. ``route``: its template, None for one that has none."""
        route = route or _NO_ROUTE
        method = request.method if request.method in _METHODS else OTHER
        self.metrics.http_requests[route, method, _CLASSES.get(status) or f"{status // 100}xx"].inc()
        self.metrics.http_request_seconds[route].observe(seconds)

    def control_access(self, status: int) -> None:
        self.metrics.control_requests[f"{status // 100}xx"].inc()

    def refused(self, code: Code) -> None:
        self.metrics.refused[code.value].inc()

    def control_refused(self, reason: str) -> None:
        self.metrics.control_refused[reason].inc()

    # turns

    def begins(self, run: Run) -> None:
        """An attempt; within its context."""
        if self.spans is not None:
            self.spans.begins(run)

    def settled(self, run: Run) -> None:
        """A chat or a task has ended."""
        if self.spans is not None:
            self.spans.settled(run)
        metrics, spec, outcome = self.metrics, run.task.spec, run.task.outcome
        assert outcome is not None
        lane, code = spec.lane.value, _OK if outcome.failure is None else outcome.failure.code.value
        metrics.tasks_ended[spec.kind.value, lane, code].inc()
        if run.started_at is not None:
            metrics.queue_wait_seconds[spec.kind.value].observe(run.started_at - run.queued_at)
            metrics.turn_seconds[lane].observe(self._monotonic() - run.started_at)
        if (first_delta := run.first_delta_seconds) is not None:
            metrics.first_delta_seconds[lane].observe(first_delta)

    def paid(self, task: Task, outcome: Outcome, bill: Charge) -> None:
        """An attempt is in the ledger."""
        model, usage = task.spec.model, outcome.usage
        if model not in self.models:
            model = OTHER
        tokens = self.metrics.tokens
        for kind, number in (
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("cache_write", usage.cache_creation_input_tokens),
            ("cache_read", usage.cache_read_input_tokens),
        ):
            if number > 0:
                tokens[model, kind].inc(number)
        if bill.cost_micro_usd:
            self.metrics.cost_usd[model].inc(usd(bill.cost_micro_usd))
        if bill.micro_usd:
            self.metrics.charged_usd[model].inc(usd(bill.micro_usd))

    # engine, upstream and the rest

    def model_call(self, name: str, fields: Mapping[str, Any]) -> None:
        """A brokered call, on its way to the log."""
        self.model_called(fields)
        journal.model_call(name, fields)

    def model_called(self, fields: Mapping[str, Any]) -> None:
        if self.spans is not None:
            self.spans.model_call(fields)
        lane = "direct" if fields.get("worker_id") is None else "cli"
        self.metrics.upstream_calls[lane, str(fields["failure"] or _OK)].inc()

    def pool_event(self, event: PoolEvent) -> None:
        """On its way to the log."""
        metrics = self.metrics
        if event.name == "worker.retiring":
            metrics.workers_retired[_retired(str(event.fields["reason"]))].inc()
        elif event.name == "worker.crashed":
            metrics.worker_crashes.inc()
        elif event.name == "worker.start_failed":
            metrics.worker_start_failures.inc()
        elif event.name == "engine.strays_ended":
            metrics.strays_ended.inc(len(event.fields["pids"]))
        metrics.events[event.name].inc()
        journal.pool_event(event)

    def told(self, name: str, fields: Mapping[str, Any]) -> None:
        """On its way to the log."""
        self.metrics.events[name].inc()
        what, _, outcome = name.partition(".")
        if what == "webhook":
            self.metrics.webhook_attempts[outcome].inc()
        journal.told(name, fields)

    def committed(self, seconds: float, items: int) -> None:
        """Called by the store's writer, on its thread."""
        self.metrics.commit_seconds.observe(seconds)
        self.metrics.commit_items.observe(items)


_CLASSES: Final = {status: f"{status // 100}xx" for status in range(100, 600)} | {499: "499"}


def _retired(reason: str) -> str:
    return next((counted for begins, counted in _RETIRED if reason.startswith(begins)), OTHER)
