"""A word to whoever waits now."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Hint:
    """Wakes all who wait at this moment; who comes later waits for the next one.

    Look first and wait then, with no await in between: nothing is missed. What was hinted at is read again, never
    carried, so a hint too many does no harm.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Calls it with each hint from now on."""
        self._listeners.append(listener)

    def give(self) -> None:
        self._event.set()
        self._event = asyncio.Event()
        for listener in self._listeners:
            listener()

    async def wait(self, timeout_seconds: float | None = None) -> bool:
        """Waits for the next one; False at the timeout."""
        event = self._event
        try:
            async with asyncio.timeout(timeout_seconds):
                await event.wait()
        except TimeoutError:
            return False
        return True
