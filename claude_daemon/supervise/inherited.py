"""Listening sockets that were open before us: systemd's socket units (sd_listen_fds(3)), or a daemon before us."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from claude_daemon.supervise.sockets import control_socket, set_tcp_options, tcp_sockets
from claude_daemon.supervise.successor import FIRST_FD, HANDOVER

PUBLIC: Final = "http"
CONTROL: Final = "control"
VARIABLES: Final = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
"""The last one, of new systemds, says once more whom they are for."""
MAX_FDS: Final = 64
"""A host has few addresses; a number beyond is no count of ours."""


class BadSockets(ValueError):
    """What was handed over cannot be used; ``str()`` names it, and says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inherited:
    """``public`` listen for HTTP, ``control`` on the control socket's path. ``handover``: a pipe to our predecessor."""

    public: tuple[socket.socket, ...] = ()
    control: socket.socket | None = None
    handover: int | None = None
    left: Path | None = None
    """Where the daemon before listens for claudectl, and this one does not."""


def inherited(environ: MutableMapping[str, str], *, pid: int, takeover: bool = False) -> Inherited:
    """Takes what ``LISTEN_FDS``, ``LISTEN_FDNAMES`` and ``LISTEN_PID`` name, and all such variables away.

    They are for us if ``LISTEN_PID`` is our ``pid``, or ``takeover``. Everything taken is close-on-exec, sockets do not
    block. Raises BadSockets.
    """
    count, owner, names, _ = (environ.pop(name, "") for name in VARIABLES)
    if not count or (owner != str(pid) and not (takeover and not owner)):
        return Inherited()
    if not (count.isascii() and count.isdigit() and 0 < int(count) <= MAX_FDS):
        raise BadSockets(f"LISTEN_FDS is {count!r}, not a number of descriptors")
    named = names.split(":") if names else []
    if len(named) != int(count):
        raise BadSockets(
            f"LISTEN_FDS is {count}, and LISTEN_FDNAMES names {len(named)}: FileDescriptorName=http, control"
        )
    return _sorted([(FIRST_FD + place, name) for place, name in enumerate(named)])


def rebound(given: Inherited, *, host: str, port: int, control: Path, mode: int) -> Inherited:
    """What a successor listens on: what it was given where that is what is configured now, else sockets of its own.

    Port 0 stands for whatever it was given. Raises OSError, SocketInUse, PathTooLong.
    """
    public, left = given.public, given.left
    if public and not all(_is_at(sock, host, port) for sock in public):
        public = tuple(tcp_sockets(host, port))
        for sock in given.public:
            sock.close()
    ours = given.control
    if ours is not None and (before := Path(ours.getsockname())) != control:
        ours.close()
        ours, left = control_socket(control, mode), before
    elif ours is not None:
        control.chmod(mode)
    return replace(given, public=public, control=ours, left=left)


def _is_at(sock: socket.socket, host: str, port: int) -> bool:
    address, bound = sock.getsockname()[:2]
    named = {entry[4][0] for entry in socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)}
    return port in (0, bound) and address in named


def _sorted(given: list[tuple[int, str]]) -> Inherited:
    public: list[socket.socket] = []
    control: socket.socket | None = None
    handover: int | None = None
    for fd, name in given:
        if name == PUBLIC:
            public.append(_listener(fd, name, (socket.AF_INET, socket.AF_INET6)))
        elif name == CONTROL and control is None:
            control = _listener(fd, name, (socket.AF_UNIX,))
        elif name == HANDOVER and handover is None:
            handover = _pipe(fd)
        else:
            raise BadSockets(f"descriptor {fd} is named {name!r}: http (any number), control (one) are known")
    return Inherited(public=tuple(public), control=control, handover=handover)


def _listener(fd: int, name: str, families: tuple[socket.AddressFamily, ...]) -> socket.socket:
    where = f"descriptor {fd} ({name})"
    try:
        os.set_inheritable(fd, False)
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise BadSockets(f"{where} is not a socket")
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise BadSockets(f"{where} is not open: {error.strerror}") from error
    if sock.family not in families or sock.type != socket.SOCK_STREAM:
        raise BadSockets(f"{where} is {sock.family.name} {sock.type.name}, and not {families[0].name} SOCK_STREAM")
    if not _listens(sock):
        raise BadSockets(f"{where} does not listen")
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        set_tcp_options(sock)
    return sock


def _listens(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:  # macOS does not tell
        return True


def _pipe(fd: int) -> int:
    try:
        os.set_inheritable(fd, False)
    except OSError as error:
        raise BadSockets(f"descriptor {fd} ({HANDOVER}) is not open: {error.strerror}") from error
    return fd
