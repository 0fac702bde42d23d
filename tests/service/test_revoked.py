"""What becomes of a key's work when the key is revoked, and what an own role makes of a task; over a real store."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from claude_daemon.core.agent import AgentSpec, Subagent
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.key import Key, digest
from claude_daemon.core.role import BUILT_IN, Role
from claude_daemon.core.task import Lane, State, Task
from claude_daemon.service.keys import KeyDesk, KeyWish, Maker, NewKey
from claude_daemon.service.run import REVOKED
from claude_daemon.service.sessions import SessionWish
from claude_daemon.service.tasks import Asker
from claude_daemon.store import SqliteStore
from tests.service.doubles import SUCCEEDED, Clock, ended, spec
from tests.service.test_durable import MODEL, WISH, Office

LOCAL = Key(id="local", name="local", digest=digest("cd_"), role="standard", trust_domain="default")
MAKER = Maker(key_id="local", request_id="req_1", peer_uid=1000)
OPERATOR = Asker(key=LOCAL, request_id="req_1", peer_uid=1000)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore.open(tmp_path / "daemon.db")
    yield opened
    await opened.close()


class Scene(Office):
    """The office, and keys that come to it."""

    def __init__(self, store: SqliteStore, **options: Any) -> None:
        clock = Clock()
        super().__init__(store, clock, **options)
        self.keys = KeyDesk(
            store,
            LOCAL,
            shared=False,
            now=clock,
            monotonic=clock,
            ids=lambda prefix: f"{prefix}_{secrets.token_hex(4)}",
            randbytes=secrets.token_bytes,
        )
        self.keys.work = self.desk
        self.desk._check_key = self.keys.check
        self.desk._is_revoked = self.keys.revoked

    async def __aenter__(self) -> Scene:
        await super().__aenter__()
        return self

    async def key(self, name: str) -> NewKey:
        return await self.keys.create(MAKER, KeyWish(name=name))

    async def task(self, key: NewKey, **changes: Any) -> Task:
        asker = Asker(key=key.key, request_id="req_1")
        return (await self.desk.submit(asker, replace(WISH, **changes)))[0]

    async def revoke(self, name: str) -> int:
        return (await self.keys.revoke(MAKER, name))[1]


async def test_a_revoked_keys_tasks_are_cancelled_and_another_keys_go_on(store: SqliteStore) -> None:
    async with Scene(store) as o:
        mine, other = await o.key("mine"), await o.key("other")
        running = await o.task(mine, webhook="https://example.org/")
        lease = await o.lease(0)
        waiting = [await o.task(mine) for _ in range(5)]
        theirs = await o.task(other)
        assert await o.revoke("mine") == 6
        states = [(await o.finished(one.id)).state for one in (running, *waiting)]
        assert states == [State.CANCELLED] * 6 and lease.released
        (await o.lease(1)).say(SUCCEEDED)
        assert (await o.finished(theirs.id)).state is State.SUCCEEDED
        assert await store.next_due() is None, "and nobody is told by a webhook"


async def test_a_revoked_keys_chats_are_cancelled(store: SqliteStore) -> None:
    async with Scene(store) as o:
        mine = await o.key("mine")
        runs = [o.dispatcher.submit(spec(key_id=mine.key.id)) for _ in range(2)]
        await o.lease(0)
        assert await o.revoke("mine") == 0, "chats are no tasks"
        ends = [await ended(run) for run in runs]
        assert [(end.state, end.failure) for end in ends] == [(State.CANCELLED, REVOKED)] * 2


async def test_a_task_that_was_asked_for_before_the_end_of_its_key_never_runs(store: SqliteStore) -> None:
    """However a submission and the revocation fall together: it is refused, or cancelled."""
    for delay in range(12):
        async with Scene(store, node=f"node_{delay}") as o:
            mine = await o.key("mine")
            asked = asyncio.ensure_future(o.task(mine))
            for _ in range(delay):
                await asyncio.sleep(0)
            await o.revoke("mine")
            try:
                task = await asked
            except Refusal as refusal:
                assert (refusal.failure.code, refusal.failure.message) == (
                    Code.UNAUTHENTICATED,
                    "This key was revoked.",
                )
            else:
                assert (await o.finished(task.id)).state is State.CANCELLED
            assert not o.dispatcher.queued


async def test_a_batch_of_a_revoked_key_is_refused_whole(store: SqliteStore) -> None:
    async with Scene(store) as o:
        mine = await o.key("mine")
        await o.revoke("mine")
        with pytest.raises(Refusal) as raised:
            await o.desk.submit_batch(Asker(key=mine.key, request_id="req_1"), [WISH, WISH])
        assert raised.value.failure.code is Code.UNAUTHENTICATED


async def test_after_a_crash_in_the_middle_the_next_start_ends_what_is_left(store: SqliteStore) -> None:
    async with Scene(store) as o:
        mine = await o.key("mine")
        running = await o.task(mine)
        await o.lease(0)
        waiting = await o.task(mine)
        await store.revoke_key(mine.key.id, 1000.0, await _audit(store))  # and nothing after it
    async with Scene(store, node="node_2") as o:
        await o.recovery.start()
        assert [(await o.finished(one.id)).state for one in (running, waiting)] == [State.CANCELLED] * 2


async def _audit(store: SqliteStore) -> Any:
    return (await store.audit(0, 1))[0][1]


async def test_nobody_tries_a_task_of_a_revoked_key_again(store: SqliteStore) -> None:
    async with Scene(store) as o:
        mine = await o.key("mine")
        task = await o.task(mine)
        await o.revoke("mine")
        await o.finished(task.id)
        with pytest.raises(Refusal) as raised:
            await o.desk.retry(OPERATOR, task.id)
        assert (raised.value.failure.code, raised.value.failure.message) == (
            Code.CONFLICT,
            "the key of this task is revoked",
        )


async def test_a_suspended_key_asks_for_nothing_and_what_it_has_runs_on(store: SqliteStore) -> None:
    async with Scene(store) as o:
        mine = await o.key("mine")
        tasks = [await o.task(mine) for _ in range(2)]
        await o.keys.suspend(MAKER, "mine")
        with pytest.raises(Refusal) as raised:
            await o.task(mine)
        assert (raised.value.failure.code, raised.value.failure.message) == (Code.FORBIDDEN, "This key is suspended.")
        for number, task in enumerate(tasks):
            (await o.lease(number)).say(SUCCEEDED)
            assert (await o.finished(task.id)).state is State.SUCCEEDED
        await o.keys.resume(MAKER, "mine")
        assert (await o.task(mine)).state is State.QUEUED


# own roles

BOUND = replace(
    BUILT_IN["full"],
    name="mine",
    lanes=frozenset({"text", "agent"}),
    models=frozenset({"sonnet"}),
    max_turns=20,
    max_cost_micro_usd=500_000,
    max_timeout_seconds=600.0,
    max_priority=5,
)
UNBOUND = replace(BOUND, max_turns=None, max_cost_micro_usd=None, max_timeout_seconds=None)
HELPER = Subagent(name="helper", description="d", prompt="p")


async def submitted(store: SqliteStore, role: Role, *, node: str = "node_1", **changes: Any) -> Task | str:
    """The task, or the words with which it was refused."""
    async with Scene(store, node=node) as o:
        o.dispatcher.hold()
        o.desk._role_of = lambda key, uid: role
        try:
            return await o.task(await o.key(secrets.token_hex(4)), **changes)
        except Refusal as refusal:
            assert refusal.failure.code is Code.FORBIDDEN
            return refusal.failure.message


async def test_a_task_that_names_no_limits_has_its_roles(store: SqliteStore) -> None:
    task = await submitted(store, BOUND, agent=AgentSpec(agents=(HELPER,)))
    assert isinstance(task, Task) and task.spec.agent is not None
    assert (task.spec.timeout_seconds, task.spec.agent.max_turns) == (600.0, 20)
    assert task.spec.agent.max_cost_micro_usd == 500_000
    assert [one.max_turns for one in task.spec.agent.agents] == [20]


async def test_a_task_that_names_less_keeps_its_own(store: SqliteStore) -> None:
    agent = AgentSpec(max_turns=3, max_cost_micro_usd=7, agents=(replace(HELPER, max_turns=2),))
    task = await submitted(store, BOUND, agent=agent, timeout_seconds=1.0, priority=5)
    assert isinstance(task, Task) and task.spec.agent == agent and task.spec.timeout_seconds == 1.0


async def test_a_task_of_a_role_with_a_cost_is_an_agents_whose_lane_keeps_it(store: SqliteStore) -> None:
    task = await submitted(store, BOUND)
    assert isinstance(task, Task) and task.spec.agent is not None
    assert (task.spec.lane, task.spec.agent.max_cost_micro_usd) == (Lane.AGENT, 500_000)
    task = await submitted(store, UNBOUND, node="node_2")
    assert isinstance(task, Task) and (task.spec.lane, task.spec.agent) == (Lane.TEXT, None)


@pytest.mark.parametrize(
    ("role", "changes", "rule"),
    [
        (BOUND, {"timeout_seconds": 601.0}, "at most `timeout_s: 600`."),
        (BOUND, {"priority": 6}, "at most `priority: 5`."),
        (BOUND, {"agent": AgentSpec(max_turns=21)}, "at most `max_turns: 20`."),
        (BOUND, {"agent": AgentSpec(agents=(replace(HELPER, max_turns=21),))}, "at most `max_turns: 20`."),
        (BOUND, {"agent": AgentSpec(max_cost_micro_usd=500_001)}, "at most `max_cost_usd: 0.5`."),
        (UNBOUND, {"session": SessionWish()}, "may not use the lane `session`; its lanes are `agent`, `text`."),
        (replace(UNBOUND, lanes=frozenset({"agent"})), {}, "may not use the lane `text`"),
        (replace(UNBOUND, models=frozenset({"opus"})), {}, f"may not use the model `{MODEL}`; its models are `opus`."),
        (UNBOUND, {"agent": AgentSpec(agents=(replace(HELPER, model="claude-opus-9"),))}, "the model `claude-opus-9`"),
        (replace(UNBOUND, roots=()), {"agent": AgentSpec(cwd="/srv")}, "may not work in `/srv`"),
        (replace(UNBOUND, roots=()), {"agent": AgentSpec(add_dirs=("/a",))}, "may not work in `/a`"),
        (replace(UNBOUND, servers=frozenset()), {"agent": AgentSpec(mcp_servers=("x",))}, "the MCP server `x`"),
    ],
)
async def test_what_an_own_role_does_not_permit_is_refused_by_name_and_nothing_is_kept(
    store: SqliteStore, role: Role, changes: dict[str, Any], rule: str
) -> None:
    refused = await submitted(store, role, **changes)
    assert isinstance(refused, str) and rule in refused
    assert not await store.queued()
