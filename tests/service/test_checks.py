"""Each check of health warns and fails for what it is about: a disk that is full, a commit that hangs, a credential
that is refused. (Those of the engine and of its workers: tests/e2e; budgets: test_budget; Redis: test_redis_link.)"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from claude_daemon.core.errors import Code
from claude_daemon.core.lifecycle import Check
from claude_daemon.core.worker import CRASH_WINDOW_S
from claude_daemon.engine.failures import Failures
from claude_daemon.ports import AuditRecord, HealthReport
from claude_daemon.service import rules
from claude_daemon.service.audit import ANCHOR_LATE_S, UNWRITTEN_S, AuditDesk
from claude_daemon.service.credential import RECENT_S, CredentialStanding
from claude_daemon.service.outside import Outside
from claude_daemon.service.space import Space, disk_check, measured
from claude_daemon.store import SqliteStore
from claude_daemon.store.figures import WORST_S, Figures
from claude_daemon.telemetry.loop_lag import LoopLag
from tests.service.doubles import PATIENCE_S, SUCCEEDED, Clock, Desk, failed
from tests.store.gate import Gate, fill_up, make_room, write

PASS = HealthReport(status=Check.PASS)
MIB = 2**20


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def store(tmp_path: Path, gate: Gate) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore.open(tmp_path / "daemon.db", observer=gate)
    yield opened
    gate.open()
    await opened.close()


# disk

FILL = """
import os, sys
from pathlib import Path
from claude_daemon.service.space import measured
disk = Path(sys.argv[1])
def said():
    print(*measured([disk])[0].judged(), flush=True)
said()
with (disk / "filler").open("wb", buffering=0) as filler:
    filler.write(b"x" * (14 * 2**20 + 2**19))
    said()
    try:
        while True:
            filler.write(b"x" * 4096)
    except OSError:
        said()
(disk / "filler").unlink()
said()
for number in range(3000 - 50):
    (disk / str(number)).touch()
said()
for number in range(900):
    (disk / str(number)).unlink()
said()
"""


def test_a_disk_that_fills_up_warns_and_then_fails(tmp_path: Path) -> None:
    """On a disk of 16 MB and 3000 files, in a mount namespace of its own."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("needs a mount of its own: util-linux has unshare")
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    mount = 'mount -t tmpfs -o size=16m,nr_inodes=3000 tmpfs "$1" && exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", *user, "--mount", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, FILL],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "unshare failed" in done.stderr or "mount: " in done.stderr:
        pytest.skip(f"no mount here: {done.stderr.strip()}")
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert said == [
        "pass ",
        f"warn {tmp_path}: 1 MiB free, 9%",
        f"fail {tmp_path}: 0 MiB free, 0%",
        "pass ",
        f"fail {tmp_path}: room for 49 more files",
        f"warn {tmp_path}: room for 949 more files",
    ]


@pytest.mark.parametrize(
    ("free_mib", "size_mib", "status"),
    [
        (2000, 1_000_000, Check.PASS),  # little of a large disk is still much
        (1000, 1_000_000, Check.WARN),
        (1000, 5_000, Check.PASS),
        (63, 1_000_000, Check.FAIL),
        (63, 6_300, Check.WARN),  # a hundredth is left
        (10, 64, Check.PASS),  # a small disk is not short because it is small
    ],
)
def test_a_disk_is_short_by_its_room_and_its_share(free_mib: int, size_mib: int, status: Check) -> None:
    space = Space(paths=(Path("/here"),), free_bytes=free_mib * MIB, size_bytes=size_mib * MIB, free_inodes=0, inodes=0)
    assert space.judged()[0] is status


async def test_a_disk_that_does_not_answer_fails_the_check_and_holds_up_nobody(tmp_path: Path) -> None:
    clock, answer, began = Clock(), threading.Event(), threading.Event()

    def read() -> Sequence[Space]:
        began.set()
        assert answer.wait(PATIENCE_S)
        return measured([tmp_path])

    outside: Outside[Sequence[Space]] = Outside(read, name="test", monotonic=clock, timeout_seconds=2.0)
    assert disk_check(outside).status is Check.PASS
    asking = asyncio.ensure_future(outside.ask())
    assert await asyncio.to_thread(began.wait, PATIENCE_S)
    clock.now += 1.9
    assert disk_check(outside).status is Check.PASS
    clock.now += 0.1
    report = disk_check(outside)
    assert (report.status, report.reason) == (Check.FAIL, "a file system has not answered for 2 s")
    answer.set()
    await asking
    assert disk_check(outside).details is not None


async def test_a_disk_that_cannot_be_measured_fails_the_check() -> None:
    def read() -> Sequence[Space]:
        raise OSError(5, "Input/output error")

    outside: Outside[Sequence[Space]] = Outside(read, name="test", monotonic=Clock())
    await outside.ask()
    report = disk_check(outside)
    assert (report.status, "Input/output error" in report.reason) == (Check.FAIL, True)


async def test_a_bug_in_a_reading_is_not_swallowed() -> None:
    def read() -> Sequence[Space]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Outside(read, name="test", monotonic=Clock()).ask()


def test_what_is_on_one_file_system_is_told_together(tmp_path: Path) -> None:
    found = measured([tmp_path, tmp_path / "not" / "yet", tmp_path])
    assert [space.paths for space in found] == [(tmp_path, tmp_path / "not" / "yet")]
    assert 0 < found[0].free_bytes <= found[0].size_bytes


# store


async def test_a_commit_that_hangs_warns_and_then_fails(store: SqliteStore, gate: Gate) -> None:
    await store.pause(False)
    assert rules.store(store.status(), stall_s=10.0).status is Check.PASS
    gate.shut()
    writing = asyncio.ensure_future(store.pause(False))
    await gate.stopped()
    async with asyncio.timeout(PATIENCE_S):
        while (store.status().details["commit_under_way_seconds"] or 0.0) < 0.002:
            await asyncio.sleep(0.001)
    warned = rules.store(store.status(), stall_s=10.0, commit_warn_ms=2.0)
    assert (warned.status, "a commit of the last minute took" in warned.reason) == (Check.WARN, True)
    report = rules.store(store.status(), stall_s=0.001)
    assert (report.status, "a commit has been under way for" in report.reason) == (Check.FAIL, True)
    gate.open()
    await writing
    slow = rules.store(store.status(), stall_s=0.001, commit_warn_ms=1.0)  # over, and of the last minute
    assert (slow.status, "a commit of the last minute took" in slow.reason) == (Check.WARN, True)


async def test_a_full_disk_fails_the_store_and_the_audit_until_there_is_room(store: SqliteStore) -> None:
    desk = AuditDesk(store, b"", retention_days=1, now=lambda: 1e9, told=lambda name, fields: None)
    await fill_up(store)
    record = AuditRecord(at=1.0, act="test", key_id="local", details={"much": "x" * 100_000})
    assert not await desk.record(record)
    status = store.status()
    assert rules.store(status, stall_s=10.0).status is Check.FAIL
    audit = desk.check(status.error)["audit"]
    assert (audit.status, audit.reason.startswith("nothing can be recorded: ")) == (Check.FAIL, True)
    await make_room(store)
    assert await store.check()
    assert await desk.record(record)
    assert rules.store(store.status(), stall_s=10.0).status is Check.PASS
    audit = desk.check(store.status().error)["audit"]
    assert (audit.status, audit.reason) == (
        Check.WARN,
        "1 records of the last 10 min could not be written; the log has them",
    )


async def test_a_long_read_lets_the_wal_grow(store: SqliteStore) -> None:
    with closing(sqlite3.connect(store.path)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM meta").fetchall()
        for _ in range(3):
            await write(store, lambda db: db.execute("CREATE TABLE IF NOT EXISTS junk (x)"))
            await write(store, lambda db: db.execute("INSERT INTO junk VALUES (zeroblob(2000000))"))
        report = rules.store(store.status(), stall_s=10.0, wal_warn=5 * MIB)
    assert (report.status, report.reason) == (Check.WARN, "the WAL has 6 MiB: a long read keeps it from being emptied")


async def test_the_last_backup_is_known_to_the_next_daemon(store: SqliteStore) -> None:
    assert store.status().details["backed_up_at"] is None
    await store.backed_up(1700000000.5)
    assert store.status().details["backed_up_at"] == 1700000000.5
    await store.close()
    again = SqliteStore.open(store.path)
    assert again.status().details["backed_up_at"] == 1700000000
    await again.close()


def test_a_slow_commit_is_told_of_for_a_minute() -> None:
    clock = Clock()
    figures = Figures(clock)
    for seconds in (0.25, 2.0, 0.5):
        figures.began()
        clock.now += seconds
        figures.committed(0)
    assert figures.read()["commit_max_60s_ms"] == 2000.0
    clock.now += WORST_S
    assert figures.read()["commit_max_60s_ms"] == 500.0
    clock.now += 1.0
    assert figures.read()["commit_max_60s_ms"] is None
    figures.began()
    clock.now += 3.0
    assert figures.read()["commit_under_way_seconds"] == 3.0
    figures.failed()
    assert figures.read()["commit_under_way_seconds"] is None


# audit


async def test_a_head_that_is_not_told_any_more_warns(store: SqliteStore) -> None:
    clock = Clock()
    desk = AuditDesk(store, b"", retention_days=1, now=lambda: 1e9, told=lambda name, fields: None, monotonic=clock)
    await desk.tell_head()
    clock.now += ANCHOR_LATE_S
    report = desk.check()["audit"]
    assert (report.status, report.reason) == (Check.WARN, "the head has not been told to the log for 180 s")
    await desk.tell_head()
    assert desk.check()["audit"].status is Check.PASS


async def test_a_record_that_was_lost_is_worth_a_warning_for_a_while(store: SqliteStore) -> None:
    clock = Clock()
    desk = AuditDesk(store, b"", retention_days=1, now=lambda: 1e9, told=lambda name, fields: None, monotonic=clock)
    await store.close()
    assert not await desk.record(AuditRecord(at=1.0, act="test", key_id="local"))
    assert desk.check()["audit"].status is Check.WARN
    clock.now += UNWRITTEN_S
    assert (desk.check()["audit"].details or {})["unwritten_10min"] == 0


# credential


def test_a_credential_that_is_refused_fails_until_something_succeeds_and_warns_for_a_while() -> None:
    clock = Clock()
    standing = CredentialStanding(monotonic=clock)
    assert standing.judged() == (Check.PASS, "")
    assert standing.ended(failed(Code.UPSTREAM_CREDENTIAL)) and not standing.ended(failed(Code.UPSTREAM_CREDENTIAL))
    assert not standing.ended(failed(Code.UPSTREAM_ERROR))
    assert standing.judged()[0] is Check.FAIL
    clock.now += 10 * RECENT_S  # nobody has tried since: it is as it was
    assert standing.judged()[0] is Check.FAIL
    assert standing.ended(failed(Code.UPSTREAM_CREDENTIAL)) is False
    assert standing.ended(SUCCEEDED) and not standing.ended(SUCCEEDED)
    assert (standing.judged()[0], standing.refused_recently) == (Check.WARN, 1)
    clock.now += RECENT_S
    assert standing.judged() == (Check.PASS, "")


def test_of_another_credential_nothing_is_known() -> None:
    standing = CredentialStanding(monotonic=Clock())
    standing.ended(failed(Code.UPSTREAM_CREDENTIAL))
    standing.renewed()
    assert standing.judged() == (Check.PASS, "")


# engine, queue, event loop


def test_workers_that_crash_again_and_again_warn() -> None:
    failures, now = Failures(), 1000.0
    for number in range(rules.CRASHES_WARN):
        assert rules.engine(PASS, crashes=failures.recent.count(now + number)).status is Check.PASS
        failures.crashed("it died", now + number, 0.5, lived_seconds=100.0, turns=3)
    now += rules.CRASHES_WARN
    report = rules.engine(PASS, crashes=failures.recent.count(now))
    assert (report.status, report.reason) == (Check.WARN, "5 workers have crashed in the last 10 min")
    assert failures.recent.count(now + CRASH_WINDOW_S) == 0


def found(desk: Desk, **changes: object) -> rules.Queue:
    dispatcher = desk.dispatcher
    facts = {
        "waiting": dispatcher.waiting,
        "queued": dispatcher.queued,
        "max_queued": 10,
        "oldest_seconds": dispatcher.oldest_seconds,
        "held": dispatcher.held,
    }
    return rules.Queue(**{**facts, **changes})  # type: ignore[arg-type]


async def test_who_waits_too_long_for_a_worker_is_worth_a_warning() -> None:
    async with Desk() as desk:
        assert desk.dispatcher.oldest_seconds is None
        first, second = desk.submit(), desk.submit()
        desk.clock.now += rules.QUEUE_AGE_WARN_S - 1
        assert rules.queue(PASS, found(desk)).status is Check.PASS
        desk.clock.now += 1
        report = rules.queue(PASS, found(desk))
        assert (report.status, "has waited 600 s" in report.reason) == (Check.WARN, True)
        assert rules.queue(PASS, found(desk, held=True)).status is Check.PASS  # somebody has said so
        for run in (first, second):
            desk.dispatcher.cancel(run)


def test_a_queue_that_is_nearly_full_warns() -> None:
    full = rules.Queue(waiting=0, queued=9, max_queued=10, oldest_seconds=None, held=False)
    report = rules.queue(HealthReport(status=Check.FAIL, reason="no worker can be started"), full)
    assert report.status is Check.FAIL
    assert report.reason == "no worker can be started; 9 of 10 tasks are queued: soon no more"


async def test_a_loop_that_stands_still_warns_and_then_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "LAG_WARN_S", 0.02)
    monkeypatch.setattr(rules, "LAG_FAIL_S", 10.0)
    lag = LoopLag()
    lag.start()
    try:
        time.sleep(0.15)
        assert rules.event_loop(lag.recent_seconds).status is Check.WARN
        monkeypatch.setattr(rules, "LAG_FAIL_S", 0.03)
        assert rules.event_loop(lag.recent_seconds).status is Check.FAIL
    finally:
        lag.stop()
