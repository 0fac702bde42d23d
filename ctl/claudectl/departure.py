"""The end of a daemon, seen from outside."""

from __future__ import annotations

import os
import time
from pathlib import Path

from claudectl.client import Client
from claudectl.sockets import Deadline

# Nothing tells us when a socket or another's process goes.
PAUSE_SECONDS = 0.05
# The daemon closes its control socket last; its process ends a tenth or two of a second later, on a machine that is
# busy ten times that. A number that lives on after it is another's: the daemon is in another pid namespace.
LEAVING_SECONDS = 2.0

_Identity = tuple[int, int, int]


class Departure:
    """Tells when the daemon that ``client`` talks to now is gone.

    It is gone when its process is. Where that cannot be seen, its socket tells: removed, or another's in its place.
    Nothing connects to find out: where systemd holds the socket, it outlives the daemon, and to connect would start
    the next one.
    """

    def __init__(self, client: Client) -> None:
        _, document = client.get("status")
        self._socket = Path(client.path)
        self._identity = _identity(self._socket)
        self._supervisor = document.get("supervisor")
        pid = document.get("pid")
        # A daemon in another pid namespace tells a number that means nothing here.
        self._pid = pid if isinstance(pid, int) and _lives(pid) else None
        self._closed_at: float | None = None

    def is_over(self) -> bool:
        if self._pid is not None and not _lives(self._pid):
            return True
        if _identity(self._socket) == self._identity:
            return False
        now = time.monotonic()
        self._closed_at = now if self._closed_at is None else self._closed_at
        return self._pid is None or now - self._closed_at >= LEAVING_SECONDS

    def wait(self, deadline: Deadline) -> None:
        """Returns when it is over; raises TimedOut when the deadline passes first."""
        while not self.is_over():
            deadline.remaining_seconds()
            time.sleep(PAUSE_SECONDS)

    @property
    def wakes_again(self) -> bool:
        """Whether systemd still holds the daemon's socket: whoever connects starts the next one."""
        return self._supervisor == "systemd" and _identity(self._socket) == self._identity


def _identity(path: Path) -> _Identity | None:
    """What no other socket at this path shares; an inode number may be used again, hence the time."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
