"""docs/health.md tells the rules that are in force."""

from __future__ import annotations

import re
from pathlib import Path

from claude_daemon.core.worker import CRASH_WINDOW_S
from claude_daemon.engine import report
from claude_daemon.service import audit, budget, credential, outside, rules, space
from claude_daemon.service.health import BLOCKING, CHANGES_KEPT
from claude_daemon.store.redis.link import Pace
from claude_daemon.telemetry import sink
from tests.e2e.test_health import CHECKS

PAGE = (Path(__file__).parent.parent / "docs" / "health.md").read_text()
CHECKS_TOLD = PAGE.partition("## The checks")[2].partition("\n## ")[0]
ROWS = {match[1]: match[0] for match in re.finditer(r"^\| `(\w+)`[^|]*\|.*\|$", CHECKS_TOLD, re.MULTILINE)}
MIB = 2**20


def test_every_check_has_a_row_and_the_blocking_ones_say_so() -> None:
    assert set(ROWS) == CHECKS | {"redis"}
    assert {name for name, row in ROWS.items() if "(blocking)" in row} == BLOCKING


def test_the_numbers_are_those_of_the_code() -> None:
    told = {
        "engine": [f"{rules.CRASHES_WARN} workers have crashed in the last {CRASH_WINDOW_S / 60:.0f} min"],
        "worker_pool": [
            f"one crashed in the last {report._CRASH_MEMORY_S:.0f} s",
            f"waited for a worker for {rules.QUEUE_AGE_WARN_S:.0f} s",
            f"{rules.QUEUE_SHARE_WARN:.0%} of".replace("%", " %"),
        ],
        "store": [f"60 s took {rules.COMMIT_WARN_MS / 1000:.0f} s", f"the WAL has {rules.WAL_WARN_BYTES // MIB} MiB"],
        "redis": [f"longer than {Pace().slow_s * 1000:.0f} ms"],
        "audit": [f"the last {audit.UNWRITTEN_S / 60:.0f} min", f"to the log for {audit.ANCHOR_LATE_S:.0f} s"],
        "budgets": [f"{budget.WARN_PERCENT} %"],
        "auth": [f"in the last {credential.RECENT_S:.0f} s"],
        "disk": [
            f"less than {space.WARN_BYTES // 2**30} GiB *and* less than {space.WARN_SHARE:.0%}".replace("%", " %"),
            f"fewer than {space.WARN_INODES} files",
            f"less than {space.FAIL_BYTES // MIB} MiB *and* less than {space.FAIL_SHARE:.0%}".replace("%", " %"),
            f"fewer than {space.FAIL_INODES} files",
            f"not answered for {outside.TIMEOUT_S:.0f} s",
        ],
        "event_loop": [f"stood still for {rules.LAG_WARN_S:.0f} s", f"for {rules.LAG_FAIL_S:.0f} s"],
        "log": [f"less than {sink.SCARCE_BYTES // MIB} MiB", f"until {sink.ENOUGH_BYTES // MIB} MiB"],
    }
    for name, phrases in told.items():
        for phrase in phrases:
            assert phrase in ROWS[name], (name, phrase)
    assert f"the last {CHANGES_KEPT} changes" in PAGE
