"""What a load counts, and what it leaves to be looked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

KEPT_FAILURES: Final = 50
"""Of each mode, with their reasons; more would say the same. All are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """``at``: seconds since the load began. ``request_id``: under which the server's log has it, if it came so far."""

    at: float
    what: str
    why: str
    request_id: str


@dataclass(slots=True, kw_only=True)
class Counts:
    """Of one mode. Each request that was ``sent`` is ``answered`` or ``failed`` in the end, however often ``retried``.

    ``tasks``: what was acknowledged, the task's id by the number of its submission.
    """

    sent: int = 0
    answered: int = 0
    retried: int = 0
    failed: int = 0
    failures: list[Failed] = field(default_factory=list)
    tasks: dict[int, str] = field(default_factory=dict)

    def fail(self, failed: Failed) -> None:
        self.failed += 1
        if len(self.failures) < KEPT_FAILURES:
            self.failures.append(failed)

    def __str__(self) -> str:
        of_them = f"{self.answered} answered, {self.retried} retried, {self.failed} failed"
        return f"{self.sent} sent, {of_them}, {len(self.tasks)} tasks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """``run`` is in the metadata of every task that was submitted."""

    run: str
    seconds: float
    modes: Mapping[str, Counts]

    @property
    def failed(self) -> int:
        return sum(counts.failed for counts in self.modes.values())

    @property
    def tasks(self) -> dict[int, str]:
        """Every acknowledged task by the number of its submission."""
        return {number: task for counts in self.modes.values() for number, task in counts.tasks.items()}

    def __str__(self) -> str:
        return "; ".join([f"{self.seconds:.1f} s", *(f"{mode}: {counts}" for mode, counts in self.modes.items())])
