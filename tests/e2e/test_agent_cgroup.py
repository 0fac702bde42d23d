"""Agents of a daemon that was given a cgroup: what all their processes together may use."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cgroups import cgroup2, remove_cgroup, without_controllers, without_root
from tests.e2e.agents import PATIENCE_S, Agents, call, run, told
from tests.ordinary import NOBODY
from tests.support import DaemonProcess, alive

pytestmark = [pytest.mark.system, pytest.mark.timeout(300), without_root, without_controllers]

BASH = {"allow": ["Bash"]}
SMALL = {"agent.max_memory_mb": 1024}


@pytest.fixture
def cgroup(request: pytest.FixtureRequest) -> Iterator[Path]:
    """One that was given to the user that daemons run as."""
    path = cgroup2() / f"claude-daemon-test-{os.getpid()}-{request.node.name}"
    path.mkdir()
    for part in (path, path / "cgroup.procs", path / "cgroup.subtree_control"):
        os.chown(part, NOBODY, NOBODY)
    yield path
    remove_cgroup(path)


def within(cgroup: Path) -> tuple[str, ...]:
    return ("sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(cgroup))


def agents_in(cgroup: Path) -> list[str]:
    return [path.name for path in cgroup.glob("agent-*/")]


async def need_sandbox(daemon: DaemonProcess) -> None:
    """What fills /tmp is to fill one that is in memory."""
    if not (await daemon.control("status"))["agents"]["sandboxed"]:
        pytest.skip("bubblewrap does not work here")


async def idle(daemon: DaemonProcess) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await daemon.control("status"))["agents"]["running"]:
            await asyncio.sleep(0.02)


async def test_an_agent_that_uses_more_memory_than_it_may_is_ended_and_told_so(
    cgroup: Path, agents: Agents, repository: Path
) -> None:
    daemon = await agents(SMALL, through=within(cgroup))
    assert (await daemon.control("status"))["agents"]["limits"] == "cgroup"
    await need_sandbox(daemon)
    # files in memory, which are no process's: each is within its own limits
    hog = "head -c 700M /dev/zero > /tmp/one; head -c 700M /dev/zero > ~/two; echo done"
    task, events = await run(daemon, call("Bash", command=hog), tools=BASH, cwd=str(repository))
    assert task["state"] == "failed", (task, events)
    assert task["error"]["code"] == "memory_limit"
    assert "more than 1024 MB of memory: agent.max_memory_mb" in task["error"]["message"]
    modest = call("Bash", command="head -c 300M /dev/zero > /tmp/one; wc -c < /tmp/one")
    task, events = await run(daemon, modest, tools=BASH, cwd=str(repository))
    assert task["state"] == "succeeded", (task, events)
    assert told(events, "tool.result")[0]["content"].strip() == str(300 * 1024 * 1024)
    await idle(daemon)
    assert agents_in(cgroup) == []
    assert await daemon.stop() == 0
    assert list(cgroup.glob("*/")) == [], "the daemon leaves it as it found it"


async def test_what_runs_without_a_sandbox_is_held_and_ended_all_the_same(
    cgroup: Path, agents: Agents, repository: Path
) -> None:
    daemon = await agents({**SMALL, "engine.sandbox": "none"}, through=within(cgroup))
    stray = "env -i setsid sh -c 'sleep 600 & echo $! > stray; wait' > /dev/null 2>&1 & until [ -s stray ]; do :; done"
    task, events = await run(daemon, call("Bash", command=stray), tools=BASH, cwd=str(repository))
    assert task["state"] == "succeeded", (task, events)
    await idle(daemon)
    assert agents_in(cgroup) == []
    assert not alive(int((repository / "stray").read_text()))


async def test_nothing_of_the_cgroups_is_in_the_sandbox(cgroup: Path, agents: Agents) -> None:
    daemon = await agents(through=within(cgroup))
    await need_sandbox(daemon)
    look = "ls /sys; ls -d /sys/fs/cgroup; grep -cE ' cgroup2? ' /proc/self/mounts; true"
    task, events = await run(daemon, call("Bash", command=look), tools=BASH)
    assert task["state"] == "succeeded", (task, events)
    (result,) = told(events, "tool.result")
    assert result["content"].count("No such file or directory") == 2, result
    assert result["content"].split()[-1] == "0"


async def test_a_session_is_held_in_a_cgroup_as_long_as_its_process_is_kept(cgroup: Path, agents: Agents) -> None:
    daemon = await agents(through=within(cgroup))
    task, events = await run(daemon, call("Bash", command="echo hello"), tools=BASH, session={})
    assert task["state"] == "succeeded", (task, events)
    (kept,) = agents_in(cgroup)
    assert (cgroup / kept / "pids.max").read_text() == "256\n"
    again, events = await run(daemon, "[[tokens=1]]", tools=BASH, session={"id": task["session_id"]})
    assert (again["state"], agents_in(cgroup)) == ("succeeded", [kept]), (again, events)
    assert await daemon.stop() == 0
    assert list(cgroup.glob("*/")) == []
