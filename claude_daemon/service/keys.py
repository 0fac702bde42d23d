"""API keys: made, listed, told apart; and what each may.

A secret is shown once, to whoever made the key. After that there is its digest, here and in the store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from claude_daemon.core.agent import READ_ONLY, TOOLS
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.key import DEFAULT_DOMAIN, LOCAL, Key, Keyring, digest, new_secret
from claude_daemon.core.role import BUILT_IN, DEFAULT_ROLE, Role, no_tools, permitted, powerless
from claude_daemon.ports import AuditRecord, Clock, Ids, KeyRecord, Keys, StoreUnavailable

MAX_KEYS: Final = 10_000
"""All are held in RAM and told in one list; a service with more customers hands out keys of its own."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """Who makes a key, as the audit tells it."""

    key_id: str
    request_id: str
    peer_uid: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key that was made, and its secret: this once, and never again."""

    key: Key
    secret: str = field(repr=False)


class KeyDesk:
    """``local`` is the key of this home, which no store keeps. ``shared``: all keys act with one login, and so are of
    one trust domain.

    ``roles`` are those of the configuration in force.
    """

    def __init__(
        self,
        store: Keys,
        local: Key,
        *,
        shared: bool,
        roles: Mapping[str, Role] = BUILT_IN,
        now: Clock,
        ids: Ids,
        randbytes: Callable[[int], bytes],
    ) -> None:
        self.roles = roles
        self._store = store
        self._local = local
        self._shared = shared
        self._now = now
        self._ids = ids
        self._randbytes = randbytes
        self._ring = Keyring([local])

    async def load(self) -> None:
        """Knows the stored keys from here on. Raises StoreUnavailable."""
        stored = [self._key(record) for record in await self._store.keys() if record.revoked_at is None]
        self._ring = Keyring([self._local, *stored])

    def identify(self, secret: str) -> Key | None:
        """The key with this secret, if it is good now: one that was made a moment ago is, an expired one is not."""
        key = self._ring.identify(secret)
        return key if key is not None and key.good_at(self._now()) else None

    def role_of(self, key: Key, peer_uid: int | None) -> Role:
        """What somebody may ask for who comes with this key, over the control socket where ``peer_uid`` is set.

        The role of a key whose role was taken out of the configuration permits nothing.
        """
        if peer_uid is not None:
            return BUILT_IN["full"]
        role = self.roles.get(key.role) or powerless(key.role)
        return no_tools(role) if key.id == LOCAL else role

    def arms_somebody(self) -> bool:
        """Whether any key but that of the home may have tools run that change something."""
        return any(permitted(self.role_of(key, None), WRITING) for key in self._ring)

    async def create(self, maker: Maker, wish: KeyWish) -> NewKey:
        """Durable when it returns, and good from then on. Raises Refusal, naming the parameter at fault."""
        self._check(wish)
        key_id, secret, at = self._ids("key"), new_secret(self._randbytes), self._now()
        record = KeyRecord(
            id=key_id,
            name=wish.name,
            trust_domain=wish.domain or key_id,
            digest=digest(secret),
            role=wish.role,
            created_at=at,
            expires_at=wish.expires_at,
        )
        key = self._key(record)
        try:
            await self._store.create_key(record, _audit(maker, key, at))
        except StoreUnavailable as error:
            raise Refusal.because(Code.STORE_UNAVAILABLE, "Nothing can be stored now; no key was made.") from error
        except ValueError as error:
            raise Refusal.because(Code.CONFLICT, f"{error}", param="name") from error
        self._ring = Keyring([*self._ring, key])
        return NewKey(key=key, secret=secret)

    async def list(self) -> Sequence[tuple[Key, float]]:
        """Every stored key that is not revoked, with the time it was made, oldest first. Raises Refusal."""
        try:
            records = await self._store.keys()
        except StoreUnavailable as error:
            raise Refusal.because(Code.STORE_UNAVAILABLE, "The store cannot be read now.") from error
        return [(self._key(record), record.created_at) for record in records if record.revoked_at is None]

    def _key(self, record: KeyRecord) -> Key:
        """Its own domain stays in the store: it counts again once the keys act with a credential of ours."""
        return Key(
            id=record.id,
            name=record.name,
            digest=record.digest,
            role=record.role,
            trust_domain=DEFAULT_DOMAIN if self._shared else record.trust_domain,
            expires_at=record.expires_at,
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
        if len(self._ring) > MAX_KEYS:
            raise Refusal.because(Code.CONFLICT, f"there are {MAX_KEYS} keys already")


def _audit(maker: Maker, key: Key, at: float) -> AuditRecord:
    details = {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "domain": key.trust_domain,
        "expires_at": key.expires_at,
    }
    return AuditRecord(
        at=at,
        act="key.created",
        key_id=maker.key_id,
        request_id=maker.request_id,
        peer_uid=maker.peer_uid,
        details=details,
    )


def _invalid(param: str, why: str) -> Refusal:
    return Refusal.because(Code.INVALID_REQUEST, why, param=param)
