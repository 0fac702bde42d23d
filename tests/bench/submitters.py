"""``python -m tests.bench.submitters``: a closed loop of submissions over many keep-alive connections, on uvloop.

Threads and blocking sockets, as in :mod:`tests.bench.load`, would take as much of the machine at this rate as what is
measured. The first order is a :class:`Submit`; each further one is a :class:`Amount` and answered by a
:class:`~tests.bench.load.Block`, whose ``first_s`` are the times from request to answer.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Self, cast
from urllib.parse import urlsplit

import orjson
import uvloop

from tests.bench.child import Child, answer, end_on_sigterm
from tests.bench.client import TIMEOUT_S, Unexpected
from tests.bench.load import Block

_ACCEPTED = b"HTTP/1.1 202 "
_LENGTH = b"content-length: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """What each client sends whenever it has its answer."""

    url: str
    request: str
    clients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """How long, or how much: requests are begun while neither is reached, and those that are begun are ended."""

    seconds: float = TIMEOUT_S
    requests: int = 1 << 60


class Submitters:
    """The process, from its parent's side."""

    def __init__(self, submit: Submit, env: Mapping[str, str]) -> None:
        self._child = Child("submitters", env)
        try:
            self._child.ask(asdict(submit))
        except BaseException:
            self._child.end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._child.end()

    def block(self, amount: Amount) -> Block:
        return Block(**self._child.ask(asdict(amount)))


class _Client(asyncio.Protocol):
    """One connection; ``next`` says whether another request is to be sent."""

    def __init__(self, request: bytes, done: Callable[[float], bool], failed: Callable[[Exception], None]) -> None:
        self._request = request
        self._done = done
        self._failed = failed
        self._held = b""
        self._sent_at = 0.0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._failed(exc or Unexpected("the server has closed a connection"))

    def send(self) -> None:
        assert self.transport is not None
        self._sent_at = time.perf_counter()
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._held += data
        end = self._held.find(b"\r\n\r\n")
        if end < 0:
            return
        if not self._held.startswith(_ACCEPTED):
            self._failed(Unexpected(f"no submission: {self._held[:500]!r}"))
            return
        at = self._held[:end].lower().index(_LENGTH) + len(_LENGTH)
        size = end + 4 + int(self._held[at : self._held.index(b"\r", at)])
        if len(self._held) < size:
            return
        self._held = self._held[size:]
        if self._done(time.perf_counter() - self._sent_at):
            self.send()


class _Loops:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._clients: list[_Client] = []
        self._left = 0
        self._until = 0.0
        self._open = 0
        self._took: list[float] = []
        self._ended: asyncio.Future[None] = self._loop.create_future()

    async def connect(self, work: Submit) -> None:
        url = urlsplit(work.url)
        request = work.request.replace("\r\n", f"\r\nHost: {url.netloc}\r\n", 1).encode("latin-1")
        host, port = url.hostname or "", url.port or 0
        for _ in range(work.clients):
            _, client = await self._loop.create_connection(
                lambda: _Client(request, self._done, self._failed), host, port
            )
            self._clients.append(client)

    async def block(self, amount: Amount) -> Block:
        self._took, self._ended = [], self._loop.create_future()
        began, cpu = time.perf_counter(), time.process_time()
        self._until, self._left = began + amount.seconds, amount.requests
        for client in self._clients:
            if self._may_send():
                client.send()
        async with asyncio.timeout(amount.seconds + TIMEOUT_S):
            await self._ended
        took = time.perf_counter() - began
        return Block(requests=len(self._took), seconds=took, first_s=self._took, cpu_s=time.process_time() - cpu)

    def _may_send(self) -> bool:
        if not self._left or time.perf_counter() > self._until:
            return False
        self._left -= 1
        self._open += 1
        return True

    def _done(self, seconds: float) -> bool:
        """A client has its answer; whether it is to send again."""
        self._took.append(seconds)
        self._open -= 1
        if self._may_send():
            return True
        if not self._open and not self._ended.done():
            self._ended.set_result(None)
        return False

    def _failed(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)


async def _run() -> None:
    loops = _Loops()
    await loops.connect(Submit(**orjson.loads(await asyncio.to_thread(sys.stdin.buffer.readline))))
    answer("connected")
    while line := await asyncio.to_thread(sys.stdin.buffer.readline):
        answer(asdict(await loops.block(Amount(**orjson.loads(line)))))


def main() -> None:
    end_on_sigterm()
    answer("up")
    uvloop.run(_run())


if __name__ == "__main__":
    main()
