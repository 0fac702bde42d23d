"""The smallest HTTP client that can tell when an answer's first text arrives: blocking, keep-alive, one request a time.

A client library would add its own milliseconds to one side of a comparison with a process that is driven by a pipe.
"""

from __future__ import annotations

import re
import select
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import orjson

TIMEOUT_S = 60.0
_READ_BYTES = 256 * 1024
# The first text that is not empty, in either dialect and in the upstream's own: {"text":"H…"}, {"content":"H…"}.
_FIRST_TEXT = re.compile(rb'"(?:text|content)":"[^"]')


class Unexpected(Exception):
    """An answer that is not what was measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """``first_s``: from the request's first byte to the arrival of the first text; None where there is none."""

    status: int
    head: bytes
    body: bytes
    first_s: float | None
    total_s: float

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Connection:
    """One connection to ``http://host:port`` or to a Unix socket; opened at first use, and again when it was lost."""

    def __init__(self, address: str | Path) -> None:
        self._address = address
        self._host = b"daemon" if isinstance(address, Path) else urlsplit(address).netloc.encode()
        self._sock: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def shut(self) -> None:
        """Leaves, also while another thread waits for an answer here: that one gets :class:`Unexpected`."""
        if self._sock is not None:
            self._sock.shutdown(socket.SHUT_RDWR)

    def _open(self) -> socket.socket:
        if isinstance(self._address, Path):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(TIMEOUT_S)
            sock.connect(str(self._address))
        else:
            url = urlsplit(self._address)
            sock = socket.create_connection((url.hostname or "", url.port or 0), TIMEOUT_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def ask(self, request: bytes) -> Answer:
        """Sends a request (its ``Host`` is added) and reads its whole answer. Raises OSError, :class:`Unexpected`."""
        if self._sock is not None and select.select([self._sock], [], [], 0)[0]:
            self.close()  # the server has ended a connection that was idle for long
        if self._sock is None:
            self._sock = self._open()
        request = request.replace(b"\r\n", b"\r\nHost: %b\r\n" % self._host, 1)
        began = time.perf_counter()
        self._sock.sendall(request)
        try:
            return self._answer(self._sock, began)
        except BaseException:
            self.close()
            raise

    def _answer(self, sock: socket.socket, began: float) -> Answer:
        held, first, searched = b"", None, 0
        end = -1
        while not _complete(held, end):
            piece = sock.recv(_READ_BYTES)
            now = time.perf_counter()
            if not piece:
                raise Unexpected(f"the connection ended within an answer: {held[-200:]!r}")
            held += piece
            if end < 0:
                end = held.find(b"\r\n\r\n")
            if first is None and end >= 0:
                if _FIRST_TEXT.search(held, max(end, searched)):
                    first = now - began
                searched = max(0, len(held) - 32)
        total = time.perf_counter() - began
        head, body = held[:end], held[end + 4 :]
        if b"connection: close" in head.lower():
            self.close()
        return Answer(status=int(head[9:12]), head=head, body=body, first_s=first, total_s=total)

    def first_delta(self, request: bytes) -> float:
        """Seconds to the first text of a streamed answer. Raises :class:`Unexpected` for any other answer."""
        answer = self.ask(request)
        if answer.status != 200 or answer.first_s is None or b"event: error" in answer.body:
            raise Unexpected(f"HTTP {answer.status}: {answer.body[:500]!r}")
        return answer.first_s

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.ask(_head("GET", path, headers or {}, b""))


def _complete(held: bytes, end: int) -> bool:
    """Whether an answer whose head ends at ``end`` is there; chunk ends are told by what no event contains."""
    if end < 0:
        return False
    head = held[:end].lower()
    if b"transfer-encoding: chunked" in head:
        return held.endswith(b"\r\n0\r\n\r\n")
    _, _, rest = head.partition(b"content-length:")
    return len(held) >= end + 4 + int(rest.split(b"\r\n")[0] or 0)


def _head(method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


def post(path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> bytes:
    """A whole ``POST``."""
    return _head("POST", path, headers, orjson.dumps(body))
