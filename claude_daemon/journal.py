"""What the daemon writes down of its parts' doings: one function for each thing worth a line.

A line has the ids of the context that it is written in (:mod:`~claude_daemon.telemetry.logging`). What is told of a
task, a worker or the daemon itself, in whoever's request it comes up, goes by :func:`_apart` and has its own alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import Context
from typing import Any, Final, Protocol, cast

from structlog.contextvars import bind_contextvars

from claude_daemon.api.middleware import facts_of
from claude_daemon.core.errors import Failure
from claude_daemon.core.lifecycle import Check, DaemonState
from claude_daemon.core.task import Task
from claude_daemon.core.trace import TRACE, Trace
from claude_daemon.engine.pool import PoolEvent
from claude_daemon.service.dispatch import Run
from claude_daemon.service.health import Change
from claude_daemon.telemetry.logging import get_logger

log = get_logger("claude_daemon.daemon")
_api = get_logger("claude_daemon.api")
_engine = get_logger("claude_daemon.engine")
_service = get_logger("claude_daemon.service")
_store = get_logger("claude_daemon.store")
_upstream = get_logger("claude_daemon.upstream")

_LOGGERS: Final = {
    **dict.fromkeys(("worker", "pool", "agent", "agents", "engine", "mcp"), _engine),
    **dict.fromkeys(("task", "webhook", "queue", "budget", "sessions"), _service),
    **dict.fromkeys(("audit", "store", "redis"), _store),
}
"""By what an event is about; a level can be set for each of them."""


class Asked(Protocol):
    """What a line tells of an HTTP request."""

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def remote(self) -> str | None: ...


def _apart(level: str, name: str, fields: Mapping[str, Any]) -> None:
    logger = _LOGGERS.get(name.partition(".")[0], log)
    Context().run(getattr(logger, level), name, **fields)


def state_changed(old: DaemonState, new: DaemonState) -> None:
    """Checks are read when anybody asks: whose request that was is no matter."""
    _apart("info", "daemon.state", {"old": old.value, "new": new.value})


def check_changed(change: Change) -> None:
    fields = {"check": change.what, "old": change.old, "new": change.new, "reason": change.reason}
    _apart("info" if change.new == Check.PASS else "warning", "health.changed", fields)


def reload_refused(failure: Failure) -> None:
    log.error("daemon.reload_refused", reason=failure.message, faults=[fault.message for fault in failure.faults])


def reloaded(told: Mapping[str, Any]) -> None:
    changed = {change["key"]: f"{change['old']} -> {change['new']}" for change in told["changed"]}
    log.info("daemon.reloaded", changed=changed, needs_restart=told["needs_restart"], hash=told["config"]["hash"])


def access(request: Asked, status: int, seconds: float, sent: int) -> None:
    _api.info(
        "http.access",
        method=request.method,
        path=request.path,
        peer=request.remote,
        status=status,
        seconds=round(seconds, 6),
        bytes=sent,
        **facts_of(cast(Any, request)),
    )


def ws_opened(request: Asked) -> None:
    """Its access line comes when it is closed, which may be tomorrow."""
    _api.info("ws.opened", path=request.path, peer=request.remote)


def control_access(request: Asked, status: int, seconds: float, sent: int) -> None:
    _api.debug("control.access", method=request.method, path=request.path, status=status, seconds=round(seconds, 6))


def control_refused(reason: str, uid: int | None, pid: int | None) -> None:
    _api.warning("control.refused", reason=reason, peer_uid=uid, peer_pid=pid)


def accept_failed(said: str) -> None:
    _api.warning("http.accept_failed", reason=said)


def unhandled(request_id: str, error: BaseException) -> None:
    _api.error("http.unhandled", request_id=request_id, exc_info=error)


def stack(kind: str, entry: Mapping[str, Any]) -> None:
    """Of a task of the loop, or of a thread."""
    if kind == "tasks":
        log.warning("daemon.stacks.tasks", **entry)
    else:
        log.warning("daemon.stacks.threads", **entry)


def model_call(name: str, fields: Mapping[str, Any]) -> None:
    _upstream.info(name, **fields)


_WARNINGS: Final = frozenset(
    {
        "audit.strange",
        "audit.unwritten",
        "budget.left_behind",
        "budget.reservation_charged",
        "budget.warn",
        "redis.lost",
        "store.failed",
        "task.lease_lost",
        "webhook.failed",
        "webhook.given_up",
    }
)


def told(name: str, fields: Mapping[str, Any]) -> None:
    """What a part of the service finds worth a line."""
    _apart("warning" if name in _WARNINGS else "info", name, fields)


def no_sandbox(why: str, *, required: bool) -> None:
    """``required``: then nothing runs that would need it."""
    if required:
        _engine.warning("agents.no_sandbox", reason=why)
    else:
        _engine.warning("agents.unconfined", reason=f"a key with tools is this Unix user: {why}")


def no_cgroups(why: str, *, failed: bool) -> None:
    """Agents have limits for each process alone. ``failed``: they could have been held together, it seemed."""
    (_engine.warning if failed else _engine.info)("agents.no_cgroups", reason=why)


def pool_event(event: PoolEvent) -> None:
    """A worker is started in one request, and serves many."""
    _apart(event.level, event.name, event.fields)


def task_accepted(task: Task, peer_uid: int | None) -> None:
    """``peer_uid``: of whoever asked over the control socket."""
    spec = task.spec
    asked = {} if peer_uid is None else {"peer_uid": peer_uid}
    _apart("info", "task.accepted", {**_ids(task), **_traced(task), "lane": spec.lane.value, **asked})


def attempt_begins(run: Run) -> None:
    """Within the attempt's context: its lines have these ids."""
    task = run.task
    bind_contextvars(**_ids(task), lane=task.spec.lane.value)
    if run.worker_id is not None:
        bind_contextvars(worker_id=run.worker_id)
    span = Trace.parse(task.spec.traceparent)
    TRACE.set(span)
    if run.durable:
        if span is not None:
            bind_contextvars(**span.fields)
        _service.info("task.started", start=run.start, attempt=task.attempt + 1)


def task_broken(task: Task | None, error: Exception) -> None:
    _apart("error", "task.broken", {**(_ids(task) if task is not None else {}), "exc_info": error})


def task_settled(run: Run) -> None:
    """One line for every task, with the ids that join it to its request, its worker and its model calls."""
    task = run.task
    outcome = task.outcome
    assert outcome is not None
    failure, usage, cost = outcome.failure, outcome.usage, outcome.cost_micro_usd
    first = run.first_delta_seconds
    fields = {
        **_ids(task),
        **_traced(task),
        "worker_id": run.worker_id,
        "lane": task.spec.lane.value,
        "start": run.start,
        "state": task.state.value,
        "code": failure.code.value if failure is not None else None,
        "reason": failure.message if failure is not None else None,
        "attempt": task.attempt,
        "first_delta_seconds": round(first, 6) if first is not None else None,
        "model": task.spec.model,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost_usd": None if cost is None else cost / 1_000_000,
    }
    _apart("info", "task.settled", fields)


def _traced(task: Task) -> dict[str, str]:
    span = Trace.parse(task.spec.traceparent)
    return {} if span is None else span.fields


def _ids(task: Task) -> dict[str, Any]:
    spec = task.spec
    session = {} if spec.session is None else {"session_id": spec.session.id}
    return {
        "task_id": task.id,
        "request_id": spec.request_id,
        "key_id": spec.key_id,
        "trust_domain": spec.trust_domain,
        **session,
    }
