"""Budgets over the real store: what may begin, what may go on, what is charged, and what a crash leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest

from claude_daemon.core.agent import AgentSpec
from claude_daemon.core.budget import ALL, NO_BUDGET, Budget, Owner, Purse, Reservation
from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.lifecycle import Check
from claude_daemon.core.task import Kind, Outcome, State, Task, TaskSpec, Usage
from claude_daemon.ports import Idempotency, MeteredLease, Spending, StoreUnavailable
from claude_daemon.service import budget
from claude_daemon.service.book import Book
from claude_daemon.service.budget import Budgets, BudgetSettings
from claude_daemon.service.run import Run
from claude_daemon.store import SqliteStore
from tests.service.doubles import PATIENCE_S, SUCCEEDED, Clock, FakeEngine, FakeLease, failed, spec
from tests.service.test_durable import ME, MODEL, WISH, Office

TURN = 100
"""What is set aside for a turn, in micro-USD; an input token of ``MODEL`` costs one."""
FOR_THREE = BudgetSettings(overall=Budget(day_micro_usd=3 * TURN), turn_micro_usd=TURN)
DAY_S = 86_400.0
_NODES = count()


def used(tokens: int, calls: int = 1) -> Usage:
    return Usage(input_tokens=tokens, model_calls=calls)


def cost(tokens: int) -> Outcome:
    return replace(SUCCEEDED, usage=used(tokens))


async def written(budgets: Budgets) -> None:
    """The store has been told of every chat that goes on."""
    async with asyncio.timeout(PATIENCE_S):
        while budgets._looking:
            await asyncio.sleep(0.001)


class MeteredFakeLease(FakeLease):
    """One that asks before each model call."""

    def __init__(self, engine: FakeEngine, asked: TaskSpec) -> None:
        super().__init__(engine, asked)
        self.spending: Spending | None = None

    def may_call(self, usage: Usage) -> Failure | None:
        assert self.spending is not None
        return self.spending(usage)


class MeteredEngine(FakeEngine):
    def lease(self, spec: TaskSpec) -> FakeLease | None:
        lease = super().lease(spec)
        if lease is not None:
            self.leases[-1] = lease = MeteredFakeLease(self, spec)
        return lease


class House:
    """An office with budgets. ``keys``: what each key may spend of its own."""

    def __init__(self, store: SqliteStore, clock: Clock, settings: BudgetSettings, places: int) -> None:
        self.store = store
        self.clock = clock
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.keys: dict[str, Budget] = {}
        self.budgets = Budgets(
            store,
            settings,
            now=clock,
            budget_of=lambda key_id: self.keys.get(key_id, NO_BUDGET),
            told=lambda name, fields: self.told.append((name, fields)),
        )
        engine, node = MeteredEngine(places), f"node_{next(_NODES)}"
        self.office = Office(store, clock, places=places, budgets=self.budgets, node=node, engine=engine)
        self.office.dispatcher._settled = self._settled

    def _settled(self, run: Run) -> None:
        if not run.durable:
            self.office.book.chat_ended(run)

    def chat(self, **changes: Any) -> Run:
        return self.office.admission.chat(spec(**changes)).run

    def chats(self, count: int) -> list[Run]:
        """Those that were admitted of so many at once; every other one is refused for the budget's sake."""
        admitted = []
        for _ in range(count):
            try:
                admitted.append(self.chat())
            except Refusal as refusal:
                assert refusal.failure.code is Code.BUDGET_EXHAUSTED
        return admitted

    async def ended(self, run: Run, outcome: Outcome) -> None:
        """Its engine says so."""
        number = next(n for n, lease in enumerate(self.office.engine.leases) if lease.spec is run.task.spec)
        (await self.office.lease(number)).say(outcome)
        async with asyncio.timeout(PATIENCE_S):
            async for _ in run.follow():
                pass

    def names(self, name: str) -> list[dict[str, Any]]:
        return [fields for told, fields in self.told if told == name]

    def spent(self, owner: Owner = ALL) -> float:
        return round(self.budgets.standing(owner)["day"]["spent_usd"] * 1e6)

    def set_aside(self) -> float:
        return round(self.budgets.standing(ALL)["reserved_usd"] * 1e6)

    async def stored(self) -> tuple[int, int]:
        """What the store says: spent by all, and set aside."""
        await written(self.budgets)
        await self.store.pause(False)  # behind whatever nobody waits for
        spent = sum(one.micro_usd for one in await self.store.spending("1970") if one.owner == ALL)
        return spent, sum(one.micro_usd for one in await self.store.reservations())


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore.open(tmp_path / "daemon.db")
    yield opened
    await opened.close()


@asynccontextmanager
async def house(
    store: SqliteStore, clock: Clock, settings: BudgetSettings = FOR_THREE, places: int = 20
) -> AsyncIterator[House]:
    made = House(store, clock, settings, places)
    await made.budgets.load()
    async with made.office:
        yield made


# at admission


async def test_of_twenty_chats_at_once_a_budget_for_three_takes_three(store: SqliteStore, clock: Clock) -> None:
    async with house(store, clock) as at:
        admitted = at.chats(20)
        assert (len(admitted), at.set_aside()) == (3, 300)
        for run, tokens in zip(admitted, (100, 30, 90), strict=True):
            await at.ended(run, cost(tokens))
        assert (at.spent(), at.set_aside()) == (220, 0)
        assert await at.stored() == (220, 0)
        (last,) = at.chats(20)  # 80 are left: it sets all of them aside
        assert at.set_aside() == 80
        await at.ended(last, cost(80))
        assert at.chats(20) == []
        assert await at.stored() == (300, 0)


async def test_a_budget_is_overspent_by_no_more_than_the_turns_that_run(store: SqliteStore, clock: Clock) -> None:
    """Of one cent, or less: each costs more than it had set aside, and then there is no other."""
    small = BudgetSettings(overall=Budget(day_micro_usd=10), turn_micro_usd=TURN)
    async with house(store, clock, small) as at:
        (run,) = at.chats(20)
        await at.ended(run, cost(70))
        assert at.chats(20) == []
        assert await at.stored() == (70, 0)


async def test_a_budget_of_nothing_lets_nothing_be_spent(store: SqliteStore, clock: Clock) -> None:
    async with house(store, clock, BudgetSettings(overall=Budget(month_micro_usd=0))) as at:
        assert at.chats(1) == []


async def test_without_a_budget_nothing_is_set_aside_and_what_is_spent_is_known(
    store: SqliteStore, clock: Clock
) -> None:
    async with house(store, clock, BudgetSettings()) as at:
        run = at.chat()
        assert at.set_aside() == 0
        await at.ended(run, cost(7))
        assert (at.spent(), await at.stored()) == (7, (7, 0))


async def test_a_key_and_a_domain_have_budgets_of_their_own(store: SqliteStore, clock: Clock) -> None:
    settings = BudgetSettings(domains={"team": Budget(day_micro_usd=2 * TURN)}, turn_micro_usd=TURN)
    async with house(store, clock, settings) as at:
        at.keys["key_1"] = Budget(month_micro_usd=TURN)
        at.chat(key_id="key_1", trust_domain="own")
        with pytest.raises(Refusal, match="month's budget of this key"):
            at.chat(key_id="key_1", trust_domain="own")
        at.chat(key_id="key_2", trust_domain="team")
        at.chat(key_id="key_3", trust_domain="team")
        with pytest.raises(Refusal, match="day's budget of this trust domain"):
            at.chat(key_id="key_2", trust_domain="team")
        at.chat(key_id="local")


async def test_of_twenty_tasks_at_once_a_budget_for_three_takes_three(store: SqliteStore, clock: Clock) -> None:
    async with house(store, clock) as at:
        answers = await asyncio.gather(*(at.office.submit() for _ in range(20)), return_exceptions=True)
        tasks = [answer for answer in answers if isinstance(answer, Task)]
        codes = {answer.failure.code for answer in answers if isinstance(answer, Refusal)}
        assert (len(tasks), codes) == (3, {Code.BUDGET_EXHAUSTED})
        assert (at.set_aside(), await at.stored()) == (300, (0, 300))


async def test_a_task_sets_aside_no_more_than_it_may_cost(store: SqliteStore, clock: Clock) -> None:
    async with house(store, clock) as at:
        task = Task(id="t", spec=spec(kind=Kind.TASK, agent=AgentSpec(max_cost_micro_usd=40)), created_at=0.0)
        found = at.budgets.reserve(task)
        assert found is not None and found.micro_usd == 40


async def test_what_is_refused_after_all_gives_back_what_it_had_set_aside(store: SqliteStore, clock: Clock) -> None:
    async with house(store, clock) as at:
        at.office.desk.limits = replace(at.office.desk.limits, max_queued_per_key=0)
        for _ in range(5):
            with pytest.raises(Refusal) as refused:
                await at.office.submit()
            assert refused.value.failure.code is Code.QUEUE_FULL
        assert (at.set_aside(), await at.stored()) == (0, (0, 0))


async def test_who_repeats_a_submission_gets_the_first_task_though_the_budget_is_spent(
    store: SqliteStore, clock: Clock
) -> None:
    async with house(store, clock, replace(FOR_THREE, overall=Budget(day_micro_usd=1))) as at:
        key = Idempotency(key="k", digest=b"d")
        first, new = await at.office.desk.submit(ME, WISH, key)
        again, new_again = await at.office.desk.submit(ME, WISH, key)
        assert (again.id, new, new_again) == (first.id, True, False)
        with pytest.raises(Refusal) as refused:
            await at.office.desk.submit(ME, WISH, replace(key, key="another"))
        assert refused.value.failure.code is Code.BUDGET_EXHAUSTED
        assert at.set_aside() == 1


async def test_a_batch_keeps_those_that_the_budget_has_room_for(store: SqliteStore, clock: Clock) -> None:
    async with house(store, clock) as at:
        state = await at.office.desk.submit_batch(ME, [WISH] * 5)
        assert sorted(state.tasks) == [0, 1, 2]
        assert {failure.code for failure in state.batch.refused.values()} == {Code.BUDGET_EXHAUSTED}


async def test_a_task_is_tried_again_only_if_there_is_room(store: SqliteStore, clock: Clock) -> None:
    async with house(store, clock, replace(FOR_THREE, overall=Budget(day_micro_usd=TURN))) as at:
        task = await at.office.submit()
        (await at.office.lease(0)).say(replace(failed(Code.SCHEMA_MISMATCH), usage=used(60)))
        await at.office.finished(task.id)
        await at.office.desk.retry(ME, task.id)
        assert at.set_aside() == 40
        (await at.office.lease(1)).say(replace(failed(Code.SCHEMA_MISMATCH), usage=used(60)))
        await at.office.finished(task.id)
        with pytest.raises(Refusal) as refused:
            await at.office.desk.retry(ME, task.id)
        assert refused.value.failure.code is Code.BUDGET_EXHAUSTED
        assert await at.stored() == (120, 0)


async def test_another_configuration_counts_from_the_next_one_on(store: SqliteStore, clock: Clock) -> None:
    async with house(store, clock) as at:
        assert len(at.chats(5)) == 3
        at.budgets.apply(replace(FOR_THREE, overall=Budget(day_micro_usd=5 * TURN)))
        assert len(at.chats(5)) == 2


async def test_nothing_begins_before_it_is_known_what_was_spent(store: SqliteStore, clock: Clock) -> None:
    unread = Budgets(store, FOR_THREE, now=clock)
    task = Task(id="t", spec=spec(), created_at=0.0)
    with pytest.raises(Refusal) as refused:
        unread.reserve(task)
    assert refused.value.failure.code is Code.STORE_UNAVAILABLE
    await unread.load()
    assert unread.reserve(task) is not None


# at the next model call


async def test_of_twenty_tasks_none_makes_a_model_call_after_the_budget_is_spent(
    store: SqliteStore, clock: Clock
) -> None:
    """Each call costs 60: together they make them until nothing is left, and then every one of them is told so."""
    async with house(store, clock) as at:
        answers = await asyncio.gather(*(at.office.submit() for _ in range(20)), return_exceptions=True)
        leases = [await at.office.lease(n) for n in range(3)]
        runs = [cast(Any, lease).spending.args[0] for lease in leases]
        calls = dict.fromkeys(range(3), 0)
        over: dict[int, Failure] = {}
        while len(over) < 3:
            for n, lease in enumerate(leases):
                assert isinstance(lease, MeteredFakeLease) and isinstance(lease, MeteredLease)
                why = lease.may_call(used(60 * calls[n], calls[n])) if n not in over else None
                if why is not None:
                    over[n] = why
                elif n not in over:
                    before = 60 * sum(calls.values())
                    assert before < 300, "a call after it was spent"
                    calls[n] += 1
                    at.office.book.spent(runs[n], used(60 * calls[n], calls[n]))  # as the call is metered
        assert {failure.code for failure in over.values()} == {Code.BUDGET_EXHAUSTED}
        assert 300 <= 60 * sum(calls.values()) <= 300 + 3 * 60
        for n, lease in enumerate(leases):
            lease.say(Outcome(state=State.FAILED, failure=over[n], usage=used(60 * calls[n], calls[n])))
        await asyncio.gather(*(at.office.finished(task.id) for task in answers if isinstance(task, Task)))
        assert await at.stored() == (60 * sum(calls.values()), 0)


async def test_what_one_has_used_beyond_what_it_set_aside_nobody_else_can_spend(
    store: SqliteStore, clock: Clock
) -> None:
    async with house(store, clock) as at:
        task = await at.office.submit()
        await at.office.lease(0)
        run = at.office.dispatcher.find(task.id)
        assert run is not None
        at.office.book.spent(run, used(290))
        assert at.set_aside() == 290
        at.chat()
        with pytest.raises(Refusal):
            at.chat()


async def test_without_a_price_each_model_call_sets_aside_as_much_again(store: SqliteStore, clock: Clock) -> None:
    async with house(store, clock) as at:
        at.office.book.price = lambda model: None
        task = await at.office.submit()
        lease = await at.office.lease(0)
        assert isinstance(lease, MeteredFakeLease)
        assert [lease.may_call(used(1, calls)) is None for calls in range(4)] == [True, True, True, False]
        lease.say(replace(SUCCEEDED, usage=used(1, 3)))
        await at.office.finished(task.id)
        assert await at.stored() == (300, 0)
        assert len(at.names("budget.reservation_charged")) == 1


async def test_a_budget_that_comes_into_force_meanwhile_bounds_what_is_under_way(
    store: SqliteStore, clock: Clock
) -> None:
    async with house(store, clock, BudgetSettings()) as at:
        await at.office.submit()
        lease = await at.office.lease(0)
        assert isinstance(lease, MeteredFakeLease)
        assert lease.may_call(used(10**9)) is None
        at.budgets.apply(replace(FOR_THREE, overall=Budget(day_micro_usd=50)))
        assert lease.may_call(used(60)) is None, "what it has used is not charged yet"
        await at.ended(at.chat(), cost(70))
        assert lease.may_call(used(60)) is not None
        at.budgets.apply(BudgetSettings())
        assert lease.may_call(used(60)) is None


async def test_a_budget_that_is_spent_when_it_comes_into_force_is_told_at_once(
    store: SqliteStore, clock: Clock
) -> None:
    async with house(store, clock, BudgetSettings()) as at:
        await at.ended(at.chat(), cost(70))
        changes: list[Check] = []
        at.budgets.changed = lambda: changes.append(at.budgets.check()["budgets"].status)
        at.budgets.apply(replace(FOR_THREE, overall=Budget(day_micro_usd=50)))
        assert at.chats(1) == []
        assert changes == [Check.FAIL] and at.budgets.check()["budgets"].status is Check.FAIL
        assert [fields["percent"] for fields in at.names("budget.warn")] == [140]
        at.budgets.apply(replace(FOR_THREE, overall=Budget(day_micro_usd=500)))
        assert at.budgets.check()["budgets"].status is Check.PASS


# what is charged


@pytest.mark.parametrize(
    ("outcome", "priced", "charged", "reason"),
    [
        (replace(SUCCEEDED, usage=used(5)), False, 100, "price"),
        (replace(SUCCEEDED, usage=Usage(model_calls=1)), True, 100, "no usage"),
        (replace(SUCCEEDED, usage=replace(used(5), doubtful=1)), True, 100, "negative or absurd"),
        (replace(SUCCEEDED, usage=replace(used(250), doubtful=1)), True, 250, "negative or absurd"),
        (replace(failed(Code.UPSTREAM_CUT), usage=Usage(model_calls=1)), True, 100, "no usage"),
        (replace(failed(Code.UPSTREAM_OVERLOADED), usage=Usage(model_calls=2)), True, 0, None),
        (replace(failed(Code.UPSTREAM_OVERLOADED), usage=Usage(model_calls=2)), False, 0, None),
        (replace(SUCCEEDED, usage=used(5)), True, 5, None),
    ],
)
@pytest.mark.parametrize("durable", [False, True])
async def test_what_cannot_be_told_is_charged_as_it_was_set_aside_and_told(
    store: SqliteStore, clock: Clock, outcome: Outcome, priced: bool, charged: int, reason: str | None, durable: bool
) -> None:
    async with house(store, clock) as at:
        if not priced:
            at.office.book.price = lambda model: None
        if durable:
            task = await at.office.submit()
            (await at.office.lease(0)).say(outcome)
            await at.office.finished(task.id)
        else:
            await at.ended(at.chat(), outcome)
        assert await at.stored() == (charged, 0)
        assert (at.spent(), at.set_aside()) == (charged, 0)
        reasons = [fields["reason"] for fields in at.names("budget.reservation_charged")]
        assert len(reasons) == (reason is not None) and all(str(reason) in told for told in reasons)


# crashes


async def test_after_a_kill_the_sums_are_exact(store: SqliteStore, clock: Clock, tmp_path: Path) -> None:
    """Two chats and a task are under way, one chat is over: the chats are charged what they had set aside, the task
    keeps it. What a daemon that is killed leaves is the file as it is at that moment."""
    for_five = replace(FOR_THREE, overall=Budget(day_micro_usd=5 * TURN))
    async with house(store, clock, for_five) as at:
        over, *_ = at.chats(3)
        await at.ended(over, cost(30))
        await at.office.submit()
        await at.office.lease(3)
        assert await at.stored() == (30, 300)
        await store.backup(tmp_path / "left.db")
    left = SqliteStore.open(tmp_path / "left.db")
    async with house(left, clock, for_five) as after:
        assert await after.stored() == (230, 100)
        assert (after.spent(), after.set_aside()) == (230, 100)
        assert after.names("budget.left_behind")[0]["chats"] == 2
        assert len(after.chats(20)) == 2
    await left.close()


async def test_a_chat_that_is_soon_over_never_has_its_reservation_written(
    store: SqliteStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    reserve = store.reserve

    def seen(reservation: Reservation) -> None:
        written.append(reservation.task_id)
        reserve(reservation)

    monkeypatch.setattr(store, "reserve", seen)
    async with house(store, clock) as at:
        monkeypatch.setattr(budget, "WRITTEN_AFTER_S", 3600.0)
        is_over, goes_on = at.chats(2)
        at.budgets._look()
        is_new = at.chat()
        await at.ended(is_over, cost(30))
        assert written == []
        at.budgets._look()
        assert written == [goes_on.task.id]
        at.budgets._look()
        assert written == [goes_on.task.id, is_new.task.id]
        assert await at.stored() == (30, 2 * TURN)


async def test_a_reservation_that_comes_due_when_the_store_is_closed_troubles_nobody(
    store: SqliteStore, clock: Clock
) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    budgets = Budgets(store, FOR_THREE, now=clock)
    await budgets.load()
    budgets.reserve(Task(id="chat_1", spec=spec(kind=Kind.CHAT), created_at=0.0))
    await store.close()
    await written(budgets)
    assert told == []


async def test_what_was_spent_is_known_after_a_restart(store: SqliteStore, clock: Clock) -> None:
    async with house(store, clock) as at:
        await at.ended(at.chat(), cost(250))
    async with house(store, clock) as after:
        assert (after.spent(), after.set_aside()) == (250, 0)
        assert after.names("budget.warn")[0]["percent"] == 83
        assert after.budgets.check()["budgets"].status is Check.WARN


async def test_a_store_that_cannot_be_read_at_the_start_is_asked_again(store: SqliteStore, clock: Clock) -> None:
    await store.close()
    budgets = Budgets(store, FOR_THREE, now=clock)
    with pytest.raises(StoreUnavailable):
        await budgets.load()
    with pytest.raises(Refusal):
        budgets.reserve(Task(id="t", spec=spec(), created_at=0.0))


# the calendar


async def test_the_next_day_is_open_and_a_clock_that_steps_back_opens_nothing(store: SqliteStore, clock: Clock) -> None:
    async with house(store, clock, replace(FOR_THREE, overall=Budget(day_micro_usd=TURN))) as at:
        await at.ended(at.chat(), cost(100))
        assert at.chats(1) == []
        clock.now += DAY_S
        await at.ended(at.chat(), cost(100))
        clock.now -= DAY_S
        assert at.chats(1) == []
        clock.now -= 0.5 * DAY_S
        assert at.chats(1) == []
    async with house(store, clock, replace(FOR_THREE, overall=Budget(day_micro_usd=TURN))) as after:
        assert after.chats(1) == []
        clock.now += 2.5 * DAY_S
        assert len(after.chats(1)) == 1


# what it tells


async def test_at_80_percent_and_at_the_end_it_warns_once_and_the_health_says_so_until_the_next_day(
    store: SqliteStore, clock: Clock
) -> None:
    async with house(store, clock, replace(FOR_THREE, overall=Budget(day_micro_usd=1000))) as at:
        assert at.budgets.check()["budgets"].status is Check.PASS
        percents = []
        for tokens in (790, 10, 50, 140, 10, 0):
            if tokens:
                await at.ended(at.chat(), cost(tokens))
            percents.append([fields["percent"] for fields in at.names("budget.warn")])
        assert percents == [[], [80], [80], [80], [80, 100], [80, 100]]
        assert {fields["purse"] for fields in at.names("budget.warn")} == {"all"}
        report = at.budgets.check()["budgets"]
        assert (report.status, report.details) == (
            Check.FAIL,
            {
                "high": 1,
                "spent": 1,
                "overall_percent": {"day": 100, "month": None},
                "domains_percent": {"day": None, "month": None},
            },
        )
        clock.now += DAY_S
        assert at.budgets.check()["budgets"].status is Check.PASS


async def test_a_budget_that_many_share_fails_the_check_when_it_is_spent_and_that_of_one_key_warns(
    store: SqliteStore, clock: Clock
) -> None:
    own, domain = Budget(day_micro_usd=100), BudgetSettings(domains={"default": Budget(day_micro_usd=1000)})
    async with house(store, clock, domain) as at:
        at.keys["local"] = own
        await at.ended(at.chat(), cost(100))
        report = at.budgets.check()["budgets"]
        assert (report.status, (report.details or {})["domains_percent"]["day"]) == (Check.WARN, 10)
        await at.ended(at.chat(key_id="key_1"), cost(700))
        assert at.budgets.check()["budgets"].status is Check.WARN
        await at.ended(at.chat(key_id="key_1"), cost(200))
        report = at.budgets.check()["budgets"]
        assert (report.status, (report.details or {})["domains_percent"]["day"]) == (Check.FAIL, 100)
        assert "default" not in report.reason + str(report.details)  # another tenant may be reading this


def test_a_book_without_budgets_charges_what_things_cost() -> None:
    assert Book.__init__.__kwdefaults__ is not None
    assert Book.__init__.__kwdefaults__["budgets"] is None


async def test_a_purse_tells_its_limits(store: SqliteStore, clock: Clock) -> None:
    async with house(store, clock) as at:
        at.keys["local"] = Budget(month_micro_usd=2_000_000)
        at.chat()
        assert at.budgets.standing(Owner(Purse.KEY, "local")) == {
            "day": {"since": "1970-01-01", "limit_usd": None, "spent_usd": 0.0},
            "month": {"since": "1970-01-01", "limit_usd": 2.0, "spent_usd": 0.0},
            "reserved_usd": 0.0001,
        }


def test_the_price_of_the_model_is_what_these_tests_count_with() -> None:
    assert spec().model == MODEL


async def test_those_that_matter_are_all_together_domains_with_limits_and_keys_that_have_used_much(
    store: SqliteStore, clock: Clock
) -> None:
    settings = BudgetSettings(domains={"team": Budget(day_micro_usd=1000)}, turn_micro_usd=TURN)
    async with house(store, clock, settings) as at:
        team = Owner(Purse.DOMAIN, "team")
        at.keys = {name: Budget(day_micro_usd=1000) for name in ("little", "much")}
        assert at.budgets.pressed == [ALL, team]
        for key_id, tokens in (("little", 100), ("much", 800)):
            await at.ended(at.chat(key_id=key_id), cost(tokens))
        assert at.budgets.pressed == [ALL, team, Owner(Purse.KEY, "much")]
