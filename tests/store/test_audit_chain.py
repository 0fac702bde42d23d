"""The audit's chain in the file: what somebody does to it who can write the file, and does not have the key."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from claude_daemon.core.audit import Anchor, Verdict
from claude_daemon.core.lifecycle import Check
from claude_daemon.ports import StoreUnavailable
from claude_daemon.service import audit as service
from claude_daemon.service.audit import AuditDesk
from claude_daemon.store import SqliteStore
from tests.store.samples import PATIENCE_S, audit

KEY = b"a key beside the database"
STRIPPED = "UPDATE audit SET hash = NULL, prev_hash = NULL, details = '{}'"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "daemon.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore.open(path, audit_key=KEY)
    for n in range(6):
        await opened.record(audit(f"act_{n}", secret="of the record"))
    yield opened
    await opened.close()


def desk(store: SqliteStore, key: bytes = KEY, told: list[tuple[str, dict[str, object]]] | None = None) -> AuditDesk:
    heard = [] if told is None else told
    return AuditDesk(store, key, retention_days=1, now=lambda: 1e9, told=lambda *said: heard.append(said))


def sql(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement)


async def verdict(store: SqliteStore) -> Verdict:
    return await desk(store).verify()


@pytest.mark.parametrize(
    ("forgery", "at"),
    [
        ("UPDATE audit SET details = '{}' WHERE n = 3", 3),
        ("UPDATE audit SET act = 'other' WHERE n = 1", 1),
        ("UPDATE audit SET at = at + 1 WHERE n = 6", 6),
        ("UPDATE audit SET peer_uid = 0 WHERE n = 2", 2),
        ("UPDATE audit SET details = x'ff00' WHERE n = 2", 2),
        ("UPDATE audit SET details = 7, act = x'00' WHERE n = 2", 2),
        ("UPDATE audit SET hash = NULL WHERE n = 4", 4),
        ("UPDATE audit SET hash = 'text' WHERE n = 4", 4),
        ("UPDATE audit SET hash = NULL, prev_hash = NULL", 1),
        (STRIPPED, 1),
        ("DELETE FROM audit WHERE n = 4", 5),
        ("DELETE FROM audit WHERE n < 3", None),
        ("INSERT INTO audit SELECT 7, at, act, key_id, trust_domain, task_id, request_id, peer_uid, details, "
         "(SELECT hash FROM audit WHERE n = 6), hash FROM audit WHERE n = 5", 7),
    ],
)  # fmt: skip
async def test_a_forgery_is_found(store: SqliteStore, path: Path, forgery: str, at: int | None) -> None:
    assert (await verdict(store)).broken is None
    anchor = await store.audit_head()
    sql(path, forgery)
    found = await desk(store).verify(anchor)
    assert found.broken is not None and found.at == at


async def test_who_goes_on_after_a_forgery_does_not_hide_it(store: SqliteStore, path: Path) -> None:
    sql(path, "UPDATE audit SET act = 'other' WHERE n = 6")
    await store.record(audit("later"))
    assert (await verdict(store)).at == 6


async def test_a_cut_end_needs_an_anchor_and_then_is_found(store: SqliteStore, path: Path) -> None:
    anchor = await store.audit_head()
    sql(path, "DELETE FROM audit WHERE n > 4")
    assert (await verdict(store)).broken is None
    assert "before the anchor" in str((await desk(store).verify(anchor)).broken)
    for n in range(4):  # as many again as there were
        await store.record(audit(f"act_{n}"))
    found = await desk(store).verify(anchor)
    assert found.at == 6 and "another one than the anchor says" in str(found.broken)


@pytest.mark.parametrize("forgery", ["DELETE FROM audit WHERE n > 4", "DELETE FROM audit", STRIPPED])
@pytest.mark.parametrize("later", [0, 9])
async def test_the_head_that_the_desk_has_told_is_an_anchor_of_its_own(
    store: SqliteStore, path: Path, forgery: str, later: int
) -> None:
    kept, early = desk(store), await store.audit_head()
    await store.record(audit("act"))
    await kept.tell_head()
    assert (await kept.verify()).broken is None and (await kept.verify(early)).broken is None
    sql(path, forgery)
    for _ in range(later):
        await store.record(audit("act"))
    assert (await kept.verify()).broken is not None


async def test_that_all_seals_were_taken_away_is_told_at_the_start_and_by_who_verifies(
    store: SqliteStore, path: Path
) -> None:
    sql(path, STRIPPED)
    told: list[tuple[str, dict[str, object]]] = []
    kept = desk(store, told=told)
    await kept._look_at_the_last()
    assert told == [("audit.strange", {"record": 1})] and kept.check()["audit"].status is Check.FAIL
    await store.record(audit("later"))  # is written, and covers nothing up
    found = await verdict(store)
    assert (found.broken, found.at, found.records) == ("it has no seal", 1, 7)
    assert await kept.prune(1e9) == 0  # what was left stays, to be looked at


@pytest.mark.parametrize(
    ("forgery", "at"),
    [
        (STRIPPED, 6),
        ("UPDATE audit SET act = 'other' WHERE n = 6", 6),
        ("DELETE FROM audit WHERE n = 6", 6),
        ("DELETE FROM audit WHERE n > 4", 6),
        ("DELETE FROM audit", 6),
        ("UPDATE audit SET act = 'other' WHERE n = 7", 7),
        ("DELETE FROM audit WHERE n = 7", 8),
    ],
)
@pytest.mark.parametrize("later", [0, 9])
async def test_what_is_done_to_the_file_of_a_running_daemon_is_told_within_a_minute(
    store: SqliteStore, path: Path, forgery: str, at: int, later: int
) -> None:
    told: list[tuple[str, dict[str, object]]] = []
    kept = desk(store, told=told)
    await kept.tell_head()
    await store.record(audit("since"))
    await store.record(audit("since"))
    assert not kept.strange
    sql(path, forgery)
    for _ in range(later):
        await store.record(audit("later"))
    for _ in range(2):  # and told once
        await kept.tell_head()
    strange = [fields for name, fields in told if name == "audit.strange"]
    assert strange == [{"record": at}] and kept.check()["audit"].status is Check.FAIL


async def test_that_seals_were_taken_away_is_told_by_the_next_start_though_records_were_written_since(
    store: SqliteStore, path: Path
) -> None:
    sql(path, STRIPPED)
    for _ in range(3):
        await store.record(audit("later"))
    kept = desk(store)
    await kept._look_at_the_last()
    assert kept.strange


async def test_what_is_found_broken_is_in_health_from_then_on(store: SqliteStore, path: Path) -> None:
    told: list[tuple[str, dict[str, object]]] = []
    kept, early = desk(store, told=told), Anchor(n=5, seal=b"of another audit")
    assert (await kept.verify(early)).at == 5
    assert not kept.strange and told == []  # it may be the caller's mistake
    sql(path, "DELETE FROM audit WHERE n < 3")
    assert (await kept.verify(early)).broken is not None
    assert told == [("audit.strange", {"record": None})]
    assert "the chain is not as it was sealed" in kept.check()["audit"].reason


async def test_nothing_is_pruned_while_it_is_verified(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PAGE_RECORDS", 1)
    kept = desk(store)
    verified, pruned = await asyncio.gather(kept.verify(), kept.prune(1e9))
    assert verified.broken is None and pruned == 6 and not kept.strange


async def test_an_empty_audit_is_nothing_strange(path: Path) -> None:
    empty = SqliteStore.open(path, audit_key=KEY)
    kept = desk(empty)
    await kept._look_at_the_last()
    assert not kept.strange and (await kept.verify()).broken is None
    await empty.close()


async def test_all_that_was_pruned_is_no_cut_end(store: SqliteStore) -> None:
    kept = desk(store)
    await kept.tell_head()
    assert await kept.prune(1e9) == 6
    assert (await kept.verify()).broken is None


async def test_nobody_inserts_without_the_key(store: SqliteStore, path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, pytest.raises(sqlite3.OperationalError, match="audit_seal"):
        db.execute("INSERT INTO audit (n, at, act, details, hash) VALUES (9, 1, 'x', '{}', audit_seal('', ''))")


async def test_the_key_is_not_in_the_file(store: SqliteStore, path: Path) -> None:
    await store.close()
    assert KEY not in path.read_bytes()


async def test_long_chains_are_verified_in_pages(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PAGE_RECORDS", 4)
    assert (await verdict(store)).records == 6
    await store.record(audit("act"))
    await store.record(audit("act"))
    assert (await verdict(store)).records == 8


async def test_the_head_is_told_once_and_each_day_prunes(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "ANCHOR_S", 0.001)
    told: list[tuple[str, dict[str, object]]] = []
    kept = desk(store, told=told)
    head = await store.audit_head()
    running = asyncio.ensure_future(kept.run())
    async with asyncio.timeout(PATIENCE_S):
        while len(told) < 3:
            await asyncio.sleep(0.001)
    after = await store.audit_head()
    running.cancel()
    assert told[:3] == [
        ("audit.head", {"head": str(head)}),
        ("audit.pruned", {"records": 6}),
        ("audit.head", {"head": str(after)}),
    ]
    assert (kept.check()["audit"].details or {})["head"] == str(after) and (await verdict(store)).broken is None


async def test_a_chain_of_another_key_is_told_in_health(store: SqliteStore) -> None:
    told: list[tuple[str, dict[str, object]]] = []
    strange = desk(store, b"another", told)
    running = asyncio.ensure_future(strange.run())
    async with asyncio.timeout(PATIENCE_S):
        while not told:
            await asyncio.sleep(0.001)
    running.cancel()
    assert told[0] == ("audit.strange", {"record": 1})
    report = strange.check()["audit"]
    assert report.status is Check.FAIL and "record 1 is not as it was sealed with this audit.key" in report.reason


async def test_a_store_that_cannot_be_read_is_no_broken_chain(store: SqliteStore) -> None:
    await store.close()
    with pytest.raises(StoreUnavailable):
        await verdict(store)
