"""How many processes there should be, pure: what to start and whom to retire for it.

``now`` is monotonic seconds throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from claude_daemon.core.worker import WorkerState
from claude_daemon.engine.floors import Asked, Floors
from claude_daemon.engine.plan import Shape
from claude_daemon.engine.worker import Worker

_ENDED = frozenset({WorkerState.RETIRING, WorkerState.GONE})
_TO_COME_OR_IDLE = frozenset({WorkerState.STARTING, WorkerState.IDLE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """``workers`` turns at once, ``spares`` unbound processes beside them, ``starting`` starts at once."""

    workers: int
    spares: int
    starting: int

    @property
    def limit(self) -> int:
        return self.workers + self.spares


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What to do, in this order."""

    retire: Sequence[Worker] = ()
    start: Sequence[Shape] = ()


def spares_now(configured: int, workers: int, recent_late_bindings: int) -> int:
    """Spares to keep: the configured number, more while new system prompts keep coming; none where none are wanted."""
    return max(configured, min(recent_late_bindings, workers)) if configured else 0


def fill(workers: Sequence[Worker], sizes: Sizes, usual: Shape, now: float, asked: Asked | None = None) -> Change:
    """What brings the pool to its size. ``asked``: somebody waits for such a process, and none is there."""
    live = [worker for worker in workers if worker.state not in _ENDED]
    floors = Floors(live, sizes.limit, now, asked.trust_domain if asked is not None else None)
    going = floors.may_go(_bound(live, usual), for_spares=asked is None)
    if asked is not None and asked.shape != usual:
        return _special(live, sizes, asked, floors, going)
    starting = sum(worker.state is WorkerState.STARTING for worker in live)
    unbound = sum(w.binding is None and w.state in _TO_COME_OR_IDLE and w.wanted == usual for w in live)
    wanted = max(sizes.spares, 1 if asked is not None else 0) - unbound
    free = sizes.limit - len(live)
    count = max(min(max(wanted, free), sizes.starting - starting), 0)
    retire = going[: max(min(count, count - free), 0)]
    # over the limit only for somebody who waits, and whose domain has less than its share
    beyond = 1 if asked is not None and not floors.asker_has_its_share else 0
    count = min(count, max(max(free, 0) + len(retire), beyond))
    return Change(retire=retire, start=[usual] * count)


def _special(live: Sequence[Worker], sizes: Sizes, asked: Asked, floors: Floors, going: Sequence[Worker]) -> Change:
    """A process that no other could stand in for; one at a time of each shape."""
    if any(worker.state is WorkerState.STARTING and worker.wanted == asked.shape for worker in live):
        return Change()
    over = len(live) + 1 - sizes.limit
    if over > 0 and not going and floors.asker_has_its_share:
        return Change()
    return Change(retire=going[: max(min(1, over), 0)], start=[asked.shape])


def surplus(workers: Sequence[Worker], sizes: Sizes, usual: Shape, now: float) -> Sequence[Worker]:
    """Whom to retire because a burst is over, or the pool is to be smaller: bound ones first, spares last; of the bound
    ones those first that no trust domain keeps as its own."""
    live = [worker for worker in workers if worker.state not in _ENDED]
    count = max(len(live) - sizes.limit, 0)
    bound = _bound(live, usual)
    going = Floors(live, sizes.limit, now).may_go(bound)
    kept = sorted((w for w in bound if w not in going), key=lambda worker: worker.last_used)
    spares = sorted((w for w in _idle(live) if w not in bound), key=lambda worker: worker.born)
    return [*going, *kept, *spares][:count]


def next_worn(workers: Sequence[Worker], reason: Callable[[Worker], str | None]) -> tuple[Worker, str] | None:
    """Whom to replace because it is worn, and why: the oldest idle one, and nobody while another is being replaced."""
    if any(worker.state in (WorkerState.STARTING, WorkerState.RETIRING) for worker in workers):
        return None
    idle = sorted((w for w in workers if w.state is WorkerState.IDLE), key=lambda worker: worker.born)
    return next(((worker, why) for worker in idle if (why := reason(worker)) is not None), None)


def _bound(live: Sequence[Worker], usual: Shape) -> Sequence[Worker]:
    """Idle processes that are no spares: bound already, or of a shape that few ask for."""
    return [w for w in _idle(live) if w.binding is not None or w.wanted != usual]


def _idle(live: Sequence[Worker]) -> Sequence[Worker]:
    return [worker for worker in live if worker.state is WorkerState.IDLE]
