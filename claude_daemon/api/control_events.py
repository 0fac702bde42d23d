"""The control API's share of watching: what happens, line by line as it happens, with pictures of the whole between."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final

from aiohttp import web

from claude_daemon.api.control import ndjson
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.service.activity import Happenings

SNAPSHOT: Final = "snapshot"
MIN_INTERVAL_S: Final = 0.1
"""A picture costs about a millisecond: more than ten a second are for no eye, and would be felt."""
MAX_INTERVAL_S: Final = 3600.0


class ControlEventRoutes:
    """``snapshot``: the whole as it is now."""

    def __init__(self, happenings: Happenings, *, snapshot: Callable[[], Mapping[str, Any]]) -> None:
        self._happenings = happenings
        self._snapshot = snapshot

    def register(self, router: web.UrlDispatcher) -> None:
        router.add_get("/control/v1/events", self.events)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """NDJSON, each ``{"type","at","data"}``, until the client leaves or the daemon stops.

        With ``?interval_s=S`` a ``snapshot`` at once, every S seconds, and when all has ended.
        """
        interval = _interval(request.query.get("interval_s"))
        with self._happenings.reader() as reader:

            async def lines() -> AsyncIterator[Mapping[str, Any]]:
                due = time.monotonic()
                while True:
                    closed = self._happenings.closed
                    for line in reader.take():
                        yield line
                    if interval is not None and (closed or time.monotonic() >= due):
                        yield {"type": SNAPSHOT, "at": time.time(), "data": self._snapshot()}
                        due = max(due + interval, time.monotonic())
                    if closed:
                        return
                    if not reader.unread and not self._happenings.closed:  # what came while the last were written
                        await reader.stirred.wait(None if interval is None else max(0.0, due - time.monotonic()))

            return await ndjson(request, lines())


def _interval(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not MIN_INTERVAL_S <= seconds <= MAX_INTERVAL_S:
        why = f"interval_s is a number of seconds from {MIN_INTERVAL_S:g} to {MAX_INTERVAL_S:g}"
        raise Refusal.because(Code.INVALID_REQUEST, why, param="interval_s")
    return seconds
