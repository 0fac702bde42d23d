"""When a process has served for long enough, or has grown too large."""

from __future__ import annotations

import random
import time
from typing import Final

from claude_daemon.engine.worker import Worker

# Those that were started together must not grow old together: each lives up to a fifth less than it may.
_AGE_SPREAD: Final = 0.2


def lifetime(max_age_s: float) -> float:
    """How long one process may live, in seconds."""
    return max_age_s * (1 - _AGE_SPREAD * random.random())  # noqa: S311 - no secret


def worn_out(worker: Worker, *, max_turns: int, max_rss_mb: int) -> str | None:
    """Why the worker should be replaced, None if it is good for another turn."""
    if worker.process is None or worker.process.gone:
        return "crashed"
    if worker.unfit is not None:
        return worker.unfit
    if worker.turns >= max_turns:
        return f"served {worker.turns} turns"
    if time.monotonic() - worker.born >= worker.lifetime_s:
        return f"older than {worker.lifetime_s:.0f} s"
    rss = worker.rss_bytes()
    if rss is not None and rss > max_rss_mb * 2**20 and worker.turns > 0:
        return f"grew to {rss // 2**20} MB"
    return None
