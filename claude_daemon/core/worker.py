"""A worker's states: one Claude Code process from spawn to burial."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from claude_daemon.core.errors import IllegalMove

MAX_WORKERS: Final = 1024
"""Each takes a third of a gigabyte: a number with a zero too many is caught here and not by the machine."""
CRASH_WINDOW_S: Final = 600.0
"""How far back deaths are counted for health: a crash loop is known in minutes, and forgotten as soon."""


class WorkerState(StrEnum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    RECYCLING = "recycling"
    RETIRING = "retiring"
    GONE = "gone"


_W = WorkerState
MOVES: Mapping[WorkerState, frozenset[WorkerState]] = {
    _W.STARTING: frozenset({_W.IDLE, _W.RETIRING, _W.GONE}),
    _W.IDLE: frozenset({_W.BUSY, _W.RETIRING, _W.GONE}),
    _W.BUSY: frozenset({_W.RECYCLING, _W.IDLE, _W.RETIRING, _W.GONE}),
    _W.RECYCLING: frozenset({_W.IDLE, _W.RETIRING, _W.GONE}),
    _W.RETIRING: frozenset({_W.GONE}),
    _W.GONE: frozenset(),
}

LIVE = frozenset({_W.IDLE, _W.BUSY, _W.RECYCLING})


class Start(StrEnum):
    """How a turn found its process: told in ``task.started`` and counted.

    ``lent``: a warm process that is bound otherwise; the broker puts this turn's system prompt and schema in place.
    """

    WARM = "warm"
    LENT = "lent"
    SPARE = "spare"
    COLD = "cold"


def advance(state: WorkerState, to: WorkerState) -> WorkerState:
    """The next state; raises IllegalMove for a move that :data:`MOVES` does not have."""
    if to not in MOVES[state]:
        raise IllegalMove(f"worker: {state} -> {to}")
    return to
