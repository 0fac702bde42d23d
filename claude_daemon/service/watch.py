"""Whoever goes on using a key after it was let in: told as soon as the key is not good any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from claude_daemon.core.key import Key, Unfit
from claude_daemon.ports import Clock

LOOK_AGAIN_S: Final = 60.0
"""A clock that was set moves the end of a key: it counts by then at the latest."""

End = Callable[[Unfit], None]
"""Ends what a key has open. Called once."""
Look = Callable[[], None]
"""Looks now: before each further thing that is done with the key."""
Watched = Callable[[Key, End], AbstractContextManager[Look]]
"""As :meth:`Watches.watched`."""


class Watches:
    """``unfit`` tells how a key is now, by the secret that it came with; ``now`` is seconds since the epoch."""

    def __init__(self, unfit: Callable[[Key], Unfit | None], now: Clock) -> None:
        self._unfit = unfit
        self._now = now
        self._open: dict[str, set[_Watch]] = {}

    @contextmanager
    def watched(self, key: Key, end: End) -> Iterator[Look]:
        """Calls ``end`` when the key is not good any more, while the context lasts; perhaps before it has begun."""
        watch = _Watch(key, end)
        self._open.setdefault(key.id, set()).add(watch)
        try:
            self._look(watch)
            yield lambda: self._look(watch) if self._unfit(watch.key) is not None else None
        finally:
            watch.stop()
            watches = self._open[key.id]
            watches.discard(watch)
            if not watches:
                del self._open[key.id]

    def changed(self, key_id: str, key_of: Callable[[Key], Key | None]) -> None:
        """The key has changed; ``key_of`` tells what has become of it by the same secret."""
        for watch in list(self._open.get(key_id, ())):
            watch.key = key_of(watch.key) or watch.key
            self._look(watch)

    def _look(self, watch: _Watch) -> None:
        watch.stop()
        why = self._unfit(watch.key)
        if why is not None:
            end, watch.end = watch.end, None
            if end is not None:
                end(why)
        elif watch.key.ends_at is not None:
            left = max(0.0, watch.key.ends_at - self._now())
            loop = asyncio.get_running_loop()
            watch.timer = loop.call_later(min(left, LOOK_AGAIN_S), self._look, watch)


class _Watch:
    """One that is open. ``end`` None: it was ended."""

    __slots__ = ("end", "key", "timer")

    def __init__(self, key: Key, end: End) -> None:
        self.key = key
        self.end: End | None = end
        self.timer: asyncio.TimerHandle | None = None

    def stop(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
