"""LIFECYCLE.md's table, the cache, and waiting for readiness."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import pairwise

import pytest

from claude_daemon.core.errors import IllegalMove
from claude_daemon.core.lifecycle import MOVES, Check, DaemonState
from claude_daemon.ports import HealthReport
from claude_daemon.service.health import CACHE_S, CHANGES_KEPT, Health
from tests.service.doubles import PATIENCE_S, Clock

S = DaemonState
WAYS = {
    S.STARTING: [],
    S.READY: [S.READY],
    S.DEGRADED: [S.DEGRADED],
    S.DRAINING: [S.READY, S.DRAINING],
    S.DRAINED: [S.READY, S.DRAINING, S.DRAINED],
    S.STOPPING: [S.STOPPING],
}


class Setting:
    """A health with one source, whose checks a test sets."""

    def __init__(self, **checks: Check) -> None:
        self.clock = Clock()
        self.read = 0
        self.reports = {name: HealthReport(status=status, reason=f"{name} is so") for name, status in checks.items()}
        self.moves: list[tuple[DaemonState, DaemonState]] = []
        self.health = Health(
            version="1",
            monotonic=self.clock,
            born=self.clock.now,
            sources=[self.source],
            changed=lambda old, new: self.moves.append((old, new)),
        )

    def source(self) -> Mapping[str, HealthReport]:
        self.read += 1
        return self.reports

    def set(self, **checks: Check) -> None:
        self.reports = {name: HealthReport(status=status, reason=f"{name} is so") for name, status in checks.items()}

    def at(self, state: DaemonState) -> Health:
        for step in WAYS[state]:
            self.health.move(step)
        return self.health


def test_the_ways_of_this_file_are_allowed() -> None:
    for way in WAYS.values():
        assert all(to in MOVES[state] for state, to in pairwise([S.STARTING, *way]))


@pytest.mark.parametrize(
    ("state", "checks", "live", "ready", "startup", "overall"),
    [
        (S.STARTING, {"engine": Check.PASS}, True, False, False, Check.FAIL),
        (S.READY, {"engine": Check.PASS}, True, True, True, Check.PASS),
        (S.DEGRADED, {"engine": Check.WARN}, True, True, True, Check.WARN),
        (S.DEGRADED, {"engine": Check.PASS, "worker_pool": Check.FAIL}, True, True, True, Check.WARN),
        (S.DEGRADED, {"engine": Check.FAIL}, True, False, True, Check.FAIL),
        (S.DRAINING, {"engine": Check.PASS}, True, False, True, Check.FAIL),
        (S.DRAINED, {"engine": Check.PASS}, True, False, True, Check.FAIL),
        (S.STOPPING, {"engine": Check.PASS}, True, False, True, Check.FAIL),
    ],
)
def test_the_probes_say_what_the_table_says(
    state: DaemonState, checks: dict[str, Check], live: bool, ready: bool, startup: bool, overall: Check
) -> None:
    health = Setting(**checks).at(state)
    assert (health.live().ok, health.ready().ok, health.startup().ok) == (live, ready, startup)
    assert health.overall() is overall
    assert health.document(details=False)["status"] == overall


def test_a_blocking_failure_says_what_fails() -> None:
    probe = Setting(engine=Check.FAIL).at(S.DEGRADED).ready()
    assert probe.body() == {"status": "fail", "state": "degraded", "reason": "engine: engine is so"}


def test_the_state_follows_the_checks_while_work_is_taken_and_only_then() -> None:
    setting = Setting(engine=Check.PASS)
    health = setting.health
    health.settle()
    setting.set(engine=Check.WARN)
    health.note()
    health.checks()
    health.move(S.DRAINING)
    setting.set(engine=Check.PASS)
    health.note()
    health.checks()
    health.settle()
    assert setting.moves == list(pairwise([S.STARTING, S.READY, S.DEGRADED, S.DRAINING, S.READY]))


def test_an_illegal_move_raises_and_tells_nobody() -> None:
    setting = Setting()
    setting.at(S.STOPPING)
    before = list(setting.moves)
    with pytest.raises(IllegalMove):
        setting.health.move(S.READY)
    assert (setting.health.state, setting.moves) == (S.STOPPING, before)


def test_staying_is_no_move() -> None:
    setting = Setting()
    setting.health.move(S.STARTING)
    assert setting.moves == []


def test_checks_are_read_once_a_second_however_many_ask() -> None:
    setting = Setting(engine=Check.PASS)
    health = setting.at(S.READY)
    for _ in range(100):
        health.ready()
        health.document(details=True)
    assert setting.read == 1
    setting.clock.now += CACHE_S / 2
    health.ready()
    assert setting.read == 1
    setting.clock.now += CACHE_S / 2
    health.ready()
    assert setting.read == 2


def test_what_is_noted_is_read_again_at_once() -> None:
    setting = Setting(engine=Check.PASS)
    health = setting.at(S.READY)
    assert health.ready().ok
    setting.set(engine=Check.FAIL)
    assert health.ready().ok  # cached
    health.note()
    assert not health.ready().ok


def test_the_document_tells_details_only_to_those_who_may_see_them() -> None:
    setting = Setting(engine=Check.PASS)
    setting.reports["engine"] = HealthReport(status=Check.PASS, reason="fine", details={"cli": "/bin/claude"})
    health = setting.at(S.READY)
    setting.clock.now += 2
    assert health.document(details=False) == {
        "status": "pass",
        "state": "ready",
        "version": "1",
        "uptime_seconds": 2.0,
        "checks": {"engine": {"status": "pass"}},
    }
    assert health.document(details=True)["checks"]["engine"] == {
        "status": "pass",
        "reason": "fine",
        "cli": "/bin/claude",
    }


def test_the_last_changes_are_told_with_their_reasons_to_those_who_may_see_them() -> None:
    setting = Setting(engine=Check.PASS, disk=Check.WARN)
    setting.health.now = lambda: 5000.0 + setting.clock.now
    told: list[str] = []
    setting.health.told = lambda change: told.append(change.what)
    setting.health.settle()
    setting.set(engine=Check.FAIL, disk=Check.PASS)
    setting.clock.now += CACHE_S
    document = setting.health.document(details=True)
    at = 6000.0
    assert document["changes"] == [
        {"at": at, "what": "state", "from": "starting", "to": "degraded", "reason": "disk: disk is so"},
        {"at": at + 1, "what": "engine", "from": "pass", "to": "fail", "reason": "engine is so"},
        {"at": at + 1, "what": "disk", "from": "warn", "to": "pass", "reason": "disk is so"},
    ]
    assert told == ["engine", "disk"]
    setting.health.move(S.STOPPING)
    setting.set(engine=Check.WARN)  # its workers are gone, as they should be
    setting.health.note()
    assert len(setting.health.document(details=True)["changes"]) == 4 and told == ["engine", "disk"]
    assert "changes" not in setting.health.document(details=False)


def test_of_changes_only_the_last_are_kept() -> None:
    setting = Setting(engine=Check.PASS)
    health = setting.at(S.READY)
    for number in range(CHANGES_KEPT + 5):
        setting.set(engine=Check.WARN if number % 2 else Check.FAIL)
        health.note()
        health.checks()
    changes = health.document(details=True)["changes"]
    assert (len(changes), changes[-1]["from"], changes[-1]["to"]) == (CHANGES_KEPT, "warn", "fail")


async def test_waiting_for_readiness_ends_when_it_comes() -> None:
    setting = Setting(engine=Check.PASS)
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(setting.health.wait_ready(PATIENCE_S)) for _ in range(3)]
        await asyncio.sleep(0)
        setting.health.settle()
    assert [wait.result() for wait in waits] == [True, True, True]


async def test_waiting_for_readiness_ends_with_its_time() -> None:
    assert await Setting(engine=Check.FAIL).at(S.DEGRADED).wait_ready(0.01) is False


async def test_waiting_for_readiness_ends_at_once_when_the_daemon_stops() -> None:
    setting = Setting(engine=Check.PASS)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        wait = group.create_task(setting.health.wait_ready(3600))
        await asyncio.sleep(0)
        setting.health.move(S.STOPPING)
    assert wait.result() is False


async def test_a_failure_that_goes_by_itself_ends_the_waiting_too() -> None:
    setting = Setting(engine=Check.FAIL)
    health = setting.at(S.DEGRADED)
    async with asyncio.TaskGroup() as group:
        wait = group.create_task(health.wait_ready(PATIENCE_S))
        await asyncio.sleep(0)
        setting.set(engine=Check.PASS)  # and nobody says so
        setting.clock.now += CACHE_S
    assert wait.result() is True


async def test_the_watch_moves_the_state_without_anybody_asking() -> None:
    setting = Setting(engine=Check.PASS)
    setting.health.settle()
    watch = asyncio.ensure_future(setting.health.watch())
    try:
        await asyncio.sleep(0)
        setting.set(engine=Check.WARN)
        setting.health.note()
        async with asyncio.timeout(PATIENCE_S):
            while setting.health.state is S.READY:
                await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert setting.read < 10  # its own move does not keep it busy
    finally:
        watch.cancel()
        await asyncio.wait({watch})
