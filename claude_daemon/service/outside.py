"""What health has to ask outside of this process: a file system may hang, and nobody here may hang with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

from claude_daemon.ports import Clock

T = TypeVar("T")

EVERY_S: Final = 5.0
"""Between two readings."""
TIMEOUT_S: Final = 2.0
"""After so long without an answer the reader counts as stuck."""


class Outside(Generic[T]):
    """Reads something every :data:`EVERY_S` in a thread of its own, one at a time, and keeps the last answer.

    A reading that does not return is waited for by that thread alone, and no second one is begun.
    """

    def __init__(
        self,
        read: Callable[[], T],
        *,
        name: str,
        monotonic: Clock,
        every_seconds: float = EVERY_S,
        timeout_seconds: float = TIMEOUT_S,
    ) -> None:
        """``read`` runs in the thread; it may raise OSError. ``name`` is the thread's."""
        self.latest: T | OSError | None = None
        """None until the first answer."""
        self._read = read
        self._name = name
        self._monotonic = monotonic
        self._every = every_seconds
        self._timeout = timeout_seconds
        self._asked_at: float | None = None

    @property
    def stuck_seconds(self) -> float | None:
        """For how long an answer has been missing that should be there; None while all is well."""
        if self._asked_at is None:
            return None
        waited = self._monotonic() - self._asked_at
        return waited if waited >= self._timeout else None

    async def run(self) -> None:
        """Never ends."""
        while True:
            await self.ask()
            await asyncio.sleep(self._every)

    async def ask(self) -> None:
        """One reading; returns when it is there, however long that takes."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[T | OSError] = loop.create_future()
        self._asked_at = self._monotonic()
        # a daemon thread: a process that ends does not wait for it
        threading.Thread(target=self._answer, args=(loop, answered), name=self._name, daemon=True).start()
        self.latest = await answered
        self._asked_at = None

    def _answer(self, loop: asyncio.AbstractEventLoop, answered: asyncio.Future[T | OSError]) -> None:
        found: T | Exception
        try:
            found = self._read()
        except Exception as error:  # our own bug, but for an OSError: raised where it is waited for
            found = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_tell, answered, found)


def _tell(answered: asyncio.Future[T | OSError], found: T | Exception) -> None:
    if answered.done():
        return
    if isinstance(found, Exception) and not isinstance(found, OSError):
        answered.set_exception(found)
    else:
        answered.set_result(found)
