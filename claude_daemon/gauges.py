"""What is, read off the parts at each scrape."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from claude_daemon.core.budget import ALL, Owner, Purse, Span
from claude_daemon.core.lifecycle import Check, DaemonState
from claude_daemon.core.task import Kind, Lane
from claude_daemon.core.worker import Start, WorkerState
from claude_daemon.durable import Durable
from claude_daemon.engine.agent import AgentLane
from claude_daemon.engine.lane import TextLane
from claude_daemon.engine.session import SessionLane
from claude_daemon.engine.worker import Worker
from claude_daemon.front import Front
from claude_daemon.ports import Clock, StoreUnavailable
from claude_daemon.service.health import Health
from claude_daemon.service.keys import KeyDesk
from claude_daemon.service.outside import Outside
from claude_daemon.service.space import Space
from claude_daemon.telemetry.metrics import Labels, Samples, finite

_LOOK_S: Final = 1.0
"""How long a scrape waits for the store; then it tells what the one before it was told."""
_SLICE: Final = 100
"""Budgets looked at without a break, about a millisecond: ten thousand keys may have one each."""
_CHECKS: Final = {Check.PASS: 0.0, Check.WARN: 1.0, Check.FAIL: 2.0}


@dataclass(slots=True, kw_only=True)
class Gauges:
    """Keeps nothing but what the store was last asked. ``now`` is seconds since the epoch. ``loop_lag``: how late the
    event loop was at worst lately; ``lost``: log lines that an output did not take; ``disk``: as health
    has measured it."""

    health: Health
    text: TextLane
    agents: AgentLane
    sessions: SessionLane
    durable: Durable
    keys: KeyDesk
    front: Front
    home: Path
    disk: Outside[Sequence[Space]]
    now: Clock
    lost: Callable[[], int]
    loop_lag: Callable[[], float] = lambda: 0.0
    _webhooks: tuple[int, float | None] = field(default=(0, None))
    _budget_left: Mapping[Labels, float] = field(default_factory=dict)

    async def look(self) -> None:
        """What only the store knows, which stays as it was if that does not tell in time; and what takes a while."""
        with contextlib.suppress(StoreUnavailable, TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                self._webhooks = await self.durable.store.webhooks_waiting()
        budgets = self.durable.budgets
        self._budget_left = await _left(budgets.standing, budgets.pressed)

    def read(self) -> Mapping[str, Samples]:
        """Every family that is read, by its name."""
        return {
            **self._whole(),
            **self._edge(),
            **self._queue(),
            **self._engine(),
            **self._budgets(),
            **self._store(),
            **self._keys(),
            **self._disk(),
        }

    def _whole(self) -> Mapping[str, Samples]:
        health = self.health
        return {
            "build_info": {(health.version, self.text.pool.capabilities.version or ""): 1.0},
            "state": {(state.value,): float(state is health.state) for state in DaemonState},
            "ready": float(health.ready().ok),
            "check_status": {(name,): _CHECKS[report.status] for name, report in health.checks().items()},
            "event_loop_lag_seconds": self.loop_lag(),
            "log_lines_lost": float(self.lost()),
        }

    def _edge(self) -> Mapping[str, Samples]:
        public, fanout = self.front.public, self.front.fanout
        return {
            "http_requests_in_flight": float(public.in_flight),
            "http_connections": float(len(public.connections)),
            "http_connections_refused": float(public.turned_away),
            "websockets": float(len(self.front.streams.open)),
            "followers": float(fanout.followers),
            "events_delivered": float(fanout.delivered),
            "slow_readers": float(fanout.slow),
        }

    def _queue(self) -> Mapping[str, Samples]:
        dispatcher = self.durable.dispatcher
        running = Counter(run.lane for run in dispatcher.under_way)
        room = self.text.room
        return {
            "queue_length": {
                (Kind.CHAT.value,): float(dispatcher.waiting),
                (Kind.TASK.value,): float(dispatcher.queued),
            },
            "queue_oldest_seconds": dispatcher.oldest_seconds or 0.0,
            "queue_paused": float(dispatcher.held),
            "running": {(lane.value,): float(running[lane]) for lane in Lane},
            "cli_turns": float(room.taken),
            "cli_turns_limit": float(room.limit),
            "approvals_waiting": float(len(dispatcher.approvals.every())),
        }

    def _engine(self) -> Mapping[str, Samples]:
        lanes: Mapping[Lane, tuple[Collection[Worker], Mapping[str, int]]] = {
            Lane.TEXT: (self.text.pool.workers.values(), self.text.pool.starts),
            Lane.AGENT: (self.agents.workers.values(), self.agents.starts),
            Lane.SESSION: (self.sessions.workers.values(), self.sessions.starts),
        }
        settings = self.agents.settings
        return {
            "workers": {
                (lane.value, state.value): float(number)
                for lane, (workers, _) in lanes.items()
                for state, number in _by_state(workers).items()
            },
            "starts": {
                (lane.value, start.value): float(starts.get(start.value, 0))
                for lane, (_, starts) in lanes.items()
                for start in Start
            },
            "sandbox_missing": float(settings.wanted and self.agents.missing is not None),
        }

    def _budgets(self) -> Mapping[str, Samples]:
        budgets = self.durable.budgets
        overall = budgets.standing(ALL)
        return {
            "budget_limit_usd": {(span.value,): finite(overall[span.value]["limit_usd"]) for span in Span},
            "budget_spent_usd": {(span.value,): float(overall[span.value]["spent_usd"]) for span in Span},
            "budget_left_ratio": self._budget_left,
        }

    def _store(self) -> Mapping[str, Samples]:
        status, audit = self.durable.store.status(), self.durable.audit
        waiting, due = self._webhooks
        return {
            "store_up": float(status.error is None),
            "store_backlog": float(status.backlog),
            "store_wal_bytes": float(status.details.get("wal_bytes", 0)),
            "backup_timestamp_seconds": status.details.get("backed_up_at") or 0.0,
            "audit_records": float(audit.anchored),
            "audit_anchor_age_seconds": audit.anchor_age_seconds,
            "audit_strange": float(audit.strange),
            "webhooks_waiting": float(waiting),
            "webhook_oldest_due_seconds": 0.0 if due is None else max(0.0, self.now() - due),
        }

    def _keys(self) -> Mapping[str, Samples]:
        counts, expires = self.keys.census()
        return {
            "keys": {(state,): float(number) for state, number in counts.items()},
            "key_next_expiry_timestamp_seconds": finite(expires),
        }

    def _disk(self) -> Mapping[str, Samples]:
        """None before the first measurement, and where the last one failed."""
        measured = self.disk.latest
        for space in measured if isinstance(measured, Sequence) else ():
            if self.home in space.paths:
                return {"disk_free_bytes": float(space.free_bytes), "disk_size_bytes": float(space.size_bytes)}
        return {}


def _by_state(workers: Iterable[Worker]) -> Mapping[WorkerState, int]:
    counted = Counter(worker.state for worker in workers)
    return {state: counted[state] for state in WorkerState if state is not WorkerState.GONE}


async def _left(standing_of: Callable[[Owner], Mapping[str, Any]], owners: Sequence[Owner]) -> Mapping[Labels, float]:
    """What is left of the one of each kind that has least left; nobody is named. Without a limit all is left."""
    least: dict[Labels, float] = {(purse.value, span.value): 1.0 for purse in Purse for span in Span}
    for number, owner in enumerate(owners, 1):
        if number % _SLICE == 0:
            await asyncio.sleep(0)
        standing = standing_of(owner)
        for span in Span:
            limit, spent = standing[span.value]["limit_usd"], standing[span.value]["spent_usd"]
            if limit is not None:
                left = 0.0 if limit <= 0 else max(0.0, 1.0 - spent / limit)
                place = (owner.purse.value, span.value)
                least[place] = min(least[place], left)
    return least
