"""The pool in words and numbers, for people and for health; pure but for the workers' memory."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any, Final

from claude_daemon.core.lifecycle import Check
from claude_daemon.core.task import Lane
from claude_daemon.core.worker import LIVE, WorkerState
from claude_daemon.engine.failures import Failures
from claude_daemon.engine.worker import Worker

_CRASH_MEMORY_S: Final = 5.0  # LIFECYCLE.md: worker_pool warns while one crashed in the last 5 s


def counts(workers: Collection[Worker]) -> dict[str, int]:
    """How many there are of each kind: ``spares`` are unbound and idle."""
    states = [worker.state for worker in workers]
    return {
        "live": sum(state in LIVE for state in states),
        "busy": states.count(WorkerState.BUSY),
        "idle": states.count(WorkerState.IDLE),
        "starting": states.count(WorkerState.STARTING),
        "spares": sum(w.state is WorkerState.IDLE and w.binding is None for w in workers),
    }


def status(counted: Mapping[str, int], failures: Failures, now: float) -> tuple[Check, str]:
    """How the pool is, and why. ``counted`` is :func:`counts` with the pool's ``limit``."""
    if counted["live"] == 0 and failures.hopeless:
        return Check.FAIL, f"no worker can be started: {failures.last_error}"
    if now - failures.last_crash_at < _CRASH_MEMORY_S:
        return Check.WARN, f"a worker crashed in the last {_CRASH_MEMORY_S:g} s: {failures.last_error}"
    if counted["live"] < counted["limit"]:
        return Check.WARN, f"{counted['live']} of {counted['limit']} workers live"
    return Check.PASS, ""


def listing(workers: Collection[Worker], lane: Lane) -> list[dict[str, Any]]:
    """Every worker of a lane, oldest first."""
    return [_listed(worker, lane) for worker in sorted(workers, key=lambda worker: worker.born)]


def _listed(worker: Worker, lane: Lane) -> dict[str, Any]:
    rss = worker.rss_bytes()
    return {
        "id": worker.id,
        "pid": worker.process.pid if worker.process is not None else None,
        "state": worker.state.value,
        "lane": lane.value,
        "bound": worker.binding.label if worker.binding is not None else None,
        "turns": worker.turns,
        "age_seconds": round(time.monotonic() - worker.born, 1),
        "rss_mb": rss // 2**20 if rss is not None else None,
        "model": worker.model,
    }
