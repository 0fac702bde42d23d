"""The delivery loop, over a store and a sender that a test holds in its hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_daemon.ports.engine import Clock
from claude_daemon.ports.store import StoreUnavailable, WebhookDelivery
from claude_daemon.ports.webhook import WebhookAnswer
from claude_daemon.service.webhooks import BACKOFF, MAX_ATTEMPTS, MAX_SENDING, POLL_S, WebhookLoop, wait_seconds

NOW = 1_800_000_000.0
PATIENCE_S = 10.0
HALF = 0.5  # what every draw gives, where a test does not say otherwise
DAY_S = 86_400

OK = WebhookAnswer(status=200)
DOWN = WebhookAnswer(reason="it cannot be reached")


def due(number: int = 1, *, attempts: int = 0, at: float = NOW) -> WebhookDelivery:
    url = f"https://receiver.example/hook?token=hush{number}"
    return WebhookDelivery(id=f"whk_{number}", task_id=f"task_{number}", url=url, attempts=attempts, due_at=at)


async def passes() -> None:
    """Lets everything that is ready run."""
    for _ in range(20):
        await asyncio.sleep(0)


@dataclass
class Ended:
    how: str
    at: float
    error: str | None = None


@dataclass
class Shelf:
    """A store's webhooks, in RAM; each verb takes a moment before and after it is durable. ``down``: how many verbs
    fail from now on. ``answering`` is cleared to keep what was read from its reader."""

    rows: dict[str, WebhookDelivery] = field(default_factory=dict)
    ended: dict[str, Ended] = field(default_factory=dict)
    errors: dict[str, list[str]] = field(default_factory=dict)
    down: int = 0
    looks: int = 0
    answering: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.answering.set()

    def put(self, *deliveries: WebhookDelivery) -> None:
        self.rows.update({delivery.id: delivery for delivery in deliveries})

    async def due(self, now: float, limit: int) -> Sequence[WebhookDelivery]:
        await self._turn()
        self.looks += 1
        found = sorted((row for row in self.rows.values() if row.due_at <= now), key=lambda row: row.due_at)[:limit]
        await self.answering.wait()
        await asyncio.sleep(0)
        return found

    async def webhooks_waiting(self) -> tuple[int, float | None]:
        raise AssertionError("nobody asks here")

    async def next_due(self) -> float | None:
        await self._turn()
        return min((row.due_at for row in self.rows.values()), default=None)

    async def delivered(self, webhook_id: str, at: float) -> None:
        await self._end(webhook_id, Ended("delivered", at))

    async def postpone(self, webhook_id: str, due_at: float, error: str) -> None:
        await self._turn()
        row = self.rows[webhook_id]
        self.rows[webhook_id] = replace(row, attempts=row.attempts + 1, due_at=due_at)
        self.errors.setdefault(webhook_id, []).append(error)
        await asyncio.sleep(0)

    async def give_up(self, webhook_id: str, at: float, error: str) -> None:
        await self._end(webhook_id, Ended("given up", at, error))

    async def _end(self, webhook_id: str, how: Ended) -> None:
        await self._turn()
        del self.rows[webhook_id]
        self.ended[webhook_id] = how
        await asyncio.sleep(0)

    async def _turn(self) -> None:
        await asyncio.sleep(0)
        if self.down > 0:
            self.down -= 1
            raise StoreUnavailable("the disk is full")


@dataclass
class Receivers:
    """A sender whose answers a test gives; ``open`` is cleared to keep deliveries under way."""

    answers: list[WebhookAnswer | Exception] = field(default_factory=list)
    got: list[tuple[str, str, bytes]] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    under_way: int = 0
    most: int = 0

    def check(self, url: str) -> str | None:
        return None

    async def send(self, webhook_id: str, url: str, body: bytes) -> WebhookAnswer:
        self.got.append((webhook_id, url, body))
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.open.wait()
            await asyncio.sleep(0)
        finally:
            self.under_way -= 1
        answer = self.answers.pop(0) if self.answers else OK
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def ids(self) -> list[str]:
        return [webhook_id for webhook_id, _, _ in self.got]


async def body_of(delivery: WebhookDelivery) -> bytes | None:
    return f"the end of {delivery.task_id}".encode()


class Desk:
    """A loop that runs, its clock, and the lines that it tells."""

    def __init__(
        self,
        *deliveries: WebhookDelivery,
        answers: Sequence[WebhookAnswer | Exception] = (),
        body: Callable[[WebhookDelivery], Awaitable[bytes | None]] = body_of,
        now: Clock | None = None,
    ) -> None:
        self.now = NOW
        self.shelf = Shelf()
        self.shelf.put(*deliveries)
        self.receivers = Receivers(list(answers))
        self.receivers.open.set()
        self.lines: asyncio.Queue[tuple[str, dict[str, Any]]] = asyncio.Queue()
        self.loop = WebhookLoop(
            self.shelf,
            self.receivers,
            body,
            now=now or (lambda: self.now),
            random=lambda: HALF,
            told=lambda name, fields: self.lines.put_nowait((name, fields)),
        )
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Desk:
        await self._stack.enter_async_context(asyncio.timeout(PATIENCE_S))
        group = await self._stack.enter_async_context(asyncio.TaskGroup())
        self._running = group.create_task(self.loop.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._running.cancel()
        await self._stack.__aexit__(kind, error, where)

    async def line(self) -> tuple[str, dict[str, Any]]:
        return await self.lines.get()

    async def later(self, seconds: float) -> None:
        """Time passes, and whatever is to come of it does."""
        self.now += seconds
        self.loop.wake()
        await passes()


# one delivery


async def test_what_is_due_at_the_start_is_delivered_and_over() -> None:
    async with Desk(due()) as desk:
        name, fields = await desk.line()
        assert desk.receivers.got == [("whk_1", "https://receiver.example/hook?token=hush1", b"the end of task_1")]
    assert desk.shelf.rows == {}
    assert desk.shelf.ended == {"whk_1": Ended("delivered", NOW)}
    ids = {"webhook_id": "whk_1", "task_id": "task_1", "host": "receiver.example"}
    assert (name, fields) == ("webhook.delivered", {**ids, "attempt": 1, "status": 200})


async def test_a_wake_has_the_store_looked_at_at_once() -> None:
    async with Desk() as desk:
        await passes()
        desk.shelf.put(due())
        await passes()
        assert desk.receivers.got == []
        desk.loop.wake()
        assert (await desk.line())[0] == "webhook.delivered"


async def test_a_wake_while_the_store_is_being_read_is_not_missed() -> None:
    async with Desk() as desk:
        while desk.shelf.looks == 0:
            await asyncio.sleep(0)
        desk.shelf.put(due())  # after it was read, before its answer is there
        desk.loop.wake()
        assert (await desk.line())[0] == "webhook.delivered"


async def test_what_is_due_later_is_sent_then_without_a_wake() -> None:
    async with Desk(due(at=time.time() + 0.05), now=time.time) as desk:
        await passes()
        assert desk.receivers.got == []
        assert (await desk.line())[0] == "webhook.delivered"


async def test_what_is_not_due_yet_is_left_alone() -> None:
    async with Desk(due(at=NOW + POLL_S / 2), due(2, at=NOW + 5 * POLL_S)) as desk:
        await passes()
        await desk.later(POLL_S / 2 - 1)
        assert desk.receivers.got == []
        await desk.later(1)
        assert desk.receivers.ids == ["whk_1"]


# failures


async def test_a_failure_is_tried_again_later_and_later_under_the_same_id_with_the_same_body() -> None:
    refused = WebhookAnswer(status=500)
    async with Desk(due(), answers=[DOWN, refused, OK]) as desk:
        name, fields = await desk.line()
        assert (name, fields["reason"], fields["again_in_seconds"]) == ("webhook.failed", DOWN.reason, 3.8)
        await desk.later(3.74)
        assert len(desk.receivers.got) == 1
        await desk.later(0.01)
        name, fields = await desk.line()
        assert (name, fields["status"], fields["again_in_seconds"]) == ("webhook.failed", 500, 7.5)
        await desk.later(7.5)
        name, fields = await desk.line()
        assert (name, fields["attempt"]) == ("webhook.delivered", 3)
    assert len(set(desk.receivers.got)) == 1
    assert desk.shelf.errors == {"whk_1": [DOWN.reason, "status 500"]}


async def test_the_last_attempt_is_followed_by_none() -> None:
    async with Desk(due(attempts=MAX_ATTEMPTS - 1), answers=[DOWN]) as desk:
        assert (await desk.line())[0] == "webhook.given_up"
    assert desk.shelf.ended == {"whk_1": Ended("given up", NOW, DOWN.reason)}


async def test_the_last_but_one_is_followed_by_the_last() -> None:
    async with Desk(due(attempts=MAX_ATTEMPTS - 2), answers=[DOWN]) as desk:
        assert (await desk.line())[0] == "webhook.failed"


async def test_gone_is_the_end_at_once() -> None:
    async with Desk(due(), answers=[WebhookAnswer(status=410)]) as desk:
        assert (await desk.line())[0] == "webhook.given_up"
    assert desk.shelf.ended["whk_1"].error == "status 410"


async def test_without_its_task_there_is_nothing_to_tell() -> None:
    async def no_body(delivery: WebhookDelivery) -> bytes | None:
        return None

    async with Desk(due(), body=no_body) as desk:
        name, fields = await desk.line()
    assert (name, fields["reason"]) == ("webhook.given_up", "its task is gone")
    assert desk.receivers.got == []


async def test_a_fault_of_ours_is_a_failed_attempt_and_quotes_nothing() -> None:
    async with Desk(due(), answers=[RuntimeError("https://receiver.example/hook?token=hush1")]) as desk:
        name, fields = await desk.line()
    assert name == "webhook.failed"
    assert fields["reason"].startswith("internal error: RuntimeError at test_webhooks.py:")
    assert "hush" not in str(fields)


@pytest.mark.parametrize("url", ["http://[::1", "nonsense", "https://user:hush@receiver.example/hush?hush#hush"])
async def test_no_line_tells_more_of_a_url_than_its_host(url: str) -> None:
    async with Desk(replace(due(), url=url)) as desk:
        name, fields = await desk.line()
    assert name == "webhook.delivered"
    assert "hush" not in str(fields)


# how long


def test_the_attempts_span_about_three_days() -> None:
    def span(draw: float) -> float:
        return sum(BACKOFF.delay(failures, draw) for failures in range(1, MAX_ATTEMPTS)) / DAY_S

    assert 1.9 < span(0.0) < span(0.5) < span(1.0) < 4.1
    assert span(0.5) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("asked", "seconds"), [(100.0, 100.0), (1.0, 3.75), (float("inf"), 21_600.0), (None, 3.75)])
def test_a_receiver_that_asks_for_time_gets_it_within_bounds(status: int, asked: float | None, seconds: float) -> None:
    assert wait_seconds(WebhookAnswer(status=status, retry_after_seconds=asked), 1, HALF) == seconds


@pytest.mark.parametrize("answer", [WebhookAnswer(status=500, retry_after_seconds=100), DOWN])
def test_others_are_not_asked_when(answer: WebhookAnswer) -> None:
    assert wait_seconds(answer, 1, HALF) == 3.75


# many


async def test_no_more_than_the_bound_are_sent_at_once_and_the_longest_due_first() -> None:
    deliveries = [due(number, at=NOW - number) for number in range(3 * MAX_SENDING)]
    desk = Desk(*deliveries)
    desk.receivers.open.clear()
    async with desk:
        await passes()
        desk.loop.wake()
        await passes()
        assert desk.receivers.under_way == MAX_SENDING
        desk.receivers.open.set()
        for _ in deliveries:
            assert (await desk.line())[0] == "webhook.delivered"
    assert desk.receivers.most == MAX_SENDING
    oldest_first = [delivery.id for delivery in sorted(deliveries, key=lambda delivery: delivery.due_at)]
    assert desk.receivers.ids[:MAX_SENDING] == oldest_first[:MAX_SENDING]
    assert sorted(desk.receivers.ids) == sorted(oldest_first)


async def test_what_is_under_way_is_not_sent_twice_however_often_the_loop_is_woken() -> None:
    desk = Desk(due())
    desk.receivers.open.clear()
    async with desk:
        for _ in range(50):
            desk.loop.wake()
            await asyncio.sleep(0)
        desk.receivers.open.set()
        while desk.lines.empty():
            desk.loop.wake()
            await asyncio.sleep(0)
        await passes()
    assert desk.receivers.ids == ["whk_1"]


async def test_what_ends_while_the_store_is_being_read_is_not_sent_for_its_old_row() -> None:
    desk = Desk(due())
    desk.receivers.open.clear()
    async with desk:
        await passes()
        desk.shelf.answering.clear()
        desk.loop.wake()
        await passes()  # it has been read, still due
        desk.receivers.open.set()
        assert (await desk.line())[0] == "webhook.delivered"
        desk.shelf.answering.set()
        await passes()
    assert desk.receivers.ids == ["whk_1"]


async def test_what_fails_does_not_hold_up_the_others() -> None:
    failing = [due(number, at=NOW - 100) for number in range(2 * MAX_SENDING)]
    async with Desk(*failing, due(99), answers=[DOWN] * len(failing)) as desk:
        for _ in failing:
            assert (await desk.line())[0] == "webhook.failed"
        name, fields = await desk.line()
        assert (name, fields["webhook_id"]) == ("webhook.delivered", "whk_99")


# a store that is away


async def test_a_store_that_is_away_is_waited_for() -> None:
    desk = Desk(due())
    desk.shelf.down = 3
    async with desk:
        await passes()
        for _ in range(3):
            assert desk.receivers.got == []
            desk.loop.wake()
            await passes()
        assert (await desk.line())[0] == "webhook.delivered"


@pytest.mark.parametrize("answer", [OK, DOWN, WebhookAnswer(status=410)])
async def test_what_became_of_an_attempt_is_kept_until_the_store_takes_it(answer: WebhookAnswer) -> None:
    """It is not sent again meanwhile, and nothing is told before it is durable."""
    desk = Desk(due(), answers=[answer])
    desk.receivers.open.clear()
    async with desk:
        await passes()
        desk.shelf.down = 10_000
        desk.receivers.open.set()
        for _ in range(5):
            await passes()
            desk.loop.wake()
        assert desk.lines.empty()
        desk.shelf.down = 0
        desk.loop.wake()
        await desk.line()
    assert desk.receivers.ids == ["whk_1"]


async def test_a_body_that_cannot_be_read_now_costs_no_attempt() -> None:
    away = [StoreUnavailable("away"), StoreUnavailable("away")]

    async def body(delivery: WebhookDelivery) -> bytes | None:
        if away:
            raise away.pop()
        return b"here"

    async with Desk(due(), body=body) as desk:
        for _ in range(3):
            await passes()
            desk.loop.wake()
        name, fields = await desk.line()
    assert (name, fields["attempt"]) == ("webhook.delivered", 1)


# ends and beginnings


async def test_a_cancelled_loop_ends_cleanly_and_leaves_what_was_under_way_due() -> None:
    desk = Desk(due())
    desk.receivers.open.clear()
    async with desk:
        await passes()
        assert desk.receivers.under_way == 1
    assert desk.receivers.under_way == 0
    assert list(desk.shelf.rows) == ["whk_1"] and desk.shelf.rows["whk_1"].attempts == 0
    desk.receivers.open.set()
    async with desk:  # the same loop again
        assert (await desk.line())[0] == "webhook.delivered"
    assert desk.receivers.ids == ["whk_1", "whk_1"]


ANSWERS = st.sampled_from([OK, OK, DOWN, WebhookAnswer(status=503, retry_after_seconds=50.0)])


@settings(deadline=None, max_examples=200)
@given(
    count=st.integers(1, MAX_SENDING + 3),
    answers=st.lists(ANSWERS, max_size=20),
    lives=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3), st.floats(0, 20), st.booleans()), max_size=12),
)
async def test_across_any_crashes_every_webhook_is_delivered_at_least_once(
    count: int, answers: list[WebhookAnswer], lives: list[tuple[int, int, float, bool]]
) -> None:
    """Each life is cut after some steps of the event loop, so at any await there is; verbs of the store fail in it,
    and time passes after it; the next one has a loop of its own or runs the old one again. The last is left alone."""
    shelf, receivers, now = Shelf(), Receivers(list(answers)), NOW
    receivers.open.set()
    shelf.put(*(due(number, at=NOW + number % 3) for number in range(count)))

    def made() -> WebhookLoop:
        return WebhookLoop(shelf, receivers, body_of, now=lambda: now, random=lambda: HALF)

    loop = made()
    for steps, down, seconds, another in lives:
        shelf.down = down
        async with asyncio.TaskGroup() as group:
            running = group.create_task(loop.run())
            for _ in range(steps):
                await asyncio.sleep(0)
            running.cancel()
        assert all(webhook_id in receivers.ids for webhook_id in shelf.ended)
        now += seconds
        loop = made() if another else loop
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        running = group.create_task(loop.run())
        while shelf.rows:
            now += 1000
            loop.wake()
            await passes()
        running.cancel()
    assert {ended.how for ended in shelf.ended.values()} == {"delivered"}
    assert set(receivers.ids) == {f"whk_{number}" for number in range(count)}
