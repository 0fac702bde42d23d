"""The checks of the real daemon: what they tell whom, and that they warn and fail for what happens to it."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import aiohttp

from tests.conftest import StartDaemon
from tests.support import DaemonProcess

PATIENCE_S = 30.0
CHECKS = {
    "engine",
    "worker_pool",
    "agents",
    "sessions",
    "store",
    "audit",
    "budgets",
    "auth",
    "disk",
    "event_loop",
    "config",
    "log",
}
"""All of a daemon without Redis."""


async def health(daemon: DaemonProcess, key: str | None) -> dict[str, Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(daemon.url, headers=headers) as client, client.get("/health") as response:
        assert response.content_type == "application/health+json"
        return dict(await response.json(content_type=None))


async def check(daemon: DaemonProcess, name: str, status: str) -> dict[str, Any]:
    """The check, once it has this status: checks are read once a second."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            found = (await daemon.control("health"))["checks"][name]
            if found["status"] == status:
                return dict(found)
            await asyncio.sleep(0.02)


async def test_names_and_statuses_are_for_all_and_the_rest_for_those_with_a_key(daemon: DaemonProcess) -> None:
    strangers = await health(daemon, None)
    assert set(strangers["checks"]) == CHECKS and "changes" not in strangers
    assert all(set(check) == {"status"} for check in strangers["checks"].values())
    ours = await health(daemon, daemon.key)
    assert all("reason" in check for check in ours["checks"].values()) and ours["changes"]
    details = {
        "engine": {"version", "credential", "sandbox", "crashes_10min"},
        "worker_pool": {"busy", "idle", "spares", "waiting", "queued", "oldest_seconds", "held"},
        "store": {"commit_ms", "commit_max_60s_ms", "wal_bytes", "backlog", "backed_up_at"},
        "audit": {"head", "anchor_age_seconds", "unwritten_10min"},
        "budgets": {"high", "spent", "overall_percent", "domains_percent"},
        "auth": {"kind", "origin", "keys", "refused_5min"},
        "disk": {"file_systems"},
        "event_loop": {"lag_seconds"},
    }
    for name, told in details.items():
        assert told <= set(ours["checks"][name]), name


async def test_a_credential_that_the_upstream_refuses_fails_auth_until_it_is_taken_again(
    daemon: DaemonProcess,
) -> None:
    for lane in ("direct", "text"):
        assert (await daemon.chat("Hello [[error=401]]", lane=lane)).status == 502
        refused = await check(daemon, "auth", "fail")
        assert "the upstream refused the credential, and nothing has succeeded since" in refused["reason"]
        async with daemon.http.get("/ready") as response:  # only a turn can find out that it is taken again
            assert response.status == 200
        assert (await daemon.chat("Hello [[tokens=3]]", lane=lane)).status == 200
        assert (await check(daemon, "auth", "warn"))["refused_5min"] >= 1
    changes = [(one["what"], one["to"]) for one in (await daemon.control("health"))["changes"]]
    assert ("auth", "fail") in changes
    await daemon.logged("health.changed", check="auth", new="fail")


async def test_a_daemon_without_a_credential_fails_engine_and_auth_and_is_not_ready(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.upstream": "anthropic"}, environ={"ANTHROPIC_API_KEY": ""})
    checks = (await daemon.control("health"))["checks"]
    assert [checks[name]["status"] for name in ("engine", "auth")] == ["fail", "fail"]
    assert "no credential" in checks["engine"]["reason"]
    async with daemon.http.get("/ready") as response:
        assert (response.status, (await response.json())["status"]) == (503, "fail")


async def test_workers_that_die_again_and_again_and_a_process_that_stands_still_are_worth_a_warning(
    start_daemon: StartDaemon,
) -> None:
    daemon = await start_daemon({"engine.workers": 4})
    assert daemon.process is not None
    seen: set[int] = set()
    async with asyncio.timeout(PATIENCE_S):
        while len(seen) < 5:
            for worker in await daemon.workers():
                if worker["pid"] is not None and worker["pid"] not in seen and worker["state"] == "idle":
                    seen.add(worker["pid"])
                    os.kill(worker["pid"], signal.SIGKILL)
            await asyncio.sleep(0.02)
    assert "crashed in the last 5 s" in (await check(daemon, "worker_pool", "warn"))["reason"]
    assert "5 workers have crashed in the last 10 min" in (await check(daemon, "engine", "warn"))["reason"]
    loop = asyncio.get_running_loop()
    began = loop.time()
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        while loop.time() - began < 1.2:  # it is to miss this much of its time
            await asyncio.sleep(0.1)
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert (await check(daemon, "event_loop", "warn"))["lag_seconds"] >= 1.0
