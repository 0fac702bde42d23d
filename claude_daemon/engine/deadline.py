"""How long a worker may take: for an answer to a question, and for a turn."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from claude_daemon.core.errors import Code, Failure


class WorkerLost(Exception):
    """The process ended, or does not answer, while something was expected of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLimits:
    """Deadlines of a turn, in seconds: ``stall`` without any sign of life, ``turn`` for the whole."""

    stall_seconds: float
    turn_seconds: float


class TurnTimeout(Exception):
    """A turn went over one of its deadlines."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Deadline:
    """``asyncio.timeout`` that raises :class:`WorkerLost` with a sentence."""

    def __init__(self, seconds: float, what: str) -> None:
        self._timeout = asyncio.timeout(seconds)
        self._what = f"{what} within {seconds:g} s"

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, *exc: Any) -> None:
        try:
            await self._timeout.__aexit__(*exc)
        except TimeoutError:
            raise WorkerLost(self._what) from None


class Watch:
    """The two deadlines of a turn, as a context for each wait; raises :class:`TurnTimeout`."""

    def __init__(self, limits: TurnLimits) -> None:
        self._limits = limits
        self._ends = time.monotonic() + limits.turn_seconds
        self._grace = 0.0  # the CLI announced a pause before its next try
        self._stall = limits.stall_seconds
        self._must_end = False
        self._last = False  # this wait ends with the turn
        self.tool_runs = False
        """A tool is at work: the silence is its own, and only the whole turn's deadline holds."""
        self._timeout: asyncio.Timeout | None = None

    def seen(self, message: Mapping[str, Any]) -> None:
        retrying = message.get("type") == "system" and message.get("subtype") == "api_retry"
        self._grace = (message.get("retry_delay_ms") or 0) / 1000 if retrying else 0.0

    def stall_within(self, seconds: float) -> None:
        """The turn was told to end: whatever runs in it, so much patience is left."""
        self._stall = min(self._stall, seconds)
        self._must_end = True

    async def __aenter__(self) -> None:
        stall = math.inf if self.tool_runs and not self._must_end else self._stall + self._grace
        left = self._ends - time.monotonic()
        self._last = left <= stall
        self._timeout = asyncio.timeout(min(stall, left))
        await self._timeout.__aenter__()

    async def __aexit__(self, *exc: Any) -> None:
        assert self._timeout is not None
        try:
            await self._timeout.__aexit__(*exc)
        except TimeoutError:
            raise TurnTimeout(self._failure()) from None

    def _failure(self) -> Failure:
        if self._last:
            why = f"the turn took longer than {self._limits.turn_seconds:g} s"
            return Failure(code=Code.DEADLINE, message=why)
        why = f"nothing came from the model for {self._limits.stall_seconds:g} s"
        return Failure(code=Code.STALLED, message=why)
