"""How many turns may run at once, whoever's they are."""

from __future__ import annotations

from collections.abc import Callable


class Room:
    """``limit`` places, for one lane or for several that share them.

    Who has a place is remembered rather than counted, so none is ever given back twice. A smaller limit takes nobody's
    place: fewer are given from then on.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._holders: set[object] = set()
        self._told: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"<Room {self.taken} of {self.limit}>"

    @property
    def taken(self) -> int:
        return len(self._holders)

    @property
    def free(self) -> int:
        return max(0, self.limit - self.taken)

    def take(self, holder: object) -> bool:
        """A place for the holder, told apart by identity; False when there is none."""
        if not self.free:
            return False
        self._holders.add(holder)
        return True

    def give_back(self, holder: object) -> None:
        """Nothing for one that has no place."""
        if holder in self._holders:
            self._holders.discard(holder)
            self.tell()

    def resize(self, limit: int) -> None:
        grown, self.limit = limit > self.limit, limit
        if grown:
            self.tell()

    def on_change(self, callback: Callable[[], None]) -> None:
        """Registers who is told when somebody may begin who could not before."""
        self._told.append(callback)

    def tell(self) -> None:
        """A place is free, or a process for who waits is there, or none will be."""
        for callback in self._told:
            callback()
