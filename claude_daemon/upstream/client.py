"""The HTTP client of the Messages API. aiohttp's errors are translated here and do not leave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

import aiohttp
from yarl import URL

from claude_daemon.core.errors import Code, Failure
from claude_daemon.upstream.credential import UpstreamCredential
from claude_daemon.upstream.meter import cut, failure_of_response

API_VERSION: Final = "2023-06-01"
_CONNECT_TIMEOUT_S: Final = 10.0
_MAX_ERROR_BODY_BYTES: Final = 64 * 1024
_READ_BYTES: Final = 256 * 1024

# Of a client's headers only the protocol's own are passed on; everything else is between us and the upstream.
_PASSED_PREFIX = "anthropic-"
_NEVER_PASSED = frozenset({"anthropic-dangerous-direct-browser-access"})


class UpstreamFailed(Exception):
    """The upstream could not be reached, refused, or broke off."""

    def __init__(self, failure: Failure, *, status: int | None = None, body: bytes = b"") -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.status = status
        self.body = body


def passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a request that go to the upstream."""
    passed = {
        name.lower(): value
        for name, value in headers.items()
        if name.lower().startswith(_PASSED_PREFIX) and name.lower() not in _NEVER_PASSED
    }
    passed.setdefault("anthropic-version", API_VERSION)
    return passed


class MessagesClient:
    """One upstream: its address and the credential in force (asked for at every call, so that it can rotate)."""

    def __init__(
        self, base_url: str, credential: Callable[[], UpstreamCredential], *, max_connections: int = 0
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._credential = credential
        self._max_connections = max_connections
        self._urls: dict[str, URL] = {}
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=None)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=self._max_connections, keepalive_timeout=60),
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_READ_BYTES,
            trust_env=True,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    @asynccontextmanager
    async def call(self, path: str, body: bytes, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """``POST path`` with our credential; the response has status 200. Raises :class:`UpstreamFailed`.

        ``headers`` are complete but for the credential (see :func:`passed_on`).
        """
        assert self._session is not None, "start() first"
        try:
            url = self._urls.get(path) or self._urls.setdefault(path, URL(self.base_url + path, encoded=True))
            sent = {
                **headers,
                "content-type": "application/json",
                "accept-encoding": "identity",
                "user-agent": "claude-daemon",
                **self._credential().headers(),
            }
            async with self._session.post(url, data=body, headers=sent, allow_redirects=False) as response:
                if response.status != 200:
                    said = await _bounded(response)
                    failure = failure_of_response(response.status, said, response.headers.get("retry-after"))
                    raise UpstreamFailed(failure, status=response.status, body=said)
                yield response
        except aiohttp.ClientConnectorError as error:
            why = f"the upstream cannot be reached: {error.os_error.strerror or error.os_error}"
            raise UpstreamFailed(Failure(code=Code.UPSTREAM_UNREACHABLE, message=why)) from error
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            raise UpstreamFailed(cut()) from error
        except (TimeoutError, aiohttp.ClientError) as error:
            why = f"the upstream cannot be reached: {type(error).__name__}"
            raise UpstreamFailed(Failure(code=Code.UPSTREAM_UNREACHABLE, message=why)) from error


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    """An error's body, cut at a bound: enough for its message."""
    pieces, held = [], 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        held += len(piece)
        if held > _MAX_ERROR_BODY_BYTES:
            break
    return b"".join(pieces)[:_MAX_ERROR_BODY_BYTES]
