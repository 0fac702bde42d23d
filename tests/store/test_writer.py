"""The one thread that writes: groups, bounds, and what happens when the disk does not want any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from sqlite3 import Connection
from typing import Any

import pytest

from claude_daemon.core.event import first_seq
from claude_daemon.core.task import State
from claude_daemon.ports import StoreUnavailable
from claude_daemon.store import SqliteStore, writer
from claude_daemon.store.schema import known_migrations
from tests.store.gate import Gate, fill_up, make_room, write
from tests.store.samples import (
    FAILED,
    LEASE_UNTIL,
    LIMITS,
    PATIENCE_S,
    append,
    audit,
    event,
    found,
    put,
    requeue,
    seqs,
    settlement,
    start,
    submission,
    task,
)

BIG = 64 * 1024
"""More than any page that a small database has to spare."""


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def store(tmp_path: Path, gate: Gate) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore.open(tmp_path / "daemon.db", observer=gate)
    yield opened
    gate.open()
    await opened.close()


@asynccontextmanager
async def grouped(store: SqliteStore, gate: Gate) -> AsyncIterator[None]:
    """What is called within waits for one commit, and goes into the next together. Ends when that may begin."""
    gate.shut()
    blocking = asyncio.gather(store.pause(False))
    await gate.stopped()
    gate.commits.clear()
    yield
    await asyncio.sleep(0)  # what was gathered has called
    gate.open()
    await blocking


class TestGroups:
    async def test_what_waits_is_committed_together_in_order(self, store: SqliteStore, gate: Gate) -> None:
        async with grouped(store, gate):
            verbs = asyncio.gather(
                put(store, task("task_1"), task("task_2")),
                store.claim("task_1", "node_1", LEASE_UNTIL, 0.0),
                append(store, "task_1", 1, [event(first_seq(1))]),
                store.record(audit("act")),
            )
        _, claimed, kept, _ = await verbs
        assert claimed is not None and kept
        assert gate.commits == [["pause"], ["enqueue", "claim", "append", "record"]]

    async def test_a_group_is_told_by_one_call_into_the_loop(
        self, store: SqliteStore, gate: Gate, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loop = asyncio.get_running_loop()
        calls: list[Callable[..., Any]] = []
        call_soon_threadsafe = loop.call_soon_threadsafe

        def counted(callback: Callable[..., Any], *args: Any, **kwargs: Any) -> asyncio.Handle:
            calls.append(callback)
            return call_soon_threadsafe(callback, *args, **kwargs)

        async with grouped(store, gate):
            verbs = asyncio.gather(*(store.record(audit(f"act_{n}")) for n in range(50)))
            await asyncio.sleep(0)
            monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        await verbs
        assert len(calls) == 2  # of the verb that all waited for, and of the group

    async def test_what_nobody_waits_for_is_written_when_nothing_else_is(self, store: SqliteStore, gate: Gate) -> None:
        await store.pause(False)
        store.key_used("key_1", 1.0)
        async with asyncio.timeout(PATIENCE_S):
            while store.status().backlog:
                await asyncio.sleep(0.001)
        assert gate.commits[-1] == ["key_used"]

    async def test_what_goes_wrong_where_nobody_waits_is_told_to_the_loop(self, store: SqliteStore) -> None:
        loop = asyncio.get_running_loop()
        told: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: told.append(context))
        store.record_chat(task("task_1"), None)  # it is no chat, and has not ended
        await store.pause(False)
        loop.set_exception_handler(None)
        assert [(one["message"], str(one["exception"])) for one in told] == [
            ("after record_chat", "task_1 is no chat that has ended")
        ]

    async def test_a_verb_that_is_wrong_fails_alone(self, store: SqliteStore, gate: Gate) -> None:
        await put(store, task("task_1"))
        async with grouped(store, gate):
            verbs = asyncio.gather(
                put(store, task("task_2")),
                store.enqueue([submission(task("task_3")), submission(task("task_1"))], LIMITS),
                put(store, task("task_4")),
                return_exceptions=True,
            )
        second, wrong, fourth = await verbs
        assert isinstance(wrong, Exception) and not isinstance(wrong, StoreUnavailable)
        assert not isinstance(second, BaseException) and not isinstance(fourth, BaseException)
        assert [one.id for one in await store.queued()] == ["task_1", "task_2", "task_4"]
        assert len(gate.commits) == 2

    async def test_a_group_is_bounded_in_number(self, store: SqliteStore, gate: Gate) -> None:
        async with grouped(store, gate):
            verbs = asyncio.gather(*(store.record(audit("act")) for _ in range(writer.MAX_BATCH_ITEMS + 1)))
        await verbs
        assert [len(commit) for commit in gate.commits] == [1, writer.MAX_BATCH_ITEMS, 1]

    async def test_a_group_is_bounded_in_bytes(self, store: SqliteStore, gate: Gate) -> None:
        sizes = [writer.MAX_BATCH_BYTES // 2, writer.MAX_BATCH_BYTES, 10, 10, writer.MAX_BATCH_BYTES * 2]
        async with grouped(store, gate):
            verbs = asyncio.gather(*(write(store, lambda db: None, size=size) for size in sizes))
        await verbs
        assert [len(commit) for commit in gate.commits] == [1, 1, 1, 2, 1]

    async def test_the_disk_is_waited_for_unless_there_are_events_only(self, store: SqliteStore, gate: Gate) -> None:
        def synchronous(db: Connection) -> int:
            return int(db.execute("PRAGMA synchronous").fetchone()[0])

        normal, full = 1, 2
        assert await write(store, synchronous, relaxed=True) == normal
        assert await write(store, synchronous) == full
        async with grouped(store, gate):
            verbs = asyncio.gather(write(store, synchronous, relaxed=True), write(store, synchronous))
        assert list(await verbs) == [full, full]

    async def test_an_error_of_one_who_is_told_is_nobody_elses(self, store: SqliteStore, gate: Gate) -> None:
        await start(store)
        heard: list[Any] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: heard.append(type(context["exception"]).__name__))
        try:
            async with grouped(store, gate):
                store.append("task_1", 1, [event(first_seq(1))], lambda kept: heard.append(1 // 0))
                store.append("task_1", 1, [event(first_seq(1))], heard.append)  # its number is taken
                last = asyncio.gather(append(store, "task_1", 1, [event(first_seq(1) + 1)]))
            assert list(await last) == [True]
        finally:
            loop.set_exception_handler(None)
        assert heard == ["ZeroDivisionError", False, "IntegrityError"]

    async def test_figures_tell_how_it_is_doing(self, store: SqliteStore, gate: Gate) -> None:
        assert store.status().details["commit_ms"] is None
        async with grouped(store, gate):
            verbs = asyncio.gather(store.record(audit("act")), store.record(audit("act")))
            await asyncio.sleep(0)
            assert store.status().backlog == 3
        await verbs
        status = store.status()
        assert (status.error, status.backlog) == (None, 0)
        assert status.details["commits"] == 2 and status.details["schema_version"] == len(known_migrations())
        assert 0 < status.details["commit_p50_ms"] <= status.details["commit_p99_ms"]
        assert status.details["wal_bytes"] > 0


class TestBacklog:
    @pytest.mark.parametrize("bound", ["MAX_BACKLOG_ITEMS", "MAX_BACKLOG_BYTES"])
    async def test_beyond_its_bound_what_may_fail_fails_at_once(
        self, store: SqliteStore, gate: Gate, monkeypatch: pytest.MonkeyPatch, bound: str
    ) -> None:
        claimed = await start(store)
        monkeypatch.setattr(writer, bound, {"MAX_BACKLOG_ITEMS": 2, "MAX_BACKLOG_BYTES": 600}[bound])
        async with grouped(store, gate):
            waiting = asyncio.gather(store.record(audit("act")))
            await asyncio.sleep(0)
            with pytest.raises(StoreUnavailable, match="too slow"):
                await store.record(audit("one too many"))
            assert not await store.check()
            end = settlement(claimed, event=event(first_seq(1) + 1))
            kept = asyncio.gather(append(store, "task_1", 1, [event(first_seq(1))]), store.settle(end))
        await waiting
        assert list(await kept) == [True, True]
        await store.record(audit("there is room again"))


class TestFullDisk:
    async def test_what_may_fail_fails_and_leaves_nothing(self, store: SqliteStore) -> None:
        await put(store, task("task_1"))
        await fill_up(store)
        big = task("task_2", metadata={"pad": "x" * BIG})
        with pytest.raises(StoreUnavailable, match="full"):
            await put(store, big)
        assert "full" in str(store.status().error)
        assert await store.get("task_2") is None and await store.get("task_1") is not None
        await make_room(store)
        assert await store.check() and store.status().error is None
        await put(store, big)

    async def test_what_has_happened_outside_is_kept_in_order_until_there_is_room(self, store: SqliteStore) -> None:
        claimed = await start(store)
        again = await start(store, task("task_2"))
        third = await start(store, task("task_3"))
        await fill_up(store)
        first = first_seq(1)
        told: list[str] = []
        store.append("task_1", 1, [event(first, size=BIG)], lambda kept: told.append(f"append {kept}"))
        store.append("task_1", 1, [event(first + 1)], lambda kept: told.append(f"append {kept}"))
        end = settlement(claimed, FAILED, event=event(first + 2))
        kept = asyncio.gather(store.settle(end), store.requeue(requeue(again)), store.set_effects("task_3", 1))
        with pytest.raises(StoreUnavailable):
            await store.record(audit("act"))
        assert not await store.check()
        assert not kept.done() and not told
        assert store.status().backlog == 5 and store.status().error is not None
        assert (await found(store)).state is State.RUNNING  # reads go on
        await make_room(store)
        async with asyncio.timeout(PATIENCE_S):
            assert list(await kept) == [True, True, True]
        assert told == ["append True", "append True"]
        assert await seqs(store, after=first_seq(0)) == [first, first + 1, first + 2]
        assert (await found(store, third.id)).effects == "possible"
        assert store.status().error is None and store.status().backlog == 0

    async def test_a_commit_of_many_fails_and_recovers_as_a_whole(self, store: SqliteStore, gate: Gate) -> None:
        claimed = await start(store)
        await fill_up(store)
        async with grouped(store, gate):
            failing = asyncio.gather(
                store.record(audit("before")),
                put(store, task("task_2", metadata={"pad": "x" * BIG})),
                store.record(audit("after")),
                return_exceptions=True,
            )
            await asyncio.sleep(0)
            settled = asyncio.gather(store.settle(settlement(claimed)))
        answers = await failing
        assert all(isinstance(answer, StoreUnavailable) for answer in answers), answers
        assert list(await settled) == [True]  # alone it had room
        assert [record.act for _, record in await store.audit(0, 100)] == ["task.accepted", "task.ended"]

    async def test_closing_a_full_store_says_that_something_is_lost(
        self, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writer, "CLOSE_GRACE_S", 0.1)
        await start(store)
        await fill_up(store)
        told: list[bool] = []
        store.append("task_1", 1, [event(first_seq(1), size=BIG)], told.append)
        effects = asyncio.gather(store.set_effects("task_1", 1), return_exceptions=True)
        await asyncio.sleep(0)
        assert not await store.close()
        (lost,) = await effects
        assert isinstance(lost, StoreUnavailable) and not told
        assert not await store.close()

    async def test_room_found_while_closing_saves_everything(
        self, store: SqliteStore, tmp_path: Path, gate: Gate
    ) -> None:
        await start(store)
        await fill_up(store)
        kept = asyncio.gather(append(store, "task_1", 1, [event(first_seq(1), size=BIG)]))
        await asyncio.sleep(0)
        assert not await store.check()
        closing = asyncio.gather(store.close())
        await make_room(store)
        assert list(await closing) == [True] and list(await kept) == [True]
        reopened = SqliteStore.open(tmp_path / "daemon.db")
        assert await seqs(reopened, after=first_seq(0)) == [first_seq(1)]
        assert await reopened.close()

    async def test_a_file_that_is_taken_away_is_noticed(self, store: SqliteStore, tmp_path: Path) -> None:
        await put(store, task())
        (tmp_path / "daemon.db").rename(tmp_path / "elsewhere")
        with pytest.raises(StoreUnavailable):
            await put(store, task("task_2"))
        assert not await store.check()
        (tmp_path / "daemon.db").write_bytes(b"")
        with pytest.raises(StoreUnavailable, match="moved away or deleted"):
            await put(store, task("task_2"))
        (tmp_path / "elsewhere").replace(tmp_path / "daemon.db")
        assert await store.check()


class TestClosing:
    async def test_what_waits_is_saved_first(self, store: SqliteStore, gate: Gate, tmp_path: Path) -> None:
        await start(store)
        async with grouped(store, gate):
            kept = asyncio.gather(append(store, "task_1", 1, [event(first_seq(1))]), store.record(audit("last")))
            await asyncio.sleep(0)
            closing = asyncio.gather(store.close())
        assert list(await closing) == [True]
        assert list(await kept) == [True, None]
        reopened = SqliteStore.open(tmp_path / "daemon.db")
        assert await seqs(reopened, after=first_seq(0)) == [first_seq(1)]
        assert await reopened.close()

    async def test_it_leaves_one_file(self, store: SqliteStore, tmp_path: Path) -> None:
        await put(store, task())
        assert await store.close() and await store.close()
        assert [file.name for file in tmp_path.iterdir()] == ["daemon.db"]

    async def test_afterwards_nothing_is_taken(self, store: SqliteStore) -> None:
        await store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            await put(store, task())
        with pytest.raises(StoreUnavailable, match="closed"):
            await store.get("task_1")
        with pytest.raises(StoreUnavailable, match="closed"):
            store.append("task_1", 1, [event(1)], lambda kept: None)
        assert not await store.check()

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    async def test_a_writer_that_dies_leaves_nobody_waiting(self, tmp_path: Path) -> None:
        def broken(verb: str, moment: str) -> None:
            raise LookupError("a bug")

        store = SqliteStore.open(tmp_path / "daemon.db", observer=broken)
        with pytest.raises(StoreUnavailable, match="a bug"):
            await put(store, task())
        with pytest.raises(StoreUnavailable):
            await put(store, task())
        assert "a bug" in str(store.status().error)
        assert not await store.close()
