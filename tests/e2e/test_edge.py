"""The public port of the whole daemon: what it refuses, and what clients cannot do to it."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest

from claude_daemon.offline import OfflineModel
from tests.conftest import StartDaemon
from tests.e2e.sdk import both_lanes, unique, user
from tests.support import DaemonProcess

MIB = 1024 * 1024
ROUTES = {
    "/v1/chat/completions": "POST",
    "/v1/messages": "POST",
    "/v1/messages/count_tokens": "POST",
    "/v1/models": "GET",
    "/v1/models/sonnet": "GET",
}
OPEN_ROUTES = ("/live", "/ready", "/startup", "/health")


@asynccontextmanager
async def connected(
    daemon: DaemonProcess, *, receive_buffer: int | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection with nothing in between."""
    sock = socket.socket()
    sock.setblocking(False)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    address = urlsplit(daemon.url)
    await asyncio.get_running_loop().sock_connect(sock, (address.hostname, address.port))
    limit = receive_buffer if receive_buffer is not None else 64 * 1024
    reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
    try:
        yield reader, writer
    finally:
        writer.close()


async def answer_to(daemon: DaemonProcess, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in lower case and body of the answer to these bytes."""
    async with asyncio.timeout(15), connected(daemon) as (reader, writer):
        writer.write(request)
        return await read_answer(reader)


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    status, headers = await read_head(reader)
    return status, headers, await reader.readexactly(int(headers["content-length"]))


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    assert len(headers) == len(head) - 3, "a header came twice"
    return int(head[0].split()[1]), {name.lower(): value for name, value in headers.items()}


def post(daemon: DaemonProcess, path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {urlsplit(daemon.url).netloc}",
        f"Authorization: Bearer {daemon.key}",
        "Content-Type: application/json",
        f"Content-Length: {len(body) if length is None else length}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def message(prompt: str, *, stream: bool = True) -> bytes:
    """A body that both dialects understand."""
    return orjson.dumps({"model": "sonnet", "max_tokens": 32_000, "stream": stream, "messages": user(prompt)})


# bodies and heads


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/messages/count_tokens"])
async def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(daemon: DaemonProcess, path: str) -> None:
    status, headers, body = await answer_to(daemon, post(daemon, path, b"", length=16 * MIB + 1))
    assert status == 413
    assert headers["connection"] == "close"
    error = orjson.loads(body)["error"]
    assert error["type"] == ("invalid_request_error" if "chat" in path else "request_too_large")


async def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(daemon: DaemonProcess) -> None:
    head = post(daemon, "/v1/messages", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    async with asyncio.timeout(30), connected(daemon) as (reader, writer):
        writer.write(head)
        answer = asyncio.ensure_future(read_answer(reader))
        try:
            for _ in range(40):
                if answer.done():
                    break
                writer.write(b"100000\r\n" + b" " * MIB + b"\r\n")
                await writer.drain()
        except ConnectionError:
            pass  # it was ended while we were still sending
        status, _, _ = await answer
    assert status == 413


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello\r\n\r\n",
        b"GET /secret-word HTTP/9.9\r\n\r\n",
        b"POST /v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: secret-word\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nBad Header\x00: secret-word\r\n\r\n",
        b"GET /" + b"secret-word" * 9000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-Long: secret-word\r\n" * 5000 + b"\r\n",
    ],
    ids=["tls", "version", "length", "header", "long-line", "many-headers"],
)
async def test_garbage_is_answered_in_our_shape_and_not_repeated(daemon: DaemonProcess, garbage: bytes) -> None:
    status, headers, body = await answer_to(daemon, garbage)
    assert 400 <= status < 500
    told = orjson.loads(body)
    if headers["content-type"] == "application/problem+json":
        assert told["request_id"] == headers["x-request-id"]
    else:
        assert told["error"]["type"] == "invalid_request_error"
    assert headers["x-request-id"].startswith("req_")
    assert headers["connection"] == "close"
    assert "server" not in headers
    for word in (b"secret-word", b"Traceback", b"aiohttp", b"Python"):
        assert word not in body


async def test_a_body_that_is_no_json_is_told_where(daemon: DaemonProcess) -> None:
    for path in ("/v1/messages", "/v1/chat/completions"):
        for body, word in ((b'{"a": nul}', "line 1, column"), (b'{"a": "\\ud800"}', "surrogate"), (b"[]", "an array")):
            status, headers, told = await answer_to(daemon, post(daemon, path, body))
            assert status == 400
            assert word in orjson.loads(told)["error"]["message"]
            assert "connection" not in headers  # it was read to its end: the connection goes on


@pytest.mark.parametrize(
    "given",
    [b"a\r\n\tb", b"a\r\n evil: b", b"a\nEvil: b", b"x" * 5000, "ümlaut".encode(), b"a\x7fb"],
    ids=["folded", "folded-header", "line-feed", "5000", "utf-8", "control"],
)
async def test_a_bad_request_id_reaches_neither_the_answer_nor_the_log(daemon: DaemonProcess, given: bytes) -> None:
    request = f"GET /live HTTP/1.1\r\nHost: {urlsplit(daemon.url).netloc}\r\nX-Request-ID: ".encode()
    status, headers, _ = await answer_to(daemon, request + given + b"\r\n\r\n")
    assert status in (200, 400)
    assert re.fullmatch(r"req_[0-9a-z]+|a", headers["x-request-id"])
    assert "evil" not in headers
    async with daemon.http.get("/live") as response:  # what is logged in this order is there by then
        await daemon.logged("http.access", request_id=response.headers["X-Request-ID"])
    assert not any("evil" in str(line).lower() or "xxxxxxxx" in str(line) for line in daemon.log())


async def test_no_answer_tells_what_software_gives_it(daemon: DaemonProcess) -> None:
    asked = [*(("GET", path) for path in OPEN_ROUTES), *((method, path) for path, method in ROUTES.items())]
    for method, path in [*asked, ("GET", "/nothing"), ("DELETE", "/v1/messages")]:
        async with daemon.http.request(method, path) as response:
            assert "Server" not in response.headers
            assert response.headers["X-Request-ID"].startswith("req_")
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert "no-store" in response.headers["Cache-Control"]


# who may


@pytest.mark.parametrize("path", ROUTES)
async def test_every_route_that_is_not_open_needs_a_key(daemon: DaemonProcess, path: str) -> None:
    wrong = daemon.key[:-1] + ("A" if daemon.key[-1] != "A" else "B")
    for headers in ({}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {wrong}"}, {"x-api-key": wrong}):
        lines = [f"{ROUTES[path]} {path} HTTP/1.1", f"Host: {urlsplit(daemon.url).netloc}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        status, answered, body = await answer_to(daemon, "\r\n".join(lines).encode() + b"\r\n\r\n")
        assert status == 401
        assert answered["www-authenticate"] == "Bearer"
        assert wrong.encode() not in body


@pytest.mark.parametrize("path", OPEN_ROUTES)
async def test_the_open_routes_need_none_and_tell_little(daemon: DaemonProcess, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: {urlsplit(daemon.url).netloc}\r\n\r\n"
    status, _, body = await answer_to(daemon, request.encode())
    assert status == 200
    assert str(daemon.home).encode() not in body


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Host", "evil.example", 421),
        ("Host", "127.0.0.1.evil.example:8006", 421),
        ("Host", "localhost:1", 200),
        ("Origin", "http://evil.example", 403),
        ("Origin", "null", 403),
    ],
)
async def test_a_page_elsewhere_reaches_nothing(daemon: DaemonProcess, header: str, value: str, status: int) -> None:
    for path in ("/live", "/v1/models"):
        async with daemon.http.get(path, headers={header: value}) as response:
            assert response.status == status
            assert "Access-Control-Allow-Origin" not in response.headers


async def test_a_form_of_another_page_is_no_request(daemon: DaemonProcess) -> None:
    for media_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        headers = {"Content-Type": media_type}
        async with daemon.http.post("/v1/messages", data=message("hi"), headers=headers) as response:
            assert response.status == 415


# clients that leave, or do not read


@both_lanes
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_leaves_cancels_its_turn(
    daemon: DaemonProcess, model: OfflineModel, lane: str, path: str, stream: bool
) -> None:
    request_id = f"leaves-{lane}-{path[4:8]}-{stream}"
    prompt = unique("[[stall=2]]" if stream else "[[hang]]")
    workers = {worker["id"] for worker in await daemon.workers()}
    async with asyncio.timeout(20):
        async with connected(daemon) as (reader, writer):
            lines = (f"Claude-Daemon-Lane: {lane}", f"X-Request-ID: {request_id}")
            writer.write(post(daemon, path, message(prompt, stream=stream), *lines))
            if stream:
                await reader.readuntil(b"Hello")
            else:
                await upstream_has(model, prompt)
            assert model.active > 0
        settled = await daemon.logged("task.settled", request_id=request_id)
        assert (settled["state"], settled["code"]) == ("cancelled", "cancelled")
        assert (await daemon.logged("http.access", request_id=request_id))["status"] == 499
        await model.wait_until(lambda model: model.active == 0)
        while any(worker["state"] != "idle" for worker in await daemon.workers()):
            await asyncio.sleep(0.02)
    if lane == "text":
        assert settled["worker_id"] in workers & {worker["id"] for worker in await daemon.workers()}


async def upstream_has(model: OfflineModel, prompt: str) -> None:
    await model.wait_until(lambda model: any(prompt in str(recorded.body) for recorded in model.requests))


async def test_a_client_that_leaves_the_queue_is_never_served(start_daemon: StartDaemon, model: OfflineModel) -> None:
    daemon = await start_daemon({"engine.stall_timeout_s": 30})
    holds, leaves, stays = unique("[[hang]]"), unique("leaves"), unique("stays")
    async with asyncio.timeout(40):
        async with connected(daemon) as (_, first):
            first.write(post(daemon, "/v1/messages", message(holds), "Claude-Daemon-Lane: text"))
            await upstream_has(model, holds)
            async with connected(daemon) as (_, second):
                lines = ("Claude-Daemon-Lane: text", "X-Request-ID: leaves-the-queue")
                second.write(post(daemon, "/v1/messages", message(leaves), *lines))
                while (await daemon.control("status"))["queue"]["waiting"] != 1:
                    await asyncio.sleep(0.02)
            settled = await daemon.logged("task.settled", request_id="leaves-the-queue")
            assert settled["state"] == "cancelled"
        assert (await daemon.chat(stays)).status == 200  # the first has left as well
    assert not any(leaves in str(recorded.body) for recorded in model.requests)


@pytest.mark.parametrize(
    ("lane", "path", "size"),
    # Claude Code tells its answer once more in one line, which may be 32 MiB
    [
        ("direct", "/v1/chat/completions", 48_000_000),
        ("text", "/v1/messages", 20_000_000),
    ],
)
async def test_a_long_answer_that_is_read_slowly_is_not_hoarded(
    daemon: DaemonProcess, lane: str, path: str, size: int
) -> None:
    assert daemon.process is not None
    proc = Path(f"/proc/{daemon.process.pid}")
    if not proc.exists():
        pytest.skip("needs /proc")
    (proc / "clear_refs").write_text("5")  # the peak counts from here
    before = peak_bytes(proc)
    request = post(
        daemon, path, message(f"[[bytes={size}]]").replace(b"32000", b"32000000"), f"Claude-Daemon-Lane: {lane}"
    )
    async with asyncio.timeout(50), connected(daemon, receive_buffer=64 * 1024) as (reader, writer):
        writer.write(request)
        status, _ = await read_head(reader)
        assert status == 200
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await settled(proc)
        held = peak_bytes(proc) - before
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        received, tail = 0, b""
        while not tail.endswith(b"0\r\n\r\n"):
            piece = await reader.read(MIB)
            assert piece, "the answer was cut"
            received += len(piece)
            tail = (tail + piece)[-4096:]
    assert received > size
    assert (b"[DONE]" if "chat" in path else b"message_stop") in tail
    assert held < 40_000_000


def peak_bytes(proc: Path) -> int:
    """The largest resident set so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", (proc / "status").read_text())
    assert found is not None
    return int(found[1]) * 1024


async def settled(proc: Path) -> None:
    """Waits until the process reads nothing more, from anybody."""
    read, same = -1, 0
    while same < 5:
        found = re.search(r"rchar: (\d+)", (proc / "io").read_text())
        assert found is not None
        same = same + 1 if int(found[1]) == read else 0
        read = int(found[1])
        await asyncio.sleep(0.1)


async def test_a_waiting_connection_costs_others_nothing(daemon: DaemonProcess) -> None:
    """Half a request, on many connections at once."""
    async with asyncio.timeout(30):
        opened: list[Any] = []
        address = urlsplit(daemon.url)
        for _ in range(200):
            _, writer = await asyncio.open_connection(address.hostname, address.port)
            writer.write(b"POST /v1/messages HTTP/1.1\r\nHost: ")
            opened.append(writer)
        assert (await daemon.chat("hello", lane="direct")).status == 200
        for writer in opened:
            writer.close()
