"""What every store must do: a suite over a fixture named ``store`` that is empty and open.

A store's own tests inherit :class:`StoreContract` and pass it unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from claude_daemon.core.agent import AgentSpec, Approval, Subagent
from claude_daemon.core.audit import Verifier
from claude_daemon.core.budget import ALL, Budget, Cap, Owner, Purse, Span, owners
from claude_daemon.core.errors import Code, Failure, IllegalMove
from claude_daemon.core.event import first_seq
from claude_daemon.core.session import SessionTurn
from claude_daemon.core.task import Effects, Kind, Lane, Outcome, State, Task, Usage
from claude_daemon.ports import (
    Batch,
    EventPage,
    Idempotency,
    QueuedTask,
    QueueLimits,
    RunningTask,
    SessionRecord,
    Store,
    StoredEvent,
    TaskFilter,
    TaskPage,
    UsageGroup,
)
from tests.store.samples import (
    CANCELLED,
    FAILED,
    LEASE_UNTIL,
    LIMITS,
    SUCCEEDED,
    append,
    audit,
    entry,
    event,
    found,
    key,
    put,
    requeue,
    reservation,
    seqs,
    settlement,
    start,
    submission,
    task,
)

EVERYTHING: dict[str, Any] = {
    "request": {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "ü 😀 \u0000"}]},
    "stream": False,
    "headers": {"anthropic-beta": "x"},
    "output_schema": {"type": "object", "properties": {}},
    "timeout_seconds": 12.5,
    "priority": -3,
    "webhook": "https://example.org/hook?token=1",
    "metadata": {"a": "b"},
    "agent": AgentSpec(
        allow=("Read", "mcp__tickets"),
        deny=("Bash(git push)",),
        approval=Approval.AUTO,
        cwd="/srv/a",
        add_dirs=("/srv/b",),
        max_turns=3,
        max_cost_micro_usd=5,
        mcp_servers=("tickets",),
        agents=(
            Subagent(name="a", description="d", prompt="p"),
            Subagent(name="b", description="d", prompt="p", tools=("Read",), model="m", max_turns=2),
        ),
        project_settings=True,
        append_system="s",
    ),
}


async def ids(store: Store, limit: int = 100, **wanted: Any) -> list[str]:
    page = await store.list(TaskFilter(**wanted), limit)
    assert page.next is None
    return [task.id for task in page.tasks]


async def acts(store: Store) -> list[str]:
    return [record.act for _, record in await store.audit(0, 1000)]


class Acceptance:
    async def test_a_task_comes_back_as_it_was_asked_for(self, store: Store) -> None:
        asked = task("task_1", **EVERYTHING)
        (answer,) = await put(store, asked)
        assert answer == replace(asked, last_seq=first_seq(0))
        assert await store.get("task_1") == answer

    async def test_its_first_event_and_its_audit_are_kept_with_it(self, store: Store) -> None:
        asked = task()
        await put(store, asked)
        page = await store.events("task_1", 0, 10, 1000)
        assert page is not None and list(page.events) == [submission(asked).event]
        assert [record for _, record in await store.audit(0, 10)] == [audit("task.accepted", asked)]

    async def test_a_task_that_is_not_there_is_none(self, store: Store) -> None:
        assert await store.get("task_0") is None
        assert await store.events("task_0", 0, 10, 1000) is None
        assert await store.claim("task_0", "node_1", LEASE_UNTIL, 0.0) is None
        assert await store.request_cancel("task_0", 1.0) is None
        assert await store.retry("task_0", event(first_seq(1)), LIMITS) is None
        assert not await append(store, "task_0", 1, [event(1)])
        assert not await store.settle(settlement(task("task_0")))
        assert not await store.requeue(requeue(task("task_0")))
        assert not await store.set_effects("task_0", 1)
        assert await store.batch("batch_0") is None

    async def test_an_idempotency_key_with_the_same_digest_gives_the_first_task(self, store: Store) -> None:
        key = Idempotency(key="k", digest=b"\x00\xff")
        await store.enqueue([submission(task("task_1"), key)], LIMITS)
        (again,) = await store.enqueue([submission(task("task_2"), key)], LIMITS)
        assert again == await found(store, "task_1")
        assert await store.get("task_2") is None
        assert await acts(store) == ["task.accepted"]

    async def test_an_idempotency_key_gives_the_first_task_whatever_became_of_it(self, store: Store) -> None:
        key = Idempotency(key="k", digest=b"d")
        await store.enqueue([submission(task("task_1"), key)], LIMITS)
        claimed = await store.claim("task_1", "node_1", LEASE_UNTIL, 0.0)
        assert claimed is not None and await store.settle(settlement(claimed))
        full = QueueLimits(max_queued=0, max_queued_per_key=0)
        (again,) = await store.enqueue([submission(task("task_2"), key)], full)
        assert isinstance(again, Task) and again.id == "task_1" and again.outcome == SUCCEEDED

    async def test_an_idempotency_key_with_another_digest_is_a_conflict(self, store: Store) -> None:
        await store.enqueue([submission(task("task_1"), Idempotency(key="k", digest=b"d"))], LIMITS)
        (answer,) = await store.enqueue([submission(task("task_2"), Idempotency(key="k", digest=b"e"))], LIMITS)
        assert isinstance(answer, Failure) and answer.code is Code.IDEMPOTENCY_CONFLICT
        assert await store.get("task_2") is None

    async def test_idempotency_keys_of_two_api_keys_never_meet(self, store: Store) -> None:
        key = Idempotency(key="k", digest=b"d")
        for asked in (task("task_1", key_id="a"), task("task_2", key_id="b")):
            (answer,) = await store.enqueue([submission(asked, key)], LIMITS)
            assert isinstance(answer, Task) and answer.id == asked.id

    async def test_two_at_once_with_one_idempotency_key_are_one_task(self, store: Store) -> None:
        key = Idempotency(key="k", digest=b"d")
        both = [submission(task("task_1"), key), submission(task("task_2"), key)]
        answers = await asyncio.gather(*(store.enqueue([one], LIMITS) for one in both))
        assert {answer.id for (answer,) in answers if isinstance(answer, Task)} == {"task_1"}

    async def test_the_limit_of_a_key_is_told_from_that_of_all(self, store: Store) -> None:
        limits = QueueLimits(max_queued=3, max_queued_per_key=2)
        asked = [task(f"task_{n}", key_id="a" if n < 3 else "b") for n in range(5)]
        answers = await store.enqueue([submission(one) for one in asked], limits)
        codes = [answer.code if isinstance(answer, Failure) else None for answer in answers]
        assert codes == [None, None, Code.QUEUE_FULL, None, Code.OVERLOADED]
        assert [one.id for one in await store.queued()] == ["task_0", "task_1", "task_3"]

    async def test_only_what_is_queued_counts_against_the_limits(self, store: Store) -> None:
        limits = QueueLimits(max_queued=1, max_queued_per_key=1)

        async def refused(name: str) -> Code | None:
            (answer,) = await store.enqueue([submission(task(name))], limits)
            return answer.code if isinstance(answer, Failure) else None

        assert await refused("task_1") is None
        assert await refused("task_2") is Code.QUEUE_FULL
        claimed = await store.claim("task_1", "node_1", LEASE_UNTIL, 0.0)
        assert claimed is not None
        assert await refused("task_3") is None
        assert await store.requeue(requeue(claimed))
        ended = await found(store, "task_3")
        assert await store.settle(settlement(ended, CANCELLED, new_fence=1))
        assert await refused("task_4") is Code.QUEUE_FULL

    async def test_of_a_submission_that_is_wrong_in_itself_nothing_happens(self, store: Store) -> None:
        await put(store, task("task_1"))
        with pytest.raises(Exception):  # noqa: B017  (which one is the store's own; the id is taken)
            await store.enqueue([submission(task("task_2")), submission(task("task_1"))], LIMITS)
        assert await ids(store) == ["task_1"]
        assert await acts(store) == ["task.accepted"]
        await put(store, task("task_2"))


class Batches:
    async def test_a_batch_keeps_who_was_accepted_and_who_was_refused(self, store: Store) -> None:
        early = Failure(code=Code.INVALID_REQUEST, message="no", param="model")
        batch = Batch(id="batch_1", key_id="local", created_at=1.0, size=4, refused={1: early})
        asked = [task(f"task_{n}", batch_id="batch_1") for n in (0, 2, 3)]
        limits = QueueLimits(max_queued=10, max_queued_per_key=2)
        answers = await store.enqueue([submission(one) for one in asked], limits, batch)
        late = answers[2]
        assert isinstance(late, Failure)
        state = await store.batch("batch_1")
        assert state is not None
        assert state.batch == replace(batch, refused={1: early, 3: late})
        assert dict(state.tasks) == {0: answers[0], 2: answers[1]}

    async def test_a_batch_that_was_refused_altogether_is_kept(self, store: Store) -> None:
        refused = {0: Failure(code=Code.INVALID_REQUEST, message="no")}
        batch = Batch(id="batch_1", key_id="local", created_at=1.0, size=1, refused=refused)
        assert list(await store.enqueue([], LIMITS, batch)) == []
        state = await store.batch("batch_1")
        assert state is not None and state.batch == batch and not state.tasks

    async def test_a_batch_tells_its_tasks_as_they_are_now(self, store: Store) -> None:
        batch = Batch(id="batch_1", key_id="local", created_at=1.0, size=1)
        await store.enqueue([submission(task(batch_id="batch_1"))], LIMITS, batch)
        claimed = await store.claim("task_1", "node_1", LEASE_UNTIL, 0.0)
        state = await store.batch("batch_1")
        assert state is not None and dict(state.tasks) == {0: claimed}


class Attempts:
    async def test_a_claim_begins_an_attempt_under_the_next_fence(self, store: Store) -> None:
        (queued,) = await put(store, task())
        claimed = await store.claim("task_1", "node_1", LEASE_UNTIL, 2000.0)
        assert claimed == replace(queued, state=State.RUNNING, attempt=1, fence=1, started_at=2000.0)
        assert await store.get("task_1") == claimed
        assert list(await store.running()) == [
            RunningTask(task=claimed, node="node_1", lease_until=LEASE_UNTIL, usage=Usage())
        ]
        assert list(await store.queued()) == []

    async def test_what_is_not_queued_cannot_be_claimed(self, store: Store) -> None:
        claimed = await start(store)
        assert await store.claim("task_1", "node_2", LEASE_UNTIL, 0.0) is None
        assert await store.settle(settlement(claimed))
        assert await store.claim("task_1", "node_2", LEASE_UNTIL, 0.0) is None

    async def test_of_many_who_claim_a_task_one_has_it(self, store: Store) -> None:
        await put(store, task())
        claims = await asyncio.gather(*(store.claim("task_1", f"node_{n}", LEASE_UNTIL, 0.0) for n in range(10)))
        assert sum(claim is not None for claim in claims) == 1

    async def test_started_at_is_the_first_attempts_and_effects_the_current_ones(self, store: Store) -> None:
        claimed = await start(store)
        assert await store.set_effects("task_1", 1)
        assert (await found(store)).effects is Effects.POSSIBLE
        assert await store.requeue(requeue(claimed))
        again = await store.claim("task_1", "node_2", LEASE_UNTIL, 9999.0)
        assert again is not None
        assert (again.attempt, again.fence, again.started_at, again.effects) == (2, 2, 2000.0, Effects.NONE)

    async def test_leases_are_renewed_by_their_node_only(self, store: Store) -> None:
        await start(store, task("task_1"), node="node_1")
        await start(store, task("task_2"), node="node_2")
        await put(store, task("task_3"))
        held = await store.renew("node_1", ["task_1", "task_2", "task_3", "task_4"], 6000.0)
        assert held == {"task_1"}
        assert [(one.task.id, one.node, one.lease_until) for one in await store.running()] == [
            ("task_1", "node_1", 6000.0),
            ("task_2", "node_2", LEASE_UNTIL),
        ]

    async def test_events_are_told_once_they_are_kept(self, store: Store) -> None:
        claimed = await start(store)
        first = first_seq(1)
        assert await append(store, "task_1", 1, [event(first), event(first + 1)])
        assert await append(store, "task_1", 1, [event(first + 5)])
        assert await seqs(store, after=claimed.last_seq) == [first, first + 1, first + 5]
        assert (await found(store)).last_seq == first + 5

    async def test_what_an_attempt_has_used_is_known_until_it_ends_and_is_no_other_attempts(self, store: Store) -> None:
        first = await start(store)
        for calls in (1, 2):
            store.spent("task_1", 1, Usage(input_tokens=10 * calls, output_tokens=calls, model_calls=calls))
        store.spent("task_1", 9, Usage(model_calls=99))
        store.spent("task_2", 1, Usage(model_calls=99))
        assert await append(store, "task_1", 1, [event(first_seq(1))])  # what was said before it is kept by now
        assert [one.usage for one in await store.running()] == [Usage(input_tokens=20, output_tokens=2, model_calls=2)]
        assert await store.requeue(requeue(first))
        store.spent("task_1", 1, Usage(model_calls=99))
        assert await store.claim("task_1", "node_1", LEASE_UNTIL, 3000.0) is not None
        assert [one.usage for one in await store.running()] == [Usage()]

    async def test_appends_without_waiting_are_kept_and_told_in_order(self, store: Store) -> None:
        await start(store)
        told: list[tuple[int, bool]] = []
        numbers = range(first_seq(1), first_seq(1) + 50)

        def tell(seq: int) -> Callable[[bool], None]:
            return lambda kept: told.append((seq, kept))

        for seq in numbers:
            store.append("task_1", 1, [event(seq)], tell(seq))
        assert not told
        assert await append(store, "task_1", 1, [event(numbers[-1] + 1)])
        assert told == [(seq, True) for seq in numbers]
        assert await seqs(store, after=first_seq(0)) == [*numbers, numbers[-1] + 1]

    async def test_verbs_are_applied_in_the_order_of_their_calls(self, store: Store) -> None:
        await start(store)
        told: list[bool] = []
        seq = first_seq(1)
        store.append("task_1", 1, [event(seq)], told.append)
        end = settlement(replace(running_task(1), last_seq=seq))
        ends = await asyncio.gather(store.settle(end), store.settle(end))
        assert list(ends) == [True, False]
        store.append("task_1", 1, [event(seq + 2)], told.append)
        assert not await append(store, "task_1", 1, [event(seq + 3)])
        assert told == [True, False]
        assert await seqs(store, after=first_seq(0)) == [seq, seq + 1]

    async def test_a_caller_that_gives_up_waiting_does_no_harm(self, store: Store) -> None:
        await put(store, task())
        waiting = asyncio.gather(store.claim("task_1", "node_1", LEASE_UNTIL, 0.0), return_exceptions=True)
        await asyncio.sleep(0)  # it has called
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await store.pause(False)
        assert (await found(store)).state is State.RUNNING


class Ends:
    @pytest.mark.parametrize("outcome", [SUCCEEDED, FAILED, CANCELLED], ids=lambda outcome: outcome.state)
    async def test_an_end_is_kept_whole(self, store: Store, outcome: Outcome) -> None:
        claimed = await start(store)
        end = settlement(claimed, replace(outcome, structured={"n": [1, None]}))
        assert await store.settle(end)
        assert await store.get("task_1") == replace(
            claimed, state=outcome.state, outcome=end.outcome, finished_at=3000.0, last_seq=end.event.seq
        )
        assert (await seqs(store))[-1] == end.event.seq
        assert list(await store.ledger("task_1")) == [entry(claimed)]
        assert (await acts(store))[-1] == "task.ended"
        assert list(await store.running()) == []

    async def test_a_task_ends_once(self, store: Store) -> None:
        claimed = await start(store)
        assert await store.settle(settlement(claimed))
        before = await snapshot(store)
        assert not await store.settle(settlement(claimed, FAILED))
        assert not await store.settle(settlement(claimed, FAILED, new_fence=2))
        assert await snapshot(store) == before

    async def test_a_queued_task_is_ended_from_outside(self, store: Store) -> None:
        (queued,) = await put(store, task())
        assert await store.settle(settlement(queued, CANCELLED, new_fence=1, ledger=None))
        ended = await found(store)
        assert (ended.state, ended.fence, ended.last_seq) == (State.CANCELLED, 1, first_seq(1))
        assert list(await store.queued()) == []

    async def test_a_queued_task_has_no_attempt_that_could_end_it(self, store: Store) -> None:
        (queued,) = await put(store, task())
        assert not await store.settle(settlement(queued, CANCELLED))
        assert await store.get("task_1") == queued

    async def test_a_queued_task_cannot_succeed(self, store: Store) -> None:
        (queued,) = await put(store, task())
        with pytest.raises(IllegalMove):
            await store.settle(settlement(queued, SUCCEEDED, new_fence=1))
        assert await store.get("task_1") == queued

    async def test_an_end_from_outside_takes_the_task_from_its_attempt(self, store: Store) -> None:
        claimed = await start(store)
        assert await store.settle(settlement(claimed, FAILED, new_fence=2))
        assert not await append(store, "task_1", 1, [event(first_seq(1))])
        assert not await store.settle(settlement(claimed))
        assert (await found(store)).state is State.FAILED

    async def test_a_requeued_task_is_queued_with_its_events(self, store: Store) -> None:
        claimed = await start(store)
        assert await append(store, "task_1", 1, [event(first_seq(1))])
        back = requeue(replace(claimed, last_seq=first_seq(1)), audit=audit("task.requeued", claimed))
        assert await store.requeue(back)
        queued = replace(claimed, state=State.QUEUED, last_seq=back.event.seq)
        assert await store.get("task_1") == queued
        assert await seqs(store) == [first_seq(0), first_seq(1), first_seq(1) + 1]
        assert list(await store.ledger("task_1")) == [entry(claimed)]
        assert (await acts(store))[-1] == "task.requeued"
        assert [one.id for one in await store.queued()] == ["task_1"] and list(await store.running()) == []

    async def test_a_requeue_from_outside_takes_the_next_fence(self, store: Store) -> None:
        claimed = await start(store)
        assert await store.requeue(requeue(claimed, new_fence=2, ledger=None))
        assert (await found(store)).fence == 2
        again = await store.claim("task_1", "node_2", LEASE_UNTIL, 0.0)
        assert again is not None and (again.fence, again.attempt) == (3, 2)

    async def test_what_does_not_run_is_not_requeued(self, store: Store) -> None:
        (queued,) = await put(store, task())
        assert not await store.requeue(requeue(queued))
        assert not await store.requeue(requeue(queued, new_fence=1))
        assert await store.get("task_1") == queued

    @pytest.mark.parametrize("fence", [0, 1, 3])
    async def test_whoever_names_another_fence_changes_nothing(self, store: Store, fence: int) -> None:
        claimed = await start(store)
        assert await store.requeue(requeue(claimed))
        current = await store.claim("task_1", "node_2", LEASE_UNTIL, 0.0)
        assert current is not None and current.fence == 2
        before = await snapshot(store)
        wrong = replace(current, fence=fence, last_seq=first_seq(fence) + 100)
        assert not await append(store, "task_1", fence, [event(wrong.last_seq)])
        assert not await store.settle(settlement(wrong))
        assert not await store.settle(settlement(wrong, FAILED, new_fence=fence + 1))
        assert not await store.requeue(requeue(wrong))
        assert not await store.requeue(requeue(wrong, new_fence=fence + 1))
        assert not await store.set_effects("task_1", fence)
        assert await snapshot(store) == before

    async def test_what_has_ended_takes_no_events_and_no_effects(self, store: Store) -> None:
        claimed = await start(store)
        assert await store.settle(settlement(claimed))
        before = await snapshot(store)
        assert not await append(store, "task_1", 1, [event(first_seq(1) + 9)])
        assert not await store.set_effects("task_1", 1)
        assert await snapshot(store) == before

    async def test_the_first_wish_to_cancel_counts(self, store: Store) -> None:
        claimed = await start(store)
        wished = await store.request_cancel("task_1", 2500.0, audit("task.cancel", claimed))
        assert wished == replace(claimed, cancel_requested_at=2500.0)
        assert await store.request_cancel("task_1", 2600.0, audit("task.cancel", claimed)) == wished
        assert await store.get("task_1") == wished
        assert await acts(store) == ["task.accepted", "task.cancel"]

    async def test_the_wish_to_cancel_what_has_ended_changes_nothing(self, store: Store) -> None:
        claimed = await start(store)
        await store.settle(settlement(claimed))
        before = await snapshot(store)
        assert await store.request_cancel("task_1", 9.0, audit("task.cancel", claimed)) == await found(store)
        assert await snapshot(store) == before

    @pytest.mark.parametrize("outcome", [FAILED, CANCELLED], ids=lambda outcome: outcome.state)
    async def test_what_did_not_succeed_is_tried_again_from_the_beginning(self, store: Store, outcome: Outcome) -> None:
        claimed = await start(store)
        await store.set_effects("task_1", 1)
        await store.request_cancel("task_1", 1.0)
        await store.settle(settlement(claimed, outcome))
        again = await store.retry("task_1", event(first_seq(2)), LIMITS, audit("task.retry", claimed))
        assert isinstance(again, Task) and again == await found(store)
        assert (again.state, again.attempt, again.fence) == (State.QUEUED, 0, 2)
        assert (again.outcome, again.finished_at, again.cancel_requested_at) == (None, None, None)
        assert again.last_seq == first_seq(2) == (await seqs(store))[-1]
        assert (await acts(store))[-1] == "task.retry"
        claimed_again = await store.claim("task_1", "node_1", LEASE_UNTIL, 0.0)
        assert claimed_again is not None and (claimed_again.attempt, claimed_again.fence) == (1, 3)

    async def test_only_what_failed_or_was_cancelled_is_tried_again(self, store: Store) -> None:
        await put(store, task())
        assert await store.retry("task_1", event(first_seq(1)), LIMITS) is None
        claimed = await store.claim("task_1", "node_1", LEASE_UNTIL, 0.0)
        assert claimed is not None and await store.retry("task_1", event(first_seq(2)), LIMITS) is None
        await store.settle(settlement(claimed, SUCCEEDED))
        assert await store.retry("task_1", event(first_seq(2)), LIMITS) is None
        assert (await found(store)).state is State.SUCCEEDED

    async def test_a_retry_that_saw_another_fence_changes_nothing(self, store: Store) -> None:
        claimed = await start(store)
        await store.settle(settlement(claimed, FAILED))
        before = await snapshot(store)
        for fence in (1, 3):
            assert await store.retry("task_1", event(first_seq(fence)), LIMITS, audit("task.retry", claimed)) is None
        assert await snapshot(store) == before

    async def test_a_task_that_is_tried_again_stands_where_it_came_back_and_has_not_begun(self, store: Store) -> None:
        claimed = await start(store)
        await store.settle(settlement(claimed, FAILED))
        record = replace(audit("task.retry", claimed), at=77.0)
        again = await store.retry("task_1", event(first_seq(2)), LIMITS, record)
        assert isinstance(again, Task) and again.started_at is None
        assert [queued.queued_at for queued in await store.queued()] == [77.0]

    async def test_a_task_is_not_tried_again_beyond_the_limits(self, store: Store) -> None:
        claimed = await start(store)
        await store.settle(settlement(claimed, FAILED))
        await put(store, task("task_2"))
        before = await snapshot(store)
        for limits in (replace(LIMITS, max_queued=1), replace(LIMITS, max_queued_per_key=1)):
            assert isinstance(await store.retry("task_1", event(first_seq(2)), limits), Failure)
        assert await snapshot(store) == before

    async def test_what_somebody_has_cancelled_is_neither_claimed_nor_put_back(self, store: Store) -> None:
        claimed = await start(store)
        await put(store, task("task_2"))
        for task_id in ("task_1", "task_2"):
            await store.request_cancel(task_id, 5.0)
        assert await store.claim("task_2", "node_1", LEASE_UNTIL, 0.0) is None
        assert [queued.cancelled for queued in await store.queued()] == [True]
        assert not await store.requeue(requeue(claimed))
        assert not await store.requeue(requeue(claimed, new_fence=2))
        assert (await found(store)).state is State.RUNNING
        assert await store.settle(settlement(claimed, CANCELLED))

    async def test_a_webhook_tells_what_was_settled_whatever_the_task_becomes(self, store: Store) -> None:
        claimed = await start(store, task(webhook="https://r.example/"))
        await store.settle(settlement(claimed, FAILED, webhook_id="wh_1", webhook_body=b"first end"))
        await store.retry("task_1", event(first_seq(2)), LIMITS)
        (delivery,) = await store.due(1e12, 10)
        assert (delivery.id, delivery.body) == ("wh_1", b"first end")
        await store.postpone("wh_1", 5.0, "later")
        assert [delivery.body for delivery in await store.due(1e12, 10)] == [b"first end"]
        await store.delivered("wh_1", 6.0)
        assert list(await store.due(1e12, 10)) == []


class Reading:
    async def test_a_page_of_events_is_bounded_by_their_number(self, store: Store) -> None:
        claimed = await start(store)
        first = first_seq(1)
        await append(store, "task_1", 1, [event(first + n) for n in range(5)])
        page = await store.events("task_1", claimed.last_seq, 3, 1_000_000)
        assert page is not None and not page.complete
        assert [one.seq for one in page.events] == [first, first + 1, first + 2]
        rest = await store.events("task_1", first + 2, 3, 1_000_000)
        assert rest is not None and rest.complete
        assert [one.seq for one in rest.events] == [first + 3, first + 4]

    async def test_a_page_of_events_is_bounded_by_their_bytes_but_never_empty(self, store: Store) -> None:
        claimed = await start(store)
        events = [event(first_seq(1) + n, size=1000) for n in range(3)]
        await append(store, "task_1", 1, events)

        async def page(max_bytes: int) -> EventPage:
            found = await store.events("task_1", claimed.last_seq, 10, max_bytes)
            assert found is not None
            return found

        size = len(events[0].encoded)
        assert (await page(1)).events == events[:1]
        assert (await page(2 * size)).events == events[:2] and not (await page(2 * size)).complete
        assert (await page(3 * size)).events == events and (await page(3 * size)).complete

    async def test_a_page_after_the_last_event_is_complete(self, store: Store) -> None:
        claimed = await start(store)
        for after in (claimed.last_seq, 2**63 - 1, 2**70):
            assert await store.events("task_1", after, 10, 1000) == EventPage(terminal=False, events=[], complete=True)

    async def test_a_page_tells_task_and_events_of_one_moment(self, store: Store) -> None:
        claimed = await start(store)
        first = first_seq(1)
        told: list[bool] = []
        for n in range(200):
            store.append("task_1", 1, [event(first + n)], told.append)
        settling = asyncio.ensure_future(store.settle(settlement(replace(claimed, last_seq=first + 199), SUCCEEDED)))
        over = False
        while not over:
            page = await store.events("task_1", 0, 1000, 1_000_000)
            assert page is not None and page.complete
            over = page.terminal
            assert over == (page.events[-1].seq == first + 200)
        assert await settling

    async def test_the_queue_is_told_oldest_first(self, store: Store) -> None:
        await put(store, task("task_2", created_at=2.0, key_id="b", priority=5, lane=Lane.DIRECT))
        await put(store, task("task_1", created_at=1.0, timeout_seconds=60.0))
        await put(store, task("task_3", created_at=2.0))
        local: dict[str, Any] = {"key_id": "local", "trust_domain": "default", "priority": 0}
        assert list(await store.queued()) == [
            QueuedTask(id="task_1", lane=Lane.TEXT, **local, queued_at=1.0, deadline_at=61.0),
            QueuedTask(id="task_2", lane=Lane.DIRECT, key_id="b", trust_domain="default", priority=5, queued_at=2.0),
            QueuedTask(id="task_3", lane=Lane.TEXT, **local, queued_at=2.0),
        ]

    async def test_a_list_is_told_newest_first_and_filtered(self, store: Store) -> None:
        for n in range(6):
            await put(store, task(f"task_{n}", created_at=float(n // 2), key_id="a" if n % 2 else "b"))
        store.record_chat(chat("chat_1", created_at=0.5), None)
        await store.claim("task_3", "node_1", LEASE_UNTIL, 0.0)
        assert await ids(store) == ["task_5", "task_4", "task_3", "task_2", "chat_1", "task_1", "task_0"]
        assert await ids(store, key_id="a") == ["task_5", "task_3", "task_1"]
        assert await ids(store, kind=Kind.CHAT) == ["chat_1"]
        assert await ids(store, key_id="a", kind=Kind.CHAT) == []
        assert await ids(store, states=frozenset({State.RUNNING, State.SUCCEEDED})) == ["task_3", "chat_1"]
        assert await ids(store, key_id="a", kind=Kind.TASK, states=frozenset({State.QUEUED})) == ["task_5", "task_1"]
        assert await ids(store, states=frozenset()) == []

    async def test_pages_of_a_list_meet_every_task_once(self, store: Store) -> None:
        asked = [task(f"task_{n}", created_at=float(n // 3)) for n in range(10)]
        await put(store, *asked)
        pages: list[TaskPage] = [await store.list(TaskFilter(), 4)]
        while (cursor := pages[-1].next) is not None:
            await put(store, task(f"task_new_{len(pages)}", created_at=100.0))  # newer ones do not move the pages
            pages.append(await store.list(TaskFilter(), 4, cursor))
        assert [len(page.tasks) for page in pages] == [4, 4, 2]
        assert [one.id for page in pages for one in page.tasks] == [one.id for one in reversed(asked)]

    async def test_a_page_that_is_just_full_is_the_last(self, store: Store) -> None:
        await put(store, task("task_1"), task("task_2"))
        assert (await store.list(TaskFilter(), 2)).next is None

    @pytest.mark.parametrize("cursor", ["", "x", "00", "ff" * 16, "zz" * 16, "7ff8000000000000" + "00" * 8])
    async def test_a_cursor_that_is_none_is_refused(self, store: Store, cursor: str) -> None:
        with pytest.raises(ValueError, match="cursor"):
            await store.list(TaskFilter(), 10, cursor)


class Retention:
    async def test_what_ended_before_goes_with_all_that_belongs_to_it(self, store: Store) -> None:
        batch = Batch(id="batch_1", key_id="local", created_at=1.0, size=2)
        old, new = task("task_1", batch_id="batch_1"), task("task_2", batch_id="batch_1")
        await store.enqueue([submission(old, Idempotency(key="k", digest=b"d")), submission(new)], LIMITS, batch)
        for name, finished_at in (("task_1", 10.0), ("task_2", 20.0)):
            claimed = await store.claim(name, "node_1", LEASE_UNTIL, 0.0)
            assert claimed is not None and await store.settle(settlement(claimed, finished_at=finished_at))
        assert await store.purge(20.0, 100) == 1
        assert await store.get("task_1") is None and await store.events("task_1", 0, 10, 1000) is None
        state = await store.batch("batch_1")
        assert state is not None and list(state.tasks) == [1]
        assert len(await store.ledger("task_1")) == 1
        assert "task_1" in {record.task_id for _, record in await store.audit(0, 100)}
        (answer,) = await store.enqueue([submission(task("task_3"), Idempotency(key="k", digest=b"e"))], LIMITS)
        assert isinstance(answer, Task)

    async def test_a_batch_goes_with_its_last_task(self, store: Store) -> None:
        batch = Batch(id="batch_1", key_id="local", created_at=1.0, size=1)
        await store.enqueue([submission(task(batch_id="batch_1"))], LIMITS, batch)
        claimed = await store.claim("task_1", "node_1", LEASE_UNTIL, 0.0)
        assert claimed is not None and await store.settle(settlement(claimed, finished_at=10.0))
        assert await store.purge(11.0, 100) == 1
        assert await store.batch("batch_1") is None

    async def test_what_has_not_ended_is_kept(self, store: Store) -> None:
        await put(store, task("task_1", created_at=1.0))
        await start(store, task("task_2", created_at=1.0))
        assert await store.purge(1e9, 100) == 0
        assert len(await ids(store)) == 2

    async def test_a_purge_stops_at_its_limit(self, store: Store) -> None:
        for n in range(5):
            claimed = await start(store, task(f"task_{n}"))
            await store.settle(settlement(claimed, finished_at=float(n)))
        assert await store.purge(100.0, 2) == 2
        assert sorted(await ids(store)) == ["task_2", "task_3", "task_4"]
        assert await store.purge(100.0, 100) == 3
        assert await store.purge(100.0, 100) == 0

    async def test_a_webhook_that_is_due_keeps_its_task(self, store: Store) -> None:
        claimed = await start(store, task(webhook="https://example.org/"))
        await store.settle(settlement(claimed, webhook_id="wh_1"))
        assert await store.purge(1e9, 100) == 0
        await store.delivered("wh_1", 1.0)
        assert await store.purge(1e9, 100) == 1


class Records:
    async def test_of_a_chat_its_words_are_not_kept(self, store: Store) -> None:
        said = chat("chat_1", **{**EVERYTHING, "kind": Kind.CHAT, "webhook": None})
        store.record_chat(said, entry(said), audit("chat.ended", said))
        await store.pause(False)  # behind it
        kept = await found(store, "chat_1")
        assert kept.spec.request == {"model": "m"}
        assert (kept.spec.headers, kept.spec.output_schema, dict(kept.spec.metadata)) == (None, None, {})
        assert said.outcome is not None
        assert kept.outcome == replace(said.outcome, text=None, structured=None)
        assert (kept.state, kept.created_at, kept.finished_at) == (said.state, said.created_at, said.finished_at)
        assert list(await store.ledger("chat_1")) == [entry(said)]
        assert await acts(store) == ["chat.ended"]
        page = await store.events("chat_1", 0, 10, 1000)
        assert page is not None and page.complete and not page.events

    async def test_a_chat_is_purged_like_any_other(self, store: Store) -> None:
        store.record_chat(chat("chat_1"), None)
        await store.pause(False)
        assert await store.purge(1e9, 100) == 1

    async def test_the_ledger_keeps_every_attempt(self, store: Store) -> None:
        claimed = await start(store)
        await store.requeue(requeue(claimed, ledger=entry(claimed, cost_micro_usd=None)))
        again = await store.claim("task_1", "node_1", LEASE_UNTIL, 0.0)
        assert again is not None
        await store.settle(settlement(again))
        assert list(await store.ledger("task_1")) == [entry(claimed, cost_micro_usd=None), entry(again)]

    async def test_audit_records_are_numbered_in_order(self, store: Store) -> None:
        records = [audit(f"act_{n}", task(), n=n, nested={"a": [1, None]}) for n in range(5)]
        records.append(audit("bare"))
        for record in records:
            await store.record(record)
        numbered = await store.audit(0, 100)
        assert [record for _, record in numbered] == records
        numbers = [number for number, _ in numbered]
        assert numbers == sorted(set(numbers)) and numbers[0] > 0
        assert await store.audit(numbers[1], 2) == numbered[2:4]
        assert await store.audit_latest(2) == numbered[-2:]

    async def test_a_record_about_a_task_is_of_its_trust_domain(self, store: Store) -> None:
        asked = task(trust_domain="team")
        await put(store, asked)
        await store.record(replace(audit("tool.granted", asked), trust_domain=None))
        assert [record.trust_domain for _, record in await store.audit(0, 10)] == ["team", "team"]

    async def test_records_are_found_by_act_noun_and_time(self, store: Store) -> None:
        for at, act in enumerate(("key.created", "keyring", "key.revoked", "task.ended", "key.created")):
            await store.record(replace(audit(act), at=float(at)))
        for asked, numbers in (
            (("key.created",), [1, 5]),
            (("key",), [1, 3, 5]),
            (("key", 2.0), [3, 5]),
            ((None, 3.0), [4, 5]),
            (("key%",), []),
        ):
            assert [n for n, _ in await store.audit_latest(10, *asked)] == numbers
        assert [n for n, _ in await store.audit_latest(2, "key")] == [3, 5]

    async def test_records_are_found_by_their_request_and_task(self, store: Store) -> None:
        for request_id, task_id in (("r1", "t1"), ("r1", "t2"), ("r2", "t1"), (None, None)):
            await store.record(replace(audit("a"), request_id=request_id, task_id=task_id))
        found: list[tuple[dict[str, Any], list[int]]] = [
            ({"request_id": "r1"}, [1, 2]),
            ({"task_id": "t1"}, [1, 3]),
            ({"request_id": "r1", "task_id": "t1"}, [1]),
            ({"request_id": "r%"}, []),
        ]
        for asked, numbers in found:
            assert [n for n, _ in await store.audit_latest(10, **asked)] == numbers

    async def test_audit_records_are_a_chain_whatever_fails_between_them(self, store: Store) -> None:
        assert await store.audit_head() is None
        await store.create_key(key("key_1", name="alice"), audit("key.created"))
        with pytest.raises(ValueError, match="alice"):
            await store.create_key(key("key_2", name="alice"), audit("key.created"))
        await asyncio.gather(*(store.record(audit(f"act_{n}")) for n in range(20)))
        records = await store.audit_sealed(0, 100)
        verifier = Verifier(b"")
        for record in records:
            verifier.add(record)
        verdict = verifier.verdict()
        assert (verdict.broken, verdict.records, verdict.head) == (None, 21, await store.audit_head())
        assert await store.audit_sealed(records[3].n, 2) == records[4:6]

    async def test_pruning_leaves_a_chain_that_tells_of_it(self, store: Store) -> None:
        for at in (1.0, 2.0, 9.0, 3.0, 10.0):  # a clock may jump
            await store.record(replace(audit("act"), at=at))
        assert await store.prune_audit(1.0, 11.0, 100) == 0
        assert await store.prune_audit(5.0, 11.0, 1) == 1
        assert await store.prune_audit(5.0, 12.0, 100) == 1
        assert await store.prune_audit(5.0, 13.0, 100) == 0
        verifier = Verifier(b"")
        for record in await store.audit_sealed(0, 100):
            verifier.add(record)
        verdict = verifier.verdict()
        assert (verdict.broken, verdict.pruned, verdict.records) == (None, 2, 5)
        assert [(n, record.act) for n, record in await store.audit(0, 100)][-1] == (7, "audit.pruned")
        assert await store.prune_audit(1e9, 1e9, 100) == 5  # its record of that is what is left
        assert [record.act for _, record in await store.audit(0, 100)] == ["audit.pruned"]


DAY = "1970-01-01"
MINE = Owner(Purse.KEY, "local")


def cap(micro_usd: int, owner: Owner = ALL, span: Span = Span.DAY) -> Cap:
    return Cap(owner=owner, span=span, micro_usd=micro_usd)


async def spent(store: Store, owner: Owner = ALL) -> dict[str, int]:
    return {one.day: one.micro_usd for one in await store.spending("1970") if one.owner == owner}


async def reserved(store: Store) -> dict[str, int]:
    return {one.task_id: one.micro_usd for one in await store.reservations()}


class Money:
    async def test_of_many_at_once_as_many_are_queued_as_the_budget_has_room_for(self, store: Store) -> None:
        async def submit(n: int) -> Task | Failure:
            asked = task(f"task_{n}")
            wish = reservation(asked, 10, cap(30), cap(1000, MINE, Span.MONTH))
            return (await store.enqueue([submission(asked, reservation=wish)], LIMITS))[0]

        answers = await asyncio.gather(*(submit(n) for n in range(20)))
        refused = [answer for answer in answers if isinstance(answer, Failure)]
        assert {failure.code for failure in refused} == {Code.BUDGET_EXHAUSTED}
        assert (len(refused), len(await reserved(store))) == (17, 3)
        assert len(await ids(store)) == 3

    async def test_the_first_limit_without_room_is_told(self, store: Store) -> None:
        asked = task()
        wish = reservation(asked, 10, cap(10), cap(9, MINE))
        (answer,) = await store.enqueue([submission(asked, reservation=wish)], LIMITS)
        assert isinstance(answer, Failure) and "this key" in answer.message

    async def test_a_settlement_is_charged_and_gives_back_what_was_set_aside(self, store: Store) -> None:
        asked = task()
        await store.enqueue([submission(asked, reservation=reservation(asked))], LIMITS)
        claimed = await store.claim("task_1", "node_1", LEASE_UNTIL, 0.0)
        assert claimed is not None
        await store.settle(settlement(claimed, ledger=entry(claimed, charged_micro_usd=25)))
        for owner in owners("local", "default"):
            assert await spent(store, owner) == {DAY: 25}
        assert await reserved(store) == {}
        wishes = [reservation(task(f"task_{n}"), 5, cap(30)) for n in (2, 3)]
        answers = await store.enqueue(
            [submission(task(wish.task_id), reservation=wish) for wish in wishes],
            LIMITS,
        )
        assert [isinstance(answer, Task) for answer in answers] == [True, False]

    async def test_a_requeue_is_charged_and_gives_nothing_back(self, store: Store) -> None:
        asked = task()
        await store.enqueue([submission(asked, reservation=reservation(asked))], LIMITS)
        claimed = await store.claim("task_1", "node_1", LEASE_UNTIL, 0.0)
        assert claimed is not None
        await store.requeue(requeue(claimed))
        assert (await spent(store), await reserved(store)) == ({DAY: 7}, {"task_1": 10})

    async def test_a_settlement_that_is_stale_charges_nothing(self, store: Store) -> None:
        asked = task()
        await store.enqueue([submission(asked, reservation=reservation(asked))], LIMITS)
        claimed = await store.claim("task_1", "node_1", LEASE_UNTIL, 0.0)
        assert claimed is not None
        assert not await store.settle(settlement(replace(claimed, fence=0)))
        assert (await spent(store), await reserved(store)) == ({}, {"task_1": 10})

    async def test_a_task_that_is_tried_again_sets_aside_anew_if_there_is_room(self, store: Store) -> None:
        claimed = await start(store)
        await store.settle(settlement(claimed, FAILED))
        ended = await found(store)
        again, queued = event(first_seq(2)), reservation(ended, 10, cap(16))
        answer = await store.retry("task_1", again, LIMITS, None, queued)
        assert isinstance(answer, Failure) and answer.code is Code.BUDGET_EXHAUSTED
        assert isinstance(await store.retry("task_1", again, LIMITS, None, queued._replace(caps=(cap(17),))), Task)
        assert await reserved(store) == {"task_1": 10}

    async def test_of_a_repeated_submission_the_first_counts_though_the_second_is_refused(self, store: Store) -> None:
        why = Failure(code=Code.BUDGET_EXHAUSTED, message="spent")
        key = Idempotency(key="k", digest=b"d")
        (first,) = await store.enqueue([submission(task(), key)], LIMITS)
        (second,) = await store.enqueue([submission(task("task_2"), key, refused=why)], LIMITS)
        (third,) = await store.enqueue([submission(task("task_3"), refused=why)], LIMITS)
        assert (second, third) == (first, why)

    async def test_a_chat_gives_back_what_it_has_set_aside(self, store: Store) -> None:
        said = chat("chat_1")
        store.reserve(reservation(said))
        await store.pause(False)
        assert await reserved(store) == {"chat_1": 10}
        store.record_chat(said, entry(said, charged_micro_usd=3))
        await store.pause(False)
        assert (await spent(store), await reserved(store)) == ({DAY: 3}, {})

    async def test_what_chats_have_left_behind_is_charged_once_and_tasks_keep_theirs(self, store: Store) -> None:
        asked = task()
        await store.enqueue([submission(asked, reservation=reservation(asked, 5))], LIMITS)
        for n in range(3):
            store.reserve(reservation(task(f"chat_{n}")))
        assert await store.charge_left_behind("1970-01-02", 9e4) == 3
        assert await store.charge_left_behind("1970-01-03", 9e4) == 0
        assert (await spent(store), await reserved(store)) == ({"1970-01-02": 30}, {"task_1": 5})
        (left,) = await store.ledger("chat_0")
        assert (left.charged_micro_usd, left.cost_micro_usd, left.usage) == (10, None, Usage())

    async def test_a_limit_counts_its_span_and_what_came_after(self, store: Store) -> None:
        for n, day in enumerate(["2026-10-31", "2026-11-26", "2026-11-27"]):
            store.record_chat(chat(f"chat_{n}"), entry(task(f"chat_{n}"), day=day, charged_micro_usd=10))

        async def fits(day: str, most: int, span: Span) -> bool:
            asked = task(f"task_{day}_{most}_{span}")
            wish = reservation(asked, 1, cap(most, span=span), day=day)
            (answer,) = await store.enqueue([submission(asked, reservation=wish)], LIMITS)
            if isinstance(answer, Task):
                await store.settle(settlement(answer, CANCELLED, new_fence=1, ledger=None))
            return isinstance(answer, Task)

        assert [await fits("2026-11-27", most, Span.DAY) for most in (10, 11)] == [False, True]
        assert [await fits("2026-11-27", most, Span.MONTH) for most in (20, 21)] == [False, True]
        assert [await fits("2026-11-26", most, Span.DAY) for most in (20, 21)] == [False, True]  # the clock went back
        assert await fits("2026-12-01", 1, Span.MONTH)

    async def test_usage_is_added_up_by_day_by_key_and_by_model(self, store: Store) -> None:
        for n, (day, key_id, model, cost) in enumerate(
            [("2026-11-25", "a", "x", 1), ("2026-11-26", "a", "x", 2), ("2026-11-26", "b", "y", None)]
        ):
            said = task(f"chat_{n}", kind=Kind.CHAT, key_id=key_id, request={"model": model})
            ended = replace(said, state=State.SUCCEEDED, outcome=SUCCEEDED, finished_at=1.0)
            store.record_chat(ended, entry(said, day=day, cost_micro_usd=cost, charged_micro_usd=cost or 100))
        await store.pause(False)

        async def rows(by: UsageGroup, since: str = "2026-11-25", key_id: str | None = None) -> list[tuple[Any, ...]]:
            found = await store.usage(by, since, key_id)
            return [
                (r.name, r.tasks, r.output_tokens, r.cost_micro_usd, r.charged_micro_usd, r.unpriced) for r in found
            ]

        assert await rows(UsageGroup.DAY) == [("2026-11-25", 1, 2, 1, 1, 0), ("2026-11-26", 2, 4, 2, 102, 1)]
        assert await rows(UsageGroup.KEY) == [("a", 2, 4, 3, 3, 0), ("b", 1, 2, 0, 100, 1)]
        assert await rows(UsageGroup.MODEL, key_id="a") == [("x", 2, 4, 3, 3, 0)]
        assert await rows(UsageGroup.DAY, since="2026-11-26", key_id="a") == [("2026-11-26", 1, 2, 2, 2, 0)]

    async def test_the_budget_of_a_key_is_kept_with_it(self, store: Store) -> None:
        made = key(budget=Budget(day_micro_usd=5, month_micro_usd=None))
        await store.create_key(made, audit("key.created"))
        await store.create_key(key("key_2"), audit("key.created"))
        assert list(await store.keys()) == [made, key("key_2")]


class Deliveries:
    async def settled(self, store: Store, n: int, due_at: float) -> None:
        claimed = await start(store, task(f"task_{n}", webhook=f"https://example.org/{n}"))
        await store.settle(settlement(claimed, webhook_id=f"wh_{n}", finished_at=due_at))

    async def due(self, store: Store, now: float = 1e9) -> list[tuple[str, int, float]]:
        return [(one.id, one.attempts, one.due_at) for one in await store.due(now, 100)]

    async def test_a_webhook_is_due_from_the_end_of_its_task(self, store: Store) -> None:
        assert await store.next_due() is None
        assert await store.webhooks_waiting() == (0, None)
        await self.settled(store, 1, 20.0)
        await self.settled(store, 2, 10.0)
        assert await store.next_due() == 10.0
        assert await store.webhooks_waiting() == (2, 10.0)
        assert await self.due(store, 9.9) == []
        assert await self.due(store) == [("wh_2", 0, 10.0), ("wh_1", 0, 20.0)]
        (first,) = await store.due(1e9, 1)
        assert (first.task_id, first.url) == ("task_2", "https://example.org/2")

    async def test_a_settlement_that_is_stale_makes_none(self, store: Store) -> None:
        claimed = await start(store, task(webhook="https://example.org/"))
        assert not await store.settle(settlement(replace(claimed, fence=0), webhook_id="wh_1"))
        assert await store.next_due() is None

    async def test_one_that_failed_is_due_later(self, store: Store) -> None:
        await self.settled(store, 1, 10.0)
        await store.postpone("wh_1", 50.0, "refused")
        assert await self.due(store) == [("wh_1", 1, 50.0)]
        assert await store.next_due() == 50.0

    async def test_only_those_that_are_not_over_are_waited_for(self, store: Store) -> None:
        for n in range(1, 4):
            await self.settled(store, n, 10.0 * n)
        await store.delivered("wh_1", 60.0)
        await store.give_up("wh_2", 60.0, "gone")
        assert await store.webhooks_waiting() == (1, 30.0)

    async def test_one_that_is_over_is_never_due_again(self, store: Store) -> None:
        await self.settled(store, 1, 10.0)
        await self.settled(store, 2, 10.0)
        await store.delivered("wh_1", 11.0)
        await store.give_up("wh_2", 11.0, "gone")
        for name in ("wh_1", "wh_2", "wh_unknown"):
            await store.postpone(name, 12.0, "late")
        assert await self.due(store) == [] and await store.next_due() is None


class ApiKeys:
    async def test_a_key_is_kept_with_its_audit(self, store: Store) -> None:
        assert list(await store.keys()) == []
        made = [
            key("key_1", digest=bytes(range(32))),
            key("key_2", role="mine", trust_domain="team", created_at=2.0, expires_at=3.0),
            key("key_3", created_at=2.5, revoked_at=4.0),
            key("key_4", created_at=2.6, used_at=3.0, suspended_at=4.0, previous_digest=b"old", previous_until=5.0),
        ]
        for one in made:
            await store.create_key(one, audit("key.created", id=one.id))
        assert list(await store.keys()) == made
        assert [record.details for _, record in await store.audit(0, 10)] == [{"id": one.id} for one in made]

    async def test_keys_are_told_oldest_first(self, store: Store) -> None:
        for name, at in (("key_b", 2.0), ("key_c", 1.0), ("key_a", 2.0)):
            await store.create_key(key(name, created_at=at), audit("key.created"))
        assert [one.id for one in await store.keys()] == ["key_c", "key_a", "key_b"]

    async def test_a_name_is_given_once_while_its_key_is_not_revoked(self, store: Store) -> None:
        first = key("key_1", name="alice", expires_at=2.0)
        await store.create_key(first, audit("key.created"))
        with pytest.raises(ValueError, match="alice"):
            await store.create_key(key("key_2", name="alice"), audit("key.created"))
        assert list(await store.keys()) == [first]
        assert await acts(store) == ["key.created"]

    async def test_the_name_of_a_revoked_key_is_free(self, store: Store) -> None:
        await store.create_key(key("key_1", name="alice", revoked_at=2.0), audit("key.created"))
        await store.create_key(key("key_2", name="alice"), audit("key.created"))
        assert [one.id for one in await store.keys()] == ["key_1", "key_2"]

    async def test_of_two_at_once_with_one_name_one_is_kept(self, store: Store) -> None:
        both = [store.create_key(key(f"key_{n}", name="alice"), audit("key.created")) for n in range(2)]
        answers = await asyncio.gather(*both, return_exceptions=True)
        assert [type(answer) for answer in answers if answer is not None] == [ValueError]
        assert len(await store.keys()) == 1

    async def test_one_secret_is_never_two_keys(self, store: Store) -> None:
        await store.create_key(key("key_1", digest=b"same"), audit("key.created"))
        with pytest.raises(Exception):  # noqa: B017  (which one is the store's own)
            await store.create_key(key("key_2", digest=b"same"), audit("key.created"))
        assert [one.id for one in await store.keys()] == ["key_1"]
        assert await acts(store) == ["key.created"]

    async def test_a_rotated_key_keeps_its_id_and_its_last_secret_for_a_while(self, store: Store) -> None:
        made = key("key_1", digest=b"first")
        await store.create_key(made, audit("key.created"))
        assert await store.rotate_key("key_1", b"second", 10.0, audit("key.rotated"))
        rotated = replace(made, digest=b"second", previous_digest=b"first", previous_until=10.0)
        assert list(await store.keys()) == [rotated]
        assert await store.rotate_key("key_1", b"third", 20.0, audit("key.rotated"))
        assert list(await store.keys()) == [
            replace(rotated, digest=b"third", previous_digest=b"second", previous_until=20.0)
        ]
        assert await acts(store) == ["key.created", "key.rotated", "key.rotated"]

    async def test_a_key_is_suspended_and_resumed(self, store: Store) -> None:
        made = key("key_1")
        await store.create_key(made, audit("key.created"))
        assert await store.suspend_key("key_1", 7.0, audit("key.suspended"))
        assert list(await store.keys()) == [replace(made, suspended_at=7.0)]
        assert await store.suspend_key("key_1", None, audit("key.resumed"))
        assert list(await store.keys()) == [made]
        assert await acts(store) == ["key.created", "key.suspended", "key.resumed"]

    async def test_a_keys_last_use_is_kept(self, store: Store) -> None:
        await store.create_key(key("key_1"), audit("key.created"))
        store.key_used("key_1", 9.0)
        store.key_used("key_none", 9.0)
        await store.record(audit("after"))
        assert [one.used_at for one in await store.keys()] == [9.0]

    async def test_a_revoked_key_takes_its_tasks_and_webhooks_with_it(self, store: Store) -> None:
        hook = "https://example.org/"
        await store.create_key(key("key_1"), audit("key.created"))
        for name, owner in (("queued", "key_1"), ("running", "key_1"), ("ended", "key_1"), ("other", "key_2")):
            await put(store, task(name, key_id=owner, webhook=hook))
        running, ended, other = [await claimed(store, name) for name in ("running", "ended", "other")]
        await store.settle(settlement(ended, webhook_id="wh_ended"))
        assert await store.revoke_key("key_1", 5.0, audit("key.revoked")) == ["queued", "running"]
        assert [one.revoked_at for one in await store.keys()] == [5.0]
        wished = {name: (await found(store, name)).cancel_requested_at for name in ("queued", "running", "other")}
        assert wished == {"queued": 5.0, "running": 5.0, "other": None}
        assert await store.claim("queued", "node_1", LEASE_UNTIL, 6.0) is None
        assert await store.next_due() is None
        await store.settle(settlement(running, CANCELLED, webhook_id="wh_running"))
        await store.settle(settlement(other, webhook_id="wh_other"))
        assert [one.id for one in await store.due(9e9, 10)] == ["wh_other"]

    async def test_a_key_that_is_not_there_or_revoked_cannot_be_changed(self, store: Store) -> None:
        await store.create_key(key("key_1", revoked_at=2.0), audit("key.created"))
        before = list(await store.keys())
        for key_id in ("key_1", "key_none"):
            assert not await store.rotate_key(key_id, b"new", 10.0, audit("key.rotated"))
            assert not await store.suspend_key(key_id, 3.0, audit("key.suspended"))
            assert await store.revoke_key(key_id, 3.0, audit("key.revoked")) is None
        assert list(await store.keys()) == before
        assert await acts(store) == ["key.created"]

    async def test_a_digest_is_not_in_a_keys_repr(self, store: Store) -> None:
        await store.create_key(key(digest=b"hide-me", previous_digest=b"hide-me"), audit("key.created"))
        assert "hide-me" not in repr(await store.keys())


class Sessions:
    """Conversations that tasks continue."""

    async def test_a_session_is_made_with_its_first_task_and_used_by_each(self, store: Store) -> None:
        first = await turn(store, "task_1", made=SESSION)
        assert await store.session("sess_1") == SESSION
        assert (await found(store, "task_1")).spec.session == first.spec.session
        await turn(store, "task_2", created_at=2000.0)
        assert await store.session("sess_1") == replace(SESSION, used_at=2000.0)
        running = await claimed(store, "task_1")
        await store.settle(replace(settlement(running, SUCCEEDED), finished_at=3000.0))
        assert await store.session("sess_1") == replace(SESSION, used_at=3000.0, begun=True)

    async def test_a_turn_of_a_session_that_is_not_there_or_not_its_keys_is_refused(self, store: Store) -> None:
        await turn(store, "task_1", made=SESSION)
        for name, spec in (
            ("no such", {"session": replace(TURN, id="sess_none")}),
            ("another's", {"key_id": "other", "session": TURN}),
            ("fork of another's", {"key_id": "other", "session": replace(TURN, id="sess_2", source="sess_1")}),
        ):
            made = replace(SESSION, id="sess_2", key_id="other") if "fork" in name else None
            asked = replace(submission(task(f"task_{name}", lane=Lane.SESSION, **spec)), session=made)
            (answer,) = await store.enqueue([asked], LIMITS)
            assert isinstance(answer, Failure) and answer.code is Code.NOT_FOUND, name
        assert await store.session_ids() == {"sess_1"}

    async def test_a_session_goes_when_no_turn_and_no_fork_of_it_waits_or_runs(self, store: Store) -> None:
        await turn(store, "task_1", made=SESSION)
        assert await store.delete_session("sess_1", audit("session.deleted")) is False
        await store.settle(settlement(await claimed(store, "task_1"), SUCCEEDED))
        fork = replace(TURN, id="sess_2", source="sess_1")
        await turn(store, "task_2", session=fork, made=replace(SESSION, id="sess_2"))
        assert await store.delete_session("sess_1") is False
        await store.settle(settlement(await claimed(store, "task_2"), FAILED))
        assert "session.deleted" not in await acts(store)
        assert await store.delete_session("sess_1", audit("session.deleted")) is True
        assert await store.delete_session("sess_1", audit("session.deleted")) is None
        assert (await acts(store)).count("session.deleted") == 1
        assert await store.session("sess_1") is None
        assert await store.session_ids() == {"sess_2"}

    async def test_sessions_are_listed_newest_first_and_each_once(self, store: Store) -> None:
        for number in range(5):
            name, key_id = f"sess_{number}", "local" if number != 3 else "other"
            made = replace(SESSION, id=name, key_id=key_id, created_at=1000.0 + number // 2)
            await turn(store, f"task_{number}", made=made, session=replace(TURN, id=name), key_id=key_id)
        seen: list[str] = []
        cursor: str | None = None
        while True:
            page = await store.sessions("local", 3, cursor)
            seen += [one.id for one in page.sessions]
            cursor = page.next
            if cursor is None:
                break
        assert seen == ["sess_4", "sess_2", "sess_1", "sess_0"]
        assert len((await store.sessions(None, 10)).sessions) == 5

    @pytest.mark.parametrize("cursor", ["", "x", "00", "7ff0000000000000"])
    async def test_a_cursor_of_sessions_that_is_none_is_refused(self, store: Store, cursor: str) -> None:
        with pytest.raises(ValueError, match="cursor"):
            await store.sessions(None, 10, cursor)

    async def test_a_key_has_only_so_many_sessions(self, store: Store) -> None:
        limits = replace(LIMITS, max_sessions_per_key=1)
        await turn(store, "task_1", made=SESSION)
        asked = submission(task("task_2", lane=Lane.SESSION, session=replace(TURN, id="sess_2")))
        (answer,) = await store.enqueue([replace(asked, session=replace(SESSION, id="sess_2"))], limits)
        assert isinstance(answer, Failure) and answer.code is Code.CONFLICT  # to wait would not help
        assert "may have 1: delete some" in answer.message
        await turn(store, "task_3", key_id="other", made=replace(SESSION, id="sess_3", key_id="other"))

    async def test_unused_sessions_are_told_the_longest_unused_first(self, store: Store) -> None:
        for number, used_at in enumerate((30.0, 10.0, 20.0)):
            name = f"sess_{number}"
            made = replace(SESSION, id=name, used_at=used_at)
            await turn(store, f"task_{number}", made=made, session=replace(TURN, id=name))
        assert list(await store.unused_sessions(30.0, 10)) == ["sess_1", "sess_2"]
        assert list(await store.unused_sessions(31.0, 2)) == ["sess_1", "sess_2"]

    async def test_the_queue_tells_which_sessions_a_task_needs(self, store: Store) -> None:
        await turn(store, "task_1", made=SESSION)
        fork = replace(TURN, id="sess_2", source="sess_1")
        await turn(store, "task_2", session=fork, made=replace(SESSION, id="sess_2"))
        assert [one.sessions for one in await store.queued()] == [("sess_1",), ("sess_2", "sess_1")]

    async def test_a_chat_of_a_session_uses_it(self, store: Store) -> None:
        await turn(store, "task_1", made=SESSION)
        chat = task("task_chat", kind=Kind.CHAT, lane=Lane.SESSION, session=TURN)
        chat = replace(chat, state=State.SUCCEEDED, outcome=SUCCEEDED, finished_at=4000.0)
        store.record_chat(chat, None)
        await store.check()
        kept = await store.session("sess_1")
        assert kept is not None
        assert (kept.used_at, kept.begun) == (4000.0, True)


class Administration:
    async def test_the_queue_is_paused_until_it_is_not(self, store: Store) -> None:
        assert not await store.paused()
        await store.pause(True)
        assert await store.paused()
        await store.pause(False)
        assert not await store.paused()

    async def test_a_node_joins_as_often_as_it_likes(self, store: Store) -> None:
        await store.join("node_1", 1.0)
        await store.join("node_1", 2.0)

    async def test_a_store_that_works_says_so(self, store: Store) -> None:
        assert await store.check()
        status = store.status()
        assert (status.error, status.backlog) == (None, 0)


class StoreContract(
    Acceptance,
    Batches,
    Attempts,
    Ends,
    Reading,
    Retention,
    Records,
    Money,
    Deliveries,
    ApiKeys,
    Sessions,
    Administration,
):
    """All of it."""


def chat(name: str, *, created_at: float = 1000.0, **spec: Any) -> Task:
    """One that has ended, with words in it."""
    asked = task(name, created_at=created_at, **{"kind": Kind.CHAT, **spec})
    return replace(asked, state=State.SUCCEEDED, outcome=SUCCEEDED, finished_at=created_at + 1, attempt=1, last_seq=9)


def running_task(fence: int) -> Task:
    """The task as its attempt under this fence knows it."""
    return replace(task(), state=State.RUNNING, fence=fence, attempt=fence)


async def snapshot(store: Store, task_id: str = "task_1") -> tuple[object, ...]:
    """All that can be seen of a task."""
    events: list[StoredEvent] = []
    page = await store.events(task_id, 0, 1000, 1_000_000)
    if page is not None:
        events += page.events
    return (
        await store.get(task_id),
        events,
        await store.running(),
        await store.queued(),
        await store.ledger(task_id),
        await store.audit(0, 1000),
        await store.due(1e9, 100),
    )


SESSION = SessionRecord(
    id="sess_1",
    key_id="local",
    trust_domain="default",
    transcript="transcript-1",
    created_at=1000.0,
    used_at=1000.0,
    cwd="/work",
    add_dirs=("/more",),
    system="be brief",
)
TURN = SessionTurn(id="sess_1", transcript="transcript-1", message="message-1")


async def turn(
    store: Store, name: str, *, made: SessionRecord | None = None, created_at: float = 1000.0, **spec: Any
) -> Task:
    """A queued turn of a session."""
    asked = submission(task(name, created_at=created_at, **{"lane": Lane.SESSION, "session": TURN, **spec}))
    (answer,) = await store.enqueue([replace(asked, session=made)], LIMITS)
    assert isinstance(answer, Task), answer
    return answer


async def claimed(store: Store, task_id: str) -> Task:
    task = await store.claim(task_id, "node_1", LEASE_UNTIL, 2000.0)
    assert task is not None
    return task
