"""``claudectl engine check``: the real CLI is tried, and one that does not hold what is promised is found out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import orjson
import pytest

from claude_daemon.assembly import ids
from claude_daemon.core.errors import Refusal
from claude_daemon.core.lifecycle import Check
from claude_daemon.engine.capabilities import ROWS, Capabilities
from claude_daemon.engine.check import EngineCheck
from claude_daemon.engine.lane import bundled_cli
from claude_daemon.engine.launch import Access
from claude_daemon.engine.spawner import EngineSite, Spawner
from claude_daemon.upstream.broker import Broker
from tests.support import DaemonProcess

pytestmark = pytest.mark.engine

PATIENCE_S = 50.0
# A CLI that reads the settings of whatever directory it is started in.
GULLIBLE = r"""#!/bin/sh
for given; do
  shift
  case "$given" in --setting-sources=*|--restricted|--strict-mcp-config|--bare) ;; *) set -- "$@" "$given" ;; esac
done
export LEAKED=yes
exec "{cli}" "$@"
"""


async def test_the_installed_cli_is_tried_step_by_step_one_check_at_a_time(daemon: DaemonProcess) -> None:
    workers = {worker["id"] for worker in await daemon.workers()}
    headers = {"Claude-Daemon-Control": "1"}
    connector = aiohttp.UnixConnector(str(daemon.socket))
    async with aiohttp.ClientSession("http://d", connector=connector, headers=headers) as control:
        told: list[dict[str, Any]] = []
        async with (
            asyncio.timeout(PATIENCE_S),
            control.post("/control/v1/engine/check") as response,
        ):
            assert response.content_type == "application/x-ndjson"
            async for line in response.content:
                told.append(orjson.loads(line))
                if len(told) == 1:
                    async with control.post("/control/v1/engine/check") as second:
                        assert (second.status, (await second.json(content_type=None))["code"]) == (409, "conflict")
    end = told.pop()
    assert [line["step"] for line in told if "step" in line] == ["capabilities", "launch profile", "sandbox"]
    rows = [line for line in told if "name" in line]
    assert sum(row["group"] == "capability" for row in rows) >= len(ROWS)
    launched = {row["name"]: row["status"] for row in rows if row["group"] == "launch"}
    assert launched == {
        "text worker: nothing of a hostile directory runs": "pass",
        "text worker: nothing of the daemon's environment is in its own": "pass",
        "text worker without --bare: nothing of a hostile directory runs": "pass",
        "text worker without --bare: nothing of the daemon's environment is in its own": "pass",
        "agent: nothing of a hostile directory runs": "pass",
        "agent: a call that is denied is not made": "pass",
        "agent with a trusted project's settings: the way to the model stays": "pass",
    }
    assert end["done"] is True and end["status"] in ("pass", "warn"), rows  # without bubblewrap it warns
    assert end["version"] == (await daemon.control("status"))["cli"]["version"]
    assert {worker["id"] for worker in await daemon.workers()} & workers, "those who serve were left alone"
    assert not list(Path(daemon.home, ".claude-daemon", "engine", "homes").glob("*/.mcp.json"))


@pytest.fixture
async def gateway() -> Any:
    broker = Broker(None)
    await broker.start()
    yield broker
    await broker.stop()


async def test_a_launch_that_does_not_hold_is_found_out(gateway: Broker, tmp_path: Path) -> None:
    cli = tmp_path / "cli"
    cli.write_text(GULLIBLE.format(cli=bundled_cli()))
    cli.chmod(0o755)
    site = EngineSite(
        cli=cli,
        directory=tmp_path / "engine",
        access=Access.BROKER,
        max_retries=0,
        request_timeout_s=20.0,
        environ={},
    )
    spawner = Spawner(site, gateway, ids, Capabilities(version="1", bare=False))
    text = SimpleNamespace(cli=cli, spawner=spawner, pool=SimpleNamespace(default_model="sonnet"))
    check = EngineCheck(cast(Any, text), cast(Any, SimpleNamespace()))
    async with asyncio.timeout(PATIENCE_S):
        rows = {row.name: row for row in await check._launches(spawner)}
    failed = {name: row.reason for name, row in rows.items() if row.status is Check.FAIL}
    assert "hook ran" in failed["text worker: nothing of a hostile directory runs"]
    assert failed["text worker: nothing of the daemon's environment is in its own"] == "LEAKED"
    assert "hook ran" in failed["agent: nothing of a hostile directory runs"]


def check_of_no_cli(gateway: Broker, tmp_path: Path) -> EngineCheck:
    site = EngineSite(
        cli=tmp_path / "nothing",
        directory=tmp_path / "engine",
        access=Access.BROKER,
        max_retries=0,
        request_timeout_s=20.0,
        environ={},
    )
    spawner = Spawner(site, gateway, ids, Capabilities())
    text = SimpleNamespace(cli=site.cli, spawner=spawner, up=False, pool=SimpleNamespace(default_model="sonnet"))
    agents = SimpleNamespace(settings=SimpleNamespace(wanted=True, bwrap=None, required=True))
    return EngineCheck(cast(Any, text), cast(Any, agents))


async def test_a_cli_that_does_not_start_is_said_so_and_nothing_else_is_tried(gateway: Broker, tmp_path: Path) -> None:
    lines = [line async for line in check_of_no_cli(gateway, tmp_path).begin()]
    assert [(line["name"], line["status"]) for line in lines if "name" in line] == [
        ("it starts", "fail"),
        ("agents are confined", "warn"),
    ]
    assert lines[-1]["status"] == "fail"


async def test_of_two_that_are_begun_at_once_one_waits_and_a_third_is_refused(gateway: Broker, tmp_path: Path) -> None:
    check, told = check_of_no_cli(gateway, tmp_path), list[str]()

    async def follow(name: str, lines: AsyncIterator[Mapping[str, Any]]) -> None:
        async for _ in lines:
            told.append(name)
            if len(told) == 1:
                with pytest.raises(Refusal):
                    check.begin()
            await asyncio.sleep(0)

    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        for name, lines in [("first", check.begin()), ("second", check.begin())]:
            group.create_task(follow(name, lines))
    assert told == sorted(told) and told.count("first") == told.count("second")
