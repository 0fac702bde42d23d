"""Redis as the daemon sees it: degraded without it, and never stuck."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartDaemon
from tests.redis_server import RedisServer
from tests.support import DaemonProcess

PATIENCE_S = 20.0


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A server that does not run yet."""
    server = RedisServer(tmp_path)
    yield server
    await server.kill()


async def check(daemon: DaemonProcess, status: str) -> dict[str, Any]:
    """The check of Redis, once it has this status. Reports are cached for a second."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            document = await daemon.control("health")
            if document["checks"]["redis"]["status"] == status:
                return dict(document)
            await asyncio.sleep(0.02)


async def serves(daemon: DaemonProcess) -> None:
    for probe in ("/live", "/ready"):
        async with daemon.http.get(probe) as response:
            assert response.status == 200
    assert (await daemon.chat("Hello [[tokens=3]]", lane="direct")).status == 200


async def test_a_redis_that_is_down_goes_away_hangs_and_comes_back_costs_nobody_an_answer(
    start_daemon: StartDaemon, redis: RedisServer
) -> None:
    daemon = await start_daemon({"redis.url": redis.url})
    document = await check(daemon, "warn")
    assert (document["state"], document["status"]) == ("degraded", "warn")
    await serves(daemon)
    await redis.start()
    found = (await check(daemon, "pass"))["checks"]["redis"]
    assert found["version"]
    await daemon.logged("redis.connected")
    await redis.kill()
    await check(daemon, "warn")
    await serves(daemon)
    await daemon.logged("redis.lost")
    await redis.start()
    await check(daemon, "pass")
    redis.pause()
    try:
        await check(daemon, "warn")
        await serves(daemon)
        assert await daemon.stop() == 0  # and a stop does not wait for it either
    finally:
        redis.resume()


async def test_without_redis_there_is_no_check_and_nothing_of_its_client_is_loaded(daemon: DaemonProcess) -> None:
    assert "redis" not in (await daemon.control("health"))["checks"]
    assert daemon.process is not None
    maps = Path(f"/proc/{daemon.process.pid}/maps")
    if maps.exists():
        assert "hiredis" not in maps.read_text()
