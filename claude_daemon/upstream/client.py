"""The HTTP client of the Messages API. aiohttp's errors are translated here and do not leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from claude_daemon.core.errors import Code, Failure
from claude_daemon.upstream.credential import UpstreamCredential
from claude_daemon.upstream.meter import cut, failure_of_response

API_VERSION: Final = "2023-06-01"
_CONNECT_TIMEOUT_S: Final = 10.0
_MAX_ERROR_BODY_BYTES: Final = 64 * 1024
_ERROR_BODY_TIMEOUT_S: Final = 5.0  # the status is known: its words are not worth more waiting
_READ_BYTES: Final = 256 * 1024

# Of a client's headers only the protocol's own are passed on; everything else is between us and the upstream.
_PASSED_PREFIX = "anthropic-"
_PASSED = frozenset({"traceparent", "tracestate"})  # W3C trace context
_NEVER_PASSED = frozenset({"anthropic-dangerous-direct-browser-access"})


# Of an error's headers those that tell its reader whether and when to try again, and what to name it by.
_TOLD_WITH_ERRORS = ("content-type", "retry-after", "x-should-retry", "request-id")


class UpstreamFailed(Exception):
    """The upstream could not be reached, refused, or broke off.

    ``status``, ``body`` and ``headers`` are the upstream's own words where it answered with an error.
    """

    def __init__(
        self,
        failure: Failure,
        *,
        status: int | None = None,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.status = status
        self.body = body
        self.headers = headers or {}


def passed_on(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers of a request that go to the upstream."""
    passed = {
        name.lower(): value
        for name, value in headers.items()
        if (name.lower().startswith(_PASSED_PREFIX) or name.lower() in _PASSED) and name.lower() not in _NEVER_PASSED
    }
    passed.setdefault("anthropic-version", API_VERSION)
    return passed


def proxy_for(base_url: str, environ: Mapping[str, str]) -> str | None:
    """The proxy that ``HTTPS_PROXY``, ``HTTP_PROXY`` and ``NO_PROXY`` (either case) name for an address."""
    named = {name.lower(): value for name, value in environ.items() if name.lower().endswith("_proxy") and value}
    url = urlsplit(base_url)
    proxy = named.get(f"{url.scheme}_proxy")
    if proxy is None or url.hostname in ("localhost", "127.0.0.1", "::1"):
        return None
    return None if _listed(url.hostname or "", named.get("no_proxy", "")) else proxy


def _listed(host: str, no_proxy: str) -> bool:
    """Whether ``NO_PROXY`` (names, with their subdomains, or ``*``) names the host."""
    names = [name.strip().lower().lstrip(".") for name in no_proxy.split(",") if name.strip()]
    return any(name in ("*", host) or host.endswith(f".{name}") for name in names)


class MessagesClient:
    """One upstream: its address and the credential in force (asked for at every call, so that it can rotate).

    ``proxy`` is told (see :func:`proxy_for`) and not left to aiohttp's ``trust_env``, which reads the environment and
    ``.netrc`` again at every call, in a thread each, and would add what it finds there to our headers.
    """

    def __init__(
        self, base_url: str, credential: Callable[[], UpstreamCredential], *, proxy: str | None = None
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self._credential = credential
        self._proxy = proxy
        self._urls: dict[str, URL] = {}
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=None)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=timeout,
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_READ_BYTES,
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
            async with self._session.post(
                url, data=body, headers=sent, allow_redirects=False, proxy=self._proxy
            ) as response:
                if response.status != 200:
                    raise await _refused(response)
                yield response
        except aiohttp.ClientConnectorError as error:
            why = f"the upstream cannot be reached: {error.os_error.strerror or error.os_error}"
            raise UpstreamFailed(Failure(code=Code.UPSTREAM_UNREACHABLE, message=why)) from error
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            raise UpstreamFailed(cut()) from error
        except (TimeoutError, aiohttp.ClientError) as error:
            why = f"the upstream cannot be reached: {type(error).__name__}"
            raise UpstreamFailed(Failure(code=Code.UPSTREAM_UNREACHABLE, message=why)) from error


async def _refused(response: aiohttp.ClientResponse) -> UpstreamFailed:
    said = await _bounded(response)
    told = {name: response.headers[name] for name in _TOLD_WITH_ERRORS if name in response.headers}
    failure = failure_of_response(response.status, said, told.get("retry-after"))
    return UpstreamFailed(failure, status=response.status, body=said, headers=told)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    """An error's body, cut at a bound of size and time: enough for its message."""
    pieces, held = [], 0
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(_ERROR_BODY_TIMEOUT_S):
            async for piece in response.content.iter_any():
                pieces.append(piece)
                held += len(piece)
                if held > _MAX_ERROR_BODY_BYTES:
                    break
    return b"".join(pieces)[:_MAX_ERROR_BODY_BYTES]
