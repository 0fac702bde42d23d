"""What runs now and how it went lately, for those who watch; and the word to them when something happens.

Both are read by whoever asks (``claudectl top``, ``claudectl events``), and cost next to nothing while nobody does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any, Final

from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.task import State
from claude_daemon.ports import Clock
from claude_daemon.service.hint import Hint
from claude_daemon.service.run import Run

RECENT_S: Final = 60.0
"""What "lately" means: long enough to have some turns of agents, short enough to see a change within a minute."""
MAX_RECENT: Final = 4096
"""Tasks remembered of it. Beyond 70 ends a second the newest of them stand for all."""
RATE_S: Final = 10
"""Seconds that a rate is taken over; the one that has just begun does not count."""
MAX_TOLD: Final = 200
"""Running tasks that are told one by one, the oldest first: a screen shows fewer, and the rest is counted."""

MAX_READERS: Final = 16
"""An operator's terminals, and those of a few colleagues."""
MAX_UNREAD: Final = 1000
"""Happenings that are kept for a reader who is busy; of more the oldest go, and it is told how many."""
LOST: Final = "events.lost"


class Meter:
    """Counts by the second, and tells the rate of the last :data:`RATE_S` whole ones. No lists, no timers."""

    def __init__(self, monotonic: Clock) -> None:
        self._monotonic = monotonic
        self._counts = [0] * (RATE_S + 1)
        self._seconds = [-1] * (RATE_S + 1)
        self.total = 0

    def add(self, count: int) -> None:
        second = int(self._monotonic())
        slot = second % (RATE_S + 1)
        if self._seconds[slot] != second:
            self._seconds[slot], self._counts[slot] = second, 0
        self._counts[slot] += count
        self.total += count

    @property
    def per_second(self) -> float:
        now = int(self._monotonic())
        told = zip(self._seconds, self._counts, strict=True)
        return sum(count for second, count in told if now - RATE_S <= second < now) / RATE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """Times are seconds; ``at`` is monotonic. ``first_delta`` and ``waited`` count from when it was queued."""

    at: float
    state: State
    waited: float | None
    first_delta: float | None
    turn: float | None
    output_tokens: int


class Activity:
    """``under_way``: what runs now."""

    def __init__(self, under_way: Callable[[], Collection[Run]], *, monotonic: Clock) -> None:
        self._under_way = under_way
        self._monotonic = monotonic
        self._recent: deque[_Ended] = deque(maxlen=MAX_RECENT)
        self.told = Meter(monotonic)
        """Events of tasks, as engines tell them."""

    def settled(self, run: Run) -> None:
        """A task has come to its end."""
        outcome, now = run.task.outcome, self._monotonic()
        assert outcome is not None
        self._recent.append(
            _Ended(
                at=now,
                state=outcome.state,
                waited=run.waited_seconds,
                first_delta=run.first_delta_seconds,
                turn=None if run.started_at is None else now - run.started_at,
                output_tokens=outcome.usage.output_tokens,
            )
        )

    def document(self) -> dict[str, Any]:
        """``tasks`` that run, the oldest first, ``more`` of them untold; ``recent``: what ended lately; rates."""
        now = self._monotonic()
        running = sorted(self._under_way(), key=lambda run: run.started_at or now)
        return {
            "tasks": [_task(run, now) for run in running[:MAX_TOLD]],
            "more": max(0, len(running) - MAX_TOLD),
            "recent": self._lately(now),
            "events": {"total": self.told.total, "per_second": self.told.per_second},
        }

    def _lately(self, now: float) -> dict[str, Any]:
        ended = [one for one in self._recent if now - one.at <= RECENT_S]
        return {
            "seconds": RECENT_S,
            "ended": len(ended),
            "failed": sum(one.state is State.FAILED for one in ended),
            "cancelled": sum(one.state is State.CANCELLED for one in ended),
            "output_tokens": sum(one.output_tokens for one in ended),
            "waited_seconds": spread(one.waited for one in ended),
            "first_delta_seconds": spread(one.first_delta for one in ended),
            "turn_seconds": spread(one.turn for one in ended),
        }


def _task(run: Run, now: float) -> dict[str, Any]:
    task, usage = run.task, run.usage
    session = task.spec.session
    waited, first_delta = run.waited_seconds, run.first_delta_seconds
    return {
        "id": task.id,
        "kind": task.spec.kind.value,
        "lane": task.spec.lane.value,
        "model": task.spec.model,
        "key_id": task.spec.key_id,
        "session_id": None if session is None else session.id,
        "worker_id": run.worker_id,
        "start": run.start,
        "attempt": task.attempt,
        "age_seconds": None if run.started_at is None else round(now - run.started_at, 3),
        "waited_seconds": None if waited is None else round(waited, 3),
        "first_delta_seconds": None if first_delta is None else round(first_delta, 3),
        "input_tokens": usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens,
        "output_tokens": usage.output_tokens,
        "model_calls": usage.model_calls,
    }


def settled(run: Run) -> dict[str, Any]:
    """What those who watch are told of an end."""
    task, outcome = run.task, run.task.outcome
    assert outcome is not None
    failure = outcome.failure
    return {
        "state": task.state.value,
        "code": None if failure is None else failure.code.value,
        "task_id": task.id,
        "lane": task.spec.lane.value,
        "kind": task.spec.kind.value,
        "key_id": task.spec.key_id,
        "model": task.spec.model,
        "worker_id": run.worker_id,
        "start": run.start,
        "attempt": task.attempt,
        "output_tokens": outcome.usage.output_tokens,
    }


def spread(values: Iterable[float | None]) -> dict[str, float] | None:
    """The median and the 95th percentile by nearest rank, and the largest; None of nothing.

    >>> spread([0.3, None, 0.1, 0.2])
    {'p50': 0.2, 'p95': 0.3, 'max': 0.3}
    """
    found = sorted(value for value in values if value is not None)
    if not found:
        return None
    ranks = {"p50": 0.5, "p95": 0.95, "max": 1.0}
    return {name: round(found[ceil(share * len(found)) - 1], 6) for name, share in ranks.items()}


class Happenings:
    """Tells what happens, as it happens, to those who listen then; nothing is kept for those who come later."""

    def __init__(self, now: Clock) -> None:
        self._now = now
        self._readers: list[Reader] = []
        self.closed = False

    def tell(self, name: str, data: Mapping[str, Any]) -> None:
        """``data`` is read later: nobody changes it any more."""
        if self._readers:
            line = {"type": name, "at": self._now(), "data": data}
            for reader in self._readers:
                reader.add(line)

    def close(self) -> None:
        """What has been told is read, and then there is no more."""
        self.closed = True
        for reader in self._readers:
            reader.stirred.give()

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """Raises Refusal where there are too many already."""
        if len(self._readers) >= MAX_READERS:
            raise Refusal.because(Code.OVERLOADED, f"{MAX_READERS} are watching already", retry_after_seconds=1.0)
        reader = Reader()
        self._readers.append(reader)
        try:
            yield reader
        finally:
            self._readers.remove(reader)


class Reader:
    """One who listens. ``stirred``: there is something, or there never will be again."""

    def __init__(self) -> None:
        self.stirred = Hint()
        self._unread: deque[Mapping[str, Any]] = deque(maxlen=MAX_UNREAD)
        self._lost = 0

    @property
    def unread(self) -> int:
        return len(self._unread)

    def add(self, line: Mapping[str, Any]) -> None:
        self._lost += len(self._unread) == MAX_UNREAD
        self._unread.append(line)
        self.stirred.give()

    def take(self) -> list[Mapping[str, Any]]:
        """What came since the last time; before it how many there were that are gone."""
        lines = list(self._unread)
        self._unread.clear()
        if self._lost:
            lines.insert(0, {"type": LOST, "at": lines[0]["at"], "data": {"count": self._lost}})
            self._lost = 0
        return lines
