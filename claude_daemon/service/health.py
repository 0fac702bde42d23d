"""How the daemon is: its checks, their worst, and the three probes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from claude_daemon.core.lifecycle import ADMITTING, Check, DaemonState, advance, worst
from claude_daemon.ports import Clock, HealthReport
from claude_daemon.service.hint import Hint

# Checks are read again after this time, so that a probe storm costs one reading a second.
CACHE_S: Final = 1.0
# Checks that tell nobody when they change (a crash that is old enough to be forgotten) show in the state after so long.
WATCH_S: Final = 5.0
# Changes of the state and of checks that are told: a day of an ordinary daemon, some minutes of one that flaps.
CHANGES_KEPT: Final = 32
# A failure of these means that no work can be done at all.
BLOCKING: Final = frozenset({"engine", "store"})
# While it starts or ends, a part that is not there (yet) is no news.
_PASSING: Final = frozenset({DaemonState.STARTING, DaemonState.STOPPING})

Source = Callable[[], Mapping[str, HealthReport]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A probe's answer: ``ok`` is 200, else 503."""

    ok: bool
    state: DaemonState
    reason: str = ""

    def body(self) -> dict[str, Any]:
        status = Check.PASS if self.ok else Check.FAIL
        return {"status": status.value, "state": self.state.value, "reason": self.reason}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """``what`` is ``state``, or the name of a check; ``at`` seconds since the epoch. ``old`` None: it is new."""

    at: float
    what: str
    old: str | None
    new: str
    reason: str

    def document(self) -> dict[str, Any]:
        return {"at": self.at, "what": self.what, "from": self.old, "to": self.new, "reason": self.reason}


@dataclass(slots=True)
class Health:
    """The daemon's state and its checks. ``changed`` is told each change of state, ``told`` each change of a check
    that is not of its start or its end.

    A source answers from what is known already: what has to be asked of somebody else (a disk, Redis) is asked apart,
    with a timeout of its own, and never while somebody waits for a probe.
    """

    version: str
    monotonic: Clock
    sources: list[Source] = field(default_factory=list)
    changed: Callable[[DaemonState, DaemonState], None] = lambda old, new: None
    told: Callable[[Change], None] = lambda change: None
    now: Clock = time.time
    state: DaemonState = DaemonState.STARTING
    born: float = 0.0
    lenient: bool = False
    """Work is taken although the state says no: a lame duck's, and that of connections accepted before a successor."""
    _cached: dict[str, HealthReport] = field(default_factory=dict)
    _cached_at: float = float("-inf")
    _changes: deque[Change] = field(default_factory=lambda: deque(maxlen=CHANGES_KEPT))
    _noted: Hint = field(default_factory=Hint)

    def move(self, to: DaemonState) -> None:
        """Changes the state by the table; staying is no move."""
        if to is self.state:
            return
        old, self.state = self.state, advance(self.state, to)
        self._changes.append(Change(at=self.now(), what="state", old=old, new=to, reason=self._why()))
        self.note()
        self.changed(old, to)

    async def started(self, timeout_seconds: float | None) -> None:
        """Waits until start-up is over, or so long (None: for ever)."""
        if self.state is not DaemonState.STARTING:  # nearly always: every request asks
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self.state is DaemonState.STARTING:
                    await self._noted.wait()

    async def wait_ready(self, timeout_seconds: float) -> bool:
        """Waits until :meth:`ready` says yes; False at the timeout, and at once when it never will again."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self.ready().ok:
                    if self.state is DaemonState.STOPPING:
                        return False
                    await self._noted.wait(CACHE_S)
        except TimeoutError:
            return False
        return True

    async def watch(self) -> None:
        """Moves between ready and degraded as the checks say, whether anybody asks or not; never ends."""
        while True:
            self.checks()
            await self._noted.wait(WATCH_S)

    def note(self) -> None:
        """Something that a check reads has changed: read it again, and wake who waits for readiness."""
        self._cached_at = float("-inf")
        self._noted.give()

    def checks(self) -> Mapping[str, HealthReport]:
        """Every check by name, at most :data:`CACHE_S` old. Moves between ready and degraded as they say."""
        if self.monotonic() - self._cached_at >= CACHE_S:
            self._read()
            self._follow_checks()
        return self._cached

    def settle(self) -> None:
        """Start-up (or a drain) is over: ready or degraded, as the checks say."""
        self._read()
        self.move(self._admitting_state())

    def _follow_checks(self) -> None:
        if self.state in ADMITTING:
            self.move(self._admitting_state())
            self._cached_at = self.monotonic()  # the move has changed no check

    def _read(self) -> None:
        before = self._cached
        self._cached = {name: report for source in self.sources for name, report in source().items()}
        self._cached_at = self.monotonic()
        if self.state in _PASSING:
            return
        for name, report in self._cached.items():
            old = before[name].status if name in before else None
            if report.status is not (old or Check.PASS):
                self._note_change(name, old, report)

    def _note_change(self, name: str, old: Check | None, report: HealthReport) -> None:
        change = Change(at=self.now(), what=name, old=old, new=report.status, reason=report.reason)
        self._changes.append(change)
        self.told(change)

    def _why(self) -> str:
        """What a reader of the last changes wants to know of one of the state."""
        if self.state is not DaemonState.DEGRADED:
            return ""
        return "; ".join(
            f"{name}: {report.reason}" for name, report in self._cached.items() if report.status is not Check.PASS
        )

    def _admitting_state(self) -> DaemonState:
        well = worst(report.status for report in self._cached.values()) is Check.PASS
        return DaemonState.READY if well else DaemonState.DEGRADED

    def blocking_failure(self) -> str | None:
        for name, report in self.checks().items():
            if name in BLOCKING and report.status is Check.FAIL:
                return f"{name}: {report.reason}"
        return None

    def live(self) -> Probe:
        return Probe(ok=True, state=self.state)

    def startup(self) -> Probe:
        ok = self.state is not DaemonState.STARTING
        return Probe(ok=ok, state=self.state, reason="" if ok else "the daemon is starting")

    def ready(self) -> Probe:
        blocked = self.blocking_failure()
        if self.state not in ADMITTING:
            return Probe(ok=False, state=self.state, reason=f"the daemon is {self.state}")
        if blocked is not None:
            return Probe(ok=False, state=self.state, reason=blocked)
        return Probe(ok=True, state=self.state)

    def overall(self) -> Check:
        """pass, warn or fail for the whole, by LIFECYCLE.md's table."""
        checks = self.checks()
        if self.state not in ADMITTING or self.blocking_failure() is not None:
            return Check.FAIL
        return Check.PASS if worst(report.status for report in checks.values()) is Check.PASS else Check.WARN

    def document(self, *, details: bool) -> dict[str, Any]:
        """The body of ``/health``; details only for those who may see them."""
        checks: dict[str, Any] = {}
        status = self.overall()
        for name, report in self.checks().items():
            checks[name] = {"status": report.status.value}
            if details:
                checks[name] |= {"reason": report.reason, **(report.details or {})}
        document: dict[str, Any] = {
            "status": status.value,
            "state": self.state.value,
            "version": self.version,
            "uptime_seconds": round(self.monotonic() - self.born, 3),
            "checks": checks,
        }
        if details:
            document["changes"] = [change.document() for change in self._changes]
        return document
