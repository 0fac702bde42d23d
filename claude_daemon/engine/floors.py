"""Whom the pool may retire for the sake of others: no trust domain takes another's warm processes from it.

A process serves one trust domain alone, so one that is retired because another domain wants more is a spawn for its
own domain's next request. Of the domains that have used one lately each keeps its floor: as many as it has been using,
up to an even share of the pool; but what all others keep idle from one who waits is never more than half of it, so
that who has much to do is not left with little because many had a word. Above that the least recently used goes
first. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from claude_daemon.core.worker import WorkerState
from claude_daemon.engine.plan import Shape
from claude_daemon.engine.worker import Worker

IN_USE_S: Final = 300.0
"""A process that was used so lately is in use: as long as the upstream keeps a prompt in its cache, whose prefix a warm
process repeats; and longer than somebody who chats thinks about an answer."""
JUST_USED_S: Final = 3.0
"""Within a flood a process is idle for milliseconds: none that was used so lately is given up for a spare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Somebody waits for a process of this shape, to serve this trust domain."""

    shape: Shape
    trust_domain: str


class Floors:
    """What each domain keeps of these live workers in a pool of ``limit``. ``now`` is monotonic seconds."""

    def __init__(self, live: Sequence[Worker], limit: int, now: float, asker: str | None = None) -> None:
        """``asker``: the trust domain that somebody waits for; its own processes may all go for it."""
        self._now = now
        self._asker = asker
        in_use: dict[str, list[Worker]] = defaultdict(list)
        for worker in live:
            domain = _domain(worker)
            if domain is not None and self._in_use(worker):
                in_use[domain].append(worker)
        domains = len(in_use.keys() | ({asker} - {None}))
        self.several = domains > 1
        self._crowded = domains > limit
        self.share = max(1, limit // domains) if self.several else limit
        floors: list[Worker] = []
        for domain, workers in in_use.items() if self.several else ():
            if domain != asker:
                floors += sorted(workers, key=self._last_used, reverse=True)[: self.share]
        idle = sorted((w for w in floors if w.state is WorkerState.IDLE), key=self._last_used, reverse=True)
        self._kept = {id(worker) for worker in idle[: limit if asker is None else max(1, limit // 2)]}
        self._asker_has = sum(_domain(worker) == asker for worker in live) if asker is not None else 0

    def _in_use(self, worker: Worker) -> bool:
        """One that has served nobody yet is not, however young."""
        if worker.state is WorkerState.BUSY:
            return True
        return worker.turns > 0 and self._now - worker.last_used < IN_USE_S

    def _last_used(self, worker: Worker) -> float:
        return self._now if worker.state is WorkerState.BUSY else worker.last_used

    def may_go(self, idle: Sequence[Worker], *, for_spares: bool = False) -> list[Worker]:
        """Those of these idle workers that may, the first to go first. ``for_spares``: nobody waits for their place."""
        going = [worker for worker in idle if id(worker) not in self._kept]
        if not going and self._crowded and self._asker is not None and not self._asker_has:
            going = list(idle)  # more domains than processes: they take turns
        if for_spares and self.several:
            going = [worker for worker in going if self._now - worker.last_used >= JUST_USED_S]
        return sorted(going, key=lambda worker: worker.last_used)

    @property
    def asker_has_its_share(self) -> bool:
        """Whether the one who waits can be left to wait for a process of its own domain, beside which others are."""
        return self.several and self._asker_has >= self.share


def _domain(worker: Worker) -> str | None:
    """Whose it is; None for one that is nobody's yet."""
    binding = worker.binding or worker.wanted.binding
    return binding.trust_domain if binding is not None else None
