"""``/v1/stream`` with an independent WebSocket client, and RFC 6455 byte by byte."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from claude_daemon.api.connection import UNREAD_SECONDS
from tests.conftest import StartDaemon
from tests.support import DaemonProcess

PATIENCE_S = 20.0
SUBPROTOCOL = "claude-daemon.v1"
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TERMINAL = ("task.succeeded", "task.failed", "task.cancelled")


def url(daemon: DaemonProcess) -> str:
    return daemon.url.replace("http", "ws", 1) + "/v1/stream"


class Client:
    """A WebSocket client that knows the protocol's messages."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self._heard: list[dict[str, Any]] = []

    async def send(self, **message: Any) -> None:
        await self.connection.send(orjson.dumps(message).decode())

    async def receive(self) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            message: dict[str, Any] = orjson.loads(await self.connection.recv())
            return message

    async def ask(self, **message: Any) -> dict[str, Any]:
        """Sends, and returns the next message that is no event."""
        await self.send(**message)
        while (answer := await self.receive())["op"] == "event":
            self._heard.append(answer)
        return answer

    async def events(self, *tasks: str) -> dict[str, list[dict[str, Any]]]:
        """Every event until each of these tasks has ended, by task."""
        told: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks}
        for event in self._heard:
            told.setdefault(event["task"], []).append(event)
        while not all(events and events[-1]["type"] in TERMINAL for events in told.values()):
            message = await self.receive()
            if message["op"] == "event":
                told.setdefault(message["task"], []).append(message)
        return told


@asynccontextmanager
async def client(daemon: DaemonProcess, **options: Any) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {daemon.key}"}
    usual: dict[str, Any] = {"subprotocols": [SUBPROTOCOL], "additional_headers": headers, "proxy": None}
    async with connect(url(daemon), **{**usual, **options}) as connection:
        yield Client(connection)


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(event["data"]["text"] for event in events if event["type"] == "text.delta")


async def test_one_connection_carries_many_tasks(daemon: DaemonProcess) -> None:
    async with client(daemon) as ws:
        assert ws.connection.subprotocol == SUBPROTOCOL
        ids = {}
        for name in ("one", "two", "three"):
            ack = await ws.ask(op="submit", ref=name, task={"prompt": f"[[text=I am {name}]]"})
            assert (ack["op"], ack["ref"]) == ("ack", name)
            ids[ack["task"]] = name
        told = await ws.events(*ids)
    for task, name in ids.items():
        assert text_of(told[task]) == f"I am {name}"
        seqs = [event["seq"] for event in told[task]]
        assert seqs == sorted(set(seqs))
        assert told[task][0]["type"] == "task.queued"
        assert set(told[task][0]) == {"op", "task", "seq", "type", "at", "data"}


async def test_a_browser_gives_its_key_as_a_subprotocol(daemon: DaemonProcess) -> None:
    protocols = [SUBPROTOCOL, f"bearer.{daemon.key}"]
    async with client(daemon, subprotocols=protocols, additional_headers={}) as ws:
        assert ws.connection.subprotocol == SUBPROTOCOL
        assert (await ws.ask(op="ping", ref=7)) == {"op": "pong", "ref": 7}


async def test_without_a_key_or_from_a_foreign_page_there_is_no_connection(daemon: DaemonProcess) -> None:
    with pytest.raises(InvalidStatus) as refused:
        async with client(daemon, additional_headers={}):
            pass
    assert refused.value.response.status_code == 401
    with pytest.raises(InvalidStatus) as refused:
        async with client(daemon, origin="https://evil.example"):
            pass
    assert refused.value.response.status_code == 403


async def test_a_subscription_goes_on_from_a_cursor(daemon: DaemonProcess) -> None:
    async with client(daemon) as ws:
        ack = await ws.ask(op="submit", task={"prompt": "[[tokens=20]]"})
        told = (await ws.events(ack["task"]))[ack["task"]]
    after = told[7]["seq"]
    async with client(daemon) as ws:
        assert (await ws.ask(op="subscribe", task=ack["task"], after=after))["op"] == "ack"
        assert (await ws.events(ack["task"]))[ack["task"]] == told[8:]


async def test_a_task_is_cancelled_and_left(daemon: DaemonProcess) -> None:
    async with client(daemon) as ws:
        ack = await ws.ask(op="submit", task={"prompt": "[[first=60s]] [[text=x]]"})
        cancelled = await ws.ask(op="cancel", ref="c", task=ack["task"])
        assert (cancelled["op"], cancelled["ref"]) == ("ack", "c")
        told = (await ws.events(ack["task"]))[ack["task"]]
        assert told[-1]["type"] == "task.cancelled"
        slow = await ws.ask(op="submit", task={"prompt": "[[tokens=50]] [[pace=20ms]]"})
        assert (await ws.ask(op="unsubscribe", task=slow["task"]))["op"] == "ack"
        assert (await ws.ask(op="ping"))["op"] == "pong"
        again = await ws.ask(op="unsubscribe", task=slow["task"])
        assert (again["op"], again["error"]["code"]) == ("error", "not_found")
        await ws.ask(op="cancel", task=slow["task"])


@pytest.mark.parametrize(
    ("message", "code", "path"),
    [
        ({"op": "submt"}, "invalid_request", "op"),
        ({}, "invalid_request", "op"),
        ({"op": "subscribe", "task": "task_x"}, "not_found", None),
        ({"op": "cancel", "task": "task_x"}, "not_found", None),
        ({"op": "submit", "task": {"prompt": "x", "session": {"id": "sess_x"}}}, "not_found", None),
        ({"op": "submit", "task": {"prompt": "x", "cwd": "/srv"}}, "forbidden", None),
        ({"op": "approve", "task": "task_x", "approval": "appr_x", "allow": True}, "not_found", None),
        ({"op": "approve", "task": "task_x", "approval": "appr_x"}, "invalid_request", "allow"),
        ({"op": "submit", "task": {}}, "invalid_request", None),
        ({"op": "subscribe", "task": "t", "after": -1}, "invalid_request", "after"),
        ({"op": "ping", "more": 1}, "unsupported_parameter", "more"),
        ({"op": "ping", "ref": ["r"]}, "invalid_request", "ref"),
    ],
)
async def test_a_faulty_message_is_answered_and_the_connection_goes_on(
    daemon: DaemonProcess, message: dict[str, Any], code: str, path: str | None
) -> None:
    async with client(daemon) as ws:
        answer = await ws.ask(**{"ref": "r", **message})
        assert (answer["op"], answer["error"]["code"]) == ("error", code)
        assert answer["ref"] == (None if path == "ref" else "r")
        if path is not None:
            assert answer["error"]["errors"][0]["path"] == path
        assert (await ws.ask(op="ping"))["op"] == "pong"


async def test_what_is_not_json_is_answered_and_what_is_not_text_is_not(daemon: DaemonProcess) -> None:
    async with client(daemon) as ws:
        await ws.connection.send("{nonsense")
        assert (await ws.receive())["error"]["code"] == "invalid_request"
        await ws.connection.send(b"\x00\x01")
        with pytest.raises(ConnectionClosed) as closed:
            await ws.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1003


async def test_a_reader_that_stops_reading_is_let_go_and_comes_back(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    size = 24 * 1024 * 1024  # more than every buffer between us
    async with client(daemon) as ws:
        ack = await ws.ask(op="submit", task={"prompt": f"[[bytes={size}]]"})
    raw = await Raw.open(daemon, request_id="slow-reader")
    raw.message({"op": "subscribe", "task": ack["task"]})
    await daemon.logged("http.access", timeout_s=30, request_id="slow-reader")
    assert await raw.closed_with() == 1013  # behind what was written before, which is there to be read
    raw.close()
    async with client(daemon) as ws:
        assert (await ws.ask(op="subscribe", task=ack["task"]))["op"] == "ack"
        told = (await ws.events(ack["task"]))[ack["task"]]
    assert len(text_of(told)) == size


async def test_a_reader_of_events_that_stops_reading_is_let_go_in_seconds(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    async with daemon.http.post("/v1/tasks", json={"prompt": f"[[bytes={24 * 1024 * 1024}]]"}) as response:
        task_id = (await response.json())["id"]
    host, port = daemon.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    head = f"GET /v1/tasks/{task_id}/events HTTP/1.1\r\nHost: {host}\r\nx-api-key: {daemon.key}\r\n"
    writer.write(f"{head}X-Request-ID: idle-reader\r\n\r\n".encode())
    await reader.readline()
    began = asyncio.get_running_loop().time()
    await daemon.logged("http.access", timeout_s=30, request_id="idle-reader")
    # by the fan-out's patience, and not by that of the connection, which is twelve times as long
    assert asyncio.get_running_loop().time() - began < UNREAD_SECONDS / 2
    writer.close()


async def test_a_stop_tells_where_everybody_is(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    async with client(daemon) as ws:
        ack = await ws.ask(op="submit", task={"prompt": "[[tokens=20]] [[pace=30ms]]"})
        while (event := await ws.receive()).get("type") != "text.delta":
            pass
        assert daemon.process is not None
        daemon.process.terminate()
        told, drain = [event], None
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                message = await ws.receive()
                if message["op"] == "drain":
                    drain = message
                else:
                    told.append(message)
    assert drain is not None
    assert set(drain["cursors"]) == {ack["task"]}
    assert drain["retry_after_ms"] > 0
    assert told[-1]["type"] == "task.succeeded"  # it had time to end
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001
    assert await daemon.ended() == 0


class Raw:
    """RFC 6455 by hand: frames as the test wants them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, daemon: DaemonProcess, *, request_id: str = "raw", buffer: int = 4096) -> Raw:
        """``buffer``: what the kernel takes for us while we do not read."""
        parts = urlsplit(daemon.url)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
        nonce = base64.b64encode(os.urandom(16)).decode()
        headers = {
            "Host": parts.netloc,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": nonce,
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": SUBPROTOCOL,
            "Authorization": f"Bearer {daemon.key}",
            "X-Request-ID": request_id,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"GET /v1/stream HTTP/1.1\r\n{lines}\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 101"), head
        accept = base64.b64encode(hashlib.sha1((nonce + GUID).encode()).digest()).decode()
        assert f"sec-websocket-accept: {accept}".lower() in head.lower()
        return cls(reader, writer)

    def send(self, opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True, rsv: int = 0) -> None:
        head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
        mark = 0x80 if masked else 0
        size = len(payload)
        if size < 126:
            head += bytes([mark | size])
        elif size < 1 << 16:
            head += struct.pack("!BH", mark | 126, size)
        else:
            head += struct.pack("!BQ", mark | 127, size)
        if masked:
            mask = os.urandom(4)
            payload = bytes(byte ^ mask[n % 4] for n, byte in enumerate(payload))
            head += mask
        self.writer.write(head + payload)

    def message(self, message: dict[str, Any]) -> None:
        self.send(1, orjson.dumps(message))

    async def frame(self) -> tuple[int, bytes]:
        """The next frame: opcode and payload. A server never masks, and never fragments what we get."""
        async with asyncio.timeout(PATIENCE_S):
            first, second = await self.reader.readexactly(2)
            assert first & 0x80, "fragmented"
            assert not second & 0x80, "masked"
            size = second & 0x7F
            if size == 126:
                (size,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif size == 127:
                (size,) = struct.unpack("!Q", await self.reader.readexactly(8))
            return first & 0x0F, await self.reader.readexactly(size)

    async def closed_with(self) -> int:
        opcode, payload = await self.frame()
        while opcode != 8:
            opcode, payload = await self.frame()
        code: int = struct.unpack("!H", payload[:2])[0]
        return code

    def close(self) -> None:
        self.writer.transport.abort()


@pytest.fixture
async def raw(daemon: DaemonProcess) -> AsyncIterator[Raw]:
    opened = await Raw.open(daemon)
    yield opened
    opened.close()


PING = orjson.dumps({"op": "ping", "ref": "r"})


async def pong(raw: Raw) -> None:
    assert await raw.frame() == (1, b'{"op":"pong","ref":"r"}')


async def test_a_message_in_fragments_is_one_message(raw: Raw) -> None:
    raw.send(1, PING[:3], fin=False)
    raw.send(0, PING[3:7], fin=False)
    raw.send(0, b"", fin=False)
    raw.send(0, PING[7:])
    await pong(raw)


async def test_control_frames_may_come_between_fragments(raw: Raw) -> None:
    raw.send(1, PING[:3], fin=False)
    raw.send(9, b"are you there?")
    raw.send(0, PING[3:])
    assert await raw.frame() == (10, b"are you there?")
    await pong(raw)


async def test_an_unasked_pong_means_nothing(raw: Raw) -> None:
    raw.send(10, b"")
    raw.send(1, PING)
    await pong(raw)


@pytest.mark.parametrize("size", [0, 125])
async def test_a_ping_is_answered_with_what_it_held(raw: Raw, size: int) -> None:
    raw.send(9, b"x" * size)
    assert await raw.frame() == (10, b"x" * size)


@pytest.mark.parametrize("padding", [120, 126, 65_535, 65_536, 200_000])
async def test_every_length_is_understood(raw: Raw, padding: int) -> None:
    raw.send(1, PING + b" " * padding)
    await pong(raw)


async def test_text_that_is_no_utf8_ends_the_connection(raw: Raw) -> None:
    raw.send(1, b'{"op":"\xff\xfe"}')
    assert await raw.closed_with() == 1007


@pytest.mark.parametrize(
    ("opcode", "options"),
    [
        (3, {}),  # a reserved opcode
        (0, {}),  # a continuation of nothing
        (1, {"rsv": 4}),  # compressed, which was not agreed on
        (9, {"fin": False}),  # a fragmented control frame
    ],
    ids=["reserved opcode", "stray continuation", "reserved bit", "fragmented ping"],
)
async def test_what_the_rfc_forbids_ends_the_connection(raw: Raw, opcode: int, options: dict[str, Any]) -> None:
    raw.send(opcode, b"x", **options)
    assert await raw.closed_with() == 1002


async def test_a_ping_that_is_too_long_ends_the_connection(raw: Raw) -> None:
    raw.send(9, b"x" * 126)
    assert await raw.closed_with() == 1002


async def test_a_new_message_inside_of_a_fragmented_one_ends_the_connection(raw: Raw) -> None:
    raw.send(1, PING[:3], fin=False)
    raw.send(1, PING)
    assert await raw.closed_with() == 1002


async def test_a_message_that_is_too_big_ends_the_connection(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"http.max_body_bytes": 10_000})
    raw = await Raw.open(daemon)
    raw.send(1, b" " * 10_001)
    assert await raw.closed_with() == 1009
    raw.close()
    raw = await Raw.open(daemon)
    for _ in range(11):
        raw.send(1 if _ == 0 else 0, b" " * 1000, fin=False)
    assert await raw.closed_with() == 1009
    raw.close()


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
async def test_a_goodbye_is_returned(raw: Raw, code: int) -> None:
    raw.send(8, struct.pack("!H", code) + b"bye")
    opcode, payload = await raw.frame()
    assert (opcode, struct.unpack("!H", payload[:2])[0]) == (8, code)


@pytest.mark.parametrize("payload", [b"\x03", struct.pack("!H", 999), struct.pack("!H", 1005), b"\x03\xe8\xff"])
async def test_a_malformed_goodbye_is_a_protocol_error(raw: Raw, payload: bytes) -> None:
    raw.send(8, payload)
    assert await raw.closed_with() in (1002, 1007)


async def test_an_unmasked_frame_is_taken_all_the_same(raw: Raw) -> None:
    """RFC 6455, 5.1, wants the connection closed. aiohttp does not look at the mark; its reader is not ours to change.

    Masks keep a page from writing what a proxy takes for HTTP: whoever sends this is no page.
    """
    raw.send(1, PING, masked=False)
    await pong(raw)
