"""The load's own honesty: where a server misbehaves on purpose, every request is counted for what became of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest

from tests.load import verify
from tests.load.client import MAX_TRIES, Amount, Load, Mode, Target
from tests.load.report import Counts, Report

PATIENCE_S = 20.0
REQUESTS = 24
"""Of one loop in each mode together; who is slowed down most still asks for one of each kind."""
KINDS = 3


@dataclass(frozen=True, slots=True)
class Asked:
    """``times``: how often this very request has come, this time included."""

    path: str
    body: Any
    times: int


class Cut:
    """``with_reset``: the peer gets a reset, else an end of file. ``after``: what it gets before."""

    def __init__(self, *, with_reset: bool, after: bytes = b"") -> None:
        self.with_reset = with_reset
        self.after = after


Script = Callable[[Asked], bytes | Cut]


@dataclass
class Server:
    """Answers as the script has it; it speaks as much HTTP as the load does."""

    script: Script
    url: str = ""
    seen: dict[str, int] = field(default_factory=dict)
    connections: list[asyncio.Task[Any]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self.connections.append(connection)
        while (asked := await self._asked(reader)) is not None:
            answer = self.script(asked)
            if isinstance(answer, bytes):
                writer.write(answer)
                continue
            writer.write(answer.after)
            if answer.with_reset:
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            break
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _asked(self, reader: asyncio.StreamReader) -> Asked | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        line, *lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        request_id = headers.get("x-request-id", "")
        self.seen[request_id] = self.seen.get(request_id, 0) + 1
        return Asked(line.split(" ")[1], orjson.loads(body) if body else None, self.seen[request_id])


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Server]:
    server = Server(script)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()
        await asyncio.gather(*server.connections)


def answer(document: object, status: int = 200) -> bytes:
    body = document if isinstance(document, bytes) else orjson.dumps(document)
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def well(asked: Asked) -> bytes:
    if asked.path == "/v1/tasks":
        return answer({"id": f"task_{asked.body['metadata']['number']}"}, 202)
    if asked.body["stream"]:
        return answer(b'data: {"choices":[]}\n\ndata: [DONE]\n\n')
    return answer({"choices": [{"finish_reason": "stop"}]})


async def loaded(script: Script) -> dict[str, Counts]:
    """What is counted of so many requests in both modes."""
    async with asyncio.timeout(PATIENCE_S), serving(script) as server, asyncio.TaskGroup() as group:
        load = Load(Target(url=server.url, key="key"), Amount(loops=1, rest_s=0))
        running = group.create_task(load.run())
        await load.more(REQUESTS)
        load.stop()
        report = await running
    for counts in report.modes.values():
        assert counts.sent == counts.answered + counts.failed >= KINDS
    return dict(report.modes)


async def test_what_is_answered_well_is_answered() -> None:
    for counts in (await loaded(well)).values():
        assert (counts.retried, counts.failed) == (0, 0)
        assert counts.tasks == {number: f"task_{number}" for number in counts.tasks}
        assert counts.tasks


@pytest.mark.parametrize("with_reset", [True, False])
async def test_before_the_first_byte_only_who_keeps_its_connection_asks_again(with_reset: bool) -> None:
    counts = await loaded(lambda asked: well(asked) if asked.times > 1 else Cut(with_reset=with_reset))
    new, keep = counts[Mode.NEW], counts[Mode.KEEP]
    assert (new.retried, new.answered) == (0, 0)
    assert all(failed.why.startswith("NoAnswer") for failed in new.failures)
    assert (keep.failed, keep.retried) == (0, keep.answered)


async def test_who_is_never_answered_has_failed_in_the_end() -> None:
    keep = (await loaded(lambda asked: Cut(with_reset=True)))[Mode.KEEP]
    assert (keep.answered, keep.retried) == (0, keep.failed * (MAX_TRIES - 1))


@pytest.mark.parametrize(
    "begun", [b"H", b"HTTP/1.1 200 OK\r\nContent-Len", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{"]
)
async def test_an_answer_that_is_cut_is_a_failure_in_both_modes(begun: bytes) -> None:
    for counts in (await loaded(lambda asked: Cut(with_reset=False, after=begun))).values():
        assert (counts.answered, counts.retried) == (0, 0)
        assert all(failed.why.startswith("BrokenAnswer") for failed in counts.failures)


@pytest.mark.parametrize(
    "bad",
    [
        answer({"error": "draining"}, 503),
        answer(b"data: {}\n\n"),
        answer(b'data: {"error":{}}\n\ndata: [DONE]\n\n'),
        answer({"choices": [{"finish_reason": "length"}]}),
        answer({}),
        answer(b"no JSON"),
    ],
)
async def test_whatever_is_not_what_was_asked_for_is_a_failure_and_not_tried_again(bad: bytes) -> None:
    for counts in (await loaded(lambda asked: bad)).values():
        assert (counts.answered, counts.retried) == (0, 0)
        assert counts.failures[0].request_id.startswith("load-")


async def test_where_nobody_listens_everything_has_failed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    load = Load(Target(url=url, key="key"), Amount(loops=1, rest_s=0))
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        running = group.create_task(load.run())
        await load.more(4)
        load.stop()
    for counts in running.result().modes.values():
        assert (counts.answered, counts.retried) == (0, 0)
        assert all(failed.why.startswith("ConnectionRefusedError") for failed in counts.failures)


# afterwards


def task(number: int, state: str = "succeeded", run: str = "run") -> dict[str, Any]:
    return {"id": f"task_{number}", "state": state, "metadata": {"load": run, "number": str(number)}}


async def judged(*pages: list[dict[str, Any]]) -> verify.Verdict:
    """Of a run in which the tasks 1, 2 and 3 were acknowledged, by what a server lists."""

    def listing(asked: Asked) -> bytes:
        query = parse_qs(urlsplit(asked.path).query)
        at = int(query.get("cursor", ["0"])[0])
        found = [task for task in pages[at] if task["state"] in query.get("state", task["state"])]
        return answer({"data": found, "next": str(at + 1) if at + 1 < len(pages) else None})

    tasks = {number: f"task_{number}" for number in (1, 2, 3)}
    async with asyncio.timeout(PATIENCE_S), serving(listing) as server:
        report = Report(run="run", seconds=1.0, modes={"new": Counts(tasks=tasks)})
        return await verify.verify(Target(url=server.url, key="key"), report)


async def test_all_that_was_acknowledged_is_found_page_by_page_among_others() -> None:
    verdict = await judged([task(3), {**task(9), "metadata": {}}], [task(2, "failed"), task(8, run="other")], [task(1)])
    assert verdict.good
    assert verdict.states == {"succeeded": 2, "failed": 1}


async def test_a_task_that_is_missing_and_one_that_is_there_twice_are_named() -> None:
    verdict = await judged([task(3), {**task(3), "id": "task_30"}, task(1)])
    assert (verdict.missing, verdict.doubled, verdict.good) == (["task_2"], [3], False)


async def test_a_task_that_does_not_end_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "PATIENCE_S", 0.0)
    verdict = await judged([task(1, "running"), task(2), task(3)])
    assert (verdict.unended, verdict.good) == (["task_1"], False)
