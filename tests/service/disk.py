"""One task's disk, whose commits a test releases one by one, and an attempt that says numbered words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

import orjson

from claude_daemon.core.event import TASK_STARTED, TASK_SUCCEEDED, Emission, Event
from claude_daemon.core.task import Kind, Outcome, State, Task
from claude_daemon.ports import EventPage, StoredEvent
from claude_daemon.service.follow import Follow, StoreKeeper, Tails
from claude_daemon.service.tail import Tail
from tests.service.doubles import SPEC, text

TASK = Task(id="task_1", spec=replace(SPEC, kind=Kind.TASK), created_at=0.0)
END = Emission(TASK_SUCCEEDED, {})


def encode(task_id: str, seq: int, at: float, emission: Emission) -> tuple[str, bytes]:
    said = emission.data.get("delta", {}).get("text")
    return emission.type, orjson.dumps({"task": task_id, "seq": seq, "said": said})


class Disk:
    """One task's events as a store keeps them: what is handed over is written when the test says so."""

    def __init__(self) -> None:
        self.task = TASK
        self.kept: list[StoredEvent] = []
        self.reads = 0
        self._waiting: list[tuple[int, Sequence[StoredEvent], Callable[[bool], None]]] = []

    def append(self, task_id: str, fence: int, events: Sequence[StoredEvent], told: Callable[[bool], None]) -> None:
        self._waiting.append((fence, events, told))

    def commit(self) -> bool:
        """One batch becomes durable; False when none waits."""
        if not self._waiting:
            return False
        fence, events, told = self._waiting.pop(0)
        if fence == self.task.fence:
            self._keep(events)
        told(fence == self.task.fence)
        return True

    def claim(self) -> Task:
        """The next attempt, behind everything that was handed over."""
        while self.commit():
            pass
        self.task = replace(self.task, state=State.RUNNING, fence=self.task.fence + 1, attempt=self.task.attempt + 1)
        return self.task

    def end(self, event: StoredEvent) -> None:
        while self.commit():
            pass
        self._keep([event])
        self.task = replace(self.task, state=State.SUCCEEDED, outcome=Outcome(state=State.SUCCEEDED))

    def _keep(self, events: Sequence[StoredEvent]) -> None:
        self.kept += events
        self.task = replace(self.task, last_seq=self.kept[-1].seq)

    async def events(self, task_id: str, after: int, max_events: int, max_bytes: int) -> EventPage | None:
        if task_id != self.task.id:
            return None
        self.reads += 1
        found = [event for event in self.kept if event.seq > after]
        page = EventPage(terminal=self.task.state.terminal, events=found[:3], complete=len(found) <= 3)
        await asyncio.sleep(0)  # a snapshot is old when it arrives
        return page


class Scene:
    """A disk, its tails, and an attempt that says numbered words."""

    def __init__(self, max_bytes: int = 1) -> None:
        self.disk = Disk()
        store = cast(Any, self.disk)
        self.tails = Tails(lambda task_id: StoreKeeper(task_id, store, encode, lambda: 0.0))
        self.follow = Follow(store, self.tails)
        self.said = 0
        self.tail: Tail | None = None
        self.max_bytes = max_bytes

    def attempt(self) -> None:
        """A new attempt begins; what an earlier one said stays said."""
        if self.tail is None:
            self.tail = self.tails.hold(TASK.id)
            self.tail._max_bytes = self.max_bytes
        task = self.disk.claim()
        self.tail.begin(task.fence, after=task.last_seq)
        self.tail.append([Emission(TASK_STARTED, {})])

    def say(self, count: int = 1) -> None:
        assert self.tail is not None
        self.tail.append([text(str(self.said + n)) for n in range(count)])
        self.said += count

    def end(self) -> None:
        assert self.tail is not None
        seq = self.tail.next_seq()
        event = StoredEvent(seq=seq, type=TASK_SUCCEEDED, encoded=encode(TASK.id, seq, 0.0, END)[1])
        self.disk.end(event)
        self.tail.tell(Event(seq, event.type, {}, event.encoded))
        self.tails.release(TASK.id, self.tail)
        self.tail = None
