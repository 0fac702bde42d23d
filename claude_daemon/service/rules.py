"""The rules by which what is known of a part becomes pass, warn or fail (docs/health.md); pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from claude_daemon.core.lifecycle import Check, worst
from claude_daemon.core.worker import CRASH_WINDOW_S
from claude_daemon.ports import HealthReport, StoreStatus

CRASHES_WARN: Final = 5
"""In :data:`~claude_daemon.core.worker.CRASH_WINDOW_S`: one is an accident, and replaced in half a second."""
QUEUE_AGE_WARN_S: Final = 600.0
"""Ten minutes of ageing bring a task before new chats: who still waits then waits for lack of workers."""
QUEUE_SHARE_WARN: Final = 0.9
"""Of ``queue.max_queued``; then submissions are refused."""
LAG_WARN_S: Final = 1.0
"""A probe, a ping and a first delta wait for so long too."""
LAG_FAIL_S: Final = 5.0
"""Load balancers and clients give up before that; a supervisor's watchdog waits three times as long."""
COMMIT_WARN_MS: Final = 1000.0
"""The worst commit of the last minute; 2 to 20 ms is usual, and who submits waits for it."""
WAL_WARN_BYTES: Final = 256 * 1024 * 1024
"""Four times what it is cut back to: a read or a copy has kept it from being emptied for long."""


def made_worse(report: HealthReport, status: Check, reason: str) -> HealthReport:
    """With another reason to be concerned; the worse status counts, and all reasons are told."""
    told = "; ".join(text for text in (report.reason, reason) if text)
    return replace(report, status=worst((report.status, status)), reason=told)


def with_details(report: HealthReport, more: Mapping[str, Any]) -> HealthReport:
    return replace(report, details={**(report.details or {}), **more})


def engine(report: HealthReport, *, crashes: int) -> HealthReport:
    """``crashes``: of worker processes in the last :data:`~claude_daemon.core.worker.CRASH_WINDOW_S`."""
    report = with_details(report, {"crashes_10min": crashes})
    if crashes < CRASHES_WARN:
        return report
    return made_worse(report, Check.WARN, f"{crashes} workers have crashed in the last {CRASH_WINDOW_S / 60:.0f} min")


@dataclass(frozen=True, slots=True, kw_only=True)
class Queue:
    """What waits. ``oldest_seconds``: for how long the one that has waited longest of those who could begin; None for
    none. ``held``: no task is begun, because somebody has said so."""

    waiting: int
    queued: int
    max_queued: int
    oldest_seconds: float | None
    held: bool


def queue(report: HealthReport, found: Queue) -> HealthReport:
    """The pool's report, with what waits for it."""
    oldest = found.oldest_seconds
    told = {
        "waiting": found.waiting,
        "queued": found.queued,
        "oldest_seconds": None if oldest is None else round(oldest, 3),
        "held": found.held,
    }
    report = with_details(report, told)
    if oldest is not None and oldest >= QUEUE_AGE_WARN_S and not found.held:
        report = made_worse(
            report, Check.WARN, f"the oldest of {found.waiting + found.queued} has waited {oldest:.0f} s"
        )
    if found.queued >= QUEUE_SHARE_WARN * found.max_queued:
        report = made_worse(report, Check.WARN, f"{found.queued} of {found.max_queued} tasks are queued: soon no more")
    return report


def event_loop(lag_seconds: float) -> HealthReport:
    """``lag_seconds``: the worst of the last ten seconds."""
    report = HealthReport(status=Check.PASS, details={"lag_seconds": round(lag_seconds, 6)})
    if lag_seconds < LAG_WARN_S:
        return report
    status = Check.FAIL if lag_seconds >= LAG_FAIL_S else Check.WARN
    return made_worse(report, status, f"the event loop stood still for {lag_seconds:.1f} s")


def store(
    status: StoreStatus, *, stall_s: float, commit_warn_ms: float = COMMIT_WARN_MS, wal_warn: int = WAL_WARN_BYTES
) -> HealthReport:
    """``stall_s``: a commit that has been under way for so long counts as none, as it does for who waits for it."""
    details = {"backlog": status.backlog, **status.details}
    report = HealthReport(status=Check.PASS, details=details)
    if status.error is not None:
        return replace(report, status=Check.FAIL, reason=status.error)
    under_way, slowest = details.get("commit_under_way_seconds"), details.get("commit_max_60s_ms")
    if under_way is not None and under_way >= stall_s:
        return replace(report, status=Check.FAIL, reason=f"a commit has been under way for {under_way:.1f} s")
    slow = max(slowest or 0.0, (under_way or 0.0) * 1000)
    if slow >= commit_warn_ms:
        report = made_worse(report, Check.WARN, f"a commit of the last minute took {slow / 1000:.1f} s")
    if (wal := details.get("wal_bytes", 0)) >= wal_warn:
        report = made_worse(
            report, Check.WARN, f"the WAL has {wal // 2**20} MiB: a long read keeps it from being emptied"
        )
    return report
