"""Sessions over the real store, with an engine whose answers the test gives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from claude_daemon.core.agent import AgentSpec
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.event import MESSAGE_EVENT
from claude_daemon.core.role import BUILT_IN
from claude_daemon.core.session import last_said, system_of
from claude_daemon.core.task import Kind, Lane, State, Task, TaskSpec
from claude_daemon.ports import AuditRecord
from claude_daemon.service.recover import after_crash
from claude_daemon.service.sessions import Joined, SessionWish
from claude_daemon.store import SqliteStore
from tests.service.doubles import PATIENCE_S, SUCCEEDED, Clock, failed, text
from tests.service.test_durable import ME, OPERATOR, OTHER, WISH, Office

NEW = SessionWish()
AUDIT = AuditRecord(at=1.0, act="session.deleted")


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore.open(tmp_path / "daemon.db")
    yield opened
    await opened.close()


async def begun(office: Office, **changes: Any) -> str:
    """A session after its first turn."""
    number = len(office.sessions_engine.leases)
    task = await office.submit(session=NEW, **changes)
    (await office.lease(number, office.sessions_engine)).say(SUCCEEDED)
    ended = await office.finished(task.id)
    assert ended.spec.session is not None
    return ended.spec.session.id


async def refusal(office: Office, **changes: Any) -> tuple[Code, str | None]:
    with pytest.raises(Refusal) as refused:
        await office.submit(**changes)
    return refused.value.failure.code, refused.value.failure.param


async def test_a_session_is_durable_with_its_first_task(store: SqliteStore) -> None:
    async with Office(store, Clock()) as office:
        office.dispatcher.hold()
        task = await office.submit(session=NEW)
        assert (task.spec.lane, task.spec.agent) == (Lane.SESSION, AgentSpec())
        assert task.spec.session is not None
        kept = await store.session(task.spec.session.id)
        assert kept is not None
        assert (kept.key_id, kept.transcript, kept.begun) == ("me", task.spec.session.transcript, False)


async def test_a_later_turn_has_what_the_first_one_fixed(store: SqliteStore) -> None:
    async with Office(store, Clock()) as office:
        request = {**WISH.request, "system": "be brief"}
        session = await begun(office, request=request, agent=AgentSpec(cwd="/work", add_dirs=("/more",)))
        task = await office.submit(session=SessionWish(id=session), agent=AgentSpec(allow=("Bash",)))
        assert task.spec.agent == AgentSpec(allow=("Bash",), cwd="/work", add_dirs=("/more",))
        assert task.spec.request["system"] == "be brief"
        assert task.spec.session is not None
        assert task.spec.session.begun
        other = {"session": SessionWish(id=session)}
        assert await refusal(office, **other, agent=AgentSpec(cwd="/else")) == (Code.INVALID_REQUEST, "cwd")
        assert await refusal(office, **other, agent=AgentSpec(add_dirs=("/x",))) == (Code.INVALID_REQUEST, "add_dirs")
        changed = {**WISH.request, "system": "be long"}
        assert await refusal(office, **other, request=changed) == (Code.INVALID_REQUEST, "system")


@pytest.mark.parametrize("fork", [False, True])
async def test_a_session_is_its_keys_alone_and_not_the_operators_either(store: SqliteStore, fork: bool) -> None:
    async with Office(store, Clock()) as office:
        session = await begun(office)
        for who in (OTHER, OPERATOR, replace(ME, key=replace(ME.key, trust_domain="elsewhere"))):
            with pytest.raises(Refusal) as refused:
                await office.desk.submit(who, replace(WISH, session=SessionWish(id=session, fork=fork)))
            assert refused.value.failure.code is Code.NOT_FOUND
        with pytest.raises(Refusal):
            await office.sessions.get(OTHER.owner, session)
        assert (await office.sessions.get(OPERATOR.owner, session)).id == session
        assert [row.id for row in (await office.sessions.list(ME.owner, 10, None)).sessions] == [session]
        assert list((await office.sessions.list(OTHER.owner, 10, None)).sessions) == []


async def test_the_turns_of_a_session_go_one_by_one_and_hold_up_no_other(store: SqliteStore) -> None:
    async with Office(store, Clock(), places=3) as office:
        session = SessionWish(id=await begun(office))
        turns = [await office.submit(session=session, priority=number) for number in range(3)]
        other = await office.submit(session=NEW)
        first, elsewhere = await office.lease(1, office.sessions_engine), await office.lease(2, office.sessions_engine)
        assert [lease.spec.session.id for lease in (first, elsewhere) if lease.spec.session] == [
            session.id,
            other.spec.session and other.spec.session.id,
        ]
        for number in range(3):
            position = 1 if number == 0 else 2 + number
            lease = await office.lease(position, office.sessions_engine)
            assert lease.spec.priority == number
            assert len(office.sessions_engine.leases) == position + 1 if number else 3
            lease.say(SUCCEEDED)
            await office.finished(turns[number].id)
        elsewhere.say(SUCCEEDED)
        await office.finished(other.id)


async def test_a_turn_that_is_cancelled_in_line_lets_the_next_one_begin(store: SqliteStore) -> None:
    async with Office(store, Clock()) as office:
        session = SessionWish(id=await begun(office))
        running, waiting, last = [await office.submit(session=session) for _ in range(3)]
        lease = await office.lease(1, office.sessions_engine)
        assert (await office.desk.cancel(ME, waiting.id)).state is State.CANCELLED
        lease.say(SUCCEEDED)
        await office.finished(running.id)
        (await office.lease(2, office.sessions_engine)).say(SUCCEEDED)
        await office.finished(last.id)


async def test_a_turn_that_is_made_again_keeps_its_place(store: SqliteStore) -> None:
    async with Office(store, Clock()) as office:
        session = SessionWish(id=await begun(office))
        first, second = [await office.submit(session=session, priority=number) for number in range(2)]
        (await office.lease(1, office.sessions_engine)).say(failed(Code.ENGINE_CRASHED))
        again = await office.lease(2, office.sessions_engine)
        assert again.spec.priority == 0
        again.say(SUCCEEDED)
        await office.finished(first.id)
        (await office.lease(3, office.sessions_engine)).say(SUCCEEDED)
        await office.finished(second.id)


async def test_a_turn_whose_message_the_transcript_holds_is_not_made_again(store: SqliteStore) -> None:
    async with Office(store, Clock()) as office:
        task = await office.submit(session=NEW)
        assert task.spec.session is not None
        lease = await office.lease(0, office.sessions_engine)
        office.homes.messages.add(task.spec.session.message)
        lease.say(failed(Code.ENGINE_CRASHED))
        ended = await office.finished(task.id)
        assert ended.outcome is not None and ended.outcome.failure is not None
        assert (ended.attempt, ended.outcome.failure.code) == (1, Code.INTERRUPTED)
        assert "second time" in ended.outcome.failure.message
        with pytest.raises(Refusal) as refused:
            await office.desk.retry(ME, task.id)
        assert refused.value.failure.code is Code.CONFLICT


@pytest.mark.parametrize("said", [False, True])
async def test_after_a_crash_only_a_turn_that_was_not_said_is_made_again(store: SqliteStore, said: bool) -> None:
    clock = Clock()
    office = Office(store, clock)
    task = await office.submit(session=NEW)
    running = await store.claim(task.id, office.book.node, clock.now + 60, clock.now)
    assert running is not None and running.spec.session is not None
    assert after_crash(running, 3, said=said)[0] is not said
    async with Office(store, clock, node="node_2") as second:
        if said:
            second.homes.messages.add(running.spec.session.message)
        await second.recovery.start()
        if said:
            ended = await second.finished(task.id)
            assert ended.outcome is not None and ended.outcome.failure is not None
            assert ended.outcome.failure.code is Code.INTERRUPTED
        else:
            (await second.lease(0, second.sessions_engine)).say(SUCCEEDED)
            assert (await second.finished(task.id)).state is State.SUCCEEDED


async def test_after_a_restart_turns_go_in_the_order_in_which_they_came(store: SqliteStore) -> None:
    clock = Clock()
    office = Office(store, clock)
    first = await office.submit(session=NEW)
    assert first.spec.session is not None
    later = await office.submit(session=SessionWish(id=first.spec.session.id), priority=9)
    async with Office(store, clock, node="node_2") as second:
        await second.recovery.start()
        for number, task in enumerate((first, later)):
            lease = await second.lease(number, second.sessions_engine)
            assert lease.spec.priority == task.spec.priority
            lease.say(SUCCEEDED)
            await second.finished(task.id)


async def test_a_fork_is_made_when_nobody_speaks_in_its_source(store: SqliteStore) -> None:
    async with Office(store, Clock(), places=3) as office:
        session = SessionWish(id=await begun(office))
        running = await office.submit(session=session)
        fork = await office.submit(session=replace(session, fork=True))
        assert fork.spec.session is not None
        assert (fork.spec.session.source, fork.spec.session.begun) == (session.id, True)
        lease = await office.lease(1, office.sessions_engine)
        assert not office.dispatcher.turns.may_begin(fork.id)
        lease.say(SUCCEEDED)
        await office.finished(running.id)
        (await office.lease(2, office.sessions_engine)).say(SUCCEEDED)
        await office.finished(fork.id)


async def test_when_a_fork_has_its_copy_its_source_goes_on(store: SqliteStore) -> None:
    async with Office(store, Clock(), places=3) as office:
        session = SessionWish(id=await begun(office))
        fork = await office.submit(session=replace(session, fork=True))
        copying = await office.lease(1, office.sessions_engine)
        after = await office.submit(session=session)
        assert fork.spec.session is not None
        on = await office.submit(session=SessionWish(id=fork.spec.session.id))
        assert not office.dispatcher.turns.may_begin(after.id)
        assert session.id is not None
        copying.copied(session.id)
        (await office.lease(2, office.sessions_engine)).say(SUCCEEDED)
        await office.finished(after.id)
        assert not office.dispatcher.turns.may_begin(on.id)
        copying.say(SUCCEEDED)
        await office.finished(fork.id)
        (await office.lease(3, office.sessions_engine)).say(SUCCEEDED)
        await office.finished(on.id)


async def test_a_session_is_deleted_when_nobody_speaks_in_it(store: SqliteStore) -> None:
    async with Office(store, Clock()) as office:
        session = await begun(office)
        task = await office.submit(session=SessionWish(id=session, fork=True))
        with pytest.raises(Refusal) as refused:
            await office.sessions.delete(ME.owner, session, AUDIT)
        assert refused.value.failure.code is Code.CONFLICT
        (await office.lease(1, office.sessions_engine)).say(SUCCEEDED)
        await office.finished(task.id)
        await office.sessions.delete(ME.owner, session, AUDIT)
        assert office.homes.removed == [session]
        assert await refusal(office, session=SessionWish(id=session)) == (Code.NOT_FOUND, "session")
        with pytest.raises(Refusal):
            await office.sessions.delete(ME.owner, session, AUDIT)
        assert await store.get(task.id) is not None


async def test_a_turn_that_comes_while_its_session_goes_is_refused_by_the_store(store: SqliteStore) -> None:
    async with Office(store, Clock()) as office:
        session = await begun(office)
        joined = await office.sessions.join(ME.key, SessionWish(id=session), None, WISH.request, None)
        await office.sessions.delete(ME.owner, session, AUDIT)
        spec = TaskSpec(
            kind=Kind.TASK,
            lane=Lane.SESSION,
            request=WISH.request,
            key_id="me",
            trust_domain="default",
            request_id="r",
            session=joined.turn,
        )
        late = Task(id="task_late", spec=spec, created_at=1.0)
        (answer,) = await office.desk._enqueue(ME, [office.desk._submission(ME, late, None)], None)
        assert not isinstance(answer, Task)
        assert answer.code is Code.NOT_FOUND


async def test_sessions_that_nobody_uses_are_swept(store: SqliteStore) -> None:
    clock = Clock()
    async with Office(store, clock) as office:
        old = await begun(office)
        clock.now += 100
        waiting = await begun(office)
        clock.now += 100
        young = await begun(office)
        office.dispatcher.hold()
        clock.now += 10
        await office.submit(session=SessionWish(id=old, fork=True))
        assert await office.sessions.sweep(clock.now - 50) == 1
        assert office.homes.removed == [waiting]
        assert await store.session_ids() >= {old, young}


async def test_a_role_without_the_scope_has_no_sessions(store: SqliteStore) -> None:
    async with Office(store, Clock()) as office:
        office.sessions._role_of = lambda key, uid: BUILT_IN["readonly"]
        assert (await refusal(office, session=NEW))[0] is Code.FORBIDDEN


def chat(joined: Joined) -> TaskSpec:
    return TaskSpec(
        kind=Kind.CHAT,
        lane=Lane.SESSION,
        request={**joined.request, "model": "claude-sonnet-5-5"},
        key_id="me",
        trust_domain="default",
        request_id="req_chat",
        agent=joined.agent,
        session=joined.turn,
    )


async def test_chats_and_tasks_of_a_session_stand_in_one_line(store: SqliteStore) -> None:
    async with Office(store, Clock(), places=3) as office:
        session = await begun(office, agent=AgentSpec(allow=("Bash",), cwd="/work"))
        known = await office.sessions.join_chat(ME.key, session)
        said = [{"role": "user", "content": "old"}, {"role": "assistant", "content": "x"}]
        joined = office.sessions.chat(known, {"messages": [*said, {"role": "user", "content": "new"}]})
        assert joined.agent == AgentSpec(cwd="/work")
        assert joined.request["messages"] == [{"role": "user", "content": "new"}]
        task = await office.submit(session=SessionWish(id=session))
        lease = await office.lease(1, office.sessions_engine)
        run = office.dispatcher.submit(chat(joined))
        last = await office.submit(session=SessionWish(id=session))
        assert (office.dispatcher.waiting, office.dispatcher.queued) == (1, 1)
        lease.say(SUCCEEDED)
        await office.finished(task.id)
        lease = await office.lease(2, office.sessions_engine)
        assert lease.spec.kind is Kind.CHAT
        lease.say(text("hi"), SUCCEEDED)
        async with asyncio.timeout(PATIENCE_S):
            told = [event.type async for batch in run.follow() for event in batch]
        assert MESSAGE_EVENT in told
        (await office.lease(3, office.sessions_engine)).say(SUCCEEDED)
        await office.finished(last.id)


async def test_a_chat_that_waits_for_its_session_can_be_cancelled(store: SqliteStore) -> None:
    async with Office(store, Clock()) as office:
        session = await begun(office)
        known = await office.sessions.join_chat(ME.key, session)
        task = await office.submit(session=SessionWish(id=session))
        lease = await office.lease(1, office.sessions_engine)
        message = {"messages": [{"role": "user", "content": "x"}]}
        runs = [office.dispatcher.submit(chat(office.sessions.chat(known, message))) for _ in range(2)]
        office.dispatcher.cancel(runs[0])
        assert (runs[0].task.state, office.dispatcher.waiting) == (State.CANCELLED, 1)
        lease.say(SUCCEEDED)
        await office.finished(task.id)
        (await office.lease(2, office.sessions_engine)).say(failed(Code.ENGINE_CRASHED))  # and not again
        async with asyncio.timeout(PATIENCE_S):
            async for _ in runs[1].follow():
                pass
        assert runs[1].task.state is State.FAILED
        assert len(office.sessions_engine.leases) == 3


def test_what_is_said_last_comes_after_the_last_answer() -> None:
    user, assistant = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
    assert last_said([user, assistant, user, user]) == [user, user]
    assert last_said([user]) == [user]
    assert last_said([user, assistant]) == []


def test_a_system_prompt_is_one_text() -> None:
    assert system_of(None) == ""
    assert system_of("x") == "x"
    assert system_of([{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]) == "x\n\ny"
