"""Durable tasks from submission to settlement: the real store, and an engine whose answers the test gives."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.key import Key
from claude_daemon.core.lifecycle import DaemonState
from claude_daemon.core.price import Price
from claude_daemon.core.role import BUILT_IN
from claude_daemon.core.task import Effects, Kind, Lane, Outcome, State, Task, Usage
from claude_daemon.ports import Ended, Idempotency, QueueLimits, Store, StoreUnavailable
from claude_daemon.service.admit import Admission
from claude_daemon.service.book import LEASE_S, Book
from claude_daemon.service.budget import Budgets
from claude_daemon.service.dispatch import Dispatcher, DispatchSettings
from claude_daemon.service.follow import Follow, StoreKeeper, Tails
from claude_daemon.service.limits import Limits
from claude_daemon.service.recover import Recovery, after_crash
from claude_daemon.service.run import Ticket
from claude_daemon.service.sessions import SessionDesk
from claude_daemon.service.tasks import Asker, TaskDesk, Wish
from claude_daemon.store import SqliteStore
from claude_daemon.wire import events as wire_events
from tests.service.doubles import (
    PATIENCE_S,
    SPEC,
    SUCCEEDED,
    Clock,
    FakeEngine,
    FakeHomes,
    FakeLease,
    FakeSchemas,
    failed,
    text,
)

ME = Asker(key=Key(id="me", name="me", digest=b"1", role="standard", trust_domain="default"), request_id="req_1")
OTHER = Asker(key=Key(id="other", name="o", digest=b"2", role="standard", trust_domain="o"), request_id="req_2")
OPERATOR = replace(OTHER, peer_uid=0)
MODEL = "claude-sonnet-5-5"
WISH = Wish(request={"model": None, "messages": [{"role": "user", "content": "x"}]})
LIMITS = QueueLimits(max_queued=100, max_queued_per_key=50)


class Office:
    """The service over a store; two of them over one file, one after the other, are a restart."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        places: int = 1,
        node: str = "node_1",
        budgets: Budgets | None = None,
        limits: Limits | None = None,
        engine: FakeEngine | None = None,
        **settings: Any,
    ) -> None:
        self.store = store
        self.clock = clock
        self.engine = FakeEngine(places) if engine is None else engine
        self.sessions_engine = FakeEngine(places, Lane.SESSION)
        self.agents_engine = FakeEngine(places, Lane.AGENT)
        self.homes = FakeHomes()
        self.ended: list[Task] = []
        self.told: list[str] = []
        self.state = DaemonState.READY
        tails = Tails(lambda task_id: StoreKeeper(task_id, store, wire_events.encoded, clock))
        numbers = iter(range(1, 10_000))

        def ids(prefix: str) -> str:
            return f"{prefix}_{node}_{next(numbers)}"

        self.book = Book(
            store,
            tails,
            node=node,
            encode=wire_events.encoded,
            now=clock,
            ids=ids,
            price={MODEL: Price(input=1_000_000, output=2_000_000, cache_write=0, cache_read=0)}.get,
            budgets=budgets,
            used=limits.used if limits is not None else lambda key_id, usage: None,
            ended=self.ended.append,
        )
        defaults: dict[str, Any] = {"max_waiting": 10, "wait_timeout_s": 60.0, "max_attempts": 3, "stall_s": 5.0}
        self.dispatcher = Dispatcher(
            [self.engine, self.sessions_engine, self.agents_engine],
            DispatchSettings(**{**defaults, **settings}),
            schemas=FakeSchemas(),
            now=clock,
            monotonic=clock,
            ids=ids,
            book=self.book,
            parts=wire_events.parts,
            said=self.homes.said,
            may_begin=limits.may_begin if limits is not None else lambda key_id, running, of_all: True,
        )
        if limits is not None:
            limits.turns = self.dispatcher.turns_of
        self.admission = admission = Admission(
            self.dispatcher,
            [self.engine, self.sessions_engine, self.agents_engine],
            state=lambda: self.state,
            store_error=lambda: store.status().error,
            models={"sonnet": MODEL},
            default_model="sonnet",
            budgets=budgets,
            limits=limits,
        )
        self.sessions = SessionDesk(
            store,
            self.dispatcher,
            self.homes,
            now=clock,
            ids=ids,
            uuids=lambda: ids("uuid"),
            role_of=lambda key, uid: BUILT_IN["full"],
        )
        self.desk = TaskDesk(
            admission,
            self.dispatcher,
            self.book,
            self.sessions,
            limits=LIMITS,
            monotonic=clock,
            ids=ids,
            check_webhook=lambda url: None if url.startswith("https://") else "is not https.",
            role_of=lambda key, uid: BUILT_IN["full"],
        )
        self.follow = Follow(store, tails)
        self.recovery = Recovery(
            self.dispatcher,
            self.book,
            monotonic=clock,
            max_attempts=3,
            told=lambda name, fields: self.told.append(name),
        )

    async def __aenter__(self) -> Office:
        self._running = asyncio.ensure_future(self.dispatcher.run())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.dispatcher.close()
        async with asyncio.timeout(PATIENCE_S):
            await self._running

    async def submit(self, **changes: Any) -> Task:
        return (await self.desk.submit(ME, replace(WISH, **changes)))[0]

    async def lease(self, number: int, engine: FakeEngine | None = None) -> FakeLease:
        engine = engine or self.engine
        async with asyncio.timeout(PATIENCE_S):
            while len(engine.leases) <= number:
                await asyncio.sleep(0.001)
            await engine.leases[number].began.wait()
        return engine.leases[number]

    async def events(self, task_id: str, after: int = 0) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = []
        async with asyncio.timeout(PATIENCE_S):
            async for batch in cast("AsyncIterator[Sequence[Any]]", self.follow.events(task_id, after)):
                told += [orjson.loads(event.raw) for event in batch]
        return told

    async def finished(self, task_id: str) -> Task:
        await self.events(task_id)
        task = await self.store.get(task_id)
        assert task is not None and task.state.terminal
        return task

    async def until(self, state: State, task_id: str) -> Task:
        async with asyncio.timeout(PATIENCE_S):
            while (task := await self.store.get(task_id)) is None or task.state is not state:
                await asyncio.sleep(0.001)
        return task


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore.open(tmp_path / "daemon.db")
    yield opened
    await opened.close()


@asynccontextmanager
async def office(store: Store, **options: Any) -> AsyncIterator[Office]:
    async with Office(store, options.pop("clock", None) or Clock(), **options) as made:
        yield made


def kinds(events: Sequence[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


async def test_a_task_is_claimed_told_and_settled_with_its_cost(store: SqliteStore) -> None:
    async with office(store) as o:
        task = await o.submit()
        lease = await o.lease(0)
        running = await o.until(State.RUNNING, task.id)
        assert (running.attempt, running.fence, running.effects) == (1, 1, Effects.NONE)
        usage = Usage(input_tokens=3, output_tokens=4, model_calls=1)
        lease.say(text("Hello"), text(" you"), replace(SUCCEEDED, usage=usage))
        done = await o.finished(task.id)
        events = await o.events(task.id)
    assert kinds(events) == ["task.queued", "task.started", "text.delta", "text.delta", "task.succeeded"]
    assert done.outcome is not None
    assert (done.outcome.text, done.outcome.usage, done.outcome.cost_micro_usd) == ("Hello you", usage, 11)
    assert done.last_seq == events[-1]["seq"]
    assert events[-1]["data"]["cost_usd"] == 0.000011
    (entry,) = await store.ledger(task.id)
    assert (entry.usage, entry.cost_micro_usd, entry.attempt) == (usage, 11, 1)
    assert [record.act for _, record in await store.audit(0, 10)] == ["task.accepted", "task.ended"]
    assert [ended.id for ended in o.ended] == [task.id]
    assert len(o.book.tails) == 0


async def test_the_end_is_told_only_when_it_is_durable(store: SqliteStore) -> None:
    async with office(store) as o:
        task = await o.submit()
        told: list[dict[str, Any]] = []

        async def look() -> None:
            async for batch in cast("AsyncIterator[Sequence[Any]]", o.follow.events(task.id)):
                for event in batch:
                    told.append(orjson.loads(event.raw))
                    if event.type == "task.succeeded":
                        kept = await store.get(task.id)
                        assert kept is not None and kept.state is State.SUCCEEDED

        looking = asyncio.ensure_future(look())
        (await o.lease(0)).say(text("Hi"), SUCCEEDED)
        async with asyncio.timeout(PATIENCE_S):
            await looking
    assert told[-1]["type"] == "task.succeeded"


async def test_an_attempt_that_crashes_is_made_again_and_what_it_said_is_superseded(store: SqliteStore) -> None:
    async with office(store) as o:
        task = await o.submit()
        (await o.lease(0)).say(text("Hel"), failed(Code.ENGINE_CRASHED))
        (await o.lease(1)).say(text("Hello"), SUCCEEDED)
        done = await o.finished(task.id)
        events = await o.events(task.id)
    assert kinds(events) == [
        *("task.queued", "task.started", "text.delta", "task.requeued"),
        *("task.started", "text.reset", "text.delta", "task.succeeded"),
    ]
    assert [event["seq"] >> 24 for event in events] == [0, 1, 1, 1, 2, 2, 2, 2]
    assert done.outcome is not None
    assert (done.attempt, done.outcome.text) == (2, "Hello")
    assert [entry.attempt for entry in await store.ledger(task.id)] == [1, 2]


async def test_a_task_that_crashes_its_engine_each_time_fails_in_the_end(store: SqliteStore) -> None:
    async with office(store) as o:
        task = await o.submit()
        for number in range(3):
            (await o.lease(number)).say(failed(Code.ENGINE_CRASHED))
        done = await o.finished(task.id)
    assert done.outcome is not None and done.outcome.failure is not None
    assert (done.state, done.outcome.failure.code, done.attempt) == (State.FAILED, Code.ENGINE_CRASHED, 3)


async def test_what_may_have_changed_something_is_never_run_twice(store: SqliteStore) -> None:
    async with office(store) as o:
        task = await o.submit()
        lease = await o.lease(0)
        assert await store.set_effects(task.id, 1)
        run = o.dispatcher.find(task.id)
        assert run is not None
        run.task = replace(run.task, effects=Effects.POSSIBLE)
        lease.say(failed(Code.ENGINE_CRASHED))
        assert (await o.finished(task.id)).state is State.FAILED
        assert len(o.engine.leases) == 1


@pytest.mark.parametrize("when", ["queued", "running", "ended"])
async def test_cancel_in_every_state(store: SqliteStore, when: str) -> None:
    async with office(store, places=0 if when == "queued" else 1) as o:
        task = await o.submit()
        if when != "queued":
            lease = await o.lease(0)
            if when == "ended":
                lease.say(SUCCEEDED)
                await o.finished(task.id)
        answered = await o.desk.cancel(ME, task.id)
        done = await o.finished(task.id)
        assert done.state is (State.SUCCEEDED if when == "ended" else State.CANCELLED)
        assert answered.state is (State.RUNNING if when == "running" else done.state)
        assert (done.cancel_requested_at is None) == (when == "ended")
        assert not o.dispatcher.waits(task.id)
    assert kinds(await o.events(task.id))[-1] == f"task.{done.state}"


async def test_a_cancel_that_meets_a_claim_wins(store: SqliteStore) -> None:
    """Whichever of the two the store sees first."""
    async with office(store, places=0) as o:
        for _ in range(20):
            task = await o.submit()
            o.engine.places = 1
            o.engine.tell_room()
            await asyncio.gather(o.desk.cancel(ME, task.id), asyncio.sleep(0))
            assert (await o.finished(task.id)).state is State.CANCELLED
            o.engine.places = 0


async def test_a_running_task_that_is_cancelled_is_charged_for_what_it_used(store: SqliteStore) -> None:
    async with office(store) as o:
        task = await o.submit()
        lease = await o.lease(0)
        lease.usage = Usage(input_tokens=7, model_calls=1)
        await o.desk.cancel(ME, task.id)
        await o.finished(task.id)
    (entry,) = await store.ledger(task.id)
    assert (entry.usage.input_tokens, entry.cost_micro_usd) == (7, 7)


async def test_a_stop_puts_back_what_runs_and_the_next_start_finds_it(store: SqliteStore) -> None:
    clock = Clock()
    async with office(store, clock=clock) as o:
        task = await o.submit()
        (await o.lease(0)).say(text("Hel"))
        waiting = await o.submit()
    assert o.dispatcher.unsaved == 0
    async with office(store, clock=clock, node="node_2", places=2) as again:
        await again.recovery.start()
        for number in (0, 1):
            (await again.lease(number)).say(text("Hello"), SUCCEEDED)
        done = await again.finished(task.id)
        assert (await again.finished(waiting.id)).attempt == 1
        events = await again.events(task.id)
    assert (done.state, done.attempt) == (State.SUCCEEDED, 2)
    assert "task.requeued" in kinds(events)
    seqs = [event["seq"] for event in events]
    assert seqs == sorted(set(seqs))


def crashed(**changes: Any) -> Task:
    spec = replace(SPEC, kind=Kind.TASK)
    return replace(Task(id="t", spec=spec, created_at=0.0, state=State.RUNNING, attempt=1, fence=1), **changes)


@pytest.mark.parametrize(
    ("task", "again", "code"),
    [
        (crashed(), True, Code.INTERRUPTED),
        (crashed(attempt=2), True, Code.INTERRUPTED),
        (crashed(attempt=3), False, Code.INTERRUPTED),
        (crashed(effects=Effects.POSSIBLE), False, Code.INTERRUPTED),
        (crashed(cancel_requested_at=1.0), False, Code.CANCELLED),
    ],
)
def test_what_becomes_of_a_task_whose_attempt_is_gone(task: Task, again: bool, code: Code) -> None:
    decided, outcome = after_crash(task, 3)
    assert outcome.failure is not None
    assert (decided, outcome.failure.code) == (again, code)


async def test_a_daemon_that_vanished_leaves_its_tasks_to_the_next_one(store: SqliteStore) -> None:
    clock = Clock()
    gone = Office(store, clock)
    async with gone:
        gone.engine.places = 3
        safe, wanted, risky = [(await gone.submit()).id for _ in range(3)]
        for number in range(3):
            await gone.lease(number)
        await store.set_effects(risky, 1)
        await store.request_cancel(wanted, clock())
        async with office(store, clock=clock, node="node_2") as again:
            await again.recovery.start()
            (await again.lease(0)).say(text("Hello"), SUCCEEDED)
            assert (await again.finished(safe)).attempt == 2
            assert (await again.finished(wanted)).state is State.CANCELLED
            assert (await again.finished(risky)).state is State.FAILED
            assert again.told.count("task.recovered") == 3
            assert len(again.engine.leases) == 1
        # the one that was thought gone finds that nothing of it counts any more
        await gone.recovery.renew()
        assert gone.told == ["task.lease_lost"] * 3
    for task_id in (safe, wanted, risky):
        events = await gone.events(task_id)
        assert len([kind for kind in kinds(events) if kind in ("task.succeeded", "task.failed", "task.cancelled")]) == 1


async def test_what_an_attempt_used_is_in_the_ledger_even_if_its_daemon_vanished(store: SqliteStore) -> None:
    clock = Clock()
    used = Usage(input_tokens=100, output_tokens=7, model_calls=2)
    gone = Office(store, clock, places=2)
    async with gone:
        again_id, ended_id = [(await gone.submit()).id for _ in range(2)]
        for number in range(2):
            lease = await gone.lease(number)
            lease.usage = used
            lease.say(text("Hello"))
        await store.set_effects(ended_id, 1)
        async with asyncio.timeout(PATIENCE_S):
            while [one.usage for one in await store.running()] != [used, used]:
                await asyncio.sleep(0)
        async with office(store, clock=clock, node="node_2") as again:
            await again.recovery.start()
            (await again.lease(0)).say(text("Hello"), replace(SUCCEEDED, usage=Usage(input_tokens=1, model_calls=1)))
            await again.finished(again_id)
            ended = await again.finished(ended_id)
        await gone.recovery.renew()
    rows = [(row.attempt, row.usage, row.cost_micro_usd) for row in await store.ledger(again_id)]
    assert rows == [(1, used, 114), (2, Usage(input_tokens=1, model_calls=1), 1)]
    assert [(row.attempt, row.usage) for row in await store.ledger(ended_id)] == [(1, used)]
    assert ended.outcome is not None and (ended.outcome.usage, ended.outcome.cost_micro_usd) == (used, 114)


@pytest.mark.parametrize("jump", [3600.0, 86_400.0 * 365, -3600.0])
async def test_a_clock_that_jumps_takes_nobody_their_task(store: SqliteStore, jump: float) -> None:
    clock = Clock()
    async with office(store, clock=clock) as o:
        task = await o.submit(timeout_seconds=100.0)
        lease = await o.lease(0)
        clock.now += jump
        await o.recovery.renew()
        await o.recovery.poll()
        lease.say(text("Hello"), SUCCEEDED)
        done = await o.finished(task.id)
        assert (done.state, done.attempt) == (State.SUCCEEDED, 1)
        assert "task.recovered" not in o.told


async def test_a_lease_that_another_daemon_let_run_out_is_taken_over(store: SqliteStore) -> None:
    clock = Clock()
    async with office(store, clock=clock) as silent:
        task = await silent.submit()
        await silent.lease(0)
        async with office(store, clock=clock, node="node_2") as o:
            await o.recovery.poll()
            assert o.told == []
            clock.now += LEASE_S + 1
            await o.recovery.poll()
            (await o.lease(0)).say(SUCCEEDED)
            assert (await o.finished(task.id)).attempt == 2
            await silent.recovery.renew()


async def test_what_no_hint_told_of_is_found_by_looking(store: SqliteStore) -> None:
    async with office(store, places=0) as elsewhere:
        task = await elsewhere.submit()
    async with office(store, node="node_2") as o:
        await o.recovery.poll()
        (await o.lease(0)).say(SUCCEEDED)
        await o.finished(task.id)
        await o.recovery.poll()
        assert not o.dispatcher.waits(task.id)


async def test_a_held_queue_begins_no_task_and_lets_chats_pass(store: SqliteStore) -> None:
    async with office(store) as o:
        o.dispatcher.hold()
        task = await o.submit()
        chat = o.dispatcher.submit(replace(SPEC, lane=Lane.TEXT))
        (await o.lease(0)).say(SUCCEEDED)
        async with asyncio.timeout(PATIENCE_S):
            async for _ in chat.follow():
                pass
        assert o.dispatcher.waits(task.id)
        assert (o.dispatcher.queued, o.dispatcher.waiting) == (1, 0)
        o.dispatcher.unhold()
        (await o.lease(1)).say(SUCCEEDED)
        await o.finished(task.id)


async def test_what_is_queued_is_read_when_its_turn_comes_and_not_before(store: SqliteStore) -> None:
    async with office(store, places=0) as o:
        # the more urgent comes later: what was read first is not what is run first
        submitted = [(await o.submit(priority=number // 5)).id for number in range(20)]
        ids = [task_id for first in (15, 10, 5, 0) for task_id in submitted[first : first + 5]]
        assert len(o.dispatcher._backlog._read) <= 4
        o.engine.places = 1
        o.engine.tell_room()
        for number, task_id in enumerate(ids):
            (await o.lease(number)).say(SUCCEEDED)
            assert (await o.finished(task_id)).state is State.SUCCEEDED


class Failing:
    """The real store, but for verbs that the test makes fail."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.failing: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name in self.failing:
            raise StoreUnavailable("the test says so")
        return getattr(self._store, name)


async def test_a_store_that_cannot_take_a_task_refuses_it_and_nothing_is_queued(store: SqliteStore) -> None:
    failing = Failing(store)
    async with office(cast(Store, failing)) as o:
        failing.failing = {"enqueue"}
        with pytest.raises(Refusal) as refused:
            await o.submit()
        assert refused.value.failure.code is Code.STORE_UNAVAILABLE
        assert "test" not in refused.value.failure.message
        assert o.dispatcher.queued == 0


async def test_a_claim_that_cannot_be_made_durable_is_tried_later(store: SqliteStore) -> None:
    failing = Failing(store)
    async with office(cast(Store, failing)) as o:
        failing.failing = {"claim"}
        task = await o.submit()
        async with asyncio.timeout(PATIENCE_S):
            while not o.engine.leases:
                await asyncio.sleep(0.001)
        assert not o.engine.leases[0].began.is_set()
        failing.failing = set()
        (await o.lease(1)).say(SUCCEEDED)
        assert (await o.finished(task.id)).attempt == 1


async def test_an_end_that_cannot_be_saved_before_the_stop_is_counted(store: SqliteStore) -> None:
    failing = Failing(store)
    async with office(cast(Store, failing), stall_s=0.1) as o:
        task = await o.submit()
        lease = await o.lease(0)
        failing.failing = {"settle", "requeue"}
        lease.say(text("Hello"), SUCCEEDED)
        async with asyncio.timeout(PATIENCE_S):
            while o.dispatcher.running:
                await asyncio.sleep(0.001)
    assert o.dispatcher.unsaved == 1
    kept = await store.get(task.id)
    assert kept is not None and kept.state is State.RUNNING  # for the next start


async def test_idempotent_submissions_are_one_task(store: SqliteStore) -> None:
    async with office(store) as o:
        once = Idempotency(key="k", digest=b"1")
        first, new = await o.desk.submit(ME, WISH, once)
        again, newer = await o.desk.submit(ME, WISH, once)
        assert (first.id, new, newer) == (again.id, True, False)
        with pytest.raises(Refusal) as refused:
            await o.desk.submit(ME, WISH, replace(once, digest=b"2"))
        assert refused.value.failure.code is Code.IDEMPOTENCY_CONFLICT
        other, _ = await o.desk.submit(OTHER, WISH, once)
        assert other.id != first.id


async def test_a_task_is_its_owners_and_the_operators(store: SqliteStore) -> None:
    async with office(store, places=0) as o:
        task = await o.submit()
        batch = await o.desk.submit_batch(ME, [WISH])
        assert (await o.desk.get(OPERATOR, task.id)).id == task.id
        for asked in (o.desk.get, o.desk.cancel, o.desk.retry):
            with pytest.raises(Refusal) as refused:
                await asked(OTHER, task.id)
            assert refused.value.failure.code is Code.NOT_FOUND
        with pytest.raises(Refusal):
            await o.desk.batch(OTHER, batch.batch.id)
        listed = await o.desk.list(OTHER, kind=None, states=None, limit=10, cursor=None)
        assert listed.tasks == []
        assert len((await o.desk.list(OPERATOR, kind=None, states=None, limit=10, cursor=None)).tasks) == 2


async def test_a_webhook_that_may_not_be_is_refused_by_name(store: SqliteStore) -> None:
    async with office(store) as o:
        with pytest.raises(Refusal) as refused:
            await o.submit(webhook="http://example.org")
        assert (refused.value.failure.param, "not https" in refused.value.failure.message) == ("webhook", True)
        task = await o.submit(webhook="https://example.org/hook")
        (await o.lease(0)).say(SUCCEEDED)
        await o.finished(task.id)
    (due,) = await store.due(1e12, 10)
    assert (due.task_id, due.url) == (task.id, "https://example.org/hook")


async def test_nothing_is_taken_while_the_daemon_drains(store: SqliteStore) -> None:
    async with office(store) as o:
        o.state = DaemonState.DRAINING
        with pytest.raises(Refusal) as refused:
            await o.submit()
        assert refused.value.failure.code is Code.DRAINING


async def test_a_task_whose_time_is_over_ends_wherever_it_is(store: SqliteStore) -> None:
    async with office(store) as o:
        running = await o.submit(timeout_seconds=0.5)
        waiting = await o.submit(timeout_seconds=0.05)
        for task in (running, waiting):
            done = await o.finished(task.id)
            assert done.outcome is not None and done.outcome.failure is not None
            assert (done.state, done.outcome.failure.code) == (State.FAILED, Code.DEADLINE)
        assert (await store.get(waiting.id) or running).attempt == 0


async def test_an_engine_that_says_so_is_asked_again_whatever_was_told(store: SqliteStore) -> None:
    async with office(store) as o:
        task = await o.submit()
        (await o.lease(0)).say(Ended(outcome=failed(Code.UPSTREAM_INVALID_REQUEST), again=True))
        (await o.lease(1)).say(SUCCEEDED)
        assert (await o.finished(task.id)).state is State.SUCCEEDED


async def test_a_task_that_failed_is_tried_again_on_request(store: SqliteStore) -> None:
    async with office(store) as o:
        task = await o.submit()
        (await o.lease(0)).say(text("No"), failed(Code.UPSTREAM_ERROR))
        await o.finished(task.id)
        queued = await o.desk.retry(ME, task.id)
        assert (queued.state, queued.attempt) == (State.QUEUED, 0)
        (await o.lease(1)).say(text("Yes"), SUCCEEDED)
        async with asyncio.timeout(PATIENCE_S):
            while (await o.desk.get(ME, task.id)).state is not State.SUCCEEDED:
                await asyncio.sleep(0.001)
        events = await o.events(task.id)
        with pytest.raises(Refusal):
            await o.desk.retry(ME, task.id)
    assert kinds(events)[-5:] == ["task.queued", "task.started", "text.reset", "text.delta", "task.succeeded"]


async def test_a_chat_leaves_a_row_without_words(store: SqliteStore) -> None:
    async with office(store) as o:
        chat = o.dispatcher.submit(replace(SPEC, request={"model": MODEL, "messages": ["secret words"]}))
        (await o.lease(0)).say(text("more words"), replace(SUCCEEDED, usage=Usage(output_tokens=2)))
        async with asyncio.timeout(PATIENCE_S):
            async for _ in chat.follow():
                pass
        o.book.chat_ended(chat)
        async with asyncio.timeout(PATIENCE_S):
            while (kept := await store.get(chat.task.id)) is None:
                await asyncio.sleep(0.001)
    assert (kept.spec.request, kept.spec.kind) == ({"model": MODEL}, Kind.CHAT)
    assert kept.outcome is not None
    assert (kept.outcome.text, kept.outcome.cost_micro_usd) == (None, 4)
    (entry,) = await store.ledger(chat.task.id)
    assert entry.cost_micro_usd == 4


def test_an_outcome_of_a_task_is_what_its_state_says() -> None:
    with pytest.raises(ValueError, match="no end"):
        Outcome(state=State.RUNNING)


async def test_a_task_that_waits_costs_less_than_a_kilobyte_its_deadline_included(store: SqliteStore) -> None:
    async with Office(store, Clock(), places=0) as office:
        count = 10_000
        tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            for number in range(count):
                ticket = Ticket(f"task_{number:026d}", Lane.TEXT, "key_local", "default", number % 5, float(number))
                office.dispatcher.enqueue(ticket, timeout_s=3600.0 + number)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert office.dispatcher.queued == count
        each = (after - before) / count
        assert each < 1000, f"{each:.0f} bytes"
        print(f"{each:.0f} bytes a task")
