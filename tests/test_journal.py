"""What is written down of a task or a worker has its own ids, in whoever's request it comes up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from structlog.contextvars import bind_contextvars, bound_contextvars, clear_contextvars

from claude_daemon import journal
from claude_daemon.core.lifecycle import DaemonState
from claude_daemon.core.session import SessionTurn
from claude_daemon.core.task import Kind, Outcome, State, Task, Usage
from claude_daemon.core.trace import TRACE
from claude_daemon.engine.pool import PoolEvent
from claude_daemon.service.run import Run
from tests.service.doubles import spec
from tests.telemetry.conftest import Start, log, start

__all__ = ["start"]

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OWN = {"task_id": "task_1", "request_id": "r1", "key_id": "k1", "trust_domain": "default"}
SOMEBODYS = {"request_id": "somebodys", "task_id": "task_9", "key_id": "k9", "trace_id": "9", "session_id": "s9"}


def made(kind: Kind, **changes: Any) -> Run:
    """A run that comes into being in somebody's request."""
    asked = replace(spec(kind=kind, request_id="r1", key_id="k1", traceparent=TRACEPARENT), **changes)
    run = Run(Task(id="task_1", spec=asked, created_at=1.0), 0.0)
    run.start, run.worker_id = "warm", "w1"
    return run


def ids(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name in {*OWN, *SOMEBODYS}}


def test_a_durable_tasks_attempt_has_its_own_ids_whoever_frees_a_place_for_it(start: Start) -> None:
    logs = start()
    with bound_contextvars(**SOMEBODYS):
        run = made(Kind.TASK)
        run.context.run(journal.attempt_begins, run)
        run.context.run(log.info, "inside")
        log.info("outside")
    begun, inside, outside = logs.lines()
    assert begun["event"] == "task.started"
    assert ids(begun) == ids(inside) == {**OWN, "trace_id": TRACEPARENT.split("-")[1]}
    assert (inside["worker_id"], inside["lane"], inside["span_id"]) == ("w1", "text", TRACEPARENT.split("-")[2])
    assert ids(outside) == SOMEBODYS and "worker_id" not in outside
    span = run.context[TRACE]
    assert span is not None and span.header == TRACEPARENT


def test_a_chats_attempt_has_its_submitters_context_and_of_each_attempt_the_worker(start: Start) -> None:
    logs = start()
    bind_contextvars(request_id="r1", anything="else")
    run = made(Kind.CHAT)
    clear_contextvars()
    for worker in ("w1", "w2"):
        run.worker_id = worker
        run.context.run(journal.attempt_begins, run)
        run.context.run(log.info, "inside")
    first, second = logs.lines()
    assert (first["anything"], first["worker_id"], second["worker_id"]) == ("else", "w1", "w2")
    assert ids(first) == OWN


@pytest.mark.parametrize("kind", list(Kind))
def test_the_end_of_a_task_has_nothing_of_whoever_it_ends_for(start: Start, kind: Kind) -> None:
    logs = start()
    run = made(kind, session=SessionTurn(id="sess_1", transcript="t", message="m") if kind is Kind.TASK else None)
    outcome = Outcome(state=State.SUCCEEDED, usage=Usage(input_tokens=3, output_tokens=4), cost_micro_usd=1500)
    run.task = replace(run.task, state=State.SUCCEEDED, outcome=outcome)
    with bound_contextvars(**SOMEBODYS):
        journal.task_settled(run)
        journal.task_broken(run.task, ValueError("x"))
        journal.task_broken(None, ValueError("x"))
        journal.pool_event(PoolEvent(name="worker.ready", level="info", fields={"worker_id": "w1"}))
        journal.told("webhook.failed", {"task_id": "task_1"})
        journal.state_changed(DaemonState.READY, DaemonState.DEGRADED)
    settled, broken, nobodys, worker, webhook, state = logs.lines()
    session = {"session_id": "sess_1"} if kind is Kind.TASK else {}
    assert ids(settled) == {**OWN, **session, "trace_id": TRACEPARENT.split("-")[1]}
    assert (settled["cost_usd"], settled["output_tokens"], settled["state"]) == (0.0015, 4, "succeeded")
    assert ids(broken) == {**OWN, **session} and broken["exception"]["type"] == "ValueError"
    assert ids(nobodys) == ids(worker) == ids(state) == {}
    assert (ids(webhook), webhook["level"]) == ({"task_id": "task_1"}, "warning")
    assert (state["old"], state["new"]) == ("ready", "degraded")


def test_each_part_has_a_logger_whose_level_can_be_set(start: Start) -> None:
    logs = start(levels={"claude_daemon.api": "error", "claude_daemon.engine": "error"})
    journal.control_refused("why", 1, 2)
    journal.accept_failed("why")
    journal.pool_event(PoolEvent(name="worker.ready", level="info", fields={}))
    journal.model_call("model_call", {})
    journal.told("store.failed", {})
    journal.told("task.recovered", {})
    journal.no_cgroups("why", failed=True)
    assert [(line["event"], line["logger"]) for line in logs.lines()] == [
        ("model_call", "claude_daemon.upstream"),
        ("store.failed", "claude_daemon.store"),
        ("task.recovered", "claude_daemon.service"),
    ]
