"""What is open with a key is ended as soon as the key is not good any more."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from claude_daemon.core.key import Key, Unfit
from claude_daemon.service import watch
from claude_daemon.service.watch import Watches
from tests.service.doubles import PATIENCE_S, Clock

KEY = Key(id="key_1", name="alice", digest=b"d", role="standard", trust_domain="key_1")


class Scene:
    def __init__(self) -> None:
        self.clock = Clock()
        self.now = KEY
        self.watches = Watches(lambda key: self.now.unfit(self.clock.now), self.clock)
        self.ended: list[Unfit] = []

    def change(self, key: Key) -> None:
        self.now = key
        self.watches.changed(key.id, lambda _: key)


async def test_a_change_that_ends_a_key_ends_what_is_open_once() -> None:
    scene = Scene()
    with scene.watches.watched(KEY, scene.ended.append), scene.watches.watched(KEY, scene.ended.append):
        scene.change(replace(KEY, suspended=True))
        assert scene.ended == [Unfit.SUSPENDED] * 2
        scene.change(replace(KEY, revoked=True))
        assert scene.ended == [Unfit.SUSPENDED] * 2
    assert not scene.watches._open


async def test_a_change_that_leaves_it_good_ends_nothing_and_other_keys_are_not_meant() -> None:
    scene = Scene()
    with scene.watches.watched(KEY, scene.ended.append):
        scene.change(replace(KEY, role="full"))
        scene.watches.changed("key_2", lambda key: replace(key, revoked=True))
    scene.change(replace(KEY, revoked=True))
    assert scene.ended == []


async def test_who_begins_with_a_key_that_has_ended_meanwhile_is_ended_at_once() -> None:
    scene = Scene()
    scene.now = replace(KEY, revoked=True)
    with scene.watches.watched(KEY, scene.ended.append):
        assert scene.ended == [Unfit.REVOKED]


async def test_the_end_of_a_key_comes_by_itself() -> None:
    scene = Scene()
    ended: asyncio.Future[Unfit] = asyncio.get_running_loop().create_future()
    scene.now = replace(KEY, expires_at=scene.clock.now + 0.01)
    with scene.watches.watched(scene.now, ended.set_result):
        scene.clock.now += 0.02
        async with asyncio.timeout(PATIENCE_S):
            assert await ended is Unfit.EXPIRED


async def test_a_new_end_counts_for_what_is_open() -> None:
    scene = Scene()
    ended: asyncio.Future[Unfit] = asyncio.get_running_loop().create_future()
    with scene.watches.watched(KEY, ended.set_result):
        scene.change(replace(KEY, replaced_at=scene.clock.now + 0.01))
        scene.clock.now += 0.02
        async with asyncio.timeout(PATIENCE_S):
            assert await ended is Unfit.ROTATED


async def test_a_clock_that_was_set_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "LOOK_AGAIN_S", 0.001)
    scene = Scene()
    ended: asyncio.Future[Unfit] = asyncio.get_running_loop().create_future()
    scene.now = replace(KEY, expires_at=scene.clock.now + 1e6)
    with scene.watches.watched(scene.now, ended.set_result):
        scene.clock.now += 2e6
        async with asyncio.timeout(PATIENCE_S):
            assert await ended is Unfit.EXPIRED
