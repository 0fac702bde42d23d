"""One timer for every deadline."""

from __future__ import annotations

import asyncio

from claude_daemon.service.deadlines import Deadlines

PATIENCE_S = 5.0


class Told:
    """Who was told to be over, in order."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.changed = asyncio.Event()
        self.deadlines = Deadlines(self)

    def __call__(self, task_id: str) -> None:
        assert task_id not in self.deadlines
        self.ids.append(task_id)
        self.changed.set()

    async def hear(self, count: int) -> list[str]:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.ids) < count:
                self.changed.clear()
                await self.changed.wait()
        return self.ids


async def test_each_is_told_once_in_the_order_of_their_deadlines_whatever_the_order_they_came_in() -> None:
    told = Told()
    for task_id, left in (("c", 0.003), ("a", -1.0), ("b", 0.001), ("never", 100.0)):
        told.deadlines.add(task_id, left)
    assert told.ids == []  # not from within the call
    assert await told.hear(3) == ["a", "b", "c"]
    assert len(told.deadlines) == 1


async def test_who_is_discarded_is_not_told_and_those_behind_it_still_are() -> None:
    told = Told()
    for number in range(1000):
        told.deadlines.add(f"gone_{number}", 0.001)
    told.deadlines.add("stays", 0.002)
    for number in range(1000):
        told.deadlines.discard(f"gone_{number}")
    told.deadlines.discard("unknown")
    assert len(told.deadlines._heap) < 200  # what is gone is not kept until its time
    assert await told.hear(1) == ["stays"]


async def test_a_deadline_that_is_kept_is_not_moved_but_one_set_anew_counts() -> None:
    told = Told()
    told.deadlines.add("kept", 0.001)
    told.deadlines.add("kept", 100.0)
    told.deadlines.add("anew", 0.001)
    told.deadlines.discard("anew")
    told.deadlines.add("anew", 100.0)
    assert await told.hear(1) == ["kept"]
    assert "anew" in told.deadlines


async def test_one_that_is_over_may_add_and_discard_others() -> None:
    deadlines: Deadlines
    order: list[str] = []
    done = asyncio.Event()

    def over(task_id: str) -> None:
        order.append(task_id)
        if task_id == "first":
            deadlines.discard("second")
            deadlines.add("third", 0.0)
        else:
            done.set()

    deadlines = Deadlines(over)
    deadlines.add("first", 0.0)
    deadlines.add("second", 0.001)
    async with asyncio.timeout(PATIENCE_S):
        await done.wait()
    assert order == ["first", "third"]
