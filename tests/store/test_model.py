"""Whatever is asked in whatever order: a task's state is what a few lines of Python say."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from claude_daemon.core.event import first_seq
from claude_daemon.core.task import Effects, State
from claude_daemon.store import SqliteStore
from tests.store.samples import (
    CANCELLED,
    FAILED,
    LEASE_UNTIL,
    LIMITS,
    SUCCEEDED,
    append,
    event,
    found,
    put,
    requeue,
    seqs,
    settlement,
    task,
)

OUTCOMES = {outcome.state: outcome for outcome in (SUCCEEDED, FAILED, CANCELLED)}


@dataclass
class Model:
    """One task, and the numbers of its events."""

    state: State = State.QUEUED
    attempt: int = 0
    fence: int = 0
    effects: Effects = Effects.NONE
    seqs: list[int] = field(default_factory=lambda: [first_seq(0)])

    def _holds(self, fence: int) -> bool:
        return self.state is State.RUNNING and fence == self.fence

    def next_seq(self, fence: int) -> int:
        return max(self.seqs[-1] + 1, first_seq(fence))

    def claim(self) -> bool:
        if self.state is not State.QUEUED:
            return False
        self.state, self.attempt, self.fence, self.effects = (
            State.RUNNING,
            self.attempt + 1,
            self.fence + 1,
            Effects.NONE,
        )
        return True

    def append(self, fence: int, new: Sequence[int]) -> bool:
        if not self._holds(fence):
            return False
        self.seqs += new
        return True

    def set_effects(self, fence: int) -> bool:
        if not self._holds(fence):
            return False
        self.effects = Effects.POSSIBLE
        return True

    def requeue(self, fence: int, seq: int, outside: bool) -> bool:
        if not self._holds(fence):
            return False
        self._move(State.QUEUED, seq, outside)
        return True

    def settle(self, fence: int, seq: int, to: State, outside: bool) -> bool:
        if fence != self.fence or self.state.terminal or (self.state is State.QUEUED and not outside):
            return False
        self._move(to, seq, outside)
        return True

    def retry(self, fence: int) -> bool:
        if self.state not in (State.FAILED, State.CANCELLED) or fence != self.fence:
            return False
        self.attempt, self.effects = 0, Effects.NONE
        self._move(State.QUEUED, first_seq(fence + 1), True)
        return True

    def _move(self, to: State, seq: int, outside: bool) -> None:
        self.state = to
        self.fence += outside
        self.seqs.append(seq)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["claim", "append", "set_effects", "requeue", "settle", "retry", "settle", "claim"]),
        st.sampled_from([0, 0, 0, 0, -1, 1]),  # how far the fence is off
        st.booleans(),
        st.sampled_from(list(OUTCOMES)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS)
async def test_a_task_is_what_its_model_says(steps: list[tuple[str, int, bool, State]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = SqliteStore.open(Path(directory) / "daemon.db")
        await put(store, task())
        model = Model()
        for name, off, outside, to in steps:
            fence = model.fence + off
            if fence >= 0:
                await step(store, model, name, fence, outside, to)
        depth = len(await store.queued())
        assert depth == (model.state is State.QUEUED)
        assert await store.close()


async def step(store: SqliteStore, model: Model, name: str, fence: int, outside: bool, to: State) -> None:
    """One verb on both."""
    if name == "settle" and model.state is State.QUEUED and to is State.SUCCEEDED:
        to = State.FAILED  # a move that there is not is our own bug, and raises
    real = await found(store)
    named = {"new_fence": fence + 1 if outside else None, "fence": fence}
    seq = first_seq(fence + 1) if outside else model.next_seq(fence)
    last = {**named, "event": event(seq), "ledger": None}
    match name:
        case "claim":
            assert (await store.claim("task_1", "node_1", LEASE_UNTIL, 0.0) is not None) == model.claim()
        case "append":
            new = [model.next_seq(fence) + n for n in range(3)]
            assert await append(store, "task_1", fence, [event(seq) for seq in new]) == model.append(fence, new)
        case "set_effects":
            assert await store.set_effects("task_1", fence) == model.set_effects(fence)
        case "requeue":
            assert await store.requeue(requeue(real, **last)) == model.requeue(fence, seq, outside)
        case "settle":
            assert await store.settle(settlement(real, OUTCOMES[to], **last)) == model.settle(fence, seq, to, outside)
        case _:
            again = await store.retry("task_1", event(first_seq(fence + 1)), LIMITS)
            assert (again is not None) == model.retry(fence)
    real = await found(store)
    assert (real.state, real.attempt, real.fence, real.effects) == (
        model.state,
        model.attempt,
        model.fence,
        model.effects,
    )
    assert real.last_seq == model.seqs[-1] and await seqs(store) == model.seqs
    assert (real.outcome is not None) == (real.finished_at is not None) == model.state.terminal
