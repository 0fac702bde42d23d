"""Who is next."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from claude_daemon.core.task import Lane
from claude_daemon.service.queue import CHAT_PRIORITY, ReadyQueue
from claude_daemon.service.shares import DOMAINS_REMEMBERED, Shares, makes_way

LANES = frozenset(Lane)


@dataclass(eq=False)
class Item:
    name: str
    queued_at: float = 0.0
    priority: int = 0
    key_id: str = "k"
    lane: Lane = Lane.TEXT
    trust_domain: str = "default"


def running(**keys: int) -> Shares:
    """So many turns of each key under way, all in one trust domain; or ``domain_key``."""
    shares = Shares()
    for name, number in keys.items():
        domain, _, key = name.rpartition("_")
        for _ in range(number):
            shares.begin(key, domain or "default")
    return shares


def order(*items: Item, shares: Shares | None = None, now: float = 10.0) -> list[str]:
    queue: ReadyQueue[Item] = ReadyQueue(shares or Shares())
    for one in items:
        queue.add(one)
    names = []
    while (item := queue.next(now, LANES)) is not None:
        names.append(item.name)
        queue.discard(item)
    assert not queue
    return names


def test_nobody_waits() -> None:
    queue: ReadyQueue[Item] = ReadyQueue(Shares())
    assert not queue
    assert queue.next(0.0, LANES) is None


def test_who_may_not_be_next_is_passed_over_with_all_of_its_key_and_stays() -> None:
    may: set[str] = set()
    queue: ReadyQueue[Item] = ReadyQueue(Shares(), may=lambda item: item.key_id in may)
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
    assert order(first, second, shares=running(a=2, b=1)) == ["b1", "a1"]


@pytest.mark.parametrize("now", [61.0, 90.0, 600.0])
@pytest.mark.parametrize("key", ["k", "other"])
def test_waiting_a_minute_is_worth_one_priority(now: float, key: str) -> None:
    old = Item("old", 0)
    assert order(old, Item("urgent", 60.5, priority=1, key_id=key), now=now) == ["old", "urgent"]
    assert order(old, Item("urgent", 30, priority=1, key_id="k"), now=now) == ["urgent", "old"]


def test_who_is_put_first_goes_before_its_equals() -> None:
    queue: ReadyQueue[Item] = ReadyQueue(Shares())
    queue.add(a := Item("a"))
    queue.add(again := Item("again"), first=True)
    assert queue.next(0.0, LANES) is again
    queue.discard(again)
    assert queue.next(0.0, LANES) is a


def test_a_long_queue_is_left_in_order_and_forgets_who_has_left() -> None:
    queue: ReadyQueue[Item] = ReadyQueue(Shares())
    items = [Item(str(n), float(n), key_id=f"k{n % 3}") for n in range(1000)]
    for item in items:
        queue.add(item)
    for item in items[1:]:
        queue.discard(item)
    assert (len(queue), queue.next(0.0, LANES)) == (1, items[0])
    assert sum(len(heap) for heap in queue._heaps.values()) < 100


def test_discarding_who_is_not_there_is_nothing() -> None:
    queue: ReadyQueue[Item] = ReadyQueue(Shares())
    queue.discard(Item("a"))
    assert len(queue) == 0


def test_the_order_is_one_over_all_lanes_that_are_asked_for() -> None:
    queue: ReadyQueue[Item] = ReadyQueue(Shares())
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
    queue: ReadyQueue[Item] = ReadyQueue(Shares())
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
    queue: ReadyQueue[Item] = ReadyQueue(Shares())
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


def of(domain: str, name: str, queued_at: float = 0.0, priority: int = 0) -> Item:
    return Item(name, queued_at, priority, key_id=f"key of {domain}", trust_domain=domain)


def served(queue: ReadyQueue[Item], shares: Shares, turns: int, *, now: float, places: int = 1) -> list[str]:
    """Who is served, one turn after another, with so many places that are all taken before the first is given back."""
    under_way: list[Item] = []
    names = []
    for _ in range(turns):
        if len(under_way) == places:
            over = under_way.pop(0)
            shares.end(over.key_id, over.trust_domain)
        item = queue.next(now, LANES)
        assert item is not None
        queue.discard(item)
        shares.begin(item.key_id, item.trust_domain)
        under_way.append(item)
        names.append(item.name)
    for over in under_way:
        shares.end(over.key_id, over.trust_domain)
    return names


def test_the_trust_domain_with_the_least_running_goes_before_priority_and_age() -> None:
    flood = [of("a", f"a{n}", float(n), priority=10) for n in range(3)]
    assert order(*flood, of("b", "b", 500.0), shares=running(a_x=2, b_y=1), now=1000.0)[0] == "b"


def test_all_keys_of_a_domain_count_as_one() -> None:
    split = [Item(f"a{n}", 0.0, key_id=f"a{n}", trust_domain="a") for n in range(9)]
    assert order(*split, of("b", "b", 5.0), shares=running(a_a0=1, a_a1=1, b_y=1))[0] == "b"


def test_of_domains_with_as_much_the_more_urgent_goes_first() -> None:
    task, chat = of("a", "task", 0.0), of("b", "chat", 5.0, priority=CHAT_PRIORITY)
    shares = running(a_x=1, b_y=1)  # of b a turn began later
    assert order(task, chat, shares=shares) == ["chat", "task"]


def test_a_flood_that_has_waited_for_hours_leaves_a_chat_of_another_domain_its_turn_even_with_a_single_place() -> None:
    queue: ReadyQueue[Item] = ReadyQueue(shares := Shares())
    for n in range(50):
        queue.add(of("a", "a", float(n), priority=10))
    assert served(queue, shares, 3, now=10_000.0) == ["a", "a", "a"]
    queue.add(of("b", "b", 10_000.0, priority=CHAT_PRIORITY))
    assert served(queue, shares, 1, now=10_000.0) == ["b"]


@pytest.mark.parametrize("places", [1, 2, 4])
def test_two_floods_share_evenly_whoever_came_first_and_however_urgent_it_is_said_to_be(places: int) -> None:
    queue: ReadyQueue[Item] = ReadyQueue(shares := Shares())
    for n in range(40):
        queue.add(of("a", "a", float(n), priority=10))
        queue.add(of("b", "b", 600.0 + n))
    names = served(queue, shares, 20, now=1300.0, places=places)  # all of them have waited for ten minutes
    assert abs(names.count("a") - names.count("b")) <= 1
    for start in range(len(names) - 2 * places):
        assert set(names[start : start + 2 * places]) == {"a", "b"}


def test_with_fewer_places_than_domains_all_have_their_turn() -> None:
    queue: ReadyQueue[Item] = ReadyQueue(shares := Shares())
    for n in range(10):
        for domain in "abcde":
            queue.add(of(domain, domain, float(n)))
    names = served(queue, shares, 20, now=10.0, places=2)
    assert [names.count(domain) for domain in "abcde"] == [4, 4, 4, 4, 4]


def test_within_a_domain_nothing_stands_higher_than_a_chat() -> None:
    old = [Item(f"old{n}", float(n), key_id="flood") for n in range(3)]
    chat = Item("chat", 5000.0, priority=CHAT_PRIORITY, key_id="other")
    assert order(*old, chat, shares=running(flood=1), now=5000.0)[0] == "chat"
    assert order(*old, chat, now=5000.0)[0] == "old0"  # as much of both runs: the one that has waited


def test_what_is_remembered_of_domains_is_bounded_and_those_forgotten_were_served_longest_ago() -> None:
    shares = Shares()
    for n in range(DOMAINS_REMEMBERED + 10):
        shares.begin("k", str(n))
        shares.end("k", str(n))
    assert (shares.last("0"), shares.last("9"), shares.last("11") < shares.last("12")) == (0, 0, True)
    assert (len(shares._last), shares.of_domain("12"), shares.of_key("k")) == (DOMAINS_REMEMBERED, 0, 0)


def test_in_a_full_waiting_room_the_last_of_the_domain_that_has_the_most_makes_way() -> None:
    flood = [of("a", f"a{n}", float(n)) for n in range(4)]
    own = of("b", "b", 9.0)
    assert makes_way([*flood, own], "b") is flood[3]
    assert makes_way([*flood, own], "c") is flood[3]
    assert makes_way([*flood, own], "a") is None
    assert makes_way([*flood[:2], own], "b") is None  # it would only be the other way round
    assert makes_way([], "a") is None
