"""Who is next."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pytest

from claude_daemon.core.task import Lane
from claude_daemon.service.queue import ReadyQueue

LANES = frozenset(Lane)


@dataclass(eq=False)
class Item:
    name: str
    queued_at: float = 0.0
    priority: int = 0
    key_id: str = "k"
    lane: Lane = Lane.TEXT


def order(*items: Item, running: dict[str, int] | None = None, now: float = 10.0) -> list[str]:
    queue: ReadyQueue[Item] = ReadyQueue(Counter(running or {}).__getitem__)
    for one in items:
        queue.add(one)
    names = []
    while (item := queue.next(now, LANES)) is not None:
        names.append(item.name)
        queue.discard(item)
    assert not queue
    return names


def test_nobody_waits() -> None:
    queue: ReadyQueue[Item] = ReadyQueue(Counter[str]().__getitem__)
    assert not queue
    assert queue.next(0.0, LANES) is None


def test_who_may_not_be_next_is_passed_over_with_all_of_its_key_and_stays() -> None:
    may: set[str] = set()
    queue: ReadyQueue[Item] = ReadyQueue(Counter[str]().__getitem__, may=lambda item: item.key_id in may)
    for item in (first := Item("a1", 0, key_id="a"), Item("a2", 1, key_id="a"), second := Item("b1", 5, key_id="b")):
        queue.add(item)
    assert queue.next(10.0, LANES) is None
    may.add("b")
    assert queue.next(10.0, LANES) is second
    may.add("a")
    assert (queue.next(10.0, LANES), len(queue)) == (first, 3)


def test_age_decides_among_equals() -> None:
    assert order(Item("b", 2), Item("a", 1), Item("c", 3)) == ["a", "b", "c"]


def test_who_came_first_decides_when_even_the_age_is_the_same() -> None:
    assert order(Item("a"), Item("b"), Item("c")) == ["a", "b", "c"]


def test_priority_goes_before_everything() -> None:
    assert order(Item("old", 0), Item("urgent", 9, priority=1)) == ["urgent", "old"]


def test_the_key_with_the_least_running_goes_before_age() -> None:
    first = Item("a1", 0, key_id="a")
    second = Item("b1", 5, key_id="b")
    assert order(first, second, running={"a": 2, "b": 1}) == ["b1", "a1"]


@pytest.mark.parametrize("now", [61.0, 90.0, 600.0])
@pytest.mark.parametrize("key", ["k", "other"])
def test_waiting_a_minute_is_worth_one_priority(now: float, key: str) -> None:
    old = Item("old", 0)
    assert order(old, Item("urgent", 60.5, priority=1, key_id=key), now=now) == ["old", "urgent"]
    assert order(old, Item("urgent", 30, priority=1, key_id="k"), now=now) == ["urgent", "old"]


def test_who_is_put_first_goes_before_its_equals() -> None:
    queue: ReadyQueue[Item] = ReadyQueue(Counter[str]().__getitem__)
    queue.add(a := Item("a"))
    queue.add(again := Item("again"), first=True)
    assert queue.next(0.0, LANES) is again
    queue.discard(again)
    assert queue.next(0.0, LANES) is a


def test_a_long_queue_is_left_in_order_and_forgets_who_has_left() -> None:
    queue: ReadyQueue[Item] = ReadyQueue(Counter[str]().__getitem__)
    items = [Item(str(n), float(n), key_id=f"k{n % 3}") for n in range(1000)]
    for item in items:
        queue.add(item)
    for item in items[1:]:
        queue.discard(item)
    assert (len(queue), queue.next(0.0, LANES)) == (1, items[0])
    assert sum(len(heap) for heap in queue._heaps.values()) < 100


def test_discarding_who_is_not_there_is_nothing() -> None:
    queue: ReadyQueue[Item] = ReadyQueue(Counter[str]().__getitem__)
    queue.discard(Item("a"))
    assert len(queue) == 0


def test_the_order_is_one_over_all_lanes_that_are_asked_for() -> None:
    queue: ReadyQueue[Item] = ReadyQueue(Counter[str]().__getitem__)
    text, agent = Item("text", 2), Item("agent", 1, lane=Lane.AGENT)
    for item in (text, agent):
        queue.add(item)
    assert queue.next(10.0, LANES) is agent
    assert queue.next(10.0, {Lane.TEXT, Lane.SESSION}) is text
    assert queue.next(10.0, {Lane.SESSION}) is None
    assert [queue.waiting(lane) for lane in (Lane.TEXT, Lane.AGENT, Lane.SESSION)] == [1, 1, 0]
    assert queue.of(Lane.AGENT) == [agent]
    queue.discard(agent)
    queue.discard(agent)
    assert (queue.waiting(Lane.AGENT), queue.of(Lane.AGENT)) == (0, [])


def test_who_is_passed_over_holds_up_nobody_and_keeps_its_place() -> None:
    queue: ReadyQueue[Item] = ReadyQueue(Counter[str]().__getitem__)
    items = [Item(name, 1.0) for name in "abc"]
    for item in items:
        queue.add(item)
    queue.pass_over(items[0])
    assert queue.next(10.0, LANES) is items[1]
    assert (len(queue), items[0] in queue) == (3, True)
    queue.pass_over(items[1])
    queue.discard(items[1])  # it leaves the queue meanwhile
    queue.restore()
    assert queue.next(10.0, LANES) is items[0]
    queue.discard(items[0])
    assert queue.next(10.0, LANES) is items[2]


def test_a_sweep_keeps_who_is_passed_over() -> None:
    queue: ReadyQueue[Item] = ReadyQueue(Counter[str]().__getitem__)
    items = [Item(str(n), float(n), key_id=f"k{n % 3}") for n in range(300)]
    for item in items:
        queue.add(item)
    queue.pass_over(items[0])
    queue.pass_over(items[1])
    for item in items[1:]:
        queue.discard(item)
    queue.restore()
    assert (len(queue), queue.next(0.0, LANES)) == (1, items[0])
    queue.discard(items[0])
    assert queue.next(0.0, LANES) is None
    assert queue._gone == sum(len(heap) for heap in queue._heaps.values())
