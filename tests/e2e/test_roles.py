"""Own roles on the real daemon: what they refuse, what they give to a task that names nothing, and a reload of them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from claude_daemon.offline import OfflineModel
from tests.conftest import StartDaemon
from tests.e2e.agents import Agents, call
from tests.e2e.test_keys import PATIENCE_S, caller, create, submit
from tests.e2e.test_stream import client
from tests.support import DaemonProcess


async def refused(http: aiohttp.ClientSession, body: Mapping[str, Any]) -> tuple[int, str, str]:
    async with http.post("/v1/tasks", json=body) as response:
        problem = await response.json(content_type=None)
        return response.status, problem["code"], problem["detail"]


async def test_a_task_is_held_to_its_roles_limits_and_roots(
    agents: Agents, repository: Path, model: OfflineModel, tmp_path: Path
) -> None:
    other = tmp_path / "root-of-others"
    other.mkdir()
    role = (
        f'[roles.mine]\ntools = ["Read", "Bash"]\nroots = ["{repository.parent}"]\nmax_turns = 2\nmax_timeout_s = 60\n'
    )
    daemon = await agents(toml=f'[[roots]]\npath = "{other}"\n{role}')
    made = await create(daemon, "mine", role="mine")
    body = {"prompt": "x", "tools": {"allow": ["Bash"]}, "cwd": str(repository)}
    async with caller(daemon, made["key"]) as http:
        for more, rule in (
            ({"cwd": str(other)}, "may not work in"),
            ({"add_dirs": [str(other)]}, "may not work in"),
            ({"max_turns": 3}, "at most `max_turns: 2`."),
            ({"timeout_s": 61}, "at most `timeout_s: 60`."),
        ):
            assert (told := await refused(http, body | more))[:2] == (403, "forbidden") and rule in told[2], told
        repeated = f"held-to-two {call('Bash', command='true')} [[repeat=9]] [[tokens=1]]"
        async with http.post("/v1/tasks", json=body | {"prompt": repeated}) as response:
            assert response.status == 202, await response.text()
            task_id = (await response.json())["id"]
    task = await finished(daemon, task_id)
    assert (task["state"], task["error"]["code"]) == ("failed", "max_turns"), task
    assert len([1 for request in model.requests if "held-to-two" in str(request.body)]) <= 3


async def finished(daemon: DaemonProcess, task_id: str) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        while (task := await daemon.control(f"tasks/{task_id}"))["state"] in ("queued", "running"):
            await asyncio.sleep(0.02)
    return dict(task)


def with_role(home: Path, text: str) -> None:
    path = home / ".claude-daemon" / "config.toml"
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)


async def test_a_reload_changes_what_a_key_may_at_once_on_open_connections_too(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    with_role(tmp_path, '[roles.mine]\nscopes = ["webhooks"]\n')
    daemon = await start_daemon(home=tmp_path)
    made = await create(daemon, "mine", role="mine")
    headers = {"Authorization": f"Bearer {made['key']}"}
    async with caller(daemon, made["key"]) as http, client(daemon, additional_headers=headers) as ws:
        assert (await ws.ask(op="submit", task={"prompt": "[[text=x]]"}))["op"] == "ack"
        with_role(tmp_path, '[roles.mine]\nroutes = ["/v1/tasks"]\nlanes = ["agent"]\n')
        assert "changed" in await daemon.control("reload", "POST", {})
        told = await ws.ask(op="submit", task={"prompt": "x"})
        assert told["error"]["code"] == "forbidden" and "the lane `text`" in told["error"]["message"]
        assert "the lane `text`" in (await refused(http, {"prompt": "x"}))[2]
        async with http.get("/v1/models") as response:
            assert response.status == 403
            why = (await response.json(content_type=None))["error"]["message"]
            assert why == "The role `mine` may not use `/v1/models`; its routes are `/v1/tasks`."
        with_role(tmp_path, '[roles.mine]\nroots = ["/nowhere"]\n')
        problem = await daemon.control("reload", "POST", {})
        assert "roles.mine.roots: /nowhere is none of [[roots]]" in str(problem)
        assert "the lane `text`" in (await refused(http, {"prompt": "x"}))[2], "nothing was changed"


async def test_of_a_key_no_more_run_at_once_than_its_role_says(start_daemon: StartDaemon, tmp_path: Path) -> None:
    with_role(tmp_path, "[roles.mine]\nconcurrent = 1\n")
    daemon = await start_daemon({"engine.workers": 3}, home=tmp_path)
    mine, other = await create(daemon, "mine", role="mine"), await create(daemon, "other")
    async with caller(daemon, mine["key"]) as http, caller(daemon, other["key"]) as others:
        tasks = [await submit(http, "[[tokens=20]] [[pace=20ms]]") for _ in range(3)]
        tasks += [await submit(others, "[[tokens=20]] [[pace=20ms]]") for _ in range(2)]
        for task in tasks:
            assert (await finished(daemon, task))["state"] == "succeeded"
    with closing(sqlite3.connect(daemon.home / ".claude-daemon" / "daemon.db")) as db:
        rows = db.execute("SELECT key_id, started_at, finished_at FROM tasks ORDER BY started_at").fetchall()
    spans = [(began, ended) for key, began, ended in rows if key == mine["id"]]
    assert all(first[1] <= second[0] for first, second in pairwise(spans)), rows


@pytest.mark.parametrize("attack", ["link", "deep link"])
async def test_a_link_leads_to_no_root_that_is_not_the_roles(
    agents: Agents, repository: Path, tmp_path: Path, attack: str
) -> None:
    other = tmp_path / "root-of-others"
    (other / "sub").mkdir(parents=True)
    link = repository / "link"
    link.symlink_to(other if attack == "link" else other / "sub")
    role = f'[roles.mine]\ntools = ["Read", "Bash"]\nroots = ["{repository.parent}"]\n'
    daemon = await agents(toml=f'[[roots]]\npath = "{other}"\n{role}')
    made = await create(daemon, "mine", role="mine")
    prompt = f"{call('Bash', command='touch reached')} [[tokens=1]]"
    async with caller(daemon, made["key"]) as http:
        body = {"prompt": prompt, "tools": {"allow": ["Bash"]}, "cwd": str(link)}
        async with http.post("/v1/tasks", json=body) as response:
            task_id = (await response.json(content_type=None)).get("id")
    if task_id is not None:
        assert (await finished(daemon, task_id))["state"] == "failed"
    assert not list(other.rglob("reached"))
