"""What is known of one Redis: pure, told by the connection, read by health."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from claude_daemon.core.lifecycle import Check
from claude_daemon.ports import Clock, HealthReport

NOT_YET: Final = "there is no connection yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Connected:
    """``since`` by the monotonic clock; ``version`` None where the server does not tell."""

    since: float
    version: str | None
    latency_seconds: float


class Standing:
    """Connected, or not for a reason.

    ``up`` is None until the first attempt is over.
    """

    def __init__(self, shown: str, *, slow_s: float, monotonic: Clock) -> None:
        self.shown = shown
        self.up: bool | None = None
        self._reason = NOT_YET
        self._slow_s = slow_s
        self._monotonic = monotonic
        self._connected: _Connected | None = None

    def connected(self, latency_seconds: float, version: str | None) -> None:
        self.up = True
        self._connected = _Connected(since=self._monotonic(), version=version, latency_seconds=latency_seconds)

    def measured(self, latency_seconds: float) -> bool:
        """A ping has come back, while connected; whether that changes the report's status."""
        assert self._connected is not None
        was_slow = self._slow()
        self._connected = replace(self._connected, latency_seconds=latency_seconds)
        return self._slow() != was_slow

    def lost(self, reason: str) -> bool:
        """The connection is gone, or could not be made; whether the report is another one now."""
        news = self.up is True or reason != self._reason
        self.up = False
        self._connected = None
        self._reason = reason
        return news

    @property
    def connected_seconds(self) -> float:
        """For how long; 0 while not connected."""
        return 0.0 if self._connected is None else self._monotonic() - self._connected.since

    def report(self) -> HealthReport:
        details: dict[str, object] = {"address": self.shown}
        connected = self._connected
        if connected is None:
            return HealthReport(status=Check.WARN, reason=f"Redis: {self._reason}", details=details)
        details["version"] = connected.version
        details["latency_seconds"] = round(connected.latency_seconds, 6)
        details["connected_seconds"] = round(self.connected_seconds, 3)
        if self._slow():
            reason = f"Redis is slow: {connected.latency_seconds:.3f} s for an answer"
            return HealthReport(status=Check.WARN, reason=reason, details=details)
        return HealthReport(status=Check.PASS, details=details)

    def _slow(self) -> bool:
        return self._connected is not None and self._connected.latency_seconds > self._slow_s
