"""What workers leave behind: orphans that became the daemon's own children, because it is a subreaper (Linux).

A child that nobody here started is a stray. One that carries a worker's nonce is known at once for what it is; one
that wiped its environment is a stray if it is still unknown a while later, because a child that is just being started
is unknown for a moment too. Elsewhere than on Linux there is nothing to see, and nothing is done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Final

from claude_daemon.engine.ledger import nonce_of, start_time
from claude_daemon.engine.process import children_of

# A child that is being started is known after some passes of the loop; on a machine at its limit that takes a while.
GRACE_S: Final = 5.0


class Strays:
    """``known`` tells the pids of all children that are somebody's, ``nonces`` those of the living workers.

    Only for a process that is the daemon and nothing else: whoever starts children of their own must be ``known``.
    """

    def __init__(
        self,
        known: Callable[[], set[int]],
        nonces: Callable[[], set[str]],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._known = known
        self._nonces = nonces
        self._monotonic = monotonic
        self._suspects: dict[int, tuple[str | None, float]] = {}  # start time, and when it was first seen

    def sweep(self, *, last: bool = False) -> list[int]:
        """Kills strays and reaps what is left of them; tells the pids killed. ``last``: nothing is started any more."""
        unknown = {pid: self._since(pid) for pid in children() - self._known()}
        killed = [pid for pid in unknown if self._is_stray(pid, *unknown[pid], last) and _kill(pid)]
        for pid, (started, _) in unknown.items():
            if started is None or pid in killed:
                _reap(pid, suspected=pid in self._suspects or pid in killed)
        self._suspects = unknown
        return killed

    def _since(self, pid: int) -> tuple[str | None, float]:
        """The start time of a child, and when it was first seen: a pid may have been another's before."""
        started = start_time(pid)
        before = self._suspects.get(pid)
        return before if before is not None and before[0] == started else (started, self._monotonic())

    def _is_stray(self, pid: int, started: str | None, since: float, last: bool) -> bool:
        if started is None:
            return False  # a zombie: only to be reaped
        if last or self._monotonic() - since >= GRACE_S:
            return True
        nonce = nonce_of(pid)
        return nonce is not None and nonce not in self._nonces()


def children() -> set[int]:
    """The pids of this process's children, zombies among them (Linux; elsewhere none)."""
    return children_of("self")


def _kill(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


def _reap(pid: int, *, suspected: bool) -> None:
    """A zombie whose parent may just be about to reap it itself is left alone the first time."""
    if suspected:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
