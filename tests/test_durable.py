"""The start of the durable half over a store that takes nothing yet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from claude_daemon import durable
from claude_daemon.config import load
from claude_daemon.core.key import Key
from claude_daemon.durable import Durable
from claude_daemon.engine.session import SessionLane
from claude_daemon.ports import Engine, Store, StoreUnavailable
from claude_daemon.service.admit import Admission
from claude_daemon.service.health import Health
from claude_daemon.service.keys import KeyDesk
from claude_daemon.store import SqliteStore
from tests.service.doubles import PATIENCE_S, FakeEngine, FakeHomes, FakeSchemas


class Full:
    """The store, whose disk is full until the test says otherwise."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self.full = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def join(self, node: str, at: float) -> None:
        if self.full:
            raise StoreUnavailable("the disk is full")
        await self._store.join(node, at)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore.open(tmp_path / "daemon.db")
    yield opened
    await opened.close()


def key_desk(store: SqliteStore) -> KeyDesk:
    local = Key(id="local", name="local", digest=b"", role="standard", trust_domain="default")
    return KeyDesk(
        store, local, shared=False, now=time.time, monotonic=time.monotonic, ids=lambda prefix: prefix, randbytes=bytes
    )


@pytest.mark.parametrize("paused", [False, True])
async def test_nothing_is_begun_until_the_store_has_said_what_there_is(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paused: bool
) -> None:
    monkeypatch.setattr(durable, "RECOVER_AGAIN_S", 0.001)
    await store.pause(paused)
    full = Full(store)
    settings = load({}, {"HOME": str(tmp_path)}).settings
    engines = cast(Sequence[Engine], [FakeEngine()])
    half = Durable(settings, cast(Store, full), engines, cast(SessionLane, FakeHomes()), FakeSchemas(), audit_key=b"")
    health = Health(version="0", monotonic=lambda: 0.0, born=0.0)
    half.serve(cast(Admission, None), health, draining=lambda: False, keys=key_desk(store))
    await half.start()
    assert half.dispatcher._backlog.held
    half.upkeep.undrained()  # the end of a drain is no word of the store's
    assert half.dispatcher._backlog.held
    running = asyncio.ensure_future(half.run())
    full.full = False
    async with asyncio.timeout(PATIENCE_S):
        while not half._recovered:
            await asyncio.sleep(0.001)
    assert (half.dispatcher._backlog.held, half.upkeep.paused) == (paused, paused)
    running.cancel()
    await asyncio.wait({running})
