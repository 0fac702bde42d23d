"""What the daemon writes down of its parts' doings: one function for each thing worth a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

from claude_daemon.core.errors import Failure
from claude_daemon.core.lifecycle import DaemonState
from claude_daemon.core.task import Task
from claude_daemon.engine.pool import PoolEvent
from claude_daemon.service.dispatch import Run
from claude_daemon.telemetry.logging import get_logger

log = get_logger("claude_daemon.daemon")


class Asked(Protocol):
    """What a line tells of an HTTP request."""

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def remote(self) -> str | None: ...


def state_changed(old: DaemonState, new: DaemonState) -> None:
    log.info("daemon.state", old=old, new=new)


def reload_refused(failure: Failure) -> None:
    log.error("daemon.reload_refused", reason=failure.message, faults=[fault.message for fault in failure.faults])


def reloaded(told: Mapping[str, Any]) -> None:
    changed = {change["key"]: f"{change['old']} -> {change['new']}" for change in told["changed"]}
    log.info("daemon.reloaded", changed=changed, needs_restart=told["needs_restart"], hash=told["config"]["hash"])


def access(request: Asked, status: int, seconds: float, sent: int) -> None:
    log.info(
        "http.access",
        method=request.method,
        path=request.path,
        peer=request.remote,
        status=status,
        seconds=round(seconds, 6),
        bytes=sent,
    )


def control_access(request: Asked, status: int, seconds: float, sent: int) -> None:
    log.debug("control.access", method=request.method, path=request.path, status=status, seconds=round(seconds, 6))


def control_refused(reason: str, uid: int | None, pid: int | None) -> None:
    log.warning("control.refused", reason=reason, peer_uid=uid, peer_pid=pid)


def accept_failed(said: str) -> None:
    log.warning("http.accept_failed", reason=said)


def unhandled(request_id: str, error: BaseException) -> None:
    log.error("http.unhandled", request_id=request_id, exc_info=error)


def stack(kind: str, entry: Mapping[str, Any]) -> None:
    """Of a task of the loop, or of a thread."""
    if kind == "tasks":
        log.warning("daemon.stacks.tasks", **entry)
    else:
        log.warning("daemon.stacks.threads", **entry)


def model_call(name: str, fields: Mapping[str, Any]) -> None:
    log.info(name, **fields)


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
    (log.warning if name in _WARNINGS else log.info)(name, **fields)


def no_sandbox(why: str, *, required: bool) -> None:
    """``required``: then nothing runs that would need it."""
    if required:
        log.warning("agents.no_sandbox", reason=why)
    else:
        log.warning("agents.unconfined", reason=f"a key with tools is this Unix user: {why}")


def no_cgroups(why: str, *, failed: bool) -> None:
    """Agents have limits for each process alone. ``failed``: they could have been held together, it seemed."""
    (log.warning if failed else log.info)("agents.no_cgroups", reason=why)


def pool_event(event: PoolEvent) -> None:
    getattr(log, event.level)(event.name, **event.fields)


def task_broken(task: Task | None, error: Exception) -> None:
    log.error("task.broken", **(_ids(task) if task is not None else {}), exc_info=error)


def task_settled(run: Run) -> None:
    """One line for every task, with the ids that join it to its request, its worker and its model calls."""
    task = run.task
    outcome = task.outcome
    assert outcome is not None
    failure = outcome.failure
    first = run.first_delta_at
    log.info(
        "task.settled",
        **_ids(task),
        worker_id=run.worker_id,
        lane=task.spec.lane,
        start=run.start,
        state=task.state,
        code=failure.code if failure is not None else None,
        reason=failure.message if failure is not None else None,
        attempt=task.attempt,
        first_delta_seconds=round(first - run.queued_at, 6) if first is not None else None,
        input_tokens=outcome.usage.input_tokens,
        output_tokens=outcome.usage.output_tokens,
    )


def _ids(task: Task) -> dict[str, Any]:
    spec = task.spec
    return {
        "task_id": task.id,
        "request_id": spec.request_id,
        "key_id": spec.key_id,
        "trust_domain": spec.trust_domain,
    }
