"""API keys: made, listed, told apart; and what each may.

A secret is shown once, to whoever made the key. After that there is its digest, here and in the store.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol, TypeVar

from claude_daemon.core.agent import READ_ONLY, TOOLS
from claude_daemon.core.budget import NO_BUDGET, Budget
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.key import DEFAULT_DOMAIN, LOCAL, Key, Keyring, Unfit, digest, new_secret
from claude_daemon.core.role import BUILT_IN, DEFAULT_ROLE, Role, no_tools, permitted, powerless, refuses_way, route_of
from claude_daemon.ports import AuditRecord, Clock, Ids, KeyRecord, Keys, StoreUnavailable
from claude_daemon.service.refused import Refused
from claude_daemon.service.watch import Watches

T = TypeVar("T")

MAX_KEYS: Final = 10_000
"""All are held in RAM and told in one list; a service with more customers hands out keys of its own."""

MAX_OVERLAP_SECONDS: Final = 90 * 24 * 3600.0
"""A secret that is to be replaced and is not within three months was not replaced at all."""
USED_EVERY_S: Final = 60.0
"""A key's last use is written down so often at most."""

SOON_S: Final = 7 * 24 * 3600.0
"""A key that ends within a week should have a successor by now."""

WRITING: Final = tuple(tool for tool in TOOLS if tool not in READ_ONLY)

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
# Never one that a file system takes for itself: it may come to stand in a path.
_DOMAIN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyWish:
    """A key that somebody wants made. ``domain`` None: one of its own; ``expires_at`` None: never."""

    name: str
    role: str = DEFAULT_ROLE
    domain: str | None = None
    expires_at: float | None = None
    budget: Budget = NO_BUDGET


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """Who makes or changes a key, as the audit tells it."""

    key_id: str
    request_id: str
    peer_uid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key that was made, or made anew, and its secret: this once, and never again."""

    key: Key
    record: KeyRecord
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A key as its operator sees it: what the store has of it, and what it is here."""

    key: Key
    record: KeyRecord


_TOLD: Final[Mapping[Unfit, tuple[Code, str]]] = {
    Unfit.MALFORMED: (Code.UNAUTHENTICATED, "This key is not valid."),
    Unfit.UNKNOWN: (Code.UNAUTHENTICATED, "This key is not valid."),
    Unfit.REVOKED: (Code.UNAUTHENTICATED, "This key was revoked."),
    Unfit.ROTATED: (Code.UNAUTHENTICATED, "This key has a new secret, and the time of this one is over."),
    Unfit.EXPIRED: (Code.UNAUTHENTICATED, "This key has expired."),
    Unfit.SUSPENDED: (Code.FORBIDDEN, "This key is suspended."),
}


def refusal_of(why: Unfit) -> Refusal:
    """What whoever brought such a key is told; only with the right secret it is told how the key is."""
    code, message = _TOLD[why]
    return Refusal.because(code, message)


class Work(Protocol):
    """What keys have under way."""

    async def finish(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Does it to its end, whether or not whoever waits for it goes away."""

    async def end_work(self, key_id: str, task_ids: Sequence[str]) -> None:
        """Ends the key's chats, and these of its tasks, whose end the store has as wished."""


class NoWork:
    """Nobody runs anything yet."""

    async def finish(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return await coroutine

    async def end_work(self, key_id: str, task_ids: Sequence[str]) -> None:
        """There is none."""


class KeyDesk:
    """``local`` is the key of this home, which no store keeps. ``shared``: all keys act with one login, and so are of
    one trust domain.

    ``roles`` are those of the configuration in force. :attr:`watches` tells who has something open with a key that is
    not good any more.
    """

    def __init__(
        self,
        store: Keys,
        local: Key,
        *,
        shared: bool,
        roles: Mapping[str, Role] = BUILT_IN,
        now: Clock,
        monotonic: Clock,
        ids: Ids,
        randbytes: Callable[[int], bytes],
    ) -> None:
        self.roles = roles
        self._without_tools: tuple[Role, Role] | None = None
        self.work: Work = NoWork()
        self.refused = Refused("key.refused", now=now, monotonic=monotonic)
        self.watches = Watches(self.unfit, now)
        self._store = store
        self._local = local
        self._shared = shared
        self._now = now
        self._ids = ids
        self._randbytes = randbytes
        self._records: dict[str, KeyRecord] = {}
        self._known: dict[str, tuple[Key, ...]] = {}  # each record's, by each of its secrets
        self._used: dict[str, float] = {}
        self._ring = Keyring([local])

    async def load(self) -> None:
        """Knows the stored keys from here on; of those that are revoked, the last :data:`MAX_KEYS`. Raises
        StoreUnavailable."""
        records = await self._store.keys()
        revoked = sorted((one for one in records if one.revoked_at is not None), key=lambda one: one.revoked_at or 0.0)
        forgotten = {one.id for one in revoked[:-MAX_KEYS]}
        self._records = {one.id: one for one in records if one.id not in forgotten}
        self._known = {one.id: self._by_secret(one) for one in self._records.values()}
        self._used = {one.id: one.used_at for one in records if one.used_at is not None}
        self._ring = self._made_ring()

    def budget_of(self, key_id: str) -> Budget:
        """What a key may spend, one that is good no more among them: its tasks may still run."""
        record = self._records.get(key_id)
        return NO_BUDGET if record is None else record.budget

    def census(self) -> tuple[Mapping[str, int], float | None]:
        """How many stored keys are active, suspended, expired and revoked; when the first active one expires."""
        counts, ends = self._standings(self._now())
        return counts, min(ends, default=None)

    def counts(self) -> dict[str, int]:
        """The stored keys that are not revoked: how many are good now, and how many of these end within a week."""
        at = self._now()
        counts, ends = self._standings(at)
        return {
            "good": counts["active"],
            "suspended": counts["suspended"],
            "expired": counts["expired"],
            "expire_within_7_days": sum(end - at < SOON_S for end in ends),
        }

    def _standings(self, at: float) -> tuple[Mapping[str, int], Sequence[float]]:
        """How many keys are what, each of them one thing; when those active ones expire that ever do."""
        counts, ends = dict.fromkeys(("active", "suspended", "expired", "revoked"), 0), list[float]()
        for record in self._records.values():  # without a Key for each: there may be ten thousand
            if record.revoked_at is not None:
                counts["revoked"] += 1
            elif record.expires_at is not None and at >= record.expires_at:
                counts["expired"] += 1
            elif record.suspended_at is not None:
                counts["suspended"] += 1
            else:
                counts["active"] += 1
                if record.expires_at is not None:
                    ends.append(record.expires_at)
        return counts, ends

    # who asks

    def identify(self, secret: str, peer: str | None = None) -> Key:
        """The key with this secret, if it is good now: one that was made a moment ago is, an expired one is not. Raises
        Refusal, of which the audit hears with the ``peer``'s address."""
        found = self._ring.identify(secret)
        if isinstance(found, Unfit):
            self.refused.note(peer, found, None)
            raise refusal_of(found)
        at = self._now()
        if (why := found.unfit(at)) is not None:
            self.refused.note(peer, why, found.id)
            raise refusal_of(why)
        if at - self._used.get(found.id, 0.0) >= USED_EVERY_S:
            self._note_use(found, at)
        return found

    def _note_use(self, key: Key, at: float) -> None:
        self._used[key.id] = at
        if key.id != LOCAL:
            with contextlib.suppress(StoreUnavailable):  # the store is closed: the daemon ends
                self._store.key_used(key.id, at)

    def unfit(self, key: Key) -> Unfit | None:
        """Why a key that was identified before is not good now, by the secret that it came with."""
        found = self._ring.now(key)
        return Unfit.UNKNOWN if found is None else found.unfit(self._now())

    def check(self, key: Key) -> None:
        """Raises Refusal for a key that is not good any more: its request took its time."""
        if (why := self.unfit(key)) is not None:
            raise refusal_of(why)

    def check_route(self, key: Key, path: str) -> None:
        """Raises Refusal where the key's role has other routes. ``path`` is the route's own, as ``/v1/tasks/{id}``."""
        role = self.role_of(key, None)
        if role.routes is None or (route := route_of(path) or path) in role.routes:
            return
        if (why := refuses_way(role, route=route)) is not None:
            raise Refusal.because(Code.FORBIDDEN, why)

    def revoked(self, key_id: str) -> bool:
        """Whether the key is good no more, for ever."""
        record = self._records.get(key_id)
        return record is not None and record.revoked_at is not None

    def role_of(self, key: Key, peer_uid: int | None) -> Role:
        """What somebody may ask for who comes with this key, over the control socket where ``peer_uid`` is set.

        The role of a key whose role was taken out of the configuration permits nothing.
        """
        if peer_uid is not None:
            return BUILT_IN["full"]
        role = self.roles.get(key.role) or powerless(key.role)
        if key.id != LOCAL:
            return role
        if self._without_tools is None or self._without_tools[0] is not role:  # every chat asks several times
            self._without_tools = role, no_tools(role)
        return self._without_tools[1]

    def concurrent(self, key_id: str) -> int | None:
        """How many chats and tasks of a key may run at once, None for no bound."""
        known = self._known.get(key_id)
        return None if known is None else self.role_of(known[0], None).concurrent

    def may_use(self, key_id: str, models: Sequence[str]) -> bool:
        """Whether a key may use the model that has these names."""
        known = self._known.get(key_id)
        return known is None or refuses_way(self.role_of(known[0], None), models=[models]) is None

    def arms_somebody(self) -> bool:
        """Whether any key but that of the home may have tools run that change something."""
        return any(permitted(self.role_of(key, None), WRITING) for key in self._ring if not key.revoked)

    # keys, as their operator sees them

    async def create(self, maker: Maker, wish: KeyWish) -> NewKey:
        """Durable when it returns, and good from then on. Raises Refusal, naming the parameter at fault."""
        self._check(wish)
        return await self.work.finish(self._create(maker, wish))

    async def _create(self, maker: Maker, wish: KeyWish) -> NewKey:
        key_id, secret, at = self._ids("key"), new_secret(self._randbytes), self._now()
        record = KeyRecord(
            id=key_id,
            name=wish.name,
            trust_domain=wish.domain or key_id,
            digest=digest(secret),
            role=wish.role,
            created_at=at,
            expires_at=wish.expires_at,
            budget=wish.budget,
        )
        key = self._key(record)
        with _stored("Nothing can be stored now; no key was made."):
            try:
                await self._store.create_key(
                    record, _audit("key.created", maker, at, {**_facts(key), **_allowance(wish.budget)})
                )
            except ValueError as error:
                raise Refusal.because(Code.CONFLICT, f"{error}", param="name") from error
        self._put(record)
        return NewKey(key=key, record=record, secret=secret)

    async def rotate(self, maker: Maker, named: str, overlap_seconds: float = 0.0) -> NewKey:
        """A new secret for the same key; the one until now is good for so long still, the one before it is not. Raises
        Refusal."""
        return await self.work.finish(self._rotate(maker, self._named(named), overlap_seconds))

    async def _rotate(self, maker: Maker, record: KeyRecord, overlap_seconds: float) -> NewKey:
        at = self._now()
        secret, until = new_secret(self._randbytes), at + overlap_seconds
        audit = _audit("key.rotated", maker, at, {**_facts(self._key(record)), "previous_until": until})
        with _stored("Nothing can be stored now; the key has its secret still."):
            done = await self._store.rotate_key(record.id, digest(secret), until, audit)
        record = self._still(record, done)
        record = replace(record, digest=digest(secret), previous_digest=record.digest, previous_until=until)
        self._put(record)
        return NewKey(key=self._key(record), record=record, secret=secret)

    async def suspend(self, maker: Maker, named: str) -> Listed:
        """From then on it is refused, and what it has open ends; its tasks run on. Again it changes nothing. Raises
        Refusal."""
        return await self.work.finish(self._suspend(maker, self._named(named), self._now()))

    async def resume(self, maker: Maker, named: str) -> Listed:
        """The suspension is over. Raises Refusal."""
        return await self.work.finish(self._suspend(maker, self._named(named), None))

    async def _suspend(self, maker: Maker, record: KeyRecord, at: float | None) -> Listed:
        if (record.suspended_at is None) != (at is None):
            act = "key.resumed" if at is None else "key.suspended"
            with _stored("Nothing can be stored now; the key is as it was."):
                audit = _audit(act, maker, self._now(), _facts(self._key(record)))
                done = await self._store.suspend_key(record.id, at, audit)
            record = replace(self._still(record, done), suspended_at=at)
            self._put(record)
        return Listed(key=self._key(record), record=record)

    async def revoke(self, maker: Maker, named: str) -> tuple[Listed, int]:
        """For ever: it is refused, what it has open ends, its chats and tasks are cancelled, its webhooks dropped. The
        key, and how many tasks that were. Raises Refusal."""
        return await self.work.finish(self._revoke(maker, self._named(named)))

    async def _revoke(self, maker: Maker, record: KeyRecord) -> tuple[Listed, int]:
        at = self._now()
        # Refused first and stored then: whatever it has asked for until now stands in the store before its end.
        self._put(replace(record, revoked_at=at))
        try:
            with _stored("Nothing can be stored now; the key is as it was."):
                audit = _audit("key.revoked", maker, at, _facts(self._key(record)))
                tasks = await self._store.revoke_key(record.id, at, audit)
        except Refusal:
            self._put(replace(self._records[record.id], revoked_at=None))
            raise
        revoked = self._still(record, tasks is not None)
        await self.work.end_work(record.id, tasks or ())
        return Listed(key=self._key(revoked), record=revoked), len(tasks or ())

    async def list(self, *, revoked: bool = False) -> Sequence[Listed]:
        """Every stored key, those that are revoked where that is asked for, oldest first. Raises Refusal."""
        with _stored("The store cannot be read now."):
            records = await self._store.keys()
        return [Listed(key=self._key(one), record=one) for one in records if revoked or one.revoked_at is None]

    async def names(self) -> Mapping[str, str]:
        """By the ids of the keys, those that are revoked among them. Raises Refusal."""
        return {self._local.id: self._local.name, **{one.key.id: one.key.name for one in await self.list(revoked=True)}}

    def company_of(self, key: Key) -> Sequence[str]:
        """The names of the other keys that share what is warm with this one, in order."""
        others = (one for one in self._ring if one.trust_domain == key.trust_domain and not one.revoked)
        return sorted({one.name for one in others if one.id != key.id})

    def _named(self, named: str) -> KeyRecord:
        """By its id, or the name that it has while it is not revoked. Raises Refusal."""
        if named == LOCAL:
            why = f"{LOCAL} is the key of this home: it is what its file says, and the daemon reads that when it starts"
            raise Refusal.because(Code.CONFLICT, why)
        alive = (one for one in self._records.values() if one.revoked_at is None and one.name == named)
        record = self._records.get(named) or next(alive, None)
        if record is None:
            raise Refusal.because(Code.NOT_FOUND, "There is no such key.")
        if record.revoked_at is not None:
            raise Refusal.because(Code.CONFLICT, "the key is revoked")
        return record

    def _still(self, known: KeyRecord, done: bool) -> KeyRecord:
        """The key as it is here now. Raises Refusal if the store had it revoked already."""
        if not done:
            raise Refusal.because(Code.CONFLICT, "the key is revoked")
        return self._records.get(known.id, known)

    # what is known

    def _put(self, record: KeyRecord) -> None:
        """Counts from now on, for what is open too."""
        self._records[record.id] = record
        self._known[record.id] = self._by_secret(record)
        self._ring = self._made_ring()
        self.watches.changed(record.id, self._ring.now)

    def _made_ring(self) -> Keyring:
        return Keyring([self._local, *(key for keys in self._known.values() for key in keys)])

    def _by_secret(self, record: KeyRecord) -> tuple[Key, ...]:
        key = self._key(record)
        if record.previous_digest is None or record.previous_until is None:
            return (key,)
        return key, key.with_old(record.previous_digest, record.previous_until)

    def _key(self, record: KeyRecord) -> Key:
        """Its own domain stays in the store: it counts again once the keys act with a credential of ours."""
        return Key(
            id=record.id,
            name=record.name,
            digest=record.digest,
            role=record.role,
            trust_domain=DEFAULT_DOMAIN if self._shared else record.trust_domain,
            expires_at=record.expires_at,
            suspended=record.suspended_at is not None,
            revoked=record.revoked_at is not None,
        )

    def _check(self, wish: KeyWish) -> None:
        if _NAME.fullmatch(wish.name) is None:
            raise _invalid("name", "A name has 1 to 64 letters, digits, dots, dashes and underscores.")
        if wish.name == LOCAL:
            raise Refusal.because(Code.CONFLICT, f"{LOCAL} is the key of this home", param="name")
        if wish.role not in self.roles:
            known = ", ".join(sorted(self.roles))
            raise _invalid("role", f"There is no role {wish.role[:64]!r}; known are {known}.")
        if wish.domain is not None and self._shared:
            why = f"With a login every key is in the domain {DEFAULT_DOMAIN}: their processes hold the same credential."
            raise _invalid("domain", why)
        if wish.domain is not None and _DOMAIN.fullmatch(wish.domain) is None:
            why = "A domain has 1 to 64 letters, digits, dots, dashes and underscores; the first is no punctuation."
            raise _invalid("domain", why)
        if wish.expires_at is not None and wish.expires_at <= self._now():
            raise _invalid("expires", "`expires` lies in the past.")
        if sum(one.revoked_at is None for one in self._records.values()) >= MAX_KEYS:
            raise Refusal.because(Code.CONFLICT, f"there are {MAX_KEYS} keys already")


@contextlib.contextmanager
def _stored(message: str) -> Iterator[None]:
    """What the store cannot do now is a Refusal with this message."""
    try:
        yield
    except StoreUnavailable as error:
        raise Refusal.because(Code.STORE_UNAVAILABLE, message) from error


def _facts(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "domain": key.trust_domain,
        "expires_at": key.expires_at,
    }


def _allowance(budget: Budget) -> dict[str, Any]:
    if budget == NO_BUDGET:
        return {}
    return {"budget": {"day_micro_usd": budget.day_micro_usd, "month_micro_usd": budget.month_micro_usd}}


def _audit(act: str, maker: Maker, at: float, details: Mapping[str, Any]) -> AuditRecord:
    return AuditRecord(
        at=at,
        act=act,
        key_id=maker.key_id,
        request_id=maker.request_id,
        peer_uid=maker.peer_uid,
        details=details,
    )


def _invalid(param: str, why: str) -> Refusal:
    return Refusal.because(Code.INVALID_REQUEST, why, param=param)
