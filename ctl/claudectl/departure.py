"""The end of a daemon, seen from outside."""

from __future__ import annotations

import os
import time
from pathlib import Path

from claudectl.client import Client
from claudectl.sockets import Deadline

# The daemon closes its control socket last; what is left after that takes some tens of milliseconds.
PAUSE_SECONDS = 0.05

_Identity = tuple[int, int, int]


class Departure:
    """Tells when the daemon that ``client`` talks to now is gone.

    It is gone when its process is, or when its socket is: removed, or another's in its place. Nothing
    connects to find out: where systemd holds the socket, that would start the next daemon.
    """

    def __init__(self, client: Client) -> None:
        _, document = client.get("status")
        self._socket = Path(client.path)
        self._identity = _identity(self._socket)
        pid = document.get("pid")
        # A daemon in another pid namespace tells a number that means nothing here.
        self._pid = pid if isinstance(pid, int) and _lives(pid) else None

    def is_over(self) -> bool:
        if _identity(self._socket) != self._identity:
            return True
        return self._pid is not None and not _lives(self._pid)

    def wait(self, deadline: Deadline) -> None:
        """Returns when it is over; raises TimedOut when the deadline passes first."""
        while not self.is_over():
            deadline.remaining_seconds()
            time.sleep(PAUSE_SECONDS)


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
