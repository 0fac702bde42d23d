"""A Redis URL: how to connect to it, and what of it may be shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from urllib.parse import SplitResult, parse_qs, urlsplit

from redis import asyncio as aioredis
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.exceptions import RedisError

OPTIONS: Final = frozenset(
    {
        "db",
        "username",
        "password",
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_ciphers",
        "ssl_keyfile",
        "ssl_password",
    }
)
"""Behind the ``?``. The client takes any argument of its classes there, and breaks on most of them later; its timeouts
and retries are ours to set."""

_OURS: Final[Mapping[str, Any]] = {
    "protocol": 2,  # which every server speaks, and proxies too; nothing here needs the third
    "driver_info": None,  # CLIENT SETINFO: a command more that a server may forbid
    # Our own timeouts enclose each step. Where the client is given one it sends within asyncio.wait_for, which may
    # swallow a cancellation before Python 3.12.
    "socket_timeout": None,
    "socket_connect_timeout": None,
}


class BadAddress(ValueError):
    """The URL cannot be used. Its words repeat nothing of it but the names of options."""


class Sealed(Protocol):
    """A text that nothing but this shows."""

    def reveal(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis is. ``shown`` is the URL without user, password and options."""

    shown: str
    _type: type[AbstractConnection] = field(repr=False)
    _options: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, url: Sealed) -> Address:
        """Raises BadAddress."""
        text = url.reveal()
        try:
            parts = urlsplit(text)
            _check(parts)
            options: dict[str, Any] = {**parse_url(text), **_OURS}
            kind = options.pop("connection_class", aioredis.Connection)
            if issubclass(kind, aioredis.SSLConnection):
                options.setdefault("ssl_password", "")  # without one OpenSSL asks whoever sits at the terminal
            kind(**options)
        except BadAddress:
            raise
        except (ValueError, TypeError, RedisError):  # they may quote what they choke on, a part of a password
            raise BadAddress("is no URL of a Redis; what is special in user or password is written as %XX") from None
        return cls(_shown(parts), kind, options)

    def connection(self) -> AbstractConnection:
        """A new one that is not connected yet. A new certificate is read by the next one."""
        return self._type(**self._options)


def _check(parts: SplitResult) -> None:
    """Raises BadAddress for what the client would take without a word, and understand otherwise than it is meant."""
    behind = f"{parts.query}#{parts.fragment}" if parts.scheme == "unix" else f"{parts.path}?{parts.query}"
    if parts.fragment or "@" in behind:
        raise BadAddress("has a /, ? or # in user or password; there these are written %2F, %3F and %23")
    if parts.scheme == "unix" and not parts.path:
        raise BadAddress("names no path: unix:///run/redis/redis.sock")
    (parts.hostname or "").encode("idna")  # raises what of() translates
    if unknown := sorted(parse_qs(parts.query).keys() - OPTIONS):
        raise BadAddress(f"has an option that is not known here: {', '.join(unknown)}")


def _shown(parts: SplitResult) -> str:
    place = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{place}{parts.path}"
