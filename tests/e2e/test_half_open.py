"""Peers that vanish: no FIN, no reset and no packet ever comes again, and the daemon lets go of them all the same.

Packets are really lost. Daemon and offline model live in a network namespace, their clients in a second one, and the
virtual cable between the two is pulled. Each test is run once more by a pytest of its own that lives in there.
"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pytest

from claude_daemon.api.connection import LINGER_SECONDS
from claude_daemon.offline import OfflineModel
from tests.e2e.test_edge import message, post
from tests.support import DaemonProcess, share_probe, text_of

pytestmark = pytest.mark.system

# The home of the daemon inside; set only there.
INSIDE: Final = "HALF_OPEN_HOME"
CABLE: Final = ("ip", "link", "add", "far", "type", "veth", "peer", "name", "near")
# Addresses that are kept for documents: nobody is there.
NEAR, FAR = "192.0.2.1", "192.0.2.2"
_CLONE_NEWNET: Final = 0x40000000
_ESTABLISHED: Final = "01"
# Every deadline here, and what a busy machine needs beyond it.
DEADLINE_S: Final = 2.0
SLACK_S: Final = 8.0
# What a peer may leave unread or unacknowledged for so long.
UNREAD: Final = f"connection.UNREAD_SECONDS = {DEADLINE_S}; sockets.UNACKNOWLEDGED_MS = {DEADLINE_S * 1000:.0f}"
# When a peer is asked whether it is still there, though nothing is written to it.
ASKED: Final = "sockets.KEEPALIVE_IDLE_S = sockets.KEEPALIVE_INTERVAL_S = 1; sockets.KEEPALIVE_PROBES = 2"
# The real daemon, with something shortened that cannot be set.
HURRIED: Final = """#!{python}
from claude_daemon.api import connection
from claude_daemon.cli import main
from claude_daemon.supervise import sockets
{shortened}
main()
"""
Test = Callable[[Path], Awaitable[None]]


def with_a_cable(test: Test) -> Callable[..., Awaitable[None]]:
    """Runs the test in a network namespace of its own; it is told the home of the daemon to start there."""

    async def outside(daemon: DaemonProcess, tmp_path: Path) -> None:
        env = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", INSIDE: str(tmp_path)}
        unshare = namespace(env)
        share_probe(daemon, tmp_path)
        # the timeout is shorter than the one out here, so that it ends what it has started
        options = ["-q", "--timeout=50", "--color=no", "-p", "no:cacheprovider"]
        process = await asyncio.create_subprocess_exec(
            *unshare,
            *(sys.executable, "-m", "pytest", *options, f"{__file__}::{test.__name__}"),
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        assert process.returncode == 0, said.decode()

    async def inside() -> None:
        await test(Path(os.environ[INSIDE]))

    run: Callable[..., Awaitable[None]] = inside if INSIDE in os.environ else outside
    functools.update_wrapper(run, test)
    del run.__dict__["__wrapped__"]  # pytest would look there for fixtures
    return run


def namespace(env: dict[str, str]) -> list[str]:
    """What runs a command in a network namespace of its own, as its root. Skips the test where that cannot be."""
    if sys.platform != "linux":
        pytest.skip("network namespaces are Linux's")
    if not all(shutil.which(tool, path=env["PATH"]) for tool in ("ip", "unshare")):
        pytest.skip("loses packets in a network namespace: apt-get install iproute2 util-linux")
    refused = ""
    for user in ([], ["--user", "--map-root-user"]):
        unshare = ["unshare", *user, "--net"]
        tried = subprocess.run([*unshare, *CABLE], env=env, capture_output=True, text=True)
        if tried.returncode == 0:
            return unshare
        refused = tried.stderr.strip()
    command = "sudo .venv/bin/python -m pytest tests/e2e/test_half_open.py"
    pytest.skip(f"no network namespace with a cable here ({refused}); where root may: {command}")


class Cable:
    """To a machine elsewhere: one thread is there, in a namespace of its own, and so are the sockets it makes."""

    def __init__(self) -> None:
        self._far = ThreadPoolExecutor(max_workers=1, initializer=leave_the_namespace)
        self._opened: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Cable:
        self._at_far_end(*CABLE, "netns", str(os.getpid()))
        self._at_far_end("ip", "address", "add", f"{FAR}/24", "dev", "far")
        self._at_far_end("ip", "link", "set", "far", "up")
        for command in (f"address add {NEAR}/24 dev near", "link set near up", "link set lo up"):
            subprocess.run(["ip", *command.split()], check=True)
        return self

    async def __aexit__(self, *exc: object) -> None:
        for writer in self._opened:
            writer.transport.abort()
        await asyncio.sleep(0)  # in which they are closed
        self._far.shutdown()

    def _at_far_end(self, *argv: str) -> None:
        self._far.submit(subprocess.run, argv, check=True).result()

    def pull(self) -> float:
        """From now on nothing arrives at either end; when that was."""
        self._at_far_end("ip", "link", "set", "far", "down")
        return time.monotonic()

    async def send(self, daemon: DaemonProcess, request: bytes, *, until: bytes = b"") -> int:
        """Sends this from over there and reads the answer up to ``until``; the port that it was sent from."""
        address = (NEAR, urlsplit(daemon.url).port or 0)
        sock = await asyncio.wrap_future(self._far.submit(socket.create_connection, address, SLACK_S))
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock)
        self._opened.append(writer)
        writer.write(request)
        if until:
            await reader.readuntil(until)
        return int(writer.get_extra_info("sockname")[1])

    def established(self) -> set[int]:
        """The ports over there that know of no end: no FIN and no reset has come."""
        table = self._far.submit(Path("/proc/thread-self/net/tcp").read_text).result()
        return {line.port for line in Line.all_of(table) if line.state == _ESTABLISHED}


def leave_the_namespace() -> None:
    """For this thread alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


class Line:
    """A line of /proc/net/tcp. ``unsent`` are bytes that wait for an acknowledgement, or for being sent at all."""

    def __init__(self, line: str) -> None:
        _, local, remote, self.state, queues, _, _, _, _, inode, *_ = line.split()
        address, port = remote.split(":")
        self.remote = (socket.inet_ntoa(int(address, 16).to_bytes(4, sys.byteorder)), int(port, 16))
        self.port = int(local.split(":")[1], 16)
        self.unsent = int(queues.split(":")[0], 16)
        self.inode = int(inode)

    @classmethod
    def all_of(cls, table: str) -> Iterator[Line]:
        return map(cls, table.splitlines()[1:])


def held(daemon: DaemonProcess) -> dict[int, int]:
    """The far clients whose connections the daemon has, by port, and what is unsent there. A closed one has no inode
    any more, however long the kernel keeps it."""
    assert daemon.process is not None
    lines = Line.all_of(Path(f"/proc/{daemon.process.pid}/net/tcp").read_text())
    return {line.remote[1]: line.unsent for line in lines if line.remote[0] == FAR and line.inode}


async def let_go(daemon: DaemonProcess, port: int, doing: str, since: float, within_s: float) -> None:
    """Waits until the daemon has closed this connection; fails with what is known of it once that takes too long."""
    while port in (connections := held(daemon)):
        waited, unsent = time.monotonic() - since, connections[port]
        assert waited < within_s, f"in the middle of {doing}: still held after {waited:.1f} s, {unsent} bytes unsent"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def far_from(home: Path, shortened: str, **http: object) -> AsyncIterator[tuple[DaemonProcess, Cable]]:
    """A daemon and the cable to its clients; its offline model is nearer than they. ``shortened`` is run before it."""
    program = home / "bin" / "claude-daemon"
    program.parent.mkdir()
    program.write_text(HURRIED.format(python=sys.executable, shortened=shortened))
    program.chmod(0o755)
    settings = {"http.host": NEAR, "http.allow_plaintext": True, "engine.workers": 1, "engine.spares": 0}
    settings |= {f"http.{name}": value for name, value in http.items()}
    async with Cable() as cable, OfflineModel() as model:
        daemon = DaemonProcess(home, model, settings, program=(str(program),))
        try:
            yield await daemon.start(), cable
            assert await daemon.stop() == 0
        finally:
            if daemon.process is not None:
                await daemon.stop(signal.SIGKILL)


def chat(daemon: DaemonProcess, prompt: str, request_id: str, *, stream: bool = True) -> bytes:
    lines = ("Claude-Daemon-Lane: text", f"X-Request-ID: {request_id}")
    return post(daemon, "/v1/messages", message(prompt, stream=stream), *lines)


async def cancelled(daemon: DaemonProcess, request_id: str, within_s: float = 1.0) -> str:
    """Waits until the turn of a client that has gone is cancelled; the worker's id."""
    settled = await daemon.logged("task.settled", within_s, request_id=request_id)
    assert settled["state"] == "cancelled"
    assert (await daemon.logged("http.access", within_s, request_id=request_id))["status"] == 499
    return str(settled["worker_id"])


async def serves_on(daemon: DaemonProcess, worker: str) -> None:
    async with daemon.http.get("/live") as live:
        assert live.status == 200
    response = await daemon.chat("Hello [[tokens=3]]")
    assert (response.status, text_of(await response.json())) == (200, "Hello from the")
    settled = await daemon.logged("task.settled", task_id=response.headers["X-Task-ID"])
    assert settled["worker_id"] == worker


@with_a_cable
async def test_whatever_a_vanished_peer_was_in_the_middle_of_its_connection_is_let_go_of(home: Path) -> None:
    timeouts = dict.fromkeys(("header_timeout_s", "body_timeout_s", "keepalive_timeout_s"), DEADLINE_S)
    async with far_from(home, UNREAD, **timeouts) as (daemon, cable):
        live = f"GET /live HTTP/1.1\r\nHost: {NEAR}\r\n\r\n".encode()
        streaming = chat(daemon, "[[tokens=30000]] [[pace=1ms]]", "streaming")
        ports = {
            "a streamed chat": await cable.send(daemon, streaming, until=b"text_delta"),
            "nothing, between two requests": await cable.send(daemon, live, until=b"}"),
            "half of a body": await cable.send(daemon, post(daemon, "/v1/messages", b'{"model"', length=100)),
            "half of a head": await cable.send(daemon, live[: len(live) // 2]),
        }
        pulled = cable.pull()
        assert set(held(daemon)) == cable.established() == set(ports.values())

        async with daemon.http.get("/live") as answer:
            assert answer.status == 200
        for doing, port in ports.items():
            await let_go(daemon, port, doing, pulled, DEADLINE_S + LINGER_SECONDS + SLACK_S)
        for path in ("/live", "/v1/messages"):
            await daemon.logged("http.access", path=path, status=408)
        await serves_on(daemon, await cancelled(daemon, "streaming"))
        assert cable.established() == set(ports.values())


@with_a_cable
async def test_a_vanished_peer_that_waits_for_its_answer_is_missed_while_nothing_is_written(home: Path) -> None:
    async with far_from(home, f"{UNREAD}; {ASKED}") as (daemon, cable):
        port = await cable.send(daemon, chat(daemon, "[[hang]]", "waiting", stream=False))
        async with asyncio.timeout(SLACK_S):
            while (await daemon.control("status"))["queue"]["running"] != 1:
                await asyncio.sleep(0.02)
        pulled = cable.pull()
        assert set(held(daemon)) == {port}
        await let_go(daemon, port, "its wait", pulled, DEADLINE_S + SLACK_S)
        await serves_on(daemon, await cancelled(daemon, "waiting"))


@with_a_cable
async def test_a_vanished_peer_is_missed_however_little_is_written_for_it(home: Path) -> None:
    async with far_from(home, UNREAD) as (daemon, cable):
        trickle = chat(daemon, "[[tokens=30000]] [[pace=100ms]]", "trickle")
        port = await cable.send(daemon, trickle, until=b"text_delta")
        pulled = cable.pull()
        await let_go(daemon, port, "a slow stream", pulled, DEADLINE_S + SLACK_S)
        await serves_on(daemon, await cancelled(daemon, "trickle"))
