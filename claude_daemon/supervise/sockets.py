"""Listening sockets: the public port, and the control socket with its path."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import stat
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from claude_daemon.ports import Clock

MAX_PATH_BYTES: Final = 103 if sys.platform == "darwin" else 107
"""sun_path holds 104 bytes on macOS and 108 on Linux, the last one is zero."""
BACKLOG: Final = 1024
"""What the kernel holds for us while we are busy or being replaced (it caps it at net.core.somaxconn)."""
Inode = tuple[int, int, int]
"""Device, number, and the time a socket was made: file systems use numbers again at once."""
PROBE_SECONDS: Final = 0.5
"""A live daemon's kernel accepts at once; only a full backlog makes a connect wait, and that is a live one
too."""

# A peer whose machine has vanished is noticed: a silent one by these probes (where there is a user timeout, Linux gives
# up by that and not by their number). Linux hands these to every accepted socket.
KEEPALIVE_IDLE_S: Final = 60
KEEPALIVE_INTERVAL_S: Final = 15
KEEPALIVE_PROBES: Final = 4
# And one for whom bytes are under way: while they are unacknowledged no probe is sent, and a slow stream would go on
# for minutes into buffers that nobody empties.
UNACKNOWLEDGED_MS: Final = 60_000


class SocketInUse(Exception):
    """Somebody listens on this path, or something that is no socket is in its place."""


class PathTooLong(ValueError):
    """The path does not fit into a Unix socket's address."""


def tcp_sockets(host: str, port: int) -> list[socket.socket]:
    """Listening sockets on every address of ``host``: a name, an IPv4 address, an IPv6 one with or without
    brackets.

    With port 0 all of them get the same free port. Raises OSError if one cannot be had; then none is left
    open.
    """
    name = host.removeprefix("[").removesuffix("]")
    found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with contextlib.ExitStack() as opened:
        listening: list[socket.socket] = []
        for family, address in dict.fromkeys((entry[0], entry[4]) for entry in found):
            if listening and port == 0:
                address = (address[0], listening[0].getsockname()[1], *address[2:])
            sock = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
            _set_options(sock, family)
            sock.bind(address)
            sock.listen(BACKLOG)
            sock.setblocking(False)
            listening.append(sock)
        opened.pop_all()
        return listening


def _set_options(sock: socket.socket, family: int) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # 0.0.0.0 has a socket of its own
    set_tcp_options(sock)


def set_tcp_options(sock: socket.socket) -> None:
    """What notices peers that have vanished; connections have it from their listener."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    idle = getattr(socket, "TCP_KEEPIDLE", None) or getattr(socket, "TCP_KEEPALIVE", None)
    for option, value in (
        (idle, KEEPALIVE_IDLE_S),
        (getattr(socket, "TCP_KEEPINTVL", None), KEEPALIVE_INTERVAL_S),
        (getattr(socket, "TCP_KEEPCNT", None), KEEPALIVE_PROBES),
        (getattr(socket, "TCP_USER_TIMEOUT", None), UNACKNOWLEDGED_MS),
    ):
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def control_socket(path: Path, mode: int = 0o600) -> socket.socket:
    """A listening socket on ``path``, in a directory that only we may enter if we had to make it.

    Call it with the pid file held: a path whose socket nobody answers is taken for stale and replaced. Raises
    PathTooLong, SocketInUse, or OSError.
    """
    check_length(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _clear(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o777 & ~mode)  # never, not even for a moment, wider than it is meant to be
        try:
            sock.bind(os.fspath(path))
        finally:
            os.umask(before)
        path.chmod(mode)
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def check_length(path: Path) -> None:
    """Raises PathTooLong."""
    size = len(os.fsencode(path))
    if size > MAX_PATH_BYTES:
        raise PathTooLong(f"{path} has {size} bytes, a Unix socket's path at most {MAX_PATH_BYTES}")


def inode_of(path: Path) -> Inode:
    """Which file a path is now, for :func:`unlink_own`."""
    return _inode(path.stat(follow_symlinks=False))


def _inode(found: os.stat_result) -> Inode:
    return found.st_dev, found.st_ino, found.st_mtime_ns


def unlink_own(path: Path, inode: Inode) -> bool:
    """Unlinks the path if it still is the file that :func:`inode_of` saw; False if it is another's or
    gone."""
    try:
        if inode_of(path) != inode:
            return False
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _clear(path: Path) -> None:
    """Unlinks a socket nobody listens on. Binding a live one's path would silently steal it."""
    try:
        found = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise SocketInUse(f"{path} is in the way: it is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            unlink_own(path, _inode(found))
            return
        except (TimeoutError, BlockingIOError):
            pass  # its backlog is full: somebody holds it
    raise SocketInUse(f"{path} is in use: somebody listens on it")


ACCEPT_REPORT_SECONDS: Final = 10
"""Often enough to see that it lasts, seldom enough to fill no disk."""
_ACCEPT_FAILED: Final = "socket.accept() out of system resource"


class AcceptErrors:
    """Keeps a lack of descriptors from flooding the log.

    asyncio tells its exception handler of it up to ``backlog`` times a second and listener, and tries again
    by itself after a second. :meth:`install` puts this in front of the handler that is set: ``report`` gets
    one sentence, and then one in ten seconds at most. Everything else goes where it went before.
    """

    def __init__(self, report: Callable[[str], None], *, clock: Clock = time.monotonic) -> None:
        self._report = report
        self._clock = clock
        self._next_report = -math.inf
        self._unreported = 0

    def install(self, loop: asyncio.AbstractEventLoop) -> None:
        before = loop.get_exception_handler()

        def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            if self.seen(context):
                return
            if before is None:
                loop.default_exception_handler(context)
            else:
                before(loop, context)

        loop.set_exception_handler(handle)

    def seen(self, context: Mapping[str, Any]) -> bool:
        """Whether this is about accepting; then it is counted, and reported if it is time."""
        message = str(context.get("message"))
        # the second: a try of asyncio's after we have closed the listener
        if message != _ACCEPT_FAILED and "._start_serving" not in message:
            return False
        self._unreported += 1
        now = self._clock()
        if now >= self._next_report:
            error = context.get("exception")
            self._report(f"cannot accept connections: {error} ({self._unreported} times since the last report)")
            self._next_report = now + ACCEPT_REPORT_SECONDS
            self._unreported = 0
        return True
