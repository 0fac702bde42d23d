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
        ids=lambda prefix: f"{prefix}_{next(numbers)}",
        randbytes=secrets.token_bytes,
    )
    await desk.load()
    return desk


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
        assert one.identify(new_secret(secrets.token_bytes)) is None


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
    assert desk.identify(made.secret) is None
    assert (await opened(store, clock)).identify(made.secret) is None


async def test_a_revoked_key_is_unknown_and_its_name_is_free(store: SqliteStore, clock: Clock) -> None:
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
    assert desk.identify(secret) is None and list(await desk.list()) == []
    made = await desk.create(MAKER, KeyWish(name="alice"))
    assert list(await desk.list()) == [(made.key, 1000.0)]


async def test_keys_are_listed_in_the_order_in_which_they_were_made(store: SqliteStore, clock: Clock) -> None:
    desk = await opened(store, clock)
    for name in ("z", "a", "m"):
        await desk.create(MAKER, KeyWish(name=name))
        clock.now += 1
    assert [(key.name, at) for key, at in await desk.list()] == [("z", 1000.0), ("a", 1001.0), ("m", 1002.0)]


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
    known = (await opened(store, clock, shared=True)).identify(made.secret)
    assert known is not None and known.trust_domain == "default"
    apart = (await opened(store, clock)).identify(made.secret)  # the next start has a credential that we hold
    assert apart is not None and apart.trust_domain == "key_1"


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
