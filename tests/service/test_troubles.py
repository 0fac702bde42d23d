"""Durable tasks among all that goes wrong at once: callers that leave, stores that fail, wishes that come late."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.task import Lane, State, Task
from claude_daemon.ports import StoreUnavailable
from claude_daemon.service import upkeep
from claude_daemon.service.judge import MAX_STRUCTURED_DEPTH
from claude_daemon.service.queue import CHAT_PRIORITY
from claude_daemon.service.upkeep import Upkeep
from claude_daemon.store import SqliteStore
from claude_daemon.wire.tasks import list_document, task_document
from tests.service.doubles import PATIENCE_S, SUCCEEDED, Clock, failed, text
from tests.service.test_durable import LIMITS, ME, OPERATOR, WISH, Office


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore.open(tmp_path / "daemon.db")
    yield opened
    await opened.close()


class Over:
    """The store, but for what a test says of some of its verbs."""

    def __init__(self, store: SqliteStore, **verbs: Any) -> None:
        self._store = store
        self._verbs = verbs

    def __getattr__(self, name: str) -> Any:
        return self._verbs.get(name) or getattr(self._store, name)


async def fails(*args: object) -> Any:
    raise StoreUnavailable("the disk is full")


async def no_sessions(before: float) -> int:
    return 0


async def until(holds: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await holds():
            await asyncio.sleep(0.001)


async def state_of(store: SqliteStore, task: Task) -> State:
    found = await store.get(task.id)
    assert found is not None
    return found.state


# an answer that nobody can write down


async def test_an_answer_nested_too_deep_fails_its_task_and_nobody_elses(store: SqliteStore) -> None:
    deep = MAX_STRUCTURED_DEPTH + 1
    async with Office(store, Clock()) as office:
        first = await office.submit(output_schema={"type": "object"})
        lease = await office.lease(0)
        lease.say(text('{"a":' * deep + "1" + "}" * deep))
        lease.say(SUCCEEDED)
        task = await office.finished(first.id)
        assert task.outcome is not None and task.outcome.failure is not None
        assert task.outcome.failure.code is Code.SCHEMA_MISMATCH
        assert f"more than {MAX_STRUCTURED_DEPTH} levels" in task.outcome.failure.message
        second = await office.submit()
        lease = await office.lease(1)
        lease.say(text("fine"), SUCCEEDED)
        assert (await office.finished(second.id)).state is State.SUCCEEDED


async def test_an_answer_as_deep_as_it_may_be_can_be_told_everywhere(store: SqliteStore) -> None:
    async with Office(store, Clock()) as office:
        submitted = await office.submit(output_schema={"type": "object"})
        lease = await office.lease(0)
        deep = MAX_STRUCTURED_DEPTH
        lease.say(text('{"a":' * deep + "1" + "}" * deep))
        lease.say(SUCCEEDED)
        task = await office.finished(submitted.id)
    assert task.outcome is not None and task.outcome.structured is not None
    document = task_document(task)
    assert orjson.dumps(list_document([document], None))
    assert orjson.dumps({"type": "task.succeeded", "data": {"more": document}})


async def test_an_end_that_cannot_be_written_down_is_an_internal_error_of_that_task(store: SqliteStore) -> None:
    calls: list[Any] = []

    async def settle(settlement: Any) -> bool:
        calls.append(settlement)
        if len(calls) == 1:
            raise TypeError("recursion limit reached")
        return await store.settle(settlement)

    async with Office(store, Clock()) as office:
        office.book.store = Over(store, settle=settle)
        submitted = await office.submit()
        (await office.lease(0)).say(text("x"), SUCCEEDED)
        task = await office.finished(submitted.id)
        assert task.outcome is not None and task.outcome.failure is not None
        assert task.outcome.failure.code is Code.INTERNAL
        assert not office._running.done()


# a store that cannot be read


async def test_a_task_whose_time_is_over_while_the_store_cannot_be_read_ends_when_it_can(store: SqliteStore) -> None:
    async with Office(store, Clock(), places=0) as office:
        submitted = await office.submit(timeout_seconds=0.01)
        office.book.store = Over(store, get=fails)
        await asyncio.sleep(0.05)
        assert not office._running.done()
        office.book.store = store
        assert (await office.finished(submitted.id)).state is State.FAILED


async def test_a_batch_that_was_accepted_is_told_without_reading_it_again(store: SqliteStore) -> None:
    async with Office(store, Clock(), places=0) as office:
        office.book.store = Over(store, batch=fails)
        state = await office.desk.submit_batch(ME, [WISH, WISH])
        assert sorted(state.tasks) == [0, 1]
        office.book.store = store
        assert await office.desk.batch(ME, state.batch.id) == state


# cancelled, and whoever does something else meanwhile


async def test_a_cancel_while_a_task_goes_back_to_the_queue_ends_it(store: SqliteStore) -> None:
    gate = asyncio.Event()

    async def requeue(asked: Any) -> bool:
        await gate.wait()
        return await store.requeue(asked)

    async with Office(store, Clock()) as office:
        office.book.store = Over(store, requeue=requeue)
        submitted = await office.submit()
        (await office.lease(0)).say(failed(Code.ENGINE_CRASHED))
        await until(lambda: _true(not office.dispatcher.running))
        told = await office.desk.cancel(ME, submitted.id)
        assert told.cancel_requested_at is not None
        gate.set()
        assert (await office.finished(submitted.id)).state is State.CANCELLED
        assert len(office.engine.leases) == 1


async def _true(holds: bool) -> bool:
    return holds


async def test_a_cancel_while_a_stop_interrupts_the_task_is_not_forgotten_by_the_next_daemon(
    store: SqliteStore,
) -> None:
    office = Office(store, Clock())
    async with office:
        submitted = await office.submit()
        lease = await office.lease(0)
        lease.may_end.clear()
        office.dispatcher.close()
        await asyncio.sleep(0)
        await office.desk.cancel(ME, submitted.id)
        lease.may_end.set()
    assert await state_of(store, submitted) is State.CANCELLED
    async with Office(store, Clock(), node="node_2") as second:
        await second.recovery.start()
        assert second.dispatcher.queued == 0


async def test_a_wish_that_nobody_has_carried_out_is_found_by_the_next_daemon(store: SqliteStore) -> None:
    async with Office(store, Clock(), places=0) as office:
        submitted = await office.submit()
        await store.request_cancel(submitted.id, 1.0)  # and there the daemon was killed
    async with Office(store, Clock(), node="node_2") as second:
        await second.recovery.start()
        assert (await second.finished(submitted.id)).state is State.CANCELLED
        assert second.engine.leases == []


async def test_a_running_task_is_cut_even_when_the_wish_cannot_be_stored(store: SqliteStore) -> None:
    async with Office(store, Clock()) as office:
        submitted = await office.submit()
        lease = await office.lease(0)
        office.book.store = Over(store, request_cancel=fails)
        with pytest.raises(Refusal) as refused:  # what is not durable is not promised
            await office.desk.cancel(ME, submitted.id)
        assert refused.value.failure.code is Code.STORE_UNAVAILABLE
        assert "being stopped" in refused.value.failure.message
        await until(lambda: _true(lease.released))
        assert (await office.finished(submitted.id)).state is State.CANCELLED


async def test_a_queued_task_that_cannot_be_cancelled_now_goes_on_and_that_is_said(store: SqliteStore) -> None:
    async with Office(store, Clock(), places=0) as office:
        submitted = await office.submit()
        office.book.store = Over(store, request_cancel=fails)
        with pytest.raises(Refusal) as refused:
            await office.desk.cancel(ME, submitted.id)
        assert refused.value.failure.code is Code.STORE_UNAVAILABLE
        assert "it goes on" in refused.value.failure.message
        assert office.dispatcher.queued == 1


# callers that leave


async def test_who_leaves_while_cancelling_leaves_no_follower_behind(store: SqliteStore) -> None:
    gate = asyncio.Event()

    async def settle(settlement: Any) -> bool:
        ended = await store.settle(settlement)
        await gate.wait()
        return ended

    async with Office(store, Clock(), places=0) as office:
        submitted = await office.submit()
        following = asyncio.ensure_future(office.events(submitted.id))
        office.book.store = Over(store, settle=settle)
        cancelling = asyncio.ensure_future(office.desk.cancel(ME, submitted.id))
        await until(lambda: _is(store, submitted, State.CANCELLED))
        cancelling.cancel()
        await asyncio.wait({cancelling})
        gate.set()
        assert (await following)[-1]["type"] == "task.cancelled"


async def _is(store: SqliteStore, task: Task, state: State) -> bool:
    return await state_of(store, task) is state


async def test_who_leaves_while_submitting_has_submitted(store: SqliteStore) -> None:
    gate = asyncio.Event()

    async def enqueue(*args: Any) -> Any:
        answers = await store.enqueue(*args)
        await gate.wait()
        return answers

    async with Office(store, Clock()) as office:
        office.book.store = Over(store, enqueue=enqueue)
        submitting = asyncio.ensure_future(office.submit())
        await until(lambda: _count(store, 1))
        submitting.cancel()
        await asyncio.wait({submitting})
        gate.set()
        (await office.lease(0)).say(text("x"), SUCCEEDED)  # it runs at once, and not when somebody looks for it


async def _count(store: SqliteStore, number: int) -> bool:
    return len(await store.queued()) == number


async def test_who_leaves_while_pausing_has_paused(store: SqliteStore) -> None:
    async with Office(store, Clock()) as office:
        keep = Upkeep(
            store,
            office.dispatcher,
            now=Clock(),
            retention_days=1,
            draining=lambda: False,
            changed=lambda: None,
            sweep_sessions=no_sessions,
        )
        pausing = asyncio.ensure_future(keep.pause())
        await asyncio.sleep(0)
        pausing.cancel()
        await asyncio.wait({pausing})
        await until(lambda: _true(keep.paused))
        assert await store.paused()
        await office.submit()
        await asyncio.sleep(0.01)
        assert office.engine.leases == []


# the queue


async def test_a_task_that_was_tried_again_keeps_its_place_over_a_restart(store: SqliteStore) -> None:
    clock = Clock()
    async with Office(store, clock, places=0) as office:
        old = await office.submit()
        await office.desk.cancel(ME, old.id)
        clock.now += 24 * 3600
        await office.desk.retry(OPERATOR, old.id)
        urgent = await office.submit(priority=10)
        assert office.dispatcher._queue.next(clock(), {Lane.TEXT}).id == urgent.id  # type: ignore[union-attr]
    async with Office(store, clock, places=0, node="node_2") as second:
        await second.recovery.start()
        assert second.dispatcher._queue.next(clock(), {Lane.TEXT}).id == urgent.id  # type: ignore[union-attr]


async def test_no_more_is_tried_again_than_may_be_queued(store: SqliteStore) -> None:
    async with Office(store, Clock(), places=0) as office:
        old = await office.submit()
        await office.desk.cancel(ME, old.id)
        for _ in range(LIMITS.max_queued_per_key):
            await office.submit()
        with pytest.raises(Refusal) as refused:
            await office.desk.retry(OPERATOR, old.id)
        assert refused.value.failure.code is Code.QUEUE_FULL


async def test_a_chat_goes_before_tasks_until_they_have_waited_longer_than_any_chat_does(store: SqliteStore) -> None:
    clock = Clock()
    async with Office(store, clock, places=0) as office:
        task = await office.submit()
        chat = office.dispatcher.submit(_chat())
        queue, lanes = office.dispatcher._queue, {Lane.TEXT}
        assert queue.next(clock(), lanes) is chat
        office.dispatcher.cancel(chat)
        clock.now += CHAT_PRIORITY * 60 + 1
        later = office.dispatcher.submit(_chat())
        assert queue.next(clock(), lanes).id == task.id  # type: ignore[union-attr]
        office.dispatcher.cancel(later)


def _chat() -> Any:
    from tests.service.doubles import SPEC

    return SPEC


# upkeep


async def test_a_store_is_said_to_have_recovered_only_when_it_was_said_to_have_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upkeep, "CHECK_S", 0.001)
    said: list[str] = []
    looks = asyncio.Event()

    class Passing:
        """It has failed once, and works when it is tried."""

        error: str | None = "the disk is full"
        tries = 0

        def status(self) -> Any:
            self.tries += 1
            if self.tries > 3:
                looks.set()
            return SimpleNamespace(error=self.error)

        async def check(self) -> bool:
            self.error = None
            return True

    keep = Upkeep(
        Passing(),  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        now=Clock(),
        retention_days=1,
        draining=lambda: False,
        changed=lambda: said.append("changed"),
        sweep_sessions=no_sessions,
        told=lambda name, fields: said.append(name),
    )
    watching = asyncio.ensure_future(keep.watch())
    async with asyncio.timeout(PATIENCE_S):
        await looks.wait()
    watching.cancel()
    assert said == []
