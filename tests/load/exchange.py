"""One request and its whole answer over one connection, close enough to the socket to tell when a connection died.

A client library would open connections and try again by itself, and say neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import h11
import orjson

_READ_BYTES = 64 * 1024


class NoAnswer(ConnectionError):
    """The connection was reset or closed before the first byte of an answer: who asks again asks for the first time."""


class BrokenAnswer(Exception):
    """The connection ended within an answer, or what came is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """``body`` None is a GET, else a POST of JSON."""

    path: str
    headers: Mapping[str, str]
    body: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Connection:
    """To ``http://host:port``; one request at a time."""

    def __init__(self, sock: socket.socket, host: str) -> None:
        self._sock = sock
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._http = h11.Connection(h11.CLIENT)

    @classmethod
    async def open(cls, url: str) -> Connection:
        """Raises NoAnswer when it is reset, another OSError when there is nobody."""
        parts = urlsplit(url)
        sock = socket.socket()
        sock.setblocking(False)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
        except ConnectionResetError as error:
            sock.close()
            raise NoAnswer("reset while connecting") from error
        except BaseException:
            sock.close()
            raise
        return cls(sock, parts.netloc)

    def close(self) -> None:
        self._sock.close()

    @property
    def reusable(self) -> bool:
        """Whether another request may follow: both sides have said so."""
        return self._http.our_state is h11.IDLE

    async def ask(self, request: Request) -> Answer:
        """Raises NoAnswer, BrokenAnswer. After either the connection is good for nothing but :meth:`close`."""
        with contextlib.suppress(ConnectionError):  # what was said before it ended may be here all the same
            await self._loop.sock_sendall(self._sock, self._sent(request))
        answer = await self._answer()
        if (self._http.our_state, self._http.their_state) == (h11.DONE, h11.DONE):
            self._http.start_next_cycle()
        return answer

    def _sent(self, request: Request) -> bytes:
        body = b"" if request.body is None else orjson.dumps(request.body)
        headers = [("Host", self._host), *request.headers.items()]
        if body:
            headers += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        head = h11.Request(method="POST" if body else "GET", target=request.path, headers=headers)
        pieces = [self._http.send(event) for event in (head, h11.Data(data=body), h11.EndOfMessage())]
        return b"".join(piece for piece in pieces if piece)

    async def _answer(self) -> Answer:
        head: h11.Response | None = None
        body = bytearray()
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
        assert head is not None
        headers = {name.decode(): value.decode() for name, value in head.headers}
        return Answer(status=head.status_code, headers=headers, body=bytes(body))

    async def _event(self) -> object:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._received())
        except h11.RemoteProtocolError as error:
            raise BrokenAnswer(f"no whole answer: {error}") from error
        return event

    async def _received(self) -> bytes:
        begun = self._http.their_state is not h11.SEND_RESPONSE or self._http.trailing_data[0] != b""
        try:
            data = await self._loop.sock_recv(self._sock, _READ_BYTES)
        except ConnectionError as error:
            if begun:
                raise BrokenAnswer("reset within an answer") from error
            raise NoAnswer("reset before an answer") from error
        if not data and not begun:
            raise NoAnswer("closed before an answer")
        return data
