"""A constant load of chats and submitted tasks, which counts what became of every single request.

Half of the loops are clients that open a connection for each request and never try again, the other half clients that
keep theirs, and ask again on a new one where the old was reset or closed before the first byte of an answer. Whatever
else is not the whole answer that was asked for has failed, 503 included.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from tests.load.exchange import Answer, BrokenAnswer, Connection, NoAnswer, Request
from tests.load.report import Counts, Failed, Report

PATIENCE_S: Final = 60.0
"""For one answer, retries included: as long as a drain may take by default."""
MAX_TRIES: Final = 5
"""Whose connection is cut so often without a word is not being restarted but refused."""


class Mode(StrEnum):
    NEW = "new"
    KEEP = "keep"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    url: str
    key: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """``loops`` in each mode; each rests for so long after every answer."""

    loops: int = 4
    rest_s: float = 0.02


class Load:
    """:meth:`run` it once; :meth:`stop` lets each loop end the request that it is in."""

    def __init__(self, target: Target, amount: Amount | None = None) -> None:
        self._target = target
        self._amount = amount or Amount()
        self._run = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._counts = {mode.value: Counts() for mode in Mode}
        self._began = time.monotonic()
        self._stopped = asyncio.Event()
        self._told = asyncio.Condition()

    async def run(self) -> Report:
        async with asyncio.TaskGroup() as group:
            for mode in Mode:
                for number in range(self._amount.loops):
                    group.create_task(self._loop(mode, number))
        return self.report()

    def stop(self) -> None:
        self._stopped.set()

    def report(self) -> Report:
        """As of now; the counts go on."""
        return Report(run=self._run, seconds=time.monotonic() - self._began, modes=self._counts)

    async def more(self, requests: int) -> None:
        """Waits until so many more have been answered, or have failed."""
        aim = self._over() + requests
        async with self._told:
            await self._told.wait_for(lambda: self._over() >= aim)

    def _over(self) -> int:
        return sum(counts.answered + counts.failed for counts in self._counts.values())

    async def _loop(self, mode: Mode, number: int) -> None:
        asks = itertools.islice(itertools.cycle((self._chat, self._streamed_chat, self._task)), number, None)
        client = _Client(self._target.url, mode)
        try:
            while not self._stopped.is_set():
                await self._once(client, next(asks)(next(self._numbers)))
                async with self._told:
                    self._told.notify_all()
                await asyncio.sleep(self._amount.rest_s)
        finally:
            client.leave()

    async def _once(self, client: _Client, ask: _Ask) -> None:
        counts = self._counts[client.mode]
        counts.sent += 1
        try:
            async with asyncio.timeout(PATIENCE_S):
                answer = await client.ask(ask.request, counts)
            ask.check(answer)
        except (OSError, BrokenAnswer, ValueError, KeyError) as error:
            why = f"{type(error).__name__}: {error}"
            at = round(time.monotonic() - self._began, 3)
            counts.fail(Failed(at=at, what=ask.what, why=why, request_id=ask.request.headers["X-Request-ID"]))
            return
        counts.answered += 1
        if ask.submission is not None:
            counts.tasks[ask.submission] = answer.json["id"]

    # what is asked

    def _headers(self, number: int) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._target.key}", "X-Request-ID": f"load-{self._run}-{number}"}

    def _chat(self, number: int, *, stream: bool = False) -> _Ask:
        body = {"model": "sonnet", "stream": stream, "messages": [{"role": "user", "content": "Hello [[tokens=3]]"}]}
        request = Request(path="/v1/chat/completions", headers=self._headers(number), body=body)
        return _Ask("a streamed chat", request, _streamed) if stream else _Ask("a chat", request, _whole)

    def _streamed_chat(self, number: int) -> _Ask:
        return self._chat(number, stream=True)

    def _task(self, number: int) -> _Ask:
        headers = self._headers(number) | {"Idempotency-Key": f"{self._run}-{number}"}
        body = {"prompt": "Hello [[tokens=2]]", "metadata": {"load": self._run, "number": str(number)}}
        return _Ask("a task", Request(path="/v1/tasks", headers=headers, body=body), _accepted, submission=number)


@dataclass(frozen=True, slots=True)
class _Ask:
    """``check`` raises ValueError or KeyError for an answer that is not what was asked for."""

    what: str
    request: Request
    check: Callable[[Answer], None]
    submission: int | None = None


def _whole(answer: Answer) -> None:
    _expect(answer, 200)
    if answer.json["choices"][0]["finish_reason"] != "stop":
        raise ValueError(f"a chat that did not end: {answer.body[:300]!r}")


def _streamed(answer: Answer) -> None:
    _expect(answer, 200)
    if not answer.body.endswith(b"data: [DONE]\n\n") or b'"error"' in answer.body:
        raise ValueError(f"a stream that did not end well: {answer.body[-300:]!r}")


def _accepted(answer: Answer) -> None:
    _expect(answer, 200, 202)
    answer.json["id"]


def _expect(answer: Answer, *statuses: int) -> None:
    if answer.status not in statuses:
        raise ValueError(f"HTTP {answer.status}: {answer.body[:300]!r}")


class _Client:
    """One loop's connections."""

    def __init__(self, url: str, mode: Mode) -> None:
        self.mode = mode
        self._url = url
        self._connection: Connection | None = None

    async def ask(self, request: Request, counts: Counts) -> Answer:
        """Raises OSError, BrokenAnswer, as the mode has it."""
        for last in self._tries():
            try:
                return await self._try(request)
            except NoAnswer:
                if last:
                    raise
                counts.retried += 1
        raise AssertionError("the last try has returned or raised")

    def _tries(self) -> Iterator[bool]:
        """Whether each try is the last one."""
        tries = MAX_TRIES if self.mode is Mode.KEEP else 1
        return (number == tries for number in range(1, tries + 1))

    async def _try(self, request: Request) -> Answer:
        connection, self._connection = self._connection, None
        if connection is None:
            connection = await Connection.open(self._url)
        kept = False
        try:
            answer = await connection.ask(request)
            kept = self.mode is Mode.KEEP and connection.reusable
        finally:
            if not kept:
                connection.close()
        self._connection = connection if kept else None
        return answer

    def leave(self) -> None:
        if self._connection is not None:
            self._connection.close()
