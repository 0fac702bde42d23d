"""MCP servers that have a URL, over the protocol's streamable HTTP.

Each message is a POST; what answers it comes as JSON, or as events on the response. Nothing is followed elsewhere: the
headers that the operator has configured are meant for this address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
import orjson

from claude_daemon.ports import Heard, Lost, McpServer

MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
"""Of one message, or one event: a result larger than that no model could read."""
_CONNECT_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 2.0
"""For the polite word at the end; a server that does not hear it forgets the session by itself."""
_SESSION: Final = "Mcp-Session-Id"
_VERSION: Final = "MCP-Protocol-Version"
_INTERNAL: Final = -32603


class HttpServer:
    """Implements :class:`~claude_daemon.ports.McpTransport`."""

    def __init__(self, server: McpServer, heard: Heard, lost: Lost) -> None:
        assert server.url is not None
        self._url = server.url
        self._own = dict(server.headers)
        self._heard = heard
        self._session_id: str | None = None
        self._version: str | None = None
        self._client: aiohttp.ClientSession | None = None
        self._posts: set[asyncio.Task[None]] = set()  # ours from send to close
        self._notification: asyncio.Task[None] | None = None  # the last one that was sent

    async def open(self) -> None:
        """Whether it can be reached, the first message will tell."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S)
        self._client = aiohttp.ClientSession(timeout=timeout, auto_decompress=True, trust_env=False)

    def send(self, message: Mapping[str, Any]) -> None:
        if self._client is None:
            return
        post = asyncio.get_running_loop().create_task(self._post(self._client, message, self._notification))
        if "id" not in message:
            self._notification = post
        self._posts.add(post)
        post.add_done_callback(self._posts.discard)

    def speak(self, version: str) -> None:
        self._version = version

    async def _post(
        self, client: aiohttp.ClientSession, message: Mapping[str, Any], before: asyncio.Task[None] | None
    ) -> None:
        """``before``: what must have arrived first; a server takes no request before it is told that we are ready."""
        if before is not None:
            await asyncio.wait({before})
        try:
            why = await self._exchange(client, message)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            why = f"it cannot be reached: {_in_words(error)}"
        if why is not None and "id" in message and "method" in message:
            self._heard({"jsonrpc": "2.0", "id": message["id"], "error": {"code": _INTERNAL, "message": why}})

    async def _exchange(self, client: aiohttp.ClientSession, message: Mapping[str, Any]) -> str | None:
        """Why there was no answer, None if there was one."""
        body, headers = orjson.dumps(message), self._headers()
        async with client.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
            if 300 <= response.status < 400:
                return f"it answered {response.status}: nothing is followed to another address"
            if response.status >= 400:
                return f"it answered {response.status}"
            if message.get("method") == "initialize":
                self._session_id = response.headers.get(_SESSION)
            if response.content_type == "text/event-stream":
                return await self._events(response, message.get("id"))
            if response.content_type != "application/json":
                return None if "id" not in message else "its answer is no JSON"
            return self._tell(orjson.loads(await _bounded(response)), message.get("id"))

    async def _events(self, response: aiohttp.ClientResponse, number: Any) -> str | None:
        data: list[bytes] = []
        size = 0
        async for line in _lines(response):
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
                size += len(line)
                if size > MAX_MESSAGE_BYTES:
                    return "its answer is too large"
            elif not line and data:
                if self._tell(orjson.loads(b"\n".join(data)), number) is None:
                    return None
                data, size = [], 0
        return "its answer was cut"

    def _tell(self, told: Any, number: Any) -> str | None:
        """None once the answer to the request of this number was among it."""
        answered = False
        for message in told if isinstance(told, list) else [told]:
            if isinstance(message, dict):
                answered = answered or ("method" not in message and message.get("id") == number)
                self._heard(message)
        return None if answered or number is None else "it gave no answer"

    def _headers(self) -> dict[str, str]:
        headers = {**self._own, "Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
        if self._session_id is not None:
            headers[_SESSION] = self._session_id
        if self._version is not None:
            headers[_VERSION] = self._version
        return headers

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        for post in list(self._posts):
            post.cancel()
        await asyncio.gather(*self._posts, return_exceptions=True)
        try:
            if self._session_id is not None:
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await client.delete(self._url, headers=self._headers(), allow_redirects=False)
        except (aiohttp.ClientError, TimeoutError, OSError):
            pass  # it was only told so that it need not wait for us
        finally:
            await client.close()


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    """Raises ValueError for a body that is too large."""
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > MAX_MESSAGE_BYTES:
            raise ValueError("its answer is too large")
    return b"".join(chunks)


async def _lines(response: aiohttp.ClientResponse) -> Any:
    """The lines of a stream of events, without their ends. Raises ValueError for one that is too long."""
    held = b""
    async for chunk in response.content.iter_any():
        *lines, held = (held + chunk).split(b"\n")
        if len(held) > MAX_MESSAGE_BYTES:
            raise ValueError("its answer is too large")
        for line in lines:
            yield line.removesuffix(b"\r")


def _in_words(error: Exception) -> str:
    """Without the address, which may hold a secret, and without what was sent."""
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or type(error.os_error).__name__
    if isinstance(error, ValueError) and not isinstance(error, orjson.JSONDecodeError):
        return str(error)[:200] if type(error) is ValueError else type(error).__name__
    return type(error).__name__
