"""The webhook sender: one signed POST to an address that was checked. aiohttp's errors do not leave.

Signed as Standard Webhooks (v1) says, so that receivers have libraries for it. The clock of the signature is that of
the attempt, the id that of the webhook: a receiver can refuse what is old, and knows what it has seen.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import socket
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from email.utils import parsedate_to_datetime
from io import BytesIO
from typing import Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from claude_daemon import __version__
from claude_daemon.ports.engine import Clock
from claude_daemon.ports.webhook import WebhookAnswer
from claude_daemon.upstream.address import ReceiverRefused, check_url, checked, receiver

Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""The addresses of a host name. Raises OSError."""

# The status is all we want to know. A short answer is heard out, so that its sender meets no reset half-way.
_MAX_ANSWER_BYTES: Final = 4096
# A lookup cannot be ended from outside, and a resolver that hangs does so for half a minute: these threads are ours,
# so that hanging names cost no one else theirs.
_MAX_LOOKUPS: Final = 16
_PREFIX: Final = "whsec_"


def signing_key(secret: str) -> bytes:
    """The key that a secret stands for: ``whsec_<base64>`` decoded, any other text as UTF-8. Raises ValueError."""
    if not secret.startswith(_PREFIX):
        return secret.encode("utf-8", "surrogateescape")
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ValueError(f"what follows {_PREFIX} must be base64")
    return key


def signature(key: bytes, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The ``webhook-signature`` of one attempt."""
    signed = f"{webhook_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


def retry_after_seconds(value: str | None, now: float) -> float | None:
    """What a ``Retry-After`` asks for, in either form; None if it says nothing to be understood."""
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isdecimal() else parsedate_to_datetime(value).timestamp() - now
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds)


class WebhookClient:
    """Sends webhooks (:class:`~claude_daemon.ports.webhook.WebhookSender`). No redirect, proxy, cookie, environment
    or kept connection has a say in where it goes.

    ``now`` is seconds since the epoch. ``resolve`` is for tests; by default the system resolves. Raises ValueError for
    a secret that does not stand for a key.
    """

    def __init__(
        self, secret: str, *, timeout_s: float, allow_private: bool, now: Clock, resolve: Resolve | None = None
    ) -> None:
        self._key = signing_key(secret)
        self._timeout_s = timeout_s
        self._allow_private = allow_private
        self._now = now
        self._lookups = ThreadPoolExecutor(_MAX_LOOKUPS, thread_name_prefix="webhook-lookup")
        self._resolver = CheckedResolver(resolve or self._look_up, allow_private=allow_private)
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        connector = aiohttp.TCPConnector(
            resolver=self._resolver,
            use_dns_cache=False,
            force_close=True,
            limit=0,  # the loop that calls us bounds how many there are
            socket_factory=self._socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=None),  # one bound is around all of it
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_MAX_ANSWER_BYTES,
            trust_env=False,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        self._lookups.shutdown(wait=False, cancel_futures=True)

    def apply(self, secret: str, *, timeout_s: float, allow_private: bool) -> None:
        """For deliveries from now on. Raises ValueError for a secret that is none, and changes nothing then."""
        self._key = signing_key(secret)
        self._timeout_s = timeout_s
        self._allow_private = self._resolver.allow_private = allow_private

    def check(self, url: str) -> str | None:
        return check_url(url, self._allow_private)

    async def send(self, webhook_id: str, url: str, body: bytes) -> WebhookAnswer:
        answer: WebhookAnswer | None = None
        try:
            async with asyncio.timeout(self._timeout_s), self._post(webhook_id, url, body) as response:
                asked = retry_after_seconds(response.headers.get("retry-after"), self._now())
                answer = WebhookAnswer(status=response.status, retry_after_seconds=asked)
                await _hear_out(response)
        except (ReceiverRefused, TimeoutError, aiohttp.ClientError, OSError) as error:
            # however an answer ends, its status was told
            return answer or WebhookAnswer(reason=self._why(error))
        return answer

    def _post(self, webhook_id: str, url: str, body: bytes) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        assert self._session is not None, "start() first"
        timestamp = int(self._now())
        headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",
            "user-agent": f"claude-daemon/{__version__}",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(self._key, webhook_id, timestamp, body),
        }
        target = receiver(url, allow_private=self._allow_private)
        return self._session.post(target, data=BytesIO(body), headers=headers, allow_redirects=False)

    def _socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        return checked_socket(info, allow_private=self._allow_private)

    async def _look_up(self, host: str) -> Sequence[str]:
        return await asyncio.get_running_loop().run_in_executor(self._lookups, _addresses_of, host)

    def _why(self, error: Exception) -> str:
        """Why there was no answer: our words and the system's, nothing of the URL."""
        match error:
            case ReceiverRefused():
                return f"refused: {error}"
            case TimeoutError():
                return f"no answer within {self._timeout_s:g} s"
            case aiohttp.ClientConnectorCertificateError():
                return "its certificate is not to be trusted"
            case aiohttp.ClientConnectorDNSError():
                return "its name cannot be resolved"
            case aiohttp.ClientConnectorError():
                return f"it cannot be reached: {error.os_error.strerror or type(error.os_error).__name__}"
        return f"it broke off: {type(error).__name__}"


class CheckedResolver(AbstractResolver):
    """Resolves a name once for each connection. What it gives is checked and is what is connected to; one address that
    is refused refuses the name, for a receiver has no business with a mixture."""

    def __init__(self, resolve: Resolve, *, allow_private: bool) -> None:
        self._resolve = resolve
        self.allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises ReceiverRefused, and OSError for a name without an address."""
        found = [checked(text, allow_private=self.allow_private) for text in await self._resolve(host)]
        if not found:
            raise OSError(f"{host} has no address")
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for address in dict.fromkeys(found)
        ]

    async def close(self) -> None:
        pass


def checked_socket(info: aiohttp.AddrInfoType, *, allow_private: bool) -> socket.socket:
    """The last door: every connection passes it, however aiohttp came to its address. Raises ReceiverRefused."""
    family, kind, protocol, _, address = info
    checked(address[0], allow_private=allow_private)
    return socket.socket(family, kind, protocol)


def _addresses_of(host: str) -> Sequence[str]:
    return [str(address[0]) for *_, address in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


async def _hear_out(response: aiohttp.ClientResponse) -> None:
    """Reads a short answer to its end; a longer one is cut."""
    left = _MAX_ANSWER_BYTES
    while left > 0 and (piece := await response.content.read(left)):
        left -= len(piece)
    response.close()
