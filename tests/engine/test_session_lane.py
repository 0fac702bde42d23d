"""The session lane on a stand-in for the CLI: its places, its processes, and what an operator does to them."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from claude_daemon.core.agent import AgentSpec
from claude_daemon.core.errors import Code
from claude_daemon.core.session import SessionTurn
from claude_daemon.core.task import Lane, Outcome, State, TaskSpec
from claude_daemon.core.worker import WorkerState
from claude_daemon.engine import worker
from claude_daemon.engine.session import SessionLane, SessionLease, SessionSettings
from claude_daemon.ports import NotYet
from tests.engine.test_agent_lane import BASH, Stage, stage

__all__ = ["stage"]  # the fixture

SETTINGS = SessionSettings(
    idle_s=600.0,
    turn_timeout_s=5.0,
    max_turns_per_worker=10,
    max_worker_age_s=600.0,
    max_worker_rss_mb=1000,
)


class Scene:
    """A session lane beside the stage's agents, in the same room."""

    def __init__(self, stage: Stage, directory: Path) -> None:
        self.stage = stage
        self.lane = SessionLane(SETTINGS, stage.text, stage.lane, directory)
        self.lane._ids_kept = False  # the stand-in writes no transcript
        self._messages = count()

    def spec(self, session: str = "sess_1", agent: AgentSpec = BASH, **fields: Any) -> TaskSpec:
        turn = SessionTurn(id=session, transcript=f"t-{session}", message=f"m{next(self._messages)}", **fields)
        return self.stage.spec(agent, lane=Lane.SESSION, session=turn)

    def lease(self, *args: Any, **fields: Any) -> SessionLease:
        lease = self.lane.lease(self.spec(*args, **fields))
        assert lease is not None
        return lease

    async def turn(self, *args: Any) -> tuple[str, str]:
        """How the turn found its process, and that one's id, once all is tidied up after it."""
        lease = self.lease(*args)
        outcome = await self.stage.outcome(lease)
        assert outcome.state is State.SUCCEEDED, outcome.failure
        await self.over(lease)
        return lease.start, lease.worker_id

    async def over(self, lease: SessionLease) -> None:
        await self.stage.until(lambda: lease not in self.lane._leases)

    async def hangs(self, *args: Any) -> tuple[SessionLease, asyncio.Future[Outcome]]:
        """A turn that does not end by itself."""
        self.stage.behave(user=["hang"])
        lease = self.lease(*args)
        attempt = asyncio.ensure_future(self.stage.outcome(lease))
        await self.stage.until(lambda: lease.worker.state is WorkerState.BUSY)
        return lease, attempt

    def states(self) -> dict[str, str]:
        return {one["session_id"]: one["state"] for one in self.lane.listing()}


@pytest.fixture
async def scene(stage: Stage, tmp_path: Path) -> Any:
    scene = Scene(stage, tmp_path / "sessions")
    yield scene
    scene.lane.close()
    await stage.until(lambda: not scene.lane.workers)


# places


async def test_a_turn_has_a_place_of_the_room_of_all_lanes_until_it_is_tidied_up_after(scene: Scene) -> None:
    lease = scene.lease()
    assert scene.lane.room is scene.stage.text.pool.room
    assert (scene.lane.room.taken, scene.stage.lane.lease(scene.stage.spec())) == (1, None)
    await scene.stage.outcome(lease)
    await scene.over(lease)
    assert scene.lane.room.taken == 0


async def test_a_process_that_is_only_kept_has_no_place(scene: Scene) -> None:
    await scene.turn()
    assert scene.states() == {"sess_1": "idle"}
    agent = scene.stage.lane.lease(scene.stage.spec())
    assert agent is not None
    agent.release()


async def test_a_turn_that_comes_while_the_one_before_is_tidied_up_after_has_no_place_yet(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "STOP_STEP_S", 0.2)
    scene.stage.behave(linger=True)
    scene.lane.apply(replace(SETTINGS, max_turns_per_worker=1))
    scene.lane.room.resize(3)
    told: list[int] = []
    first = scene.lease()
    await scene.stage.outcome(first)
    scene.lane.room.on_change(lambda: told.append(scene.lane.room.taken))
    with pytest.raises(NotYet):
        scene.lane.lease(scene.spec())
    with pytest.raises(NotYet):
        scene.lane.lease(scene.spec("sess_2", source="sess_1", source_transcript="t-sess_1"))
    assert scene.lane.room.taken == 1
    other = scene.lease("sess_3")
    other.release()
    await scene.over(first)
    assert told[-1] == 0
    scene.lease().release()


async def test_a_turn_that_comes_while_the_kept_process_ends_has_no_place_yet(scene: Scene) -> None:
    await scene.turn()
    scene.lane.close_kept("sess_1")
    with pytest.raises(NotYet):
        scene.lane.lease(scene.spec())
    freed = asyncio.Event()
    scene.lane.room.on_change(freed.set)
    async with asyncio.timeout(10):
        await freed.wait()
    lease = scene.lease()
    assert lease.start == "cold"
    lease.release()


async def test_a_lease_that_was_not_used_leaves_nothing(scene: Scene) -> None:
    lease = scene.lease()
    assert [one["id"] for one in scene.lane.listing()] == [lease.worker_id]
    lease.release()
    lease.release()
    assert scene.lane.room.taken == 0
    await scene.stage.until(lambda: not scene.lane.workers)
    assert scene.lane._seats == {}


async def test_a_kept_process_outlives_a_lease_that_was_not_used(scene: Scene) -> None:
    _, kept = await scene.turn()
    scene.lease().release()
    assert await scene.turn() == ("warm", kept)


# processes


@pytest.mark.parametrize(
    "limit",
    [{"max_turns_per_worker": 2}, {"max_worker_age_s": 0.0}, {"max_worker_rss_mb": 1}],
    ids=["turns", "age", "memory"],
)
async def test_a_process_that_is_worn_out_is_replaced_after_its_turn(scene: Scene, limit: dict[str, Any]) -> None:
    told: list[str] = []
    scene.stage.text.pool.told = lambda event: told.append(event.name)
    first = await scene.turn()
    scene.lane.apply(replace(SETTINGS, **limit))
    if "max_worker_age_s" in limit:
        scene.lane.workers[first[1]].lifetime_s = 0.0
    assert await scene.turn() == ("warm", first[1])
    assert "worker.retiring" in told
    start, new = await scene.turn()
    assert (start, new == first[1]) == ("cold", False)


async def test_a_process_lives_no_longer_than_it_may(scene: Scene) -> None:
    scene.lane.apply(replace(SETTINGS, max_worker_age_s=100.0))
    _, kept = await scene.turn()
    assert 80.0 <= scene.lane.workers[kept].lifetime_s <= 100.0


async def test_turns_are_counted_and_what_is_kept_is_told_as_idle(scene: Scene) -> None:
    _, kept = await scene.turn()
    await scene.turn()
    (told,) = scene.lane.listing()
    assert (told["id"], told["lane"], told["state"], told["turns"]) == (kept, "session", "idle", 2)
    assert (told["session_id"], told["rss_mb"] >= 1) == ("sess_1", True)


async def test_a_turn_whose_kept_process_has_died_in_the_last_moment_starts_another(scene: Scene) -> None:
    _, kept = await scene.turn()
    lease = scene.lease()
    assert (lease.start, lease.worker_id) == ("warm", kept)
    lease.worker.kill()
    await scene.stage.until(lambda: not lease.worker.alive)
    assert (await scene.stage.outcome(lease)).state is State.SUCCEEDED
    assert lease.worker_id != kept
    await scene.over(lease)
    assert list(scene.lane.workers) == [lease.worker_id]


# what an operator asks


async def test_a_kept_process_is_recycled_at_once_and_a_busy_one_after_its_turn(scene: Scene) -> None:
    _, kept = await scene.turn()
    scene.lane.recycle([kept], "by hand")
    assert scene.states() == {"sess_1": "idle"}  # for the moment
    await scene.stage.until(lambda: not scene.lane.workers)
    lease = scene.lease()
    scene.lane.recycle([lease.worker_id], "by hand")  # before it has a process, even
    assert (await scene.stage.outcome(lease)).state is State.SUCCEEDED
    await scene.over(lease)
    assert scene.lane.workers == {}


@pytest.mark.parametrize("when", ["before its process", "at its turn"])
async def test_a_turn_whose_process_is_killed_fails_as_after_a_crash(scene: Scene, when: str) -> None:
    if when == "at its turn":
        lease, attempt = await scene.hangs()
        scene.lane.kill(lease.worker_id)
        outcome = await attempt
    else:
        lease = scene.lease()
        scene.lane.kill(lease.worker_id)
        outcome = await scene.stage.outcome(lease)
    assert outcome.failure is not None and outcome.failure.code is Code.ENGINE_CRASHED
    await scene.over(lease)
    assert (scene.lane.room.taken, scene.lane.workers) == (0, {})


async def test_a_kept_process_is_killed_too(scene: Scene) -> None:
    _, kept = await scene.turn()
    scene.lane.kill(kept)
    await scene.stage.until(lambda: not scene.lane.workers)
    assert (await scene.turn())[0] == "cold"


async def test_a_panic_ends_turns_and_what_is_kept(scene: Scene) -> None:
    await scene.turn("sess_1")
    lease, attempt = await scene.hangs("sess_2")
    assert scene.lane.kill_busy() == [lease.worker_id]
    assert (await attempt).state is State.FAILED
    await scene.stage.until(lambda: not scene.lane.workers)
