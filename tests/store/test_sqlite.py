"""What is SQLite's own: rows that stay small, reads that are bounded, columns that nobody reads back."""

from __future__ import annotations

import asyncio
from types import MappingProxyType

import pytest

from claude_daemon.core.event import first_seq
from claude_daemon.core.task import Kind
from claude_daemon.ports import StoreUnavailable, TaskFilter
from claude_daemon.store import SqliteStore, meta, queries, retention
from claude_daemon.store.connection import connect_reader
from claude_daemon.store.readers import THREADS
from tests.store.files import dump
from tests.store.gate import write
from tests.store.samples import (
    CANCELLED,
    FAILED,
    LEASE_UNTIL,
    LIMITS,
    append,
    audit,
    event,
    found,
    put,
    requeue,
    settlement,
    start,
    task,
)

LARGE = 1024 * 1024


async def test_what_changes_a_task_does_not_write_again_what_was_asked(store: SqliteStore) -> None:
    await put(store, task(metadata={"pad": "x" * LARGE}))
    before = store.status().details["wal_bytes"]
    claimed = await store.claim("task_1", "node_1", LEASE_UNTIL, 0.0)
    assert claimed is not None
    await append(store, "task_1", 1, [event(first_seq(1))])
    await store.renew("node_1", ["task_1"], 6000.0)
    await store.settle(settlement(claimed, event=event(first_seq(1) + 1)))
    assert store.status().details["wal_bytes"] - before < LARGE / 4


async def test_a_page_of_large_tasks_ends_early_and_goes_on(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "MAX_PAGE_BYTES", 5000)
    await put(store, *(task(f"task_{n}", metadata={"pad": "x" * 2000}) for n in range(5)))
    first = await store.list(TaskFilter(), 10)
    assert [one.id for one in first.tasks] == ["task_4", "task_3", "task_2"]
    rest = await store.list(TaskFilter(), 10, first.next)
    assert [one.id for one in rest.tasks] == ["task_1", "task_0"] and rest.next is None


async def test_a_purge_of_many_events_ends_early_and_goes_on(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MAX_EVENTS", 3)
    for n in range(3):
        await store.settle(settlement(await start(store, task(f"task_{n}"))))
    assert [await store.purge(1e9, 100) for _ in range(3)] == [2, 1, 0]


async def test_a_purged_task_leaves_nothing_but_ledger_spending_and_audit(store: SqliteStore) -> None:
    empty = dump(store.path)
    claimed = await start(store, task(webhook="https://example.org/"))
    await store.settle(settlement(claimed, webhook_id="wh_1"))
    await store.delivered("wh_1", 1.0)
    assert await store.purge(1e9, 100) == 1
    left = dump(store.path)
    assert {table for table in left if left[table] != empty[table]} == {"ledger", "spending", "audit"}


async def test_every_attempt_leaves_a_row(store: SqliteStore) -> None:
    claimed = await start(store)
    await store.requeue(requeue(claimed))
    again = await store.claim("task_1", "node_2", LEASE_UNTIL, 2500.0)
    assert again is not None
    await store.set_effects("task_1", again.fence)
    await store.settle(settlement(again, FAILED, new_fence=3))
    assert [row[:7] for row in dump(store.path)["attempts"]] == [
        ("task_1", 1, 1, "node_1", "none", 2000.0, "requeued"),
        ("task_1", 2, 2, "node_2", "possible", 2500.0, "failed"),
    ]


async def test_what_is_audited_of_a_task_has_its_trust_domain(store: SqliteStore) -> None:
    await put(store, task(trust_domain="guests"))
    await store.record(audit("config.changed"))
    assert [row[4] for row in dump(store.path)["audit"]] == ["guests", None]


async def test_the_time_of_a_task_that_is_tried_again_counts_anew(store: SqliteStore) -> None:
    (queued,) = await put(store, task(timeout_seconds=60.0))
    await store.settle(settlement(queued, CANCELLED, new_fence=1))
    record = audit("task.retry", queued)
    await store.retry("task_1", event(first_seq(2)), LIMITS, record)
    (waiting,) = await store.queued()
    assert waiting.deadline_at == record.at + 60.0


async def test_a_fence_that_is_not_the_next_is_our_own_bug(store: SqliteStore) -> None:
    claimed = await start(store)
    with pytest.raises(ValueError, match="after fence 1 comes no 5"):
        await store.settle(settlement(claimed, new_fence=5))
    with pytest.raises(ValueError, match="after fence 1 comes no 1"):
        await store.requeue(requeue(claimed, new_fence=1))
    assert await found(store) == claimed


async def test_any_mapping_is_kept_and_what_has_no_json_is_refused_at_once(store: SqliteStore) -> None:
    asked = task(request=MappingProxyType({"model": "m", "messages": []}))
    await put(store, asked)
    assert (await found(store)).spec.request == {"model": "m", "messages": []}
    with pytest.raises(TypeError):
        await put(store, task("task_2", request={"model": "m", "what": object()}))
    assert store.status().backlog == 0


async def test_only_a_chat_that_has_ended_is_recorded_as_one(store: SqliteStore) -> None:
    heard: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: heard.append(str(context["exception"])))
    try:
        store.record_chat(task("chat_1", kind=Kind.CHAT), None)
        assert await store.check()
    finally:
        loop.set_exception_handler(None)
    assert heard == ["chat_1 is no chat that has ended"]
    assert await store.get("chat_1") is None


async def test_nodes_of_long_ago_are_forgotten(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meta, "MAX_NODES", 2)
    for n in range(4):
        await store.join(f"node_{n}", float(n))
    assert [row[0] for row in dump(store.path)["nodes"]] == ["node_2", "node_3"]


async def test_a_read_that_fails_says_that_the_store_is_unavailable(store: SqliteStore) -> None:
    await write(store, lambda db: db.execute("DROP TABLE ledger"))
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        await store.ledger("task_1")
    assert store.status().error is not None  # readiness knows of it
    assert await store.audit(0, 10) == []
    assert store.status().error is None


async def test_a_check_asks_whether_it_can_be_read_too(store: SqliteStore) -> None:
    for db in [store._readers._idle.get() for _ in range(THREADS)]:
        db.close()
        store._readers._idle.put(db)
    assert not await store.check()
    assert "cannot be read" in (store.status().error or "")
    for _ in range(THREADS):
        store._readers._idle.get()
        store._readers._idle.put(connect_reader(store.path))
    assert await store.check() and store.status().error is None


async def test_readers_cannot_write(store: SqliteStore) -> None:
    with pytest.raises(StoreUnavailable, match="readonly"):
        await store._readers.read(lambda db: db.execute("DELETE FROM meta"))


async def test_the_depth_of_the_queue_is_what_is_queued(store: SqliteStore) -> None:
    for n, key in enumerate(["a", "a", "b"]):
        await put(store, task(f"task_{n}", key_id=key))
    claimed = await store.claim("task_2", "node_1", LEASE_UNTIL, 0.0)
    assert claimed is not None
    assert dict(dump(store.path)["queue_depth"]) == {"": 2, "a": 2}
    await store.requeue(requeue(claimed))
    assert dict(dump(store.path)["queue_depth"]) == {"": 3, "a": 2, "b": 1}
