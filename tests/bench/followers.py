"""``python -m tests.bench.followers``: many WebSockets in a process of their own, which only reads.

The first order is a :class:`Follow`; it is answered when everybody follows. The others: ``"begin"`` forgets what has
come by now, and an :class:`Expect` waits for what must have come since, and tells what those that are watched saw.
Bytes are counted for everybody, frames are looked at for those that are watched, and only when all have come.
"""

from __future__ import annotations

import base64
import re
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Self
from urllib.parse import urlsplit

import orjson

from tests.bench.child import Child, answer, end_on_sigterm, more_files
from tests.bench.client import TIMEOUT_S, Unexpected

_PIECE_BYTES = 256 * 1024
_ARRIVAL_TIMEOUT_S = 30.0
_PING = b"\x89\x00"  # in JSON text and in the heads of its frames there is no such pair
_PONG = b"\x8a\x80\0\0\0\0"
_TEXT = 0x81
_SO_TIMESTAMPNS = 35  # of Linux; Python has no name for it
_TIMESPEC = struct.Struct("@qq")
_STAMP_SPACE = socket.CMSG_SPACE(_TIMESPEC.size)
_END = re.compile(rb'"type":"task\.(?:succeeded|failed|cancelled)"')
_LOOK_AGAIN_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Follow:
    """``task`` None: the connection itself is all that is asked for. ``watched``: how many are looked at closely.

    ``rest_s``: between two looks at what has come. Real followers are elsewhere: those of a thousand who all read at
    once whatever comes would take a processor from the daemon.
    """

    url: str
    path: str
    key: str
    followers: int
    task: str | None = None
    after: int = 0
    watched: int = 0
    rest_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """Exactly so many bytes for each, or, where ``bytes`` is None, up to the task's last event."""

    bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What one follower saw of the deltas: their numbers, and when they came (epoch)."""

    seqs: Sequence[int]
    at_s: Sequence[float]


class Followers:
    """The process, from its parent's side."""

    def __init__(self, follow: Follow, env: Mapping[str, str]) -> None:
        self.count = follow.followers
        self._child = Child("followers", env)
        try:
            self._child.ask(asdict(follow))
        except BaseException:
            self._child.end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._child.end()

    def begin(self) -> None:
        self._child.ask("begin")

    def seen(self, expect: Expect) -> list[Seen]:
        """What those that are watched saw since :meth:`begin`. Raises RuntimeError when not all has come in time, or
        when somebody was given more or less than the others."""
        return [Seen(**seen) for seen in self._child.ask(asdict(expect))]


class _Follower:
    __slots__ = ("bytes", "over", "pieces", "sock")

    def __init__(self, sock: socket.socket, *, watched: bool) -> None:
        self.sock = sock
        self.bytes = 0
        self.over = False
        self.pieces: list[tuple[float, bytes]] | None = [] if watched else None
        if watched and sys.platform == "linux":
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)

    def begin(self) -> None:
        self.bytes, self.over = 0, False
        if self.pieces is not None:
            self.pieces = []

    def read(self) -> None:
        data, at = self._received()
        if not data:
            raise Unexpected("the server has closed a follower's connection")
        if _PING in data:
            data = data.replace(_PING, b"")
            self.sock.send(_PONG)
        self.bytes += len(data)
        if self.pieces is not None:
            self.pieces.append((at, data))
            self.over = self.over or _END.search(data) is not None

    def _received(self) -> tuple[bytes, float]:
        """What is there, and when the last of it came (epoch); only for those that are watched."""
        if self.pieces is None:
            return self.sock.recv(_PIECE_BYTES), 0.0
        data, told, _, _ = self.sock.recvmsg(_PIECE_BYTES, _STAMP_SPACE)
        for level, kind, stamp in told:
            if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
                seconds, nanoseconds = _TIMESPEC.unpack(stamp)
                return data, seconds + nanoseconds / 1e9
        return data, time.time()

    def seen(self) -> Seen:
        events = [(orjson.loads(text), at) for text, at in _messages(self.pieces or ())]
        deltas = [(event, at) for event, at in events if event["type"] == "text.delta"]
        return Seen(
            seqs=[event["seq"] for event, _ in deltas],
            at_s=[at for _, at in deltas],
        )


def _messages(pieces: Sequence[tuple[float, bytes]]) -> Iterator[tuple[bytes, float]]:
    """Text messages, and when each was there whole. Raises :class:`Unexpected` for anything else."""
    held = b""
    for at, data in pieces:
        held, start = held + data, 0
        while (frame := _frame(held, start)) is not None:
            yield held[frame], at
            start = frame.stop
        held = held[start:]
    if held:
        raise Unexpected(f"half a frame: {held[:100]!r}")


def _frame(held: bytes, start: int) -> slice | None:
    """The payload of the text frame that begins there; None while it is not complete."""
    if len(held) < start + 4:
        return None
    if held[start] != _TEXT:
        raise Unexpected(f"a frame that is no text: {held[start : start + 100]!r}")
    size, payload = held[start + 1], start + 2
    if size == 126:
        size, payload = int.from_bytes(held[start + 2 : start + 4], "big"), start + 4
    elif size == 127:
        raise Unexpected("a frame of more than 64 KiB")
    return slice(payload, payload + size) if len(held) >= payload + size else None


def _connected(work: Follow) -> list[_Follower]:
    """Step by step for all of them, so that the server is never waited for once a connection."""
    url = urlsplit(work.url)
    lines = [
        f"GET {work.path} HTTP/1.1",
        f"Host: {url.netloc}",
        f"Authorization: Bearer {work.key}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}",
    ]
    request = "\r\n".join([*lines, "", ""]).encode()
    socks = []
    for _ in range(work.followers):
        sock = socket.create_connection((url.hostname or "", url.port or 0), TIMEOUT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(request)
        socks.append(sock)
    for sock in socks:
        _read_until(sock, b"\r\n\r\n", b"HTTP/1.1 101 ")
    if work.task is not None:
        for sock in socks:
            sock.sendall(_masked(orjson.dumps({"op": "subscribe", "task": work.task, "after": work.after})))
        for sock in socks:
            _read_until(sock, b'"op":"ack"', b"")
    return [_Follower(sock, watched=number < work.watched) for number, sock in enumerate(socks)]


def _read_until(sock: socket.socket, mark: bytes, start: bytes) -> None:
    held = b""
    while mark not in held:
        piece = sock.recv(_PIECE_BYTES)
        held += piece
        if not piece or b'"op":"error"' in held:
            raise Unexpected(f"no connection to follow with: {held[:500]!r}")
    if not held.startswith(start):
        raise Unexpected(f"{held[:500]!r}")


def _masked(text: bytes) -> bytes:
    """A client's text frame; a mask of zeros is one."""
    assert len(text) < 126
    return bytes((_TEXT, 0x80 | len(text))) + bytes(4) + text


class _Readers:
    def __init__(self, followers: Sequence[_Follower], rest_s: float) -> None:
        self._followers = followers
        self._rest_s = rest_s
        self._selector = selectors.DefaultSelector()
        self._selector.register(sys.stdin.buffer, selectors.EVENT_READ)
        for follower in followers:
            self._selector.register(follower.sock, selectors.EVENT_READ, follower)

    def run(self) -> None:
        """Reads whatever comes, and does what it is told, until its parent has ended."""
        while True:
            time.sleep(self._rest_s)
            if not self._read(None):
                continue
            line = sys.stdin.buffer.readline()
            if not line:
                return
            order = orjson.loads(line)
            if order == "begin":
                for follower in self._followers:
                    follower.begin()
                answer("begun")
            else:
                answer([asdict(seen) for seen in self._seen(Expect(**order))])

    def _read(self, timeout_s: float | None) -> int:
        """Whether there is an order."""
        ordered = False
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                ordered = True
            else:
                key.data.read()
        return ordered

    def _seen(self, expect: Expect) -> list[Seen]:
        deadline = time.monotonic() + _ARRIVAL_TIMEOUT_S
        while not self._complete(expect):
            if time.monotonic() > deadline:
                counts = sorted(follower.bytes for follower in self._followers)
                raise Unexpected(f"from {counts[0]} to {counts[-1]} bytes came, {expect.bytes} should have")
            self._read(_LOOK_AGAIN_S)
        self._read(_LOOK_AGAIN_S)  # what was sent twice is there by now
        wrong = [f.bytes for f in self._followers if expect.bytes is not None and f.bytes != expect.bytes]
        if wrong:
            raise Unexpected(f"{len(wrong)} followers were sent other than {expect.bytes} bytes: {wrong[:5]}")
        return [follower.seen() for follower in self._followers if follower.pieces is not None]

    def _complete(self, expect: Expect) -> bool:
        if expect.bytes is None:
            return all(follower.over for follower in self._followers)
        return all(follower.bytes >= expect.bytes for follower in self._followers)


def main() -> None:
    end_on_sigterm()
    more_files()
    answer("up")
    work = Follow(**orjson.loads(sys.stdin.buffer.readline()))
    followers = _connected(work)
    answer("following")
    _Readers(followers, work.rest_s).run()


if __name__ == "__main__":
    main()
