"""Whose turn it is in a session: its tasks go one by one, in the order in which they were asked for."""

from __future__ import annotations

from collections.abc import Sequence


class Turns:
    """One line for each session. A task that forks a session stands in two: its own, and that one's until it has
    its copy. Whoever is first in all of its lines may begin, and stays first until it leaves.

    Tasks enter all their lines at once, so no two can wait for each other.
    """

    def __init__(self) -> None:
        self._lines: dict[str, dict[str, None]] = {}  # session -> tasks, in order
        self._stands: dict[str, list[str]] = {}  # task -> sessions

    def enter(self, task_id: str, sessions: Sequence[str]) -> None:
        """To the end of each line; who stands there keeps its place."""
        if sessions and task_id not in self._stands:
            self._stands[task_id] = list(sessions)
            for session in sessions:
                self._lines.setdefault(session, {})[task_id] = None

    def may_begin(self, task_id: str) -> bool:
        """Whether nobody is before it. One that stands in no line waits for nobody."""
        return all(next(iter(self._lines[session])) == task_id for session in self._stands.get(task_id, ()))

    def leave(self, task_id: str, session: str | None = None) -> Sequence[str]:
        """Out of one line, or all of them; who may begin for that."""
        stands = self._stands.get(task_id, [])
        left = list(stands) if session is None else [name for name in stands if name == session]
        nexts = []
        for name in left:
            stands.remove(name)
            line = self._lines[name]
            was_first = next(iter(line)) == task_id
            del line[task_id]
            if not line:
                del self._lines[name]
            elif was_first:
                nexts.append(next(iter(line)))
        if not stands:
            self._stands.pop(task_id, None)
        return [other for other in nexts if self.may_begin(other)]

    def __contains__(self, session: object) -> bool:
        """Whether a turn of the session waits or runs here."""
        return session in self._lines
