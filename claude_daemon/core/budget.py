"""Budgets: what may be spent in a day and in a month, and what is left of it. Money is whole micro-USD.

Three purses pay for a task: that of all keys together, its trust domain's and its key's. Each may have a limit for the
day and for the month, by the calendar of ``budget.timezone``. Before anything is spent a :class:`Reservation` is
taken out of all three; when the task is over it is given back, and what was spent is charged.

What counts against a day's or a month's limit is all that was charged since it began, *later days included*: under a
clock that steps back, what was spent at the later date goes on counting, so nothing is open again that was closed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

from claude_daemon.core.errors import UPSTREAM_SAID_NO, Code, Failure
from claude_daemon.core.price import Price, cost_micro_usd
from claude_daemon.core.task import Lane, Outcome, State, Usage

MICRO: Final = 1_000_000
"""Of a dollar."""
KEPT_DAYS: Final = 62
"""Of each purse: this month and, for a clock that steps back, the one before."""
_SUMS_KEPT: Final = 4
"""Of each purse: since the first of the day and of the month, and as many for a clock that steps over midnight."""


class Purse(StrEnum):
    ALL = "all"
    DOMAIN = "domain"
    KEY = "key"


class Owner(NamedTuple):
    """Whose purse it is. ``name``: a key's id or a trust domain, empty for that of all."""

    purse: Purse
    name: str


ALL: Final = Owner(Purse.ALL, "")


def owners(key_id: str, trust_domain: str) -> tuple[Owner, ...]:
    """All who pay for a task of this key."""
    return ALL, Owner(Purse.DOMAIN, trust_domain), Owner(Purse.KEY, key_id)


class Span(StrEnum):
    DAY = "day"
    MONTH = "month"


def day_of(at: float, zone: tzinfo) -> str:
    """The date of a moment, as ISO 8601 writes it.

    >>> from datetime import timezone
    >>> day_of(0.0, timezone.utc)
    '1970-01-01'
    """
    return datetime.fromtimestamp(at, zone).date().isoformat()


def first_day(span: Span, day: str) -> str:
    """The day on which the span began that this day is in.

    >>> first_day(Span.MONTH, "2026-11-27")
    '2026-11-01'
    """
    return day if span is Span.DAY else f"{day[:8]}01"


@lru_cache(maxsize=64)  # every request asks
def firsts(day: str) -> Mapping[Span, str]:
    """For each span, its :func:`first_day`."""
    return {span: first_day(span, day) for span in Span}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits; None is no limit."""

    day_micro_usd: int | None = None
    month_micro_usd: int | None = None

    def of(self, span: Span) -> int | None:
        return self.day_micro_usd if span is Span.DAY else self.month_micro_usd


NO_BUDGET: Final = Budget()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """One limit of one purse."""

    owner: Owner
    span: Span
    micro_usd: int


def caps(budgets: Iterable[tuple[Owner, Budget]]) -> tuple[Cap, ...]:
    """Every limit that these budgets have."""
    return tuple(
        Cap(owner=owner, span=span, micro_usd=most)
        for owner, budget in budgets
        for span in Span
        if (most := budget.of(span)) is not None
    )


def exhausted(cap: Cap) -> Failure:
    """What a limit says when nothing is left of it: whose it is, and not how much others have spent."""
    whose = {Purse.ALL: "of this service", Purse.DOMAIN: "of this trust domain", Purse.KEY: "of this key"}
    why = f"The {cap.span.value}'s budget {whose[cap.owner.purse]} is spent or set aside."
    return Failure(code=Code.BUDGET_EXHAUSTED, message=why)


class Reservation(NamedTuple):
    """What a task has set aside. ``caps`` are the limits that were in force when it was taken, on this ``day``."""

    task_id: str
    key_id: str
    trust_domain: str
    model: str
    lane: Lane
    micro_usd: int
    day: str = ""
    caps: tuple[Cap, ...] = ()


@dataclass(slots=True, eq=False)
class Account:
    """What one purse has spent, by day, and has reserved; and of what is reserved, how much is ``used`` already."""

    days: dict[str, int] = field(default_factory=dict)
    sums: dict[str, int] = field(default_factory=dict)
    """Of ``days``, since those that were last asked for: every request asks, and a month has thirty."""
    reserved: int = 0
    used: int = 0

    def charge(self, day: str, micro_usd: int) -> None:
        days, sums = self.days, self.sums
        days[day] = days.get(day, 0) + micro_usd
        for first in sums:
            if day >= first:
                sums[first] += micro_usd
        if len(days) > KEPT_DAYS:
            del days[min(days)]
            sums.clear()

    def spent(self, first: str) -> int:
        """On this day and since."""
        found = self.sums.get(first)
        return self._add_up(first) if found is None else found

    def _add_up(self, first: str) -> int:
        if len(self.sums) >= _SUMS_KEPT:
            self.sums.clear()
        found = self.sums[first] = sum(micro_usd for day, micro_usd in self.days.items() if day >= first)
        return found


Bound = tuple[Cap, Account]
"""A limit, and what counts against it."""


class Accounts:
    """Every purse's account, and what is set aside from them."""

    def __init__(self) -> None:
        self._accounts: dict[Owner, Account] = {}
        self._payers: dict[tuple[str, str], tuple[Account, ...]] = {}
        """By key and trust domain, those of :func:`owners`."""
        self._held: dict[str, Reservation] = {}
        self._used_by: dict[str, int] = {}

    def of(self, owner: Owner) -> Account:
        found = self._accounts.get(owner)
        if found is None:
            found = self._accounts[owner] = Account()
        return found

    def paying(self, key_id: str, trust_domain: str) -> Sequence[Account]:
        """All that a task of this key is paid from."""
        found = self._payers.get((key_id, trust_domain))
        if found is None:
            found = self._payers[key_id, trust_domain] = tuple(map(self.of, owners(key_id, trust_domain)))
        return found

    def bounds(self, caps: Iterable[Cap]) -> Sequence[Bound]:
        return tuple((cap, self.of(cap.owner)) for cap in caps)

    @property
    def charged(self) -> Sequence[Owner]:
        """Every purse that was charged."""
        return tuple(owner for owner, account in self._accounts.items() if account.days)

    def held(self, task_id: str) -> Reservation | None:
        return self._held.get(task_id)

    def hold(self, reservation: Reservation) -> None:
        """Takes it, in the place of what the task had before."""
        if reservation.task_id in self._held:
            self.release(reservation.task_id)
        self._held[reservation.task_id] = reservation
        for account in self._paying(reservation):
            account.reserved += reservation.micro_usd

    def resize(self, task_id: str, micro_usd: int) -> None:
        """The task, which has one, sets aside so much from now on."""
        held = self._held[task_id]
        for account in self._paying(held):
            account.reserved += micro_usd - held.micro_usd
        self._held[task_id] = held._replace(micro_usd=micro_usd)

    def use(self, task_id: str, micro_usd: int) -> None:
        """The task, which has a reservation, has used so much so far; where that is more, it has set aside as much."""
        held = self._held[task_id]
        before, self._used_by[task_id] = self._used_by.get(task_id, 0), micro_usd
        for account in self._paying(held):
            account.used += micro_usd - before
        if micro_usd > held.micro_usd:
            self.resize(task_id, micro_usd)

    def release(self, task_id: str) -> None:
        """Gives back what the task has set aside, if anything."""
        held = self._held.pop(task_id, None)
        if held is not None:
            used = self._used_by.pop(task_id, 0)
            for account in self._paying(held):
                account.reserved -= held.micro_usd
                account.used -= used

    def _paying(self, reservation: Reservation) -> Sequence[Account]:
        return self.paying(reservation.key_id, reservation.trust_domain)


def scarcest(bounds: Iterable[Bound], day: str) -> tuple[Cap, int] | None:
    """The limit with the least left, and how much that is, which is negative where turns have cost more than they had
    set aside; None where there is no limit."""
    since = firsts(day)
    least: tuple[Cap, int] | None = None
    for cap, account in bounds:
        left = cap.micro_usd - account.spent(since[cap.span]) - account.reserved
        if least is None or left < least[1]:
            least = cap, left
    return least


def gone(bounds: Iterable[Bound], day: str) -> Cap | None:
    """A limit that is used up by what was spent and what those who are under way have used, if there is one."""
    since = firsts(day)
    for cap, account in bounds:
        if account.spent(since[cap.span]) + account.used >= cap.micro_usd:
            return cap
    return None


def high(bounds: Iterable[Bound], day: str, percent: int) -> Sequence[tuple[Cap, int]]:
    """The limits of which so much is spent, or more, and how many per cent."""
    since = firsts(day)
    return [
        (cap, 100 * spent // cap.micro_usd if cap.micro_usd else 100)
        for cap, account in bounds
        if 100 * (spent := account.spent(since[cap.span])) >= percent * cap.micro_usd
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """What a task, or one attempt, is charged on this ``day``. ``cost_micro_usd`` None: it cannot be told. ``doubt``:
    why the reservation was charged in its place."""

    cost_micro_usd: int | None
    micro_usd: int
    doubt: str | None = None
    day: str = ""


def charge(outcome: Outcome, price: Price | None, *, reserved: int, told: bool) -> Charge:
    """What this end costs. Whatever cannot be told costs what was ``reserved``: no doubt is in the spender's favour.

    ``told``: something of an answer had come.
    """
    usage = outcome.usage
    cost = None if price is None else cost_micro_usd(usage, price)
    if usage.doubtful:
        return Charge(cost_micro_usd=cost, micro_usd=max(cost or 0, reserved), doubt="usage was negative or absurd")
    if not _any(usage):
        if not _owed(outcome, told=told):
            return Charge(cost_micro_usd=cost, micro_usd=0)
        return Charge(cost_micro_usd=cost, micro_usd=reserved, doubt="no usage was told")
    if cost is None:
        return Charge(cost_micro_usd=None, micro_usd=reserved, doubt="the model has no price")
    return Charge(cost_micro_usd=cost, micro_usd=cost)


def _any(usage: Usage) -> bool:
    counts = (usage.input_tokens, usage.output_tokens, usage.cache_creation_input_tokens, usage.cache_read_input_tokens)
    return any(counts)


def _owed(outcome: Outcome, *, told: bool) -> bool:
    """Whether something must have been used, although nobody said how much."""
    if outcome.state is State.SUCCEEDED or told:
        return True
    return (
        outcome.usage.model_calls > 0 and outcome.failure is not None and outcome.failure.code not in UPSTREAM_SAID_NO
    )


def usd(micro_usd: int) -> float:
    return micro_usd / MICRO


def micro_usd(dollars: float | None) -> int | None:
    """Whole micro-USD, None for no limit.

    >>> micro_usd(0.25)
    250000
    """
    return None if dollars is None else round(dollars * MICRO)
