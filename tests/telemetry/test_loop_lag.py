"""A timer that tells how late it is."""

from __future__ import annotations

import asyncio
import time

from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.telemetry.loop_lag import RECENT_S, TICK_S, LoopLag

PATIENCE_S = 10.0


class Scene:
    """A loop that fires when the test says so, and a clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.lag = LoopLag(monotonic=lambda: self.now)

    async def late(self, seconds: float) -> None:
        """The next tick comes so late."""
        timer = self.lag._timer
        assert timer is not None
        self.now = self.lag._due + seconds
        timer.cancel()
        self.lag._tick(asyncio.get_running_loop())


async def test_a_loop_that_is_blocked_is_as_late_as_it_was_blocked() -> None:
    lag = LoopLag()
    lag.start()
    timer = lag._timer
    try:
        time.sleep(TICK_S + 0.05)
        assert lag.recent_seconds >= 0.05  # it is not over: the timer has had no chance yet
        async with asyncio.timeout(PATIENCE_S):
            while lag._timer is timer:
                await asyncio.sleep(0)
        assert lag.recent_seconds >= 0.05
    finally:
        lag.stop()


@given(st.lists(st.floats(0.0, 20.0), min_size=1, max_size=60))
async def test_the_worst_of_the_last_ten_seconds_is_told_and_no_older_one(lags: list[float]) -> None:
    scene, seen = Scene(), list[tuple[float, float]]()
    scene.lag.start()
    for seconds in lags:
        due = scene.lag._due
        await scene.late(seconds)
        seen.append((scene.now, max(0.0, scene.now - due)))
        recent = [lag for at, lag in seen if scene.now - at <= RECENT_S]
        assert scene.lag.recent_seconds == max(recent)
    scene.lag.stop()


async def test_what_is_remembered_is_bounded() -> None:
    scene = Scene()
    scene.lag.start()
    for number in range(1000):  # ever smaller, so that each may be the worst one day
        await scene.late(1.0 / (number + 1))
    assert len(scene.lag._worst) <= RECENT_S / TICK_S + 1
    scene.lag.stop()


async def test_nothing_ticks_after_a_stop() -> None:
    lag = LoopLag()
    lag.start()
    timer = lag._timer
    lag.stop()
    lag.stop()
    assert timer is not None and timer.cancelled() and lag.recent_seconds == 0.0
