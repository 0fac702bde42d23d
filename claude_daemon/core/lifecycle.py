"""The daemon's states and the moves between them (LIFECYCLE.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum

from claude_daemon.core.errors import IllegalMove


class DaemonState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    DRAINING = "draining"
    DRAINED = "drained"
    STOPPING = "stopping"


_S = DaemonState
MOVES: Mapping[DaemonState, frozenset[DaemonState]] = {
    _S.STARTING: frozenset({_S.READY, _S.DEGRADED, _S.STOPPING}),
    _S.READY: frozenset({_S.DEGRADED, _S.DRAINING, _S.STOPPING}),
    _S.DEGRADED: frozenset({_S.READY, _S.DRAINING, _S.STOPPING}),
    _S.DRAINING: frozenset({_S.DRAINED, _S.STOPPING, _S.READY, _S.DEGRADED}),
    _S.DRAINED: frozenset({_S.STOPPING, _S.READY, _S.DEGRADED}),
    _S.STOPPING: frozenset(),
}

ADMITTING = frozenset({_S.READY, _S.DEGRADED})


def advance(state: DaemonState, to: DaemonState) -> DaemonState:
    """The next state; raises IllegalMove for a move that :data:`MOVES` does not have."""
    if to not in MOVES[state]:
        raise IllegalMove(f"daemon: {state} -> {to}")
    return to


class Check(StrEnum):
    """The result of one health check; the worst of all is the daemon's."""

    PASS = "pass"  # noqa: S105 - a health status, not a password
    WARN = "warn"
    FAIL = "fail"


def worst(checks: Iterable[Check]) -> Check:
    """The worst of all; of none, pass."""
    order = [Check.PASS, Check.WARN, Check.FAIL]
    return max(checks, key=order.index, default=Check.PASS)
