"""Who may spend, and what was spent: reservations in RAM, asked before anything is begun and before each model call.

RAM decides. The store, which is told of all of it, checks durable tasks once more in the transaction that queues them,
and knows after a crash what was spent and what was set aside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, tzinfo
from typing import Any, Final, NamedTuple

from claude_daemon.core.budget import (
    ALL,
    NO_BUDGET,
    Accounts,
    Bound,
    Budget,
    Cap,
    Charge,
    Owner,
    Purse,
    Reservation,
    Span,
    caps,
    charge,
    day_of,
    exhausted,
    first_day,
    gone,
    high,
    owners,
    scarcest,
    usd,
)
from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.lifecycle import Check
from claude_daemon.core.price import Price, cost_micro_usd
from claude_daemon.core.task import Kind, Outcome, Task, TaskSpec, Usage
from claude_daemon.ports import Clock, HealthReport, Store, StoreUnavailable

WRITTEN_AFTER_S: Final = 0.05
"""A chat that is over by then never has its reservation written: its end, which is, says all. One that goes on has,
within twice as long."""
WARN_PERCENT: Final = 80
"""Of a limit: by then somebody should know."""
_BOUNDS_KEPT: Final = 4096
"""Keys whose limits are at hand, and need not be put together for each request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSettings:
    """``overall`` bounds all keys together, ``domains`` the keys of a trust domain. ``turn_micro_usd`` is set aside
    before a turn."""

    overall: Budget = NO_BUDGET
    domains: Mapping[str, Budget] = field(default_factory=dict)
    turn_micro_usd: int = 250_000
    zone: tzinfo = UTC


class _Bounds(NamedTuple):
    """What a key may spend, under these ``settings`` and with a budget of its ``own``."""

    settings: BudgetSettings
    own: Budget
    caps: tuple[Cap, ...]
    bounds: Sequence[Bound]


class Budgets:
    """``budget_of``: a key's own, by its id. ``told`` hears what is worth a log line; ``changed`` is called when
    :meth:`check` has something else to say."""

    def __init__(
        self,
        store: Store,
        settings: BudgetSettings,
        *,
        now: Clock,
        budget_of: Callable[[str], Budget] = lambda key_id: NO_BUDGET,
        told: Callable[[str, dict[str, Any]], None] = lambda name, fields: None,
    ) -> None:
        self.settings = settings
        self._store = store
        self._now = now
        self._budget_of = budget_of
        self._told = told
        self.changed: Callable[[], None] = lambda: None
        self._accounts = Accounts()
        self._unwritten: list[str] = []
        """Chats that have come since the last look."""
        self._seen: list[str] = []
        """Chats that were new at the last look: the store has not been told of their reservations."""
        self._looking = False
        self._loaded = False
        self._day: tuple[int, tzinfo, str] | None = None
        self._bounds: dict[tuple[str, str], _Bounds] = {}
        """By key and trust domain."""
        self._high: dict[tuple[Owner, Span], tuple[str, int]] = {}
        """Limits that are used up to :data:`WARN_PERCENT` or more: since which span, and the percent last told."""

    @property
    def today(self) -> str:
        at, zone = self._now(), self.settings.zone
        minute = int(at // 60)  # no midnight is within one
        if self._day is None or self._day[0] != minute or self._day[1] is not zone:
            self._day = minute, zone, day_of(at, zone)
        return self._day[2]

    async def load(self) -> None:
        """What the store knows; once, before anything is taken. Raises StoreUnavailable."""
        if self._loaded:
            return
        today = self.today
        left = await self._store.charge_left_behind(today, self._now())
        if left:
            self._told("budget.left_behind", {"chats": left, "reason": "the daemon ended while they were under way"})
        accounts = Accounts()
        for spent in await self._store.spending(first_day(Span.MONTH, today)):
            accounts.of(spent.owner).charge(spent.day, spent.micro_usd)
        for reservation in await self._store.reservations():
            accounts.hold(reservation)
        self._accounts, self._loaded = accounts, True
        self._bounds.clear()
        self._warn_of_all()

    def apply(self, settings: BudgetSettings) -> None:
        """Other limits are in force. Of one that is used up already nothing is charged any more, so it is told now."""
        self.settings = settings
        self._warn_of_all()

    def _warn_of_all(self) -> None:
        today = self.today
        for owner in self._accounts.charged:
            limits = [cap for span in Span if (cap := self._cap(owner, span)) is not None]
            self._warn(self._accounts.bounds(limits), today)

    # before

    def reserve(self, task: Task) -> Reservation | None:
        """Sets something aside for the task; None where no budget bounds it. Raises Refusal.

        That is ``reserve_usd_per_turn``, or the task's own ``max_cost_usd`` where that is less, or what is left where
        that is less still: a small budget can be spent to its end. A task that comes to cost more sets more aside
        before its next model call.
        """
        _, _, caps, bounds = self._bounds_of(task.spec)
        if not caps:
            return None
        if not self._loaded:
            raise Refusal.because(Code.STORE_UNAVAILABLE, "What was spent cannot be read now; nothing was accepted.")
        if self._accounts.held(task.id) is not None:
            raise Refusal.because(Code.CONFLICT, "the task is under way")
        today = self.today
        left = self._left(bounds, today)
        reservation = Reservation(
            task_id=task.id,
            key_id=task.spec.key_id,
            trust_domain=task.spec.trust_domain,
            model=task.spec.model,
            lane=task.spec.lane,
            micro_usd=min(self._step(task.spec), left),
            day=today,
            caps=caps,
        )
        self._accounts.hold(reservation)
        if task.spec.kind is Kind.CHAT:
            self._unwritten.append(task.id)
            if not self._looking:  # one timer for all of them: one each would cost a chat more than all else here
                self._looking = True
                asyncio.get_running_loop().call_later(WRITTEN_AFTER_S, self._look)
        return reservation

    def _look(self) -> None:
        """Writes the reservations of those that were there the last time already, and are still under way."""
        due, self._seen, self._unwritten = self._seen, self._unwritten, []
        with suppress(StoreUnavailable):  # it is closed: nobody is left who could end these chats either
            for task_id in due:
                if (held := self._accounts.held(task_id)) is not None:
                    self._store.reserve(held)
        self._looking = bool(self._seen)
        if self._looking:
            asyncio.get_running_loop().call_later(WRITTEN_AFTER_S, self._look)

    def give_back(self, task_id: str) -> None:
        """Of a task that was not accepted after all."""
        self._accounts.release(task_id)

    def _left(self, bounds: Sequence[Bound], today: str) -> int:
        """Raises Refusal when that is nothing."""
        found = scarcest(bounds, today)
        assert found is not None
        cap, left = found
        if left <= 0:
            raise Refusal(exhausted(cap))
        return left

    def _bounds_of(self, spec: TaskSpec) -> _Bounds:
        settings, own = self.settings, self._budget_of(spec.key_id)
        whose = spec.key_id, spec.trust_domain
        known = self._bounds.get(whose)
        if known is not None and known.settings is settings and known.own is own:
            return known
        overall, domain, key = owners(*whose)
        of_domain = settings.domains.get(spec.trust_domain, NO_BUDGET)
        limits = caps(((overall, settings.overall), (domain, of_domain), (key, own)))
        if len(self._bounds) >= _BOUNDS_KEPT:
            self._bounds.clear()
        found = self._bounds[whose] = _Bounds(settings, own, limits, self._accounts.bounds(limits))
        return found

    def _step(self, spec: TaskSpec) -> int:
        most = None if spec.agent is None else spec.agent.max_cost_micro_usd
        return self.settings.turn_micro_usd if most is None else min(most, self.settings.turn_micro_usd)

    # while it runs

    def used(self, task_id: str, usage: Usage, price: Price | None) -> int:
        """What the task has used so far, in micro-USD, which nobody else can spend any more. Without a price, each
        model call counts as the first reservation."""
        if self._accounts.held(task_id) is None:
            return 0
        so_far = self.settings.turn_micro_usd * usage.model_calls if price is None else cost_micro_usd(usage, price)
        self._accounts.use(task_id, so_far)
        return so_far

    def may_call(self, task: Task, usage: Usage, price: Price | None) -> Failure | None:
        """Before a model call: why there is to be none, because nothing is left of a budget."""
        so_far, today = self.used(task.id, usage, price), self.today
        held, bounds = self._accounts.held(task.id), self._bounds_of(task.spec).bounds
        if (cap := gone(bounds, today)) is not None:
            return exhausted(cap)
        if held is None or so_far < held.micro_usd:  # none: it was submitted before there was a budget
            return None
        step = self.settings.turn_micro_usd
        if bounds:
            try:
                step = min(step, self._left(bounds, today))
            except Refusal as refusal:
                return refusal.failure
        self._accounts.resize(task.id, held.micro_usd + step)
        return None

    # after

    def charge(self, task: Task, outcome: Outcome, price: Price | None, *, told: bool) -> Charge:
        """What this end of the task, or of an attempt, costs. Nothing is charged yet."""
        held = self._accounts.held(task.id)
        found = charge(outcome, price, reserved=0 if held is None else held.micro_usd, told=told)
        if found.doubt is not None and (held is not None or outcome.usage.doubtful):
            fields = {"task_id": task.id, "key_id": task.spec.key_id, "model": task.spec.model}
            self._told("budget.reservation_charged", {**fields, "reason": found.doubt, "usd": usd(found.micro_usd)})
        return replace(found, day=self.today)

    def charged(self, task: Task, bill: Charge, *, over: bool = True) -> None:
        """It is on its way into the ledger. ``over``: the task sets nothing aside any more."""
        held = self._accounts.held(task.id)
        if over:
            self._accounts.release(task.id)
        elif held is not None:  # another attempt begins as the first one did
            self._accounts.hold(held._replace(micro_usd=min(held.micro_usd, self._step(task.spec))))
        if bill.micro_usd:
            for account in self._accounts.paying(task.spec.key_id, task.spec.trust_domain):
                account.charge(bill.day, bill.micro_usd)
            self._warn(self._bounds_of(task.spec).bounds, self.today)

    def _warn(self, bounds: Iterable[Bound], today: str) -> None:
        """Once for each limit in its span, and once more when it is spent."""
        for cap, percent in high(bounds, today, WARN_PERCENT):
            began, before = first_day(cap.span, today), self._high.get((cap.owner, cap.span))
            self._high[cap.owner, cap.span] = began, percent
            if before is None or before[0] != began or (before[1] < 100 <= percent):
                self._told("budget.warn", {**self._told_of(cap, today), "percent": percent})
                self.changed()

    def _percent(self, cap: Cap, today: str) -> int:
        ((_, percent),) = high(self._accounts.bounds((cap,)), today, 0)
        return percent

    def _told_of(self, cap: Cap, today: str) -> dict[str, Any]:
        return {
            "purse": cap.owner.purse.value,
            "name": cap.owner.name,
            "span": cap.span.value,
            "spent_usd": usd(self._accounts.of(cap.owner).spent(first_day(cap.span, today))),
            "limit_usd": usd(cap.micro_usd),
        }

    # what it tells

    def check(self) -> dict[str, HealthReport]:
        """How many limits are nearly or wholly used up; which domain's or key's is nobody's business who may merely see
        the health. It fails when one is spent that many share, which keeps nobody from what costs nothing."""
        today, high, spent, shared = self.today, 0, 0, 0
        for (owner, span), (began, _) in list(self._high.items()):
            cap = self._cap(owner, span)
            percent = 0 if cap is None or began != first_day(span, today) else self._percent(cap, today)
            if percent < WARN_PERCENT:
                del self._high[owner, span]
                continue
            high += 1
            spent += percent >= 100
            shared += percent >= 100 and owner.purse is not Purse.KEY
        domains = [Owner(Purse.DOMAIN, name) for name in self.settings.domains]
        details = {
            "high": high,
            "spent": spent,
            "overall_percent": self._percents([ALL], today),
            "domains_percent": self._percents(domains, today),
        }
        if not high:
            return {"budgets": HealthReport(status=Check.PASS, details=details)}
        why = f"limits used to {WARN_PERCENT} % or more: {high}; to the end: {spent}"
        if shared:
            why += f"; of these, of more than one key: {shared}. claudectl usage"
        return {"budgets": HealthReport(status=Check.FAIL if shared else Check.WARN, reason=why, details=details)}

    def _percents(self, owners: Sequence[Owner], today: str) -> dict[str, int | None]:
        """By span, how much of a limit is used, the most of these owners; None where there is no limit."""
        caps = {span: [cap for owner in owners if (cap := self._cap(owner, span)) is not None] for span in Span}
        return {
            span.value: max((self._percent(cap, today) for cap in found), default=None) for span, found in caps.items()
        }

    def _cap(self, owner: Owner, span: Span) -> Cap | None:
        most = self._budget(owner).of(span)
        return None if most is None else Cap(owner=owner, span=span, micro_usd=most)

    def _budget(self, owner: Owner) -> Budget:
        if owner.purse is Purse.KEY:
            return self._budget_of(owner.name)
        return self.settings.overall if owner == ALL else self.settings.domains.get(owner.name, NO_BUDGET)

    @property
    def pressed(self) -> list[Owner]:
        """All keys together, the trust domains with limits, and the keys that have used :data:`WARN_PERCENT` of one."""
        domains = [Owner(Purse.DOMAIN, name) for name in self.settings.domains]
        return [ALL, *domains, *{owner for owner, _ in self._high if owner.purse is Purse.KEY}]

    @property
    def limited(self) -> list[Owner]:
        """The trust domains and keys that have limits of their own and have spent something, or could."""
        found = [Owner(Purse.DOMAIN, name) for name in self.settings.domains]
        return [*found, *(owner for owner in self._accounts.charged if self._limits_key(owner))]

    def _limits_key(self, owner: Owner) -> bool:
        return owner.purse is Purse.KEY and self._budget_of(owner.name) != NO_BUDGET

    def standing(self, owner: Owner) -> dict[str, Any]:
        """One purse as its owner is told of it, in USD; a limit that is none is null."""
        today, budget, account = self.today, self._budget(owner), self._accounts.of(owner)
        spans = {
            span.value: {
                "since": first_day(span, today),
                "limit_usd": None if (most := budget.of(span)) is None else usd(most),
                "spent_usd": usd(account.spent(first_day(span, today))),
            }
            for span in Span
        }
        return {**spans, "reserved_usd": usd(account.reserved)}
