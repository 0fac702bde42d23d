"""The three state machines: every pair of states, allowed or not."""

from __future__ import annotations

import dataclasses
from itertools import product

import pytest

from claude_daemon.core import lifecycle, task, worker
from claude_daemon.core.errors import Code, Failure, IllegalMove
from claude_daemon.core.lifecycle import Check, DaemonState, worst
from claude_daemon.core.task import Kind, Lane, Outcome, State, Task, TaskSpec
from claude_daemon.core.worker import WorkerState

# LIFECYCLE.md and DESIGN.md, "State machines", written down a second time
DAEMON = {
    "starting": "ready degraded stopping",
    "ready": "degraded draining stopping",
    "degraded": "ready draining stopping",
    "draining": "drained stopping ready degraded",
    "drained": "stopping ready degraded",
    "stopping": "",
}
TASK = {
    "queued": "running cancelled failed",
    "running": "succeeded failed cancelled queued",
    "succeeded": "",
    "failed": "",
    "cancelled": "",
}
WORKER = {
    "starting": "idle retiring gone",
    "idle": "busy retiring gone",
    "busy": "recycling idle retiring gone",
    "recycling": "idle retiring gone",
    "retiring": "gone",
    "gone": "",
}
SPEC = TaskSpec(
    kind=Kind.CHAT, lane=Lane.TEXT, request={"model": "m"}, key_id="local", trust_domain="default", request_id="req"
)
FAILURE = Failure(code=Code.INTERNAL, message="no")


def in_state(state: State) -> Task:
    return Task(id="task_1", spec=SPEC, state=state, created_at=1.0)


@pytest.mark.parametrize(("state", "to"), [*product(DaemonState, DaemonState)])
def test_the_daemon_moves_by_its_table_alone(state: DaemonState, to: DaemonState) -> None:
    if to in DAEMON[state].split():
        assert lifecycle.advance(state, to) is to
    else:
        with pytest.raises(IllegalMove, match=f"{state} -> {to}"):
            lifecycle.advance(state, to)


@pytest.mark.parametrize(("state", "to"), [*product(WorkerState, WorkerState)])
def test_a_worker_moves_by_its_table_alone(state: WorkerState, to: WorkerState) -> None:
    if to in WORKER[state].split():
        assert worker.advance(state, to) is to
    else:
        with pytest.raises(IllegalMove, match=f"{state} -> {to}"):
            worker.advance(state, to)


@pytest.mark.parametrize(("state", "to"), [*product(State, State)])
def test_a_task_moves_by_its_table_alone_and_an_illegal_move_leaves_it_as_it_was(state: State, to: State) -> None:
    before = in_state(state)
    copy = dataclasses.replace(before)
    if to in TASK[state].split():
        after = task.advance(before, to, attempt=3)
        assert (after.state, after.attempt) == (to, 3)
    else:
        with pytest.raises(IllegalMove, match=f"task_1: {state} -> {to}"):
            task.advance(before, to, attempt=3)
    assert before == copy


@pytest.mark.parametrize("state", State)
def test_a_task_is_over_where_no_move_leads_on(state: State) -> None:
    assert state.terminal == (not TASK[state].split())


def test_evolve_changes_anything_but_the_state() -> None:
    queued = in_state(State.QUEUED)
    assert task.evolve(queued, started_at=2.0).started_at == 2.0
    with pytest.raises(IllegalMove):
        task.evolve(queued, state=State.FAILED)
    assert queued == in_state(State.QUEUED)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("failure", [None, FAILURE])
def test_an_outcome_is_an_end_and_has_a_failure_unless_it_succeeded(state: State, failure: Failure | None) -> None:
    good = state.terminal and (failure is None) == (state is State.SUCCEEDED)
    if good:
        assert Outcome(state=state, failure=failure).failure is failure
    else:
        with pytest.raises(ValueError, match=state.value):
            Outcome(state=state, failure=failure)


@pytest.mark.parametrize(
    ("checks", "expected"),
    [
        ([], Check.PASS),
        ([Check.PASS, Check.PASS], Check.PASS),
        ([Check.WARN, Check.PASS], Check.WARN),
        ([Check.WARN, Check.FAIL, Check.PASS], Check.FAIL),
    ],
)
def test_the_worst_check_counts(checks: list[Check], expected: Check) -> None:
    assert worst(checks) is expected
    assert worst(iter(checks)) is expected
