"""The HTTP server against real sockets and raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web
from structlog.contextvars import bind_contextvars, get_contextvars

from claude_daemon.api import connection
from claude_daemon.api.middleware import REQUEST_ID, TRACEPARENT
from claude_daemon.api.server import PEER, HttpServer, Limits, peer_address, read_body
from claude_daemon.core.trace import Trace
from claude_daemon.supervise.sockets import control_socket, tcp_sockets

HEAD = b" HTTP/1.1\r\nHost: localhost\r\n"
PATIENCE = 10.0
"""For what must come at once; a test that runs into it has failed."""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    rest: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def parse(raw: bytes) -> Answer:
    """The first answer in ``raw``; what follows it is its ``rest``."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines[1:])}
    length = int(headers.get("content-length", 0))
    return Answer(int(lines[0].split(" ")[1]), headers, rest[:length], rest[length:])


class Client:
    """A raw TCP or Unix connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> Answer:
        async with asyncio.timeout(PATIENCE):
            head = await self.reader.readuntil(b"\r\n\r\n")
            answer = parse(head)
            answer.body = await self.reader.readexactly(int(answer.headers.get("content-length", 0)))
            return answer

    async def all(self) -> bytes:
        """Everything until the server closes."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


@dataclass
class Served:
    server: HttpServer
    port: int
    accessed: list[tuple[str, int, float, int]] = field(default_factory=list)
    errors: list[tuple[str, BaseException]] = field(default_factory=list)
    waiting: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when /wait is being served."""
    go: asyncio.Event = field(default_factory=asyncio.Event)
    """Lets /wait answer."""
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    logged: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at each line of the access log."""

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.port))

    async def raw(self, data: bytes) -> bytes:
        """What the server says to these bytes until it closes."""
        client = await self.connect()
        client.send(data)
        try:
            return await client.all()
        finally:
            await client.close()

    async def get(self, path: str, *headers: str) -> Answer:
        lines = "".join(f"{header}\r\n" for header in headers)
        return parse(await self.raw(f"GET {path}".encode() + HEAD + f"{lines}Connection: close\r\n\r\n".encode()))


def application(served: list[Served], limits: Limits) -> web.Application:
    async def hello(request: web.Request) -> web.Response:
        return web.json_response({"id": request[REQUEST_ID], "log": get_contextvars()})

    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await read_body(request, limits.max_body_bytes, limits.body_timeout_s))

    async def wait(request: web.Request) -> web.Response:
        served[0].waiting.set()
        try:
            await served[0].go.wait()
        except asyncio.CancelledError:
            served[0].cancelled.set()
            raise
        return web.json_response({})

    async def broken(request: web.Request) -> web.Response:
        raise RuntimeError("secret of the house")

    async def half(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"the first half")
        raise RuntimeError("in the middle")

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Cache-Control": "no-store, no-transform"})
        await response.prepare(request)
        await response.write(b"one")
        await response.write(b"two")
        return response

    async def peer(request: web.Request) -> web.Response:
        return web.json_response({"uid": request[PEER].uid, "pid": request[PEER].pid} if PEER in request else {})

    async def trace(request: web.Request) -> web.Response:
        if "key" in request.query:
            bind_contextvars(key_id=request.query["key"])
        return web.json_response({"traceparent": request.get(TRACEPARENT), "log": get_contextvars()})

    async def elsewhere(request: web.Request) -> web.Response:
        raise web.HTTPFound("/hello")

    async def socket_(request: web.Request) -> web.WebSocketResponse:
        response = web.WebSocketResponse()
        await response.prepare(request)
        async for message in response:
            await response.send_str(message.data)
        return response

    app = web.Application()
    app.router.add_get("/hello", hello)
    app.router.add_get("/wait", wait)
    app.router.add_get("/broken", broken)
    app.router.add_get("/half", half)
    app.router.add_get("/stream", stream)
    app.router.add_get("/peer", peer)
    app.router.add_get("/trace", trace)
    app.router.add_get("/elsewhere", elsewhere)
    app.router.add_get("/ws", socket_)
    for path in ("/echo", "/v1/messages", "/v1/chat/completions"):
        app.router.add_post(path, echo)
    return app


@contextlib.asynccontextmanager
async def serving(
    app: Callable[[list[Served], Limits], web.Application] = application, **limits: Any
) -> AsyncIterator[Served]:
    """A server on a free port, closed at the end; nothing of it may be left then."""
    bounds, numbers, holder = Limits(**limits), itertools.count(), list[Served]()

    def on_access(request: web.BaseRequest, status: int, duration: float, size: int) -> None:
        holder[0].accessed.append((request.path, status, duration, size))
        holder[0].logged.set()

    server = HttpServer(
        app(holder, bounds),
        limits=bounds,
        ids=lambda prefix: f"{prefix}_{next(numbers)}",
        on_access=on_access,
        on_error=lambda request_id, error: holder[0].errors.append((request_id, error)),
    )
    (sock,) = tcp_sockets("127.0.0.1", 0)
    holder.append(Served(server, sock.getsockname()[1]))
    await server.listen([sock])
    try:
        yield holder[0]
    finally:
        await server.close()
        assert not server.connections and server.in_flight == 0 and not server._per_peer


def assert_ours(answer: Answer, status: int, code: str) -> None:
    """The answer is a problem of ours that names itself and nothing of what it answers."""
    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json["code"] == code
    assert answer.headers["x-request-id"] == answer.json["request_id"]
    assert "server" not in answer.headers
    assert b"Traceback" not in answer.body and b"aiohttp" not in answer.body


# what does not parse


GARBAGE = {
    "noise": b"\xde\xad\xbe\xef" * 50,
    "a word": b"hello\r\n\r\n",
    "NUL in the request line": b"GET /a\x00b" + HEAD + b"\r\n",
    "NUL in a header": b"GET /hello" + HEAD + b"X: a\x00b\r\n\r\n",
    "TLS hello": bytes.fromhex("16030100a5010000a10303") + b"\x01" * 100,
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.7": b"GET / HTTP/3.7\r\n\r\n",
    "no host": b"GET /hello HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /hello" + HEAD + b"Host: evil\r\n\r\n",
    "folded header": b"GET /hello" + HEAD + b"A: b\r\n c\r\n\r\n",
    "space before the colon": b"GET /hello" + HEAD + b"Marker : 1\r\n\r\n",
    "long request line": b"GET /" + b"marker" * 2000 + HEAD + b"\r\n",
    "long header": b"GET /hello" + HEAD + b"X: " + b"marker" * 2000 + b"\r\n\r\n",
    "many headers": b"GET /hello" + HEAD + b"".join(b"X-%d: 1\r\n" % i for i in range(200)) + b"\r\n",
    "long head": b"GET /hello" + HEAD + b"".join(b"X-%d: %s\r\n" % (i, b"m" * 8000) for i in range(9)) + b"\r\n",
    "endless head": b"GET /hello" + HEAD + b"".join(b"X-%d: %s\r\n" % (i, b"m" * 8000) for i in range(90)),
    "smuggling": b"POST /echo" + HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /echo" + HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "negative length": b"POST /echo" + HEAD + b"Content-Length: -5\r\n\r\n",
    "bad chunk": b"POST /echo" + HEAD + b"Transfer-Encoding: chunked\r\n\r\nmarker\r\n",
    "line break in a header": b"GET /hello" + HEAD + b"X-Request-ID: a\nMarker\r\n\r\n",
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_what_does_not_parse_is_answered_in_our_form_and_the_connection_ends(name: str) -> None:
    async with serving() as served:
        raw = await served.raw(GARBAGE[name])
        answer = parse(raw)
        assert_ours(answer, 400, "invalid_request")
        assert answer.headers["connection"] == "close" and answer.rest == b""
        assert answer.headers["x-request-id"].startswith("req_")
        assert b"arker" not in raw and b"\xde\xad" not in raw and b"mmm" not in raw
        assert [status for _, status, _, _ in served.accessed] == [400] and not served.errors
        assert (await served.get("/hello")).status == 200


@pytest.mark.parametrize(("path", "kind"), [("/v1/messages", "error"), ("/v1/chat/completions", None)])
async def test_a_parse_error_on_a_known_path_has_the_form_of_its_dialect(path: str, kind: str | None) -> None:
    async with serving() as served:
        answer = parse(await served.raw(f"POST {path}?a=b".encode() + HEAD + b"bad header\r\n\r\n"))
        assert answer.status == 400 and answer.headers["content-type"] == "application/json"
        assert answer.json["error"]["type"] == "invalid_request_error" and answer.json.get("type") == kind


async def test_a_bad_chunk_in_mid_body_ends_a_handler_that_waits_for_more() -> None:
    async with serving() as served:
        client = await served.connect()
        client.send(b"POST /echo" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await asyncio.sleep(0)
        client.send(b"marker\r\n")
        answer = parse(await client.all())
        assert_ours(answer, 400, "invalid_request")
        assert b"marker" not in answer.body
        await client.close()


@pytest.mark.parametrize("size", [1, 2, 7, 61])
async def test_a_request_may_come_in_pieces_of_any_size(size: int) -> None:
    data = b"POST /echo" + HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    async with serving() as served:
        client = await served.connect()
        for start in range(0, len(data), size):
            client.send(data[start : start + size])
            await client.writer.drain()
            await asyncio.sleep(0)
        assert parse(await client.all()).body == b"hello"
        await client.close()


async def test_pipelined_requests_are_answered_in_order_and_garbage_after_them_last() -> None:
    async with serving() as served:
        client = await served.connect()
        for number in range(100):
            client.send(b"GET /hello" + HEAD + b"X-Request-ID: n%d\r\n\r\n" % number)
        for number in range(100):
            assert (await client.answer()).headers["x-request-id"] == f"n{number}"
        client.send(b"\x00\x00")
        assert_ours(parse(await client.all()), 400, "invalid_request")
        await client.close()


# deadlines


async def test_a_head_that_does_not_come_in_time_is_408() -> None:
    async with serving(header_timeout_s=0.2) as served:
        assert_ours(parse(await served.raw(b"GET /hello" + HEAD)), 408, "request_timeout")


async def test_a_head_that_trickles_gets_no_more_time_than_one_that_stops() -> None:
    async with serving(header_timeout_s=0.3) as served:
        client = await served.connect()
        started = time.monotonic()

        async def trickle() -> None:
            for byte in itertools.cycle(b"GET /hello HTTP/1.1\r\nX: " + b"a" * 1000):
                client.send(bytes([byte]))
                await asyncio.sleep(0.02)  # the peer's slowness is what is tested

        async with asyncio.TaskGroup() as group:
            trickling = group.create_task(trickle())
            answer = parse(await client.all())
            trickling.cancel()
        assert answer.status == 408 and time.monotonic() - started < 2
        await client.close()


async def test_a_connection_that_says_nothing_is_closed_without_a_word() -> None:
    async with serving(header_timeout_s=0.1) as served:
        assert await served.raw(b"") == b""


async def test_an_idle_connection_is_closed_after_the_keepalive_time_and_not_the_header_time() -> None:
    async with serving(header_timeout_s=0.05, keepalive_timeout_s=0.4) as served:
        client = await served.connect()
        client.send(b"GET /hello" + HEAD + b"\r\n")
        assert (await client.answer()).status == 200
        idle_since = time.monotonic()
        assert await client.all() == b""
        assert 0.3 < time.monotonic() - idle_since < 3
        await client.close()


async def test_the_next_request_on_a_connection_has_its_own_header_deadline() -> None:
    async with serving(header_timeout_s=0.2, keepalive_timeout_s=60) as served:
        client = await served.connect()
        client.send(b"GET /hello" + HEAD + b"\r\n")
        await client.answer()
        client.send(b"GET /he")
        assert parse(await client.all()).status == 408
        await client.close()


async def test_a_head_begun_behind_a_long_request_has_its_time_only_afterwards() -> None:
    async with serving(header_timeout_s=0.1) as served:
        client = await served.connect()
        client.send(b"GET /wait" + HEAD + b"\r\n")
        await served.waiting.wait()
        client.send(b"GET /he")
        await asyncio.sleep(0.3)  # longer than the deadline, which must not run yet
        client.send(b"llo" + HEAD)
        served.go.set()
        assert (await client.answer()).status == 200
        assert parse(await client.all()).status == 408
        await client.close()


async def test_a_line_break_too_many_between_requests_starts_no_deadline() -> None:
    async with serving(header_timeout_s=0.1, keepalive_timeout_s=60) as served:
        client = await served.connect()
        client.send(b"GET /hello" + HEAD + b"\r\n\r\n")
        await client.answer()
        client.send(b"\r\n")
        await asyncio.sleep(0.3)  # longer than the deadline
        client.send(b"GET /hello" + HEAD + b"\r\n")
        assert (await client.answer()).status == 200
        await client.close()


@pytest.mark.parametrize("framing", [b"Content-Length: 500", b"Transfer-Encoding: chunked"])
async def test_a_body_that_does_not_come_in_time_is_408(framing: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", 30.0)  # not waited for
    async with serving(body_timeout_s=0.2) as served:
        started = time.monotonic()
        answer = parse(await served.raw(b"POST /echo" + HEAD + framing + b"\r\n\r\n5\r\nhello\r\n"))
        assert_ours(answer, 408, "request_timeout")
        assert answer.headers["connection"] == "close" and time.monotonic() - started < 10


# bodies


async def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes() -> None:
    async with serving(max_body_bytes=1000) as served:
        answer = parse(await served.raw(b"POST /echo" + HEAD + b"Content-Length: 1001\r\n\r\n"))
        assert_ours(answer, 413, "body_too_large")
        assert answer.headers["connection"] == "close"


async def test_a_client_that_sends_all_of_its_large_body_first_still_reads_the_413() -> None:
    async with serving(max_body_bytes=1000) as served:
        size = 20_000_000
        raw = await served.raw(b"POST /echo" + HEAD + b"Content-Length: %d\r\n\r\n" % size + b"x" * size)
        assert parse(raw).status == 413


async def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large() -> None:
    async with serving(max_body_bytes=1000) as served:
        client = await served.connect()
        client.send(b"POST /echo" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(2):
            client.send(b"1f4\r\n" + b"x" * 500 + b"\r\n")
        client.send(b"1\r\nx\r\n")  # and no end
        assert_ours(parse(await client.all()), 413, "body_too_large")
        await client.close()


async def test_a_compressed_body_is_counted_as_what_it_becomes() -> None:
    bomb = zlib.compress(b"0" * 50_000_000)
    head = b"POST /echo" + HEAD + b"Content-Encoding: deflate\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    async with serving(max_body_bytes=100_000) as served:
        assert parse(await served.raw(head + bomb)).status == 413
        assert_ours(parse(await served.raw(head + b"x" * len(bomb))), 400, "invalid_request")


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
async def test_a_body_up_to_the_limit_arrives_whole(size: int) -> None:
    async with serving(max_body_bytes=1000) as served:
        head = b"POST /echo" + HEAD + b"Connection: close\r\n"
        body = os.urandom(size)
        assert parse(await served.raw(head + b"Content-Length: %d\r\n\r\n" % size + body)).body == body
        if size:
            chunked = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (size, body)
            assert parse(await served.raw(chunked)).body == body


async def test_who_asks_before_sending_a_body_is_told_to_go_on() -> None:
    async with serving() as served:
        client = await served.connect()
        client.send(b"POST /echo" + HEAD + b"Expect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert (await client.answer()).status == 100
        client.send(b"hello")
        answer = await client.answer()
        assert (answer.status, answer.body) == (200, b"hello")
        await client.close()


@pytest.mark.parametrize(("path", "size", "status"), [("/echo", 5000, 413), ("/nope", 5, 404)])
async def test_who_asks_and_will_be_refused_is_never_told_to_go_on(path: str, size: int, status: int) -> None:
    async with serving(max_body_bytes=1000) as served:
        client = await served.connect()
        client.send(f"POST {path}".encode() + HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % size)
        assert (await client.answer()).status == status
        await client.close()


# answers


async def test_every_answer_names_its_request_and_not_the_software() -> None:
    async with serving() as served:
        for path, status in {
            "/hello": 200,
            "/nope": 404,
            "/echo": 405,
            "/broken": 500,
            "/elsewhere": 302,
        }.items():
            answer = await served.get(path, "X-Request-ID: mine:1")
            assert (path, answer.status, answer.headers["x-request-id"]) == (path, status, "mine:1")
            assert "server" not in answer.headers
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
        stream = await served.get("/stream", "X-Request-ID: mine:2")
        assert stream.headers["x-request-id"] == "mine:2"
        assert stream.headers["cache-control"] == "no-store, no-transform"


@pytest.mark.parametrize("given", ["x" * 5000, "a b", "a\tb", "ä", "a;b", "", '"', "<script>"])
async def test_a_request_id_that_may_not_stand_in_a_log_is_replaced(given: str) -> None:
    async with serving() as served:
        answer = await served.get("/hello", f"X-Request-ID: {given}")
        assert re.fullmatch(r"req_\d+", answer.headers["x-request-id"])
        told = answer.headers["x-request-id"]
        assert answer.json["id"] == answer.json["log"]["request_id"] == told
        assert answer.json["log"].keys() == {"request_id", "trace_id", "span_id"}


async def test_the_longest_request_id_is_kept() -> None:
    async with serving() as served:
        assert (await served.get("/hello", "X-Request-ID: " + "x" * 128)).headers["x-request-id"] == "x" * 128
        assert (await served.get("/hello", "X-Request-ID: " + "x" * 129)).headers["x-request-id"] != "x" * 129


async def test_a_request_is_a_span_of_its_callers_trace_or_begins_one() -> None:
    good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with serving() as served:
        answer = await served.get("/trace", f"traceparent: {good}")
        own, log = Trace.parse(answer.json["traceparent"]), answer.json["log"]
        assert own is not None and (own.trace_id, own.flags) == ("4bf92f3577b34da6a3ce929d0e0e4736", "01")
        assert own.span_id != "00f067aa0ba902b7" == log["parent_span_id"]
        assert (log["trace_id"], log["span_id"]) == (own.trace_id, own.span_id)
        seen = {own.trace_id}
        for bad in ("", good.upper(), good[:-1], "00-" + "0" * 32 + good[35:], "ff" + good[2:]):
            begun = Trace.parse((await served.get("/trace", f"traceparent: {bad}")).json["traceparent"])
            assert begun is not None and begun.trace_id not in seen
            seen.add(begun.trace_id)


async def test_a_requests_lines_have_nothing_of_the_one_before_on_its_connection() -> None:
    async with serving() as served:
        client = await served.connect()
        client.send(b"GET /trace?key=key_1" + HEAD + b"X-Request-ID: one\r\n\r\n")
        assert (await client.answer()).json["log"]["key_id"] == "key_1"
        client.send(b"GET /trace" + HEAD + b"X-Request-ID: two\r\n\r\n")
        second = (await client.answer()).json["log"]
        assert second["request_id"] == "two" and "key_id" not in second
        await client.close()


async def test_what_a_handler_did_not_expect_is_500_and_reported_once_with_its_id() -> None:
    async with serving() as served:
        answer = await served.get("/broken", "X-Request-ID: r1")
        assert_ours(answer, 500, "internal")
        assert b"secret" not in answer.body
        ((request_id, error),) = served.errors
        assert request_id == "r1" and str(error) == "secret of the house"


async def test_a_stream_that_fails_half_way_is_cut_and_never_looks_complete() -> None:
    async with serving() as served:
        raw = await served.raw(b"GET /half" + HEAD + b"\r\n")
        assert b"the first half" in raw and not raw.endswith(b"0\r\n\r\n")
        assert len(served.errors) == 1
        assert [(path, status) for path, status, _, _ in served.accessed] == [("/half", 500)]


async def test_an_unknown_route_and_a_wrong_method_have_our_form_and_allow() -> None:
    async with serving() as served:
        assert_ours(await served.get("/nope"), 404, "not_found")
        wrong = await served.get("/echo")
        assert_ours(wrong, 405, "method_not_allowed")
        assert wrong.headers["allow"] == "POST"
        assert (await served.get("/v1/messages")).json["type"] == "error"


async def test_each_request_is_told_to_the_access_log_once() -> None:
    async with serving() as served:
        client = await served.connect()
        client.send(b"POST /echo" + HEAD + b"Content-Length: 5\r\n\r\nhello")
        await client.answer()
        client.send(b"GET /stream" + HEAD + b"Connection: close\r\n\r\n")
        await client.all()
        (path, status, duration, size), (streamed, *_) = served.accessed
        assert (path, status, streamed) == ("/echo", 200, "/stream")
        assert 0 < duration < 1 and 100 < size < 400
        await client.close()


async def test_a_websocket_carries_its_request_id_and_is_in_flight() -> None:
    key = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    async with serving() as served:
        client = await served.connect()
        client.send(
            b"GET /ws" + HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\nX-Request-ID: w\r\n" + key + b"\r\n"
        )
        answer = await client.answer()
        assert (answer.status, answer.headers["x-request-id"], answer.headers["connection"]) == (
            101,
            "w",
            "upgrade",
        )
        client.send(bytes([0x81, 0x82, 0, 0, 0, 0]) + b"hi")
        assert await client.reader.readexactly(4) == b"\x81\x02hi"
        assert served.server.in_flight == 1
        await client.close()


# clients that leave


@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_leaves_cancels_its_handler_at_once(reset: bool) -> None:
    async with serving() as served:
        client = await served.connect()
        client.send(b"GET /wait" + HEAD + b"\r\n")
        await served.waiting.wait()
        if reset:
            client.writer.transport.abort()
        await client.close()
        await asyncio.wait_for(served.cancelled.wait(), PATIENCE)
        await served.logged.wait()
        assert served.accessed[0][:2] == ("/wait", 499) and not served.errors


async def test_a_client_that_leaves_within_its_body_leaves_nothing_behind() -> None:
    async with serving() as served:
        client = await served.connect()
        client.send(b"POST /echo" + HEAD + b"Content-Length: 500\r\n\r\nab")
        await client.writer.drain()
        await client.close()
        await asyncio.wait_for(served.logged.wait(), PATIENCE)
        assert served.accessed[0][1] == 499 and not served.errors


async def test_a_client_that_ends_its_side_counts_as_gone() -> None:
    """A peer that only half-closes looks like one that left; we spend no model call on finding out."""
    async with serving() as served:
        client = await served.connect()
        client.send(b"GET /wait" + HEAD + b"\r\n")
        await served.waiting.wait()
        client.writer.write_eof()
        await asyncio.wait_for(served.cancelled.wait(), PATIENCE)
        assert await client.all() == b""
        await client.close()


# how many


async def test_one_connection_too_many_is_told_to_come_back() -> None:
    async with serving(max_connections=2) as served:
        kept = [await served.connect() for _ in range(2)]
        for client in kept:
            client.send(b"GET /hello" + HEAD + b"\r\n")
            await client.answer()
        answer = parse(await served.raw(b"GET /hello" + HEAD + b"\r\n"))
        assert_ours(answer, 503, "overloaded")
        assert answer.headers["connection"] == "close" and int(answer.headers["retry-after"]) >= 1
        assert served.server.turned_away == 1 and len(served.accessed) == 2
        kept[0].send(b"GET /hello" + HEAD + b"Connection: close\r\n\r\n")
        await kept[0].all()
        assert (await served.get("/hello")).status == 200
        for client in kept:
            await client.close()


async def test_one_peer_cannot_take_all_connections() -> None:
    async with serving(max_connections_per_peer=1) as served:
        first = await served.connect()
        first.send(b"GET /hello" + HEAD + b"\r\n")
        await first.answer()
        assert parse(await served.raw(b"GET /hello" + HEAD + b"\r\n")).status == 503
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, local_addr=("127.0.0.2", 0))
        other = Client(reader, writer)
        other.send(b"GET /hello" + HEAD + b"\r\n")
        assert (await other.answer()).status == 200
        for client in (first, other):
            await client.close()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_a_peer_is_an_ipv4_address_or_an_ipv6_network(one: str, other: str, same: bool) -> None:
    assert (peer_address((one, 1)) == peer_address((other, 2, 0, 0))) is same


async def test_3000_idle_connections_are_cheap_and_the_next_one_is_served_at_once() -> None:
    wanted = 2 * 3000 + 500
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"only {hard} descriptors may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    idle: list[socket.socket] = []
    try:
        async with serving() as served:
            started, memory = time.monotonic(), resident_bytes()
            for count in range(3000):
                client = socket.create_connection(("127.0.0.1", served.port))
                client.send(b"GET /hel")
                idle.append(client)
                if count % 100 == 99:
                    await asyncio.sleep(0)
            answer = await served.get("/hello")
            assert answer.status == 200 and len(served.server.connections) >= 3000
            each = (resident_bytes() - memory) / 3000
            assert each < 32_000, f"{each:.0f} bytes a connection"
            before = time.perf_counter()
            assert (await served.get("/hello")).status == 200
            assert time.perf_counter() - before < 5
            assert time.monotonic() - started < 20
    finally:
        for client in idle:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident_bytes() -> int:
    gc.collect()
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# draining and closing


async def test_a_drain_closes_idle_connections_and_finishes_what_is_in_flight() -> None:
    async with serving() as served:
        idle, busy = await served.connect(), await served.connect()
        idle.send(b"GET /hello" + HEAD + b"\r\n")
        assert "connection" not in (await idle.answer()).headers
        busy.send(b"GET /wait" + HEAD + b"\r\n")
        await served.waiting.wait()
        served.server.begin_drain()
        assert await idle.all() == b""
        assert served.server.in_flight == 1 and not await served.server.wait_idle(0.05)
        served.go.set()
        answer = parse(await busy.all())
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await served.server.wait_idle(PATIENCE)
        assert (await served.get("/hello")).headers["connection"] == "close"
        for client in (idle, busy):
            await client.close()


async def test_a_request_that_has_reached_us_when_the_drain_begins_is_answered() -> None:
    async with serving() as served:
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            loop = asyncio.get_running_loop()
            client.sendall(b"GET /hello" + HEAD + b"\r\n")
            client.setblocking(False)
            assert b"200 OK" in await loop.sock_recv(client, 10_000)
            client.sendall(b"GET /hello" + HEAD + b"\r\n")  # the kernel has it, the server has not read it
            served.server.begin_drain()
            assert b"Connection: close" in await asyncio.wait_for(loop.sock_recv(client, 10_000), PATIENCE)


async def test_a_drain_can_be_undone() -> None:
    async with serving() as served:
        served.server.begin_drain()
        served.server.end_drain()
        client = await served.connect()
        client.send(b"GET /hello" + HEAD + b"\r\n")
        assert "connection" not in (await client.answer()).headers
        await client.close()


async def test_a_drain_knows_who_is_not_answered_yet_and_who_has_said_nothing() -> None:
    async with serving() as served:
        server, changed = served.server, asyncio.Event()
        server.changed = changed.set
        silent, busy = await served.connect(), await served.connect()
        busy.send(b"GET /wait" + HEAD + b"\r\n")
        await served.waiting.wait()
        assert (server.unanswered, server.silent) == (1, 1)
        server.begin_drain()
        served.go.set()
        await busy.answer()
        async with asyncio.timeout(PATIENCE):
            await changed.wait()
        assert server.unanswered == 0
        changed.clear()
        silent.send(b"GET /hello" + HEAD + b"\r\n")
        assert (await silent.answer()).status == 200
        assert changed.is_set()
        assert (server.unanswered, server.silent) == (0, 0)
        for client in (silent, busy):
            await client.close()


@pytest.mark.parametrize("framing", [b"Content-Length: 100\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"])
async def test_a_body_that_is_not_whole_at_the_drains_deadline_is_refused(framing: bytes) -> None:
    async with serving(body_timeout_s=1000) as served:
        server, half, whole = served.server, await served.connect(), await served.connect()
        half.send(b"POST /echo" + HEAD + framing)
        whole.send(b"GET /wait" + HEAD + b"\r\n")
        await served.waiting.wait()
        async with asyncio.timeout(PATIENCE):
            while server.unanswered < 2:
                await asyncio.sleep(0)
        server.begin_drain()
        server.refuse_bodies()
        refused = parse(await half.all())
        assert_ours(refused, 503, "draining")
        assert (refused.headers["connection"], refused.headers["retry-after"]) == ("close", "5")
        assert (server.unanswered, server.in_flight) == (1, 1)
        served.go.set()
        assert parse(await whole.all()).status == 200
        for client in (half, whole):
            await client.close()


async def test_a_request_that_has_arrived_and_is_not_begun_counts_as_not_answered() -> None:
    async with serving() as served:
        client = await served.connect()
        client.send(b"GET /hello" + HEAD + b"\r\n")
        await client.writer.drain()
        seen = [(0, 0)]
        while not served.accessed:
            now = (served.server.silent, served.server.unanswered)
            if now != seen[-1]:
                seen.append(now)
            await asyncio.sleep(0)
        assert seen[:3] == [(0, 0), (1, 0), (0, 1)]  # nobody in between has neither spoken nor said nothing
        await client.close()


async def test_a_stream_that_has_begun_counts_as_answered() -> None:
    async with serving() as served:
        client = await served.connect()
        client.send(b"GET /ws" + HEAD + b"Upgrade: websocket\r\nConnection: Upgrade\r\n")
        client.send(b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
        assert (await client.answer()).status == 101
        assert (served.server.unanswered, served.server.in_flight) == (0, 1)
        await client.close()


async def test_connections_are_listed_with_what_they_do_and_one_can_be_ended() -> None:
    async with serving() as served:
        idle, busy = await served.connect(), await served.connect()
        idle.send(b"GET /hello" + HEAD + b"\r\n")
        await idle.answer()
        busy.send(b"GET /wait" + HEAD + b"X-Request-ID: mine\r\n\r\n")
        await served.waiting.wait()
        first, second = served.server.listing()
        assert (first["state"], first["requests"], first["request_id"], first["path"]) == ("idle", 1, None, None)
        assert (second["state"], second["requests"]) == ("active", 1)
        assert (second["request_id"], second["path"]) == ("mine", "/wait")
        assert first["id"] != second["id"]
        port = busy.writer.get_extra_info("sockname")[1]
        assert second["peer"] == f"127.0.0.1:{port}"
        assert not served.server.end_one("conn_none")
        assert served.server.end_one(second["id"])
        await asyncio.wait_for(served.cancelled.wait(), PATIENCE)
        assert await busy.all() == b""
        assert [entry["id"] for entry in served.server.listing()] == [first["id"]]
        for client in (idle, busy):
            await client.close()


async def test_a_successor_takes_the_listener_and_the_connections_that_wait_in_it() -> None:
    async with serving() as served:
        (ours,) = served.server.listeners()
        served.server.stop_listening()
        client = await served.connect()
        client.send(b"GET /hello" + HEAD + b"Connection: close\r\n\r\n")
        await served.server.listen([ours])
        assert parse(await client.all()).status == 200
        await client.close()


async def test_close_cancels_what_still_runs_and_refuses_new_connections() -> None:
    async with serving() as served:
        client = await served.connect()
        client.send(b"GET /wait" + HEAD + b"\r\n")
        await served.waiting.wait()
        await served.server.close()
        assert served.cancelled.is_set() and await client.all() == b""
        with pytest.raises(OSError):
            await served.connect()
        await client.close()


def flooding(served: list[Served], limits: Limits) -> web.Application:
    """An answer without end."""

    async def flood(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 1_000_000)

    application = web.Application()
    application.router.add_get("/flood", flood)
    return application


async def test_a_peer_that_takes_nothing_of_its_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("claude_daemon.api.connection.UNREAD_SECONDS", 0.2)
    async with serving(flooding) as served:
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(b"GET /flood" + HEAD + b"\r\n")
            async with asyncio.timeout(PATIENCE):
                await served.logged.wait()
            assert served.server.in_flight == 0


async def test_close_waits_for_no_peer_that_reads_nothing() -> None:
    async with serving(flooding) as served:
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(b"GET /flood" + HEAD + b"\r\n")
            await asyncio.get_running_loop().run_in_executor(None, client.recv, 1)
            started = time.monotonic()
            await served.server.close()
            assert time.monotonic() - started < 5


async def test_a_listener_that_somebody_else_holds_too_goes_on_holding_connections() -> None:
    async with serving() as served:
        held = [s.dup() for listener in served.server._listeners for s in listener.sockets]
        served.server.stop_listening()
        with socket.create_connection(("127.0.0.1", served.port), timeout=5):
            held[0].setblocking(True)
            held[0].accept()[0].close()
        held[0].close()


# the control socket


async def test_over_a_unix_socket_the_peer_is_known_and_has_no_cap(tmp_path: Path) -> None:
    path = tmp_path / "ctl.sock"
    async with serving(max_connections_per_peer=1) as served:
        await served.server.listen_unix(control_socket(path))
        clients = [Client(*await asyncio.open_unix_connection(path)) for _ in range(5)]
        for client in clients:
            client.send(b"GET /peer" + HEAD + b"\r\n")
            assert (await client.answer()).json == {"uid": os.getuid(), "pid": os.getpid()}
            await client.close()
        assert (await served.get("/peer")).json == {}
    assert path.exists()  # only its owner unlinks it


# uvloop, and a lack of descriptors


def test_all_of_it_works_on_uvloop(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "ctl.sock"
        async with serving(header_timeout_s=0.2, max_body_bytes=1000) as served:
            await served.server.listen_unix(control_socket(path))
            assert (await served.get("/hello", "X-Request-ID: u")).headers["x-request-id"] == "u"
            assert_ours(parse(await served.raw(b"\x00")), 400, "invalid_request")
            assert parse(await served.raw(b"GET /hello" + HEAD)).status == 408
            assert parse(await served.raw(b"POST /echo" + HEAD + b"Content-Length: 5000\r\n\r\n")).status == 413
            client = Client(*await asyncio.open_unix_connection(path))
            client.send(b"GET /peer" + HEAD + b"\r\n")
            assert (await client.answer()).json["pid"] == os.getpid()
            waiting = await served.connect()
            waiting.send(b"GET /wait" + HEAD + b"\r\n")
            await served.waiting.wait()
            await waiting.close()
            await asyncio.wait_for(served.cancelled.wait(), PATIENCE)
            served.server.begin_drain()
            assert await client.all() == b"" and await served.server.wait_idle(PATIENCE)
            await client.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(scenario(), 30))


STARVED = """
import asyncio, itertools, resource, sys
from pathlib import Path
from aiohttp import web
from claude_daemon.api.server import HttpServer, Limits
from claude_daemon.supervise.sockets import AcceptErrors, control_socket, tcp_sockets

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

async def hello(request):
    return web.json_response({})

async def main():
    loop = asyncio.get_running_loop()
    AcceptErrors(lambda line: print(line, file=sys.stderr, flush=True)).install(loop)
    numbers = itertools.count()
    def server(reserved):
        app = web.Application()
        app.router.add_get("/hello", hello)
        return HttpServer(
            app,
            limits=Limits(reserved_descriptors=reserved),
            ids=lambda prefix: f"{prefix}_{next(numbers)}",
            on_access=lambda *told: None,
            on_error=lambda *told: print(told, file=sys.stderr, flush=True),
        )
    public, control = server(int(sys.argv[1])), server(0)
    sockets = tcp_sockets("127.0.0.1", 0)
    await public.listen(sockets)
    await control.listen_unix(control_socket(Path(sys.argv[2])))
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def starved(reserved: int, path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    process = subprocess.Popen(
        [sys.executable, "-c", STARVED, str(reserved), str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def ask(sock: socket.socket) -> bytes:
    sock.settimeout(PATIENCE)
    sock.sendall(b"GET /hello" + HEAD + b"Connection: close\r\n\r\n")
    return b"".join(iter(lambda: sock.recv(10_000), b""))


def test_a_lack_of_descriptors_is_one_line_in_the_log_and_heals_by_itself(tmp_path: Path) -> None:
    with starved(0, tmp_path / "ctl.sock") as (process, port):
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(150)]
        assert process.stderr is not None and "Too many open files" in process.stderr.readline()
        for client in clients:
            client.close()
        with socket.create_connection(("127.0.0.1", port)) as client:
            assert ask(client).startswith(b"HTTP/1.1 200")
        process.kill()
        assert process.stderr.read() == ""


def test_while_public_connections_take_all_they_can_the_control_socket_answers(tmp_path: Path) -> None:
    path = tmp_path / "ctl.sock"
    with starved(20, path) as (process, port):
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(150)]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))
            assert ask(client).startswith(b"HTTP/1.1 200")
        clients[-1].settimeout(PATIENCE)
        assert clients[-1].recv(10_000).startswith(b"HTTP/1.1 503")
        for other in clients:
            other.close()
        process.kill()
        assert process.stderr is not None and process.stderr.read().count("\n") <= 1
