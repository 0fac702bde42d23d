"""API keys: who is asking.

A key's secret is ``cd_`` and 32 random bytes in base64url. Only its SHA-256 is kept: a secret of 256 bits
cannot be guessed from it, so no slow hash is needed and a look-up costs microseconds.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

PREFIX: Final = "cd_"
LOCAL: Final = "local"
"""Id and name of the key that is there from the first start."""
DEFAULT_DOMAIN: Final = "default"
"""The trust domain of ``local``; of every key where all of them act with one login."""
SECRET_BYTES: Final = 32
_LENGTH: Final = len(PREFIX) + 43  # 32 bytes are 43 characters without padding
_ALPHABET: Final = f"{string.ascii_letters}{string.digits}_-"


class Unfit(StrEnum):
    """Why a key is not good now. Only who holds its secret is told more than that it is not valid."""

    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    REVOKED = "revoked"
    ROTATED = "rotated"
    """The key has a new secret, and the time of this one is over."""
    EXPIRED = "expired"
    SUSPENDED = "suspended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key without its secret. Keys of one ``trust_domain`` may share warm processes; ``role`` names what
    it may. ``expires_at``: seconds since the epoch, None for never.

    A key that was rotated is there twice while its old secret is known: once with each digest, and the old one with
    ``replaced_at``, from when on it is not good any more.
    """

    id: str
    name: str
    digest: bytes = field(repr=False)
    role: str
    trust_domain: str
    expires_at: float | None = None
    replaced_at: float | None = None
    suspended: bool = False
    revoked: bool = False

    def unfit(self, at: float) -> Unfit | None:
        """Why it is not good then; None if it is."""
        if self.revoked:
            return Unfit.REVOKED
        if self.replaced_at is not None and at >= self.replaced_at:
            return Unfit.ROTATED
        if self.expires_at is not None and at >= self.expires_at:
            return Unfit.EXPIRED
        return Unfit.SUSPENDED if self.suspended else None

    @property
    def ends_at(self) -> float | None:
        """When it is not good any more by itself; None for never."""
        ends = [at for at in (self.expires_at, self.replaced_at) if at is not None]
        return min(ends, default=None)

    def with_old(self, old: bytes, replaced_at: float) -> Key:
        """The same as its secret before this one makes it."""
        return replace(self, digest=old, replaced_at=replaced_at)


def new_secret(randbytes: Callable[[int], bytes]) -> str:
    """A fresh secret, to be shown once; ``randbytes`` is :func:`secrets.token_bytes` or as good."""
    return PREFIX + base64.urlsafe_b64encode(randbytes(SECRET_BYTES)).decode("ascii").rstrip("=")


def digest(secret: str) -> bytes:
    """What is kept of a secret: its SHA-256."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def well_formed(secret: str) -> bool:
    """Whether this can be a secret of ours at all; its length is looked at first, however long the input."""
    return len(secret) == _LENGTH and secret.startswith(PREFIX) and not secret.strip(_ALPHABET)


class Keyring:
    """The keys that are known, by their secrets. Immutable: a change makes a new one. Raises ValueError for a digest
    given twice."""

    __slots__ = ("_by_digest",)

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        by_digest: dict[bytes, Key] = {}
        for key in keys:
            if by_digest.setdefault(key.digest, key) is not key:
                raise ValueError(f"keys {by_digest[key.digest].id} and {key.id} have the same secret")
        self._by_digest: Mapping[bytes, Key] = by_digest

    def identify(self, secret: str) -> Key | Unfit:
        """The key with this secret, good or not; MALFORMED or UNKNOWN if there is none.

        The look-up is by digest, so what its time could tell is about the digest and not about the secret;
        the comparison that decides takes the same time for every secret.
        """
        if not well_formed(secret):
            return Unfit.MALFORMED
        given = digest(secret)
        key = self._by_digest.get(given)
        return key if key is not None and hmac.compare_digest(key.digest, given) else Unfit.UNKNOWN

    def now(self, key: Key) -> Key | None:
        """What has become of a key that was identified before, by the secret that it came with."""
        return self._by_digest.get(key.digest)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._by_digest.values())

    def __len__(self) -> int:
        return len(self._by_digest)
