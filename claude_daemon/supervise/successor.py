"""Starts the daemon that is to come after this one: with its listeners, and nothing else of it."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Final

FIRST_FD: Final = 3
"""As systemd hands descriptors over (sd_listen_fds(3)): from the first one after the standard streams on."""
HANDOVER: Final = "handover"
_OUT_OF_THE_WAY: Final = 128
"""Copies are made from here on, so that none of them stands where another one is to be put: twice what a successor
takes, and half of what the smallest usual limit allows."""


def spawn(
    argv: Sequence[str], environ: Mapping[str, str], sockets: Sequence[tuple[str, socket.socket]], pipe_fd: int
) -> int:
    """The pid of the new process, in a session of its own, our child. Raises OSError.

    It has the sockets by their names, and the pipe as ``handover``, in ``LISTEN_FDS`` and ``LISTEN_FDNAMES``. There is
    no ``LISTEN_PID``: its number is not known before it runs. stdin is ``/dev/null``, stdout and stderr are ours.
    """
    names = [name for name, _ in sockets] + [HANDOVER]
    with ExitStack() as copies:
        given = []
        for fd in [*(sock.fileno() for _, sock in sockets), pipe_fd]:
            given.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _OUT_OF_THE_WAY))
            copies.callback(os.close, given[-1])
        actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            *((os.POSIX_SPAWN_DUP2, fd, FIRST_FD + place) for place, fd in enumerate(given)),
        ]
        env = {**environ, "LISTEN_FDS": str(len(given)), "LISTEN_FDNAMES": ":".join(names)}
        return os.posix_spawn(argv[0], list(argv), env, file_actions=actions, setsid=True)
