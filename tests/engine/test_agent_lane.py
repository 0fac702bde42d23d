"""The agent lane on a stand-in for the CLI: places, spares, and what has changed since a task was queued."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import orjson
import pytest

from claude_daemon.core.agent import AgentSpec, Approval
from claude_daemon.core.errors import Code
from claude_daemon.core.price import Price
from claude_daemon.core.task import Kind, Lane, Outcome, State, TaskSpec
from claude_daemon.engine import agent as agent_module
from claude_daemon.engine import worker
from claude_daemon.engine.agent import AgentLane, AgentLease, AgentSettings
from claude_daemon.engine.agent_worker import AgentWorker
from claude_daemon.engine.capabilities import Capabilities
from claude_daemon.engine.cgroup import Cgroups, Group
from claude_daemon.engine.lane import TextLane
from claude_daemon.engine.launch import Access
from claude_daemon.engine.mcp import Servers
from claude_daemon.engine.pool import Pool, PoolSettings
from claude_daemon.engine.sandbox import Limits
from claude_daemon.engine.spawner import EngineSite, Spawner
from claude_daemon.engine.strays import children
from claude_daemon.ports import Answer, Ended, Question
from claude_daemon.upstream.broker import Broker
from claude_daemon.upstream.mcp import HttpServer
from tests.engine.test_processes import ANSWER, FAKE, OK, REFUSED, RESULT
from tests.support import alive

PATIENCE_S = 10.0
FREE = Price(input=0, output=0, cache_write=0, cache_read=0)
PRICES: dict[str, Price] = {"sonnet": FREE}
USE = {"type": "tool_use", "id": "t1", "name": "Bash", "input": {}}
CALLS = {"type": "assistant", "message": {"id": "m", "role": "assistant", "content": [USE]}}
BASH = AgentSpec(allow=("Bash",))


class Stage:
    """A lane with a CLI that does as :meth:`behave` says. ``root`` is where its tasks may work."""

    def __init__(self, lane: AgentLane, text: TextLane, root: Path, cli: Path) -> None:
        self.lane = lane
        self.text = text
        self.root = root
        self._cli = cli
        self.behave()

    def behave(self, **behaviour: Any) -> None:
        """For those who are started from now on."""
        usual = {"mcp_status": [OK], "initialize": [OK], "user": [ANSWER, RESULT], "interrupt": [OK, RESULT]}
        told = orjson.dumps({**usual, **behaviour}).decode()
        fake = FAKE.replace("json.loads(sys.argv[1])", f"json.loads({told!r})")
        self._cli.write_text(f"#!{sys.executable} -SE\n{fake}")
        self._cli.chmod(0o755)

    def spec(self, agent: AgentSpec = BASH, **fields: Any) -> TaskSpec:
        request = {"model": fields.pop("model", "sonnet"), "messages": [{"role": "user", "content": "hello"}]}
        usual = {"kind": Kind.TASK, "lane": Lane.AGENT, "key_id": "k", "trust_domain": "d", "request_id": "r"}
        return TaskSpec(**{**usual, "request": request, "agent": agent, **fields})

    def lease(self, agent: AgentSpec = BASH, **fields: Any) -> AgentLease:
        lease = self.lane.lease(self.spec(agent, **fields))
        assert lease is not None
        return lease

    async def run(self, agent: AgentSpec = BASH, **fields: Any) -> Outcome:
        """To its end, as an attempt does it, and to that of its process."""
        lease = self.lease(agent, **fields)
        outcome = await self.outcome(lease)
        await self.until(lambda: lease not in self.lane._leases)
        return outcome

    async def outcome(self, lease: AgentLease) -> Outcome:
        try:
            async with asyncio.timeout(PATIENCE_S):
                ended = [batch async for batch in lease.run()][-1][-1]
        finally:
            lease.release()
        assert isinstance(ended, Ended)
        return ended.outcome

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def spare(self, agent: AgentSpec = BASH) -> None:
        """Two tasks of this shape, and the spare that they bring about."""
        for _ in range(2):
            assert (await self.run(agent)).state is State.SUCCEEDED
        await self.until(lambda: self.lane.counts()["spares"] == 1 and self.lane.running == 0)

    @property
    def processes(self) -> set[int]:
        return self.lane._spawner.pids


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    broker, ids = Broker(None), count()
    await broker.start()
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    cli = tmp_path / "claude"
    site = EngineSite(
        cli=cli,
        directory=tmp_path / "engine",
        access=Access.BROKER,
        max_retries=0,
        request_timeout_s=10.0,
        environ={},
    )
    spawner = Spawner(site, broker, lambda prefix: f"{prefix}_{next(ids)}", Capabilities())
    sizes = PoolSettings(
        workers=0,
        spares=0,
        max_turns_per_worker=10,
        max_worker_age_s=600.0,
        max_worker_rss_mb=1000,
        stall_timeout_s=5.0,
        turn_timeout_s=5.0,
    )
    pool = Pool(sizes, spawner, capabilities=Capabilities(), default_model="sonnet", unsupported=lambda spec: None)
    pool.room.resize(1)  # for an agent, though the text lane has no process
    text = TextLane(cli, tmp_path / "cache", spawner, pool, default_model="sonnet")
    settings = AgentSettings(
        spares=1,
        max_spare_age_s=600.0,
        stall_timeout_s=5.0,
        roots=(root,),
        private=(tmp_path / "engine",),
        limits=Limits(max_processes=64, max_memory_mb=1024, max_file_mb=64),
        bwrap=None,
        wanted=False,
        work_quota_mb=64,
        required=False,
    )
    lane = AgentLane(
        settings,
        text,
        tmp_path / "engine",
        unsupported=lambda spec: None,
        price=PRICES.get,
        exposed=lambda: True,
        remote=HttpServer,
    )
    await lane.probe()
    running = asyncio.ensure_future(pool.run())
    await asyncio.sleep(0)
    text.up = True
    yield Stage(lane, text, root, cli)
    lane.close()
    pool.close()
    await running
    await broker.stop()
    assert spawner.pids == set()
    for part in ("work", "homes", "ledger"):
        assert list((tmp_path / "engine" / part).glob("*")) == [], part


# what was allowed when it was queued


async def test_a_tool_that_needs_a_sandbox_is_refused_when_there_is_none_any_more(stage: Stage) -> None:
    stage.lane.settings = replace(stage.lane.settings, required=True)
    outcome = await stage.run()
    assert outcome.failure is not None and outcome.failure.code is Code.SANDBOX_UNAVAILABLE
    assert stage.lane.starts["cold"] == 1
    assert (await stage.run(AgentSpec(allow=("Read",)))).state is State.SUCCEEDED


async def test_nothing_reads_the_whole_machine_where_neither_sandbox_nor_claude_code_confines(stage: Stage) -> None:
    stage.lane.settings = replace(stage.lane.settings, required=True)
    stage.text.pool.capabilities = Capabilities(restricted=False)
    outcome = await stage.run(AgentSpec(allow=("Read",)))
    assert outcome.failure is not None and outcome.failure.code is Code.SANDBOX_UNAVAILABLE
    assert (await stage.run(AgentSpec())).state is State.SUCCEEDED


async def test_a_limit_that_cannot_be_kept_any_more_is_no_limit_that_is_passed_over(stage: Stage) -> None:
    capped = AgentSpec(max_cost_micro_usd=1000)
    assert (await stage.run(capped)).state is State.SUCCEEDED
    stage.lane.apply(stage.lane.settings, lambda model: None)
    outcome = await stage.run(capped)
    assert outcome.failure is not None and outcome.failure.param == "max_cost_usd"


async def test_a_root_that_was_taken_away_is_no_root_for_those_who_wait(stage: Stage) -> None:
    agent = AgentSpec(allow=("Read",), cwd=str(stage.root / "a"))
    stage.lane.apply(replace(stage.lane.settings, roots=()), lambda model: None)
    outcome = await stage.run(agent)
    assert outcome.failure is not None and outcome.failure.param == "cwd"


async def test_a_spare_whose_task_is_refused_ends(stage: Stage) -> None:
    await stage.spare()
    stage.lane.settings = replace(stage.lane.settings, required=True)
    assert (await stage.run()).state is State.FAILED
    await stage.until(lambda: stage.lane.running == 0)


# what is the daemon's own


@pytest.mark.parametrize("name", ["engine", "engine/work", "", "link"])
async def test_no_task_works_where_the_daemons_own_files_are(stage: Stage, tmp_path: Path, name: str) -> None:
    (tmp_path / "link").symlink_to("engine/work")
    stage.lane.apply(replace(stage.lane.settings, roots=(tmp_path,)), lambda model: None)
    agent = AgentSpec(allow=("Read",), cwd=os.path.normpath(tmp_path / name))
    outcome = await stage.run(agent)
    assert outcome.failure is not None
    assert (outcome.failure.code, "own files" in outcome.failure.message) == (Code.INVALID_REQUEST, True)
    assert (await stage.run(replace(agent, cwd=None, add_dirs=(str(tmp_path / "root" / "a"),)))).failure is None


async def test_a_root_within_the_daemons_directories_was_meant(stage: Stage, tmp_path: Path) -> None:
    projects = tmp_path / "engine" / "projects"
    (projects / "a").mkdir(parents=True)
    stage.lane.apply(replace(stage.lane.settings, roots=(projects,)), lambda model: None)
    assert (await stage.run(AgentSpec(allow=("Read",), cwd=str(projects / "a")))).state is State.SUCCEEDED


# places


async def test_a_place_is_free_when_its_process_is_gone(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STOP_STEP_S", 0.2)
    stage.behave(linger=True, ignore=[signal.SIGINT, signal.SIGTERM])
    assert (await stage.outcome(stage.lease())).state is State.SUCCEEDED
    (pid,) = stage.processes
    assert alive(pid)
    assert (stage.lane.running, stage.lane.lease(stage.spec())) == (1, None)
    await stage.until(lambda: stage.lane.running == 0)
    assert not alive(pid)


async def test_an_attempt_that_is_cut_while_its_process_starts_gives_its_place_back_once(stage: Stage) -> None:
    stage.behave(mcp_status=["hang"])
    lease = stage.lease()
    attempt = asyncio.ensure_future(anext(lease.run()))
    await stage.until(lambda: bool(stage.processes))
    attempt.cancel()
    with suppress(asyncio.CancelledError):
        await attempt
    lease.release()
    lease.release()
    await stage.until(lambda: stage.lane.running == 0)


async def test_whenever_an_attempt_is_cut_nothing_of_it_stays(stage: Stage) -> None:
    agent = replace(BASH, cwd=str(stage.root / "a"))
    stage.lane.settings = replace(stage.lane.settings, spares=0)
    before, found = len(list(Path("/dev/fd").iterdir())), children()
    for passes in range(12):
        lease = stage.lease(agent)
        attempt = asyncio.ensure_future(anext(lease.run()))
        for _ in range(passes):
            await asyncio.sleep(0)
        attempt.cancel()
        with suppress(asyncio.CancelledError):
            await attempt
        lease.release()
        await stage.until(lambda: stage.lane.running == 0)
    await stage.until(lambda: children() == found)
    assert len(list(Path("/dev/fd").iterdir())) == before


async def test_an_end_that_cannot_be_cleaned_up_costs_no_place(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    stage.text.pool.told = lambda event: told.append(event.name)
    with monkeypatch.context() as patched:
        patched.setattr(agent_module, "remove_tree", _no_thread_left)
        await stage.run()
    assert "agent.not_cleaned_up" in told
    assert (await stage.run()).state is State.SUCCEEDED
    await stage.lane.probe()  # as the next start does


async def test_a_server_that_cannot_be_closed_keeps_nothing_else(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(self: Servers) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(Servers, "close", fails)
    before = len(list(Path("/dev/fd").iterdir()))
    await stage.run(replace(BASH, cwd=str(stage.root / "a")))
    await stage.until(lambda: len(list(Path("/dev/fd").iterdir())) == before)
    assert list((stage.lane._scratch.parent / "homes").iterdir()) == []


def _no_thread_left(directory: Path) -> bool:
    raise RuntimeError("can't start new thread")


async def test_a_lease_that_was_not_used_is_given_back(stage: Stage) -> None:
    stage.lease().release()
    assert stage.lane.running == 0
    await stage.spare()
    lease = stage.lease()
    assert lease.start == "spare"
    lease.release()
    await stage.until(lambda: stage.lane.running == 0)


# cgroups


@pytest.fixture
def cgroups(stage: Stage, tmp_path: Path) -> Cgroups:
    """Directories that look like such: a process can write itself into one, and nothing ends for it."""
    (tmp_path / "cgroup").mkdir()
    stage.lane._cgroups = Cgroups(tmp_path / "cgroup", tmp_path / "cgroup" / "daemon-home", "home")
    return stage.lane._cgroups


async def test_every_agent_starts_in_a_cgroup_of_its_own_and_none_is_known_afterwards(
    stage: Stage, cgroups: Cgroups
) -> None:
    assert (await stage.run()).state is State.SUCCEEDED
    assert (await stage.run()).state is State.SUCCEEDED
    made = sorted(cgroups.base.glob("agent-home-*"))
    assert len(made) >= 2, "spares have their own too"
    for path in made[:2]:
        assert (path / "cgroup.procs").read_text() == "0\n", "who writes this is put in"
        assert (path / "cgroup.kill").read_text() == "1"
        assert (path / "pids.max").read_text() == "64"
    assert stage.lane.counts()["limits"] == "cgroup"


@pytest.mark.parametrize(
    ("events", "code", "said"),
    [
        ("oom 1\noom_kill 2\n", Code.MEMORY_LIMIT, "more than 1024 MB of memory"),
        ("oom 0\noom_kill 1\n", Code.ENGINE_CRASHED, "ended with status -9"),  # the machine was short of it
    ],
)
async def test_an_agent_that_is_ended_for_its_memory_fails_with_that(
    stage: Stage, cgroups: Cgroups, events: str, code: Code, said: str
) -> None:
    stage.behave(user=["hang"])
    lease = stage.lease()
    attempt = asyncio.ensure_future(stage.outcome(lease))
    await stage.until(lambda: lease.worker._turn_open)
    assert lease.worker.group is not None and lease.worker.process is not None
    (lease.worker.group.path / "memory.events").write_text(events)
    os.kill(lease.worker.process.pid, signal.SIGKILL)  # as the kernel does
    failure = (await attempt).failure
    assert failure is not None
    assert (failure.code, said in failure.message) == (code, True), failure
    await stage.until(lambda: stage.lane.running == 0)


async def test_an_agent_that_cannot_be_held_does_not_start(stage: Stage, cgroups: Cgroups) -> None:
    cgroups.base.rmdir()
    failure = (await stage.run()).failure
    assert failure is not None and failure.code is Code.ENGINE_CRASHED
    assert "could not be started" in failure.message
    assert stage.processes == set()


async def test_a_cgroup_that_cannot_be_removed_is_told_and_costs_nothing(
    stage: Stage, cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    stage.text.pool.told = lambda event: told.append(event.name)
    monkeypatch.setattr(Group, "end", lambda self: False)
    assert (await stage.run()).state is State.SUCCEEDED
    await stage.until(lambda: "agent.cgroup_stays" in told)


async def test_without_a_cgroup_it_is_told_what_else_holds_agents(stage: Stage) -> None:
    assert (stage.lane.missing, stage.lane.counts()["limits"]) == ('engine.sandbox is "none"', "none")
    stage.lane.missing = None
    assert stage.lane.counts()["limits"] == "rlimit"


# spares


async def test_a_spare_that_died_is_not_counted_and_another_takes_its_place(stage: Stage) -> None:
    await stage.spare()
    (pid,) = stage.processes
    os.kill(pid, signal.SIGKILL)
    await stage.until(lambda: stage.lane.counts()["spares"] == 0)
    for told in stage.text.pool._on_end:
        told()  # as the pool does now and then
    await stage.until(lambda: stage.lane.counts()["spares"] == 1)
    assert pid not in stage.processes


async def test_a_spare_that_is_old_ends_though_no_task_comes(stage: Stage) -> None:
    await stage.spare()
    stage.lane.settings = replace(stage.lane.settings, max_spare_age_s=0.0, spares=0)
    for told in stage.text.pool._on_end:
        told()
    await stage.until(lambda: not stage.processes)


async def test_a_spare_of_a_directory_that_was_made_anew_makes_room_for_one_that_fits(stage: Stage) -> None:
    agent = replace(BASH, cwd=str(stage.root / "a"))
    await stage.spare(agent)
    (stage.root / "a").rename(stage.root / "b")
    (stage.root / "a").mkdir()
    assert stage.lease(agent).start == "cold"
    (lease,) = stage.lane._leases
    lease.release()
    await stage.until(lambda: stage.lane.counts()["spares"] == 1 and len(stage.processes) == 1)
    assert stage.lease(agent).start == "spare"
    (lease,) = stage.lane._leases
    lease.release()


async def test_a_reload_that_changes_the_limits_leaves_no_spare_of_the_old_ones(stage: Stage) -> None:
    await stage.spare()
    (pid,) = stage.processes
    limits = replace(stage.lane.settings.limits, max_memory_mb=512)
    stage.lane.apply(replace(stage.lane.settings, limits=limits), PRICES.get)
    assert stage.lane.counts()["spares"] == 0
    await stage.until(lambda: stage.lane.counts()["spares"] == 1)
    await stage.until(lambda: not alive(pid))


async def test_a_panic_ends_those_who_work_and_those_who_wait(stage: Stage) -> None:
    await stage.spare()
    stage.behave(user=["hang"])
    lease = stage.lease(AgentSpec(allow=("Read",)))
    attempt = asyncio.ensure_future(stage.outcome(lease))
    await stage.until(lambda: lease.worker.process is not None)
    before = set(stage.processes)
    assert stage.lane.kill_busy() == [lease.worker_id]
    outcome = await attempt
    assert outcome.failure is not None and outcome.failure.code is Code.ENGINE_CRASHED
    await stage.until(lambda: not before & stage.processes)


# what an operator asks


def replaced(stage: Stage, old: str) -> bool:
    return old not in stage.lane.workers and states(stage) == ["idle"]


def states(stage: Stage) -> list[str]:
    return sorted(one["state"] for one in stage.lane.listing())


async def test_every_process_is_listed_with_what_it_does(stage: Stage) -> None:
    await stage.spare()
    assert states(stage) == ["idle"]
    stage.behave(user=["hang"])
    lease = stage.lease(AgentSpec(allow=("Read",)))
    assert states(stage) == ["idle", "starting"]
    attempt = asyncio.ensure_future(stage.outcome(lease))
    await stage.until(lambda: states(stage) == ["busy", "idle"])
    busy = next(one for one in stage.lane.listing() if one["state"] == "busy")
    assert (busy["id"], busy["lane"], busy["pid"] in stage.processes) == (lease.worker_id, "agent", True)
    stage.lane.kill_busy()
    await attempt
    await stage.until(lambda: stage.lane.running == 0)
    assert lease.worker_id not in stage.lane.workers


async def test_who_is_cold_has_its_workers_id_from_the_beginning(stage: Stage) -> None:
    lease = stage.lease()
    before = lease.worker_id
    assert (lease.start, list(stage.lane.workers)) == ("cold", [before])
    await stage.outcome(lease)
    assert lease.worker_id == before


async def test_a_spare_that_is_recycled_or_killed_is_replaced(stage: Stage) -> None:
    await stage.spare()
    for act in ("recycle", "kill"):
        (old,) = stage.lane.workers
        if act == "kill":
            stage.lane.kill(old)
        else:
            stage.lane.recycle([old], "by hand")
        await stage.until(partial(replaced, stage, old))
        assert stage.lease().start == "spare"
        (lease,) = stage.lane._leases
        lease.release()
        await stage.until(lambda: stage.lane.running == 0)
        for _ in range(2):
            stage.lane._wanted.note(BASH)
        stage.lane._fill()
        await stage.until(lambda: states(stage) == ["idle"])


async def test_spares_are_replaced_one_after_another(stage: Stage) -> None:
    read = AgentSpec(allow=("Read",))
    stage.lane.settings = replace(stage.lane.settings, spares=2)
    for agent in (BASH, read, BASH, read):
        stage.lane._wanted.note(agent)
    stage.lane._fill()
    await stage.until(lambda: states(stage) == ["idle", "idle"])
    old = set(stage.lane.workers)
    stage.lane.recycle_rolling("by hand")
    least = len(stage.lane._spares)
    while old & set(stage.lane.workers) or stage.lane.counts()["spares"] < 2:
        least = min(least, len(stage.lane._spares))
        await asyncio.sleep(0.005)
    assert least == 1
    assert {spare.outline for spare in stage.lane._spares} == {BASH, read}


@pytest.mark.parametrize("when", ["before its process", "at its turn"])
async def test_an_agent_that_is_killed_fails_as_after_a_crash(stage: Stage, when: str) -> None:
    stage.behave(user=["hang"])
    lease = stage.lease()
    attempt = None
    if when == "at its turn":
        attempt = asyncio.ensure_future(stage.outcome(lease))
        await stage.until(lambda: states(stage) == ["busy"])
    stage.lane.kill(lease.worker_id)
    outcome = await (attempt or stage.outcome(lease))
    assert outcome.failure is not None and outcome.failure.code is Code.ENGINE_CRASHED
    await stage.until(lambda: stage.lane.running == 0 and not stage.processes)


async def test_an_agent_that_is_recycled_goes_on(stage: Stage) -> None:
    lease = stage.lease()
    stage.lane.recycle([lease.worker_id], "by hand")
    stage.lane.recycle_rolling("by hand")
    assert (await stage.outcome(lease)).state is State.SUCCEEDED


# directories


@pytest.mark.parametrize("field", ["cwd", "add_dirs"])
@pytest.mark.parametrize("name", ["gone", "file", "loop", "out"])
async def test_a_directory_that_is_not_there_is_refused_by_name(stage: Stage, field: str, name: str) -> None:
    (stage.root / "file").write_text("x")
    (stage.root / "loop").symlink_to("loop")
    (stage.root / "out").symlink_to("/")
    path = str(stage.root / name)
    agent = replace(BASH, cwd=path) if field == "cwd" else replace(BASH, add_dirs=(path,))
    failure = stage.lane.unsupported(stage.spec(agent))
    assert failure is not None
    assert (failure.code, failure.param) == (Code.INVALID_REQUEST, field)
    assert name in failure.message and str(stage.root) in failure.message


async def test_a_machine_without_descriptors_refuses_nobodys_directory(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: str) -> Any:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(stage.lane, "opened", full)
    assert stage.lane.unsupported(stage.spec(replace(BASH, cwd=str(stage.root / "a")))) is None


# a turn


async def test_a_model_that_a_spare_refuses_does_not_let_another_one_answer(stage: Stage) -> None:
    stage.behave(set_model=[REFUSED], user=[])
    for _ in range(2):  # nobody answers, and a spare is started all the same
        stage.lane._wanted.note(BASH)
    stage.lane._fill()
    await stage.until(lambda: stage.lane.counts()["spares"] == 1)
    outcome = await stage.run(model="claude-opus-9")
    assert stage.lane.starts["spare"] == 1
    assert outcome.failure is not None and outcome.failure.code is Code.MODEL_NOT_FOUND


async def test_who_does_not_end_when_told_to_is_ended_though_a_tool_runs(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "INTERRUPT_GRACE_S", 0.2)
    wrong = {"type": "assistant", "message": {"id": "m", "content": [{"type": "text"}]}}  # cannot be read
    stage.behave(user=[CALLS, wrong], interrupt=[])
    outcome = await stage.run()
    assert outcome.failure is not None and outcome.failure.code is Code.UPSTREAM_MALFORMED


async def test_no_model_call_is_made_once_the_turn_has_ended(stage: Stage) -> None:
    """What the agent has started may outlive its last word by a moment, and holds the way to the model."""
    lease = stage.lease()
    barred: list[Any] = []
    async for batch in lease.run():
        if isinstance(batch[-1], Ended):
            assert lease.worker.account is not None
            barred.append(lease.worker.account.barred)  # type: ignore[attr-defined]
    lease.release()
    assert barred == ["the turn is over"]


class Ledger:
    """A gate, and what was written down and told in which order."""

    def __init__(self, why: str | None) -> None:
        self.why = why
        self.order: list[str] = []

    async def called(self, tool: str, given: Mapping[str, Any], *, asked: bool) -> str | None:
        return None

    async def allowed(self, tool: str) -> str | None:
        self.order.append(f"{tool} is written down")
        return self.why


ASKS = {"subtype": "can_use_tool", "tool_name": "Bash", "tool_use_id": "t1", "input": {"command": "make"}}


@pytest.mark.parametrize(
    ("answer", "why", "order"),
    [
        (Answer(allow=True), None, ["Bash is written down", "allow"]),
        (Answer(allow=True), "no room", ["Bash is written down", "deny: no room"]),
        (Answer(allow=False, message="no"), None, ["deny: no"]),
    ],
)
async def test_what_somebody_allows_is_written_down_before_claude_code_is_told(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, answer: Answer, why: str | None, order: list[str]
) -> None:
    write = AgentWorker._write

    def told(worker: AgentWorker, line: bytes) -> None:
        response = orjson.loads(line).get("response", {}).get("response", {})
        if "behavior" in response:
            ledger.order.append(": ".join(filter(None, (response["behavior"], response.get("message")))))
        write(worker, line)

    def ask(question: Question, answered: Callable[[Answer], None]) -> Callable[[], None]:
        asyncio.get_running_loop().call_soon(answered, answer)
        return lambda: None

    monkeypatch.setattr(AgentWorker, "_write", told)
    stage.behave(
        user=[CALLS, {"type": "control_request", "request_id": "ask", "request": ASKS}], control_response=[RESULT]
    )
    lease, ledger = stage.lease(AgentSpec(approval=Approval.ASK)), Ledger(why)
    lease.gate, lease.ask = ledger, ask
    assert (await stage.outcome(lease)).state is State.SUCCEEDED
    assert ledger.order == order


HOOKED = {
    "subtype": "hook_callback",
    "callback_id": "before-tool",
    "tool_use_id": "t1",
    "input": {"tool_name": "Bash", "tool_input": {"command": "make"}},
}
RAN = {"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": "t1", "content": "done"}]}}


@pytest.mark.parametrize(
    ("said", "then", "caught"),
    [
        ([CALLS, RAN, RESULT], [], True),
        ([{**CALLS, "parent_tool_use_id": "a"}, {**RAN, "parent_tool_use_id": "a"}, RESULT], [], True),
        ([CALLS, {"type": "control_request", "request_id": "hook", "request": HOOKED}], [RAN, RESULT], False),
    ],
)
async def test_what_ran_without_asking_us_ends_the_attempt(
    stage: Stage, said: list[Any], then: list[Any], caught: bool
) -> None:
    stage.behave(user=said, control_response=then)
    lease = stage.lease()
    lease.gate = Ledger(None)
    outcome = await stage.outcome(lease)
    assert (outcome.failure is not None and outcome.failure.code is Code.INTERNAL) is caught


async def test_what_was_to_be_asked_for_and_ran_unasked_ends_the_attempt(stage: Stage) -> None:
    hooked = {"type": "control_request", "request_id": "hook", "request": HOOKED}
    stage.behave(user=[CALLS, hooked], control_response=[RAN, RESULT])
    lease = stage.lease(AgentSpec(approval=Approval.ASK))
    lease.gate, lease.ask = Ledger(None), lambda question, answered: lambda: None
    outcome = await stage.outcome(lease)
    assert outcome.failure is not None and outcome.failure.code is Code.INTERNAL
