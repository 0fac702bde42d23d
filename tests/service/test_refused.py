"""Refused keys in the audit: the first of a kind at once, the rest as a number, and never more than a few records."""

from __future__ import annotations

import asyncio
from typing import Any

from claude_daemon.core.key import Unfit
from claude_daemon.ports import AuditRecord
from claude_daemon.service.refused import EVERY_S, MAX_KEYS, MAX_PEERS, Refused
from tests.service.doubles import Clock


class Scene:
    """Refused keys, and what is written of them: all that is due, at each look."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.keys = Refused("key.refused", now=self.clock, monotonic=self.clock)
        self.written: list[AuditRecord] = []

    async def record(self, audit: AuditRecord) -> None:
        self.written.append(audit)

    async def look(self) -> list[dict[str, Any]]:
        """The details of what was written since the last look."""
        before = len(self.written)
        await self.keys._write(self.record)
        return [dict(audit.details) for audit in self.written[before:]]


def told(reason: str, count: int, peer: str = "10.0.0.1", **more: Any) -> dict[str, Any]:
    return {"peer": peer, "reason": reason, "count": count, **more}


async def test_the_first_is_told_at_once_and_the_rest_in_a_minute_as_a_number() -> None:
    scene = Scene()
    for _ in range(1000):
        scene.keys.note("10.0.0.1", Unfit.UNKNOWN, None)
    assert await scene.look() == [told("unknown", 1)]
    scene.clock.now += EVERY_S - 0.1
    scene.keys.sweep()
    assert await scene.look() == []
    scene.clock.now += EVERY_S
    scene.keys.sweep()
    assert await scene.look() == [told("unknown", 999)]
    assert (scene.written[0].act, scene.written[0].at, scene.written[0].key_id) == ("key.refused", 1000.0, None)


async def test_each_peer_and_each_reason_is_told_on_its_own() -> None:
    scene = Scene()
    scene.keys.note("10.0.0.1", Unfit.UNKNOWN, None)
    scene.keys.note("10.0.0.1", Unfit.MALFORMED, None)
    scene.keys.note("10.0.0.2", Unfit.UNKNOWN, None)
    scene.keys.note(None, Unfit.UNKNOWN, None)
    peers = [told("unknown", 1), told("malformed", 1), told("unknown", 1, "10.0.0.2"), told("unknown", 1, "unknown")]
    assert await scene.look() == peers


async def test_after_a_quiet_minute_the_next_one_is_told_at_once() -> None:
    scene = Scene()
    scene.keys.note("10.0.0.1", Unfit.UNKNOWN, None)
    scene.clock.now += EVERY_S
    scene.keys.sweep()
    scene.keys.note("10.0.0.1", Unfit.UNKNOWN, None)
    assert await scene.look() == [told("unknown", 1)] * 2


async def test_the_keys_whose_secret_was_right_are_named() -> None:
    scene = Scene()
    for number in range(100):
        scene.keys.note("10.0.0.1", Unfit.REVOKED, f"key_{number:02}")
    assert await scene.look() == [told("revoked", 1)] and scene.written[0].key_id == "key_00"
    scene.clock.now += EVERY_S
    scene.keys.sweep()
    named = [f"key_{number:02}" for number in range(1, 1 + MAX_KEYS)]
    assert await scene.look() == [told("revoked", 99, keys=named)] and scene.written[1].key_id is None


async def test_a_flood_from_everywhere_writes_no_more_than_its_bound() -> None:
    scene = Scene()
    for number in range(20 * MAX_PEERS):
        scene.keys.note(f"peer-{number}", Unfit.UNKNOWN, None)
    written = await scene.look()
    assert len(written) == MAX_PEERS + 1 and written[-1] == told("unknown", 1, "others")
    scene.clock.now += EVERY_S
    scene.keys.sweep()
    assert await scene.look() == [told("unknown", 19 * MAX_PEERS - 1, "others")]
    assert len(scene.keys._counts) == 1


async def test_what_was_not_told_yet_is_told_at_the_end() -> None:
    scene = Scene()
    for _ in range(3):
        scene.keys.note("10.0.0.1", Unfit.EXPIRED, "key_1")
    running = asyncio.ensure_future(scene.keys.run(scene.record))
    while not scene.written:
        await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait({running})
    assert [(audit.details["count"], audit.key_id) for audit in scene.written] == [(1, "key_1"), (2, "key_1")]
