"""API keys: who is asking.

A key's secret is ``cd_`` and 32 random bytes in base64url. Only its SHA-256 is kept: a secret of 256 bits
cannot be guessed from it, so no slow hash is needed and a look-up costs microseconds.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

PREFIX: Final = "cd_"
LOCAL: Final = "local"
"""Id and name of the key that is there from the first start."""
DEFAULT_DOMAIN: Final = "default"
"""The trust domain of ``local``; of every key where all of them act with one login."""
SECRET_BYTES: Final = 32
_SECRET: Final = re.compile(r"cd_[A-Za-z0-9_-]{43}", re.ASCII)  # 32 bytes are 43 characters without padding


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key without its secret. Keys of one ``trust_domain`` may share warm processes; ``role`` names what
    it may. ``expires_at``: seconds since the epoch, None for never."""

    id: str
    name: str
    digest: bytes = field(repr=False)
    role: str
    trust_domain: str
    expires_at: float | None = None

    def good_at(self, at: float) -> bool:
        """Whether it has not expired by then."""
        return self.expires_at is None or at < self.expires_at


def new_secret(randbytes: Callable[[int], bytes]) -> str:
    """A fresh secret, to be shown once; ``randbytes`` is :func:`secrets.token_bytes` or as good."""
    return PREFIX + base64.urlsafe_b64encode(randbytes(SECRET_BYTES)).decode("ascii").rstrip("=")


def digest(secret: str) -> bytes:
    """What is kept of a secret: its SHA-256."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def well_formed(secret: str) -> bool:
    """Whether this can be a secret of ours at all; bounded by the pattern, however long the input."""
    return _SECRET.fullmatch(secret) is not None


class Keyring:
    """The keys that are good now. Immutable: a change makes a new one. Raises ValueError for a digest given
    twice."""

    __slots__ = ("_by_digest",)

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        by_digest: dict[bytes, Key] = {}
        for key in keys:
            if by_digest.setdefault(key.digest, key) is not key:
                raise ValueError(f"keys {by_digest[key.digest].id} and {key.id} have the same secret")
        self._by_digest: Mapping[bytes, Key] = by_digest

    def identify(self, secret: str) -> Key | None:
        """The key with this secret, None if there is none.

        The look-up is by digest, so what its time could tell is about the digest and not about the secret;
        the comparison that decides takes the same time for every secret.
        """
        if not well_formed(secret):
            return None
        given = digest(secret)
        key = self._by_digest.get(given)
        return key if key is not None and hmac.compare_digest(key.digest, given) else None

    def __iter__(self) -> Iterator[Key]:
        return iter(self._by_digest.values())

    def __len__(self) -> int:
        return len(self._by_digest)
