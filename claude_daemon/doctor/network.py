"""The public port."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

from claude_daemon.config import Loaded
from claude_daemon.doctor.finding import Finding
from claude_daemon.supervise.sockets import tcp_sockets


def port(loaded: Loaded) -> Iterator[Finding]:
    """Whether it can be had: it is bound, and let go of at once. For when no daemon has it."""
    http = loaded.settings.http
    name = f"port {http.host}:{http.port}"
    try:
        for sock in tcp_sockets(http.host, http.port):
            sock.close()
    except socket.gaierror as error:
        yield Finding(name=name, status="fail", reason=f"{http.host}: {error.strerror}", todo="http.host")
    except OSError as error:
        todos = {
            errno.EADDRINUSE: f"end what listens there (ss -ltnp 'sport = :{http.port}'), or set http.port",
            errno.EACCES: "a port of 1024 or above, or a socket unit: claudectl service install --listen",
            errno.EADDRNOTAVAIL: "http.host: an address of this machine",
        }
        reason = os.strerror(error.errno) if error.errno else str(error)
        yield Finding(name=name, status="fail", reason=reason, todo=todos.get(error.errno or 0, ""))
    else:
        yield Finding(name=name, status="pass", reason="it is free")
