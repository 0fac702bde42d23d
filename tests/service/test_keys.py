"""The key desk over a real store: made, known at once and after a restart, told apart, refused by name."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.key import Key, digest, new_secret
from claude_daemon.core.role import BUILT_IN, Role, no_tools
from claude_daemon.ports import AuditRecord, KeyRecord
from claude_daemon.service import keys
from claude_daemon.service.keys import KeyDesk, KeyWish, Maker
from claude_daemon.store import SqliteStore
from tests.service.doubles import Clock
from tests.store.samples import put, task

SECRET = new_secret(secrets.token_bytes)
LOCAL = Key(id="local", name="local", digest=digest(SECRET), role="standard", trust_domain="default")
MAKER = Maker(key_id="local", request_id="req_1", peer_uid=1000)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore.open(tmp_path / "daemon.db")
    yield opened
    await opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def opened(
    store: SqliteStore, clock: Clock, *, shared: bool = False, roles: Mapping[str, Role] = BUILT_IN
) -> KeyDesk:
    numbers = count(len(await store.keys()) + 1)
    desk = KeyDesk(
        store,
        LOCAL,
        shared=shared,
        roles=roles,
        now=clock,
        monotonic=clock,
        ids=lambda prefix: f"{prefix}_{next(numbers)}",
        randbytes=secrets.token_bytes,
    )
    await desk.load()
    return desk


def why(desk: KeyDesk, secret: str) -> tuple[Code, str] | None:
    """What whoever brings this secret is told; None if it is good."""
    try:
        desk.identify(secret, "10.0.0.1")
    except Refusal as refusal:
        return refusal.failure.code, refusal.failure.message
    return None


REVOKED = (Code.UNAUTHENTICATED, "This key was revoked.")
ROTATED = (Code.UNAUTHENTICATED, "This key has a new secret, and the time of this one is over.")
EXPIRED = (Code.UNAUTHENTICATED, "This key has expired.")
UNKNOWN = (Code.UNAUTHENTICATED, "This key is not valid.")
SUSPENDED = (Code.FORBIDDEN, "This key is suspended.")


async def refused(desk: KeyDesk, **wish: Any) -> tuple[Code, str | None, str]:
    with pytest.raises(Refusal) as raised:
        await desk.create(MAKER, KeyWish(**{"name": "alice", **wish}))
    failure = raised.value.failure
    return failure.code, failure.param, failure.message


async def test_a_new_key_is_known_at_once_and_after_a_restart(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    made = await desk.create(MAKER, KeyWish(name="alice"))
    assert (made.key.id, made.key.name, made.key.role) == ("key_1", "alice", "standard")
    assert made.key.trust_domain == made.key.id
    again = await opened(store, clock)
    for one in (desk, again):
        assert one.identify(made.secret) == made.key
        assert one.identify(SECRET) == LOCAL
        assert why(one, new_secret(secrets.token_bytes)) == why(one, "cd_x") == UNKNOWN


async def test_two_new_keys_share_a_domain_only_where_that_was_asked(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    a, b, c, d = [
        (await desk.create(MAKER, KeyWish(name=name, domain=domain))).key
        for name, domain in (("a", None), ("b", None), ("c", "team"), ("d", "team"))
    ]
    assert len({a.trust_domain, b.trust_domain, c.trust_domain, LOCAL.trust_domain}) == 4
    assert c.trust_domain == d.trust_domain == "team"


async def test_the_secret_is_neither_stored_nor_told_again(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    made = await desk.create(MAKER, KeyWish(name="alice", role="full", domain="d", expires_at=5000.0))
    assert made.secret not in repr(made)
    ((_, record),) = await store.audit(0, 10)
    details = {"id": "key_1", "name": "alice", "role": "full", "domain": "d", "expires_at": 5000.0}
    assert record == AuditRecord(
        at=1000.0, act="key.created", key_id="local", request_id="req_1", peer_uid=1000, details=details
    )
    assert await store.close()
    assert made.secret.encode() not in store.path.read_bytes()


async def test_a_key_is_refused_from_the_moment_it_expires(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    made = await desk.create(MAKER, KeyWish(name="alice", expires_at=clock.now + 10))
    clock.now += 9.9
    assert desk.identify(made.secret) == made.key
    clock.now += 0.1
    assert why(desk, made.secret) == EXPIRED
    assert why(await opened(store, clock), made.secret) == EXPIRED


async def test_a_key_that_was_revoked_before_the_start_is_refused_and_its_name_is_free(
    store: SqliteStore, clock: Clock
) -> None:
    secret = new_secret(secrets.token_bytes)
    gone = KeyRecord(
        id="key_0",
        name="alice",
        trust_domain="key_0",
        digest=digest(secret),
        role="standard",
        created_at=1.0,
        revoked_at=2.0,
    )
    await store.create_key(gone, AuditRecord(at=1.0, act="key.created"))
    desk = await opened(store, clock)
    assert why(desk, secret) == REVOKED and list(await desk.list()) == []
    made = await desk.create(MAKER, KeyWish(name="alice"))
    assert [one.key for one in await desk.list()] == [made.key]
    assert [one.record for one in await desk.list(revoked=True)][:1] == [gone]


async def test_keys_are_listed_in_the_order_in_which_they_were_made(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    for name in ("z", "a", "m"):
        await desk.create(MAKER, KeyWish(name=name))
        clock.now += 1
    listed = [(one.key.name, one.record.created_at) for one in await desk.list()]
    assert listed == [("z", 1000.0), ("a", 1001.0), ("m", 1002.0)]


async def test_keys_are_counted_by_what_they_are_and_the_first_to_expire_is_told(
    store: SqliteStore, clock: Clock
) -> None:
    desk = await opened(store, clock)
    assert desk.census() == ({"active": 0, "suspended": 0, "expired": 0, "revoked": 0}, None)
    for name, expires_at in (("a", 5000.0), ("b", 3000.0), ("c", 2000.0), ("d", None), ("e", None)):
        await desk.create(MAKER, KeyWish(name=name, expires_at=expires_at))
    await desk.suspend(MAKER, "b")
    await desk.revoke(MAKER, "e")
    clock.now = 2000.0
    assert desk.census() == ({"active": 2, "suspended": 1, "expired": 1, "revoked": 1}, 5000.0)
    assert desk.counts() == {"good": 2, "suspended": 1, "expired": 1, "expire_within_7_days": 1}
    clock.now = 4000.0
    assert desk.counts() == {"good": 2, "suspended": 0, "expired": 2, "expire_within_7_days": 1}


async def test_of_two_at_once_with_one_name_one_is_made(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    both = await asyncio.gather(*(desk.create(MAKER, KeyWish(name="alice")) for _ in range(2)), return_exceptions=True)
    (failed,) = [one for one in both if isinstance(one, Refusal)]
    assert (failed.failure.code, failed.failure.param) == (Code.CONFLICT, "name")
    assert len(await desk.list()) == 1


async def test_many_at_once_are_all_good(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    made = await asyncio.gather(*(desk.create(MAKER, KeyWish(name=f"n{n}")) for n in range(20)))
    assert [desk.identify(one.secret) for one in made] == [one.key for one in made]


@pytest.mark.parametrize(
    ("wish", "code", "param"),
    [
        ({"name": ""}, Code.INVALID_REQUEST, "name"),
        ({"name": "a b"}, Code.INVALID_REQUEST, "name"),
        ({"name": "x" * 65}, Code.INVALID_REQUEST, "name"),
        ({"name": "alice\n"}, Code.INVALID_REQUEST, "name"),
        ({"name": "\u00fc"}, Code.INVALID_REQUEST, "name"),
        ({"name": "local"}, Code.CONFLICT, "name"),
        ({"role": "root"}, Code.INVALID_REQUEST, "role"),
        ({"domain": ""}, Code.INVALID_REQUEST, "domain"),
        ({"domain": ".."}, Code.INVALID_REQUEST, "domain"),
        ({"domain": "a/b"}, Code.INVALID_REQUEST, "domain"),
        ({"expires_at": 1000.0}, Code.INVALID_REQUEST, "expires"),
    ],
)
async def test_a_wish_that_cannot_be_is_refused_by_name_and_leaves_nothing(
    store: SqliteStore, clock: Clock, wish: dict[str, Any], code: Code, param: str
) -> None:
    desk = await opened(store, clock)
    assert (await refused(desk, **wish))[:2] == (code, param)
    assert not await store.keys() and not await store.audit(0, 10)


async def test_an_unknown_role_is_told_the_known_ones(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock, roles={**BUILT_IN, "mine": BUILT_IN["full"]})
    assert "'root'; known are full, mine, readonly, standard." in (await refused(desk, role="root"))[2]


async def test_with_a_login_all_keys_are_of_one_domain(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock, shared=True)
    assert (await refused(desk, domain="mine"))[:2] == (Code.INVALID_REQUEST, "domain")
    made = await desk.create(MAKER, KeyWish(name="alice"))
    assert made.key.trust_domain == "default"
    assert (await opened(store, clock, shared=True)).identify(made.secret).trust_domain == "default"
    # the next start has a credential that we hold
    assert (await opened(store, clock)).identify(made.secret).trust_domain == "key_1"


async def test_there_is_an_end_to_keys(store: SqliteStore, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "MAX_KEYS", 1)
    desk = await opened(store, clock)
    await desk.create(MAKER, KeyWish(name="first"))
    assert (await refused(desk, name="second"))[0] is Code.CONFLICT


async def test_a_store_that_takes_nothing_makes_no_key(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    await store.close()
    assert (await refused(desk))[0] is Code.STORE_UNAVAILABLE
    with pytest.raises(Refusal) as raised:
        await desk.list()
    assert raised.value.failure.code is Code.STORE_UNAVAILABLE


async def test_the_role_depends_on_the_key_and_on_the_way_it_came(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    reader = replace(LOCAL, id="key_1", role="readonly")
    assert desk.role_of(LOCAL, 1000) is desk.role_of(reader, 0) is BUILT_IN["full"]
    assert desk.role_of(LOCAL, None) == no_tools(BUILT_IN["standard"])
    assert desk.role_of(reader, None) is BUILT_IN["readonly"]
    assert desk.role_of(replace(LOCAL, id="key_2"), None) is BUILT_IN["standard"]


async def test_a_role_that_is_gone_permits_nothing(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock, roles={**BUILT_IN, "mine": BUILT_IN["full"]})
    made = await desk.create(MAKER, KeyWish(name="alice", role="mine"))
    assert desk.role_of(made.key, None) is BUILT_IN["full"]
    desk.roles = BUILT_IN
    left = desk.role_of(made.key, None)
    assert (left.name, left.tools, left.scopes) == ("mine", frozenset(), frozenset())
    assert left.approvals == frozenset({"never"})


# changes


async def acts(store: SqliteStore) -> list[tuple[str, Any]]:
    return [(record.act, record.details.get("id")) for _, record in await store.audit(0, 100)]


@pytest.mark.parametrize("named", ["alice", "key_1"], ids=["by name", "by id"])
async def test_a_rotated_key_keeps_all_but_its_secret(store: SqliteStore, clock: Clock, named: str) -> None:
    desk = await opened(store, clock)
    made = await desk.create(MAKER, KeyWish(name="alice", role="full", domain="team", expires_at=9000.0))
    again = await desk.rotate(MAKER, named)
    assert again.secret != made.secret and replace(again.key, digest=made.key.digest) == made.key
    for one in (desk, await opened(store, clock)):
        assert one.identify(again.secret) == again.key and why(one, made.secret) == ROTATED
    assert await acts(store) == [("key.created", "key_1"), ("key.rotated", "key_1")]
    assert await store.close()
    assert again.secret.encode() not in store.path.read_bytes()


async def test_during_the_overlap_both_secrets_are_good(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    made = await desk.create(MAKER, KeyWish(name="alice"))
    again = await desk.rotate(MAKER, "alice", 60.0)
    restarted = await opened(store, clock)
    for at, old in ((1059.9, None), (1060.0, ROTATED)):
        clock.now = at
        for one in (desk, restarted):
            assert why(one, made.secret) == old and why(one, again.secret) is None
    assert (await store.audit(0, 10))[1][1].details["previous_until"] == 1060.0


async def test_a_second_rotation_ends_the_overlap_of_the_first(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    first = await desk.create(MAKER, KeyWish(name="alice"))
    second = await desk.rotate(MAKER, "alice", 60.0)
    third = await desk.rotate(MAKER, "alice", 60.0)
    assert [why(desk, one.secret) for one in (first, second, third)] == [UNKNOWN, None, None]


async def test_rotations_at_once_leave_store_and_memory_alike(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    made = [await desk.create(MAKER, KeyWish(name="alice"))]
    made += await asyncio.gather(*(desk.rotate(MAKER, "alice", 60.0) for _ in range(5)))
    told = [why(desk, one.secret) for one in made]
    assert told.count(None) == 2
    assert [why(await opened(store, clock), one.secret) for one in made] == told


async def test_a_suspended_key_is_403_until_it_is_resumed(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    made = await desk.create(MAKER, KeyWish(name="alice"))
    for _ in range(2):  # again changes nothing
        assert (await desk.suspend(MAKER, "alice")).key.suspended
    for one in (desk, await opened(store, clock)):
        assert why(one, made.secret) == SUSPENDED
    for _ in range(2):
        assert not (await desk.resume(MAKER, "key_1")).key.suspended
    for one in (desk, await opened(store, clock)):
        assert why(one, made.secret) is None
    assert [act for act, _ in await acts(store)] == ["key.created", "key.suspended", "key.resumed"]


class Work(keys.NoWork):
    """Notes what was to be ended, and how the key was then."""

    def __init__(self, desk: KeyDesk) -> None:
        self.desk = desk
        self.ended: list[tuple[str, Any, bool]] = []

    async def end_work(self, key_id: str, task_ids: Any) -> None:
        self.ended.append((key_id, list(task_ids), self.desk.revoked(key_id)))


async def test_a_revoked_key_is_refused_for_ever_and_its_work_ended(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    desk.work = work = Work(desk)
    made = await desk.create(MAKER, KeyWish(name="alice"))
    again = await desk.rotate(MAKER, "alice", 60.0)
    for name, owner in (("task_1", "key_1"), ("task_2", "local")):
        await put(store, task(name, key_id=owner))
    revoked, tasks = await desk.revoke(MAKER, "alice")
    assert (revoked.record.revoked_at, tasks, work.ended) == (1000.0, 1, [("key_1", ["task_1"], True)])
    for one in (desk, await opened(store, clock)):
        assert why(one, made.secret) == why(one, again.secret) == REVOKED
        assert one.revoked("key_1") and not one.revoked("key_none")
    assert [act for act, _ in await acts(store)][-1] == "key.revoked"
    assert "key" in repr(await desk.create(MAKER, KeyWish(name="alice"))), "its name is free"


@pytest.mark.parametrize("change", ["rotate", "suspend", "resume", "revoke"])
async def test_what_cannot_be_changed_is_told(store: SqliteStore, clock: Clock, change: str) -> None:
    desk = await opened(store, clock)
    await desk.create(MAKER, KeyWish(name="alice"))
    await desk.revoke(MAKER, "alice")
    before = await acts(store)
    told = []
    for named in ("nobody", "alice", "key_1", "local"):
        with pytest.raises(Refusal) as raised:
            await getattr(desk, change)(MAKER, named)
        told.append(raised.value.failure.code)
    assert told == [Code.NOT_FOUND, Code.NOT_FOUND, Code.CONFLICT, Code.CONFLICT]
    assert await acts(store) == before


@pytest.mark.parametrize("change", ["rotate", "suspend", "revoke"])
async def test_a_store_that_takes_nothing_changes_no_key(store: SqliteStore, clock: Clock, change: str) -> None:
    desk = await opened(store, clock)
    made = await desk.create(MAKER, KeyWish(name="alice"))
    await store.close()
    with pytest.raises(Refusal) as raised:
        await getattr(desk, change)(MAKER, "alice")
    assert raised.value.failure.code is Code.STORE_UNAVAILABLE
    assert why(desk, made.secret) is None


async def test_the_last_use_is_written_at_most_once_a_minute(
    store: SqliteStore, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = await opened(store, clock)
    made = await desk.create(MAKER, KeyWish(name="alice"))
    written: list[tuple[str, float]] = []
    monkeypatch.setattr(store, "key_used", lambda key_id, at: written.append((key_id, at)))
    for at in (1000.0, 1059.9, 1060.0, 1100.0, 1121.0):
        clock.now = at
        assert why(desk, made.secret) is None
        assert why(desk, SECRET) is None, "that of the home is in no store"
    assert written == [("key_1", 1000.0), ("key_1", 1060.0), ("key_1", 1121.0)]


async def test_a_last_use_survives_a_restart(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    made = await desk.create(MAKER, KeyWish(name="alice"))
    desk.identify(made.secret)
    await store.record(AuditRecord(at=0.0, act="after it"))
    assert [one.record.used_at for one in await (await opened(store, clock)).list()] == [1000.0]


async def test_with_whom_a_key_shares_is_told(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    made = [await desk.create(MAKER, KeyWish(name=name, domain="team")) for name in ("b", "a", "c")]
    await desk.create(MAKER, KeyWish(name="alone"))
    await desk.rotate(MAKER, "a", 60.0)
    await desk.revoke(MAKER, "c")
    assert desk.company_of(made[0].key) == ["a"]


async def test_a_role_with_routes_has_no_others(store: SqliteStore, clock: Clock) -> None:
    mine = replace(BUILT_IN["standard"], name="mine", routes=frozenset({"/v1/tasks"}))
    desk = await opened(store, clock, roles={**BUILT_IN, "mine": mine})
    made = await desk.create(MAKER, KeyWish(name="alice", role="mine"))
    desk.check_route(made.key, "/v1/tasks/{id}")
    desk.check_route(LOCAL, "/v1/models")
    with pytest.raises(Refusal) as raised:
        desk.check_route(made.key, "/v1/models")
    assert raised.value.failure.code is Code.FORBIDDEN and "`/v1/models`" in raised.value.failure.message
