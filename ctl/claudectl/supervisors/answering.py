"""The daemon that answers, and whose it is."""

from __future__ import annotations

import os
from typing import Final

from claudectl import render
from claudectl.client import Client, Document
from claudectl.errors import Conflict, Denied, NotRunning, TimedOut
from claudectl.options import Options
from claudectl.sockets import SYSTEM, candidates
from claudectl.supervisors.kind import Supervisor, Unit

# Who takes care of a daemon, as its status tells it, and who tells what it is to them.
_INFORMANTS: Final = {"systemd": "systemctl status", "launchd": "launchctl procinfo"}


def look(options: Options, supervisor: Supervisor) -> tuple[Unit, Document | None]:
    """What the supervisor says, and the status of the daemon that answers, None if none does.

    From here on ``options`` mean that daemon, and no other. One that hangs, or will not answer this user, is an error
    only where the supervisor runs none: else it is the supervisor's.
    """
    unit = supervisor.unit()
    client = _client(options, supervisor, unit)
    if client is None:
        return unit, None
    try:
        daemon = client.get("status")[1]
    except NotRunning:
        return unit, None
    except (TimedOut, Denied):
        if unit.pid is None:
            raise
        return unit, None
    options.socket = client.path
    return unit, daemon


def is_supervised(unit: Unit, daemon: Document | None) -> bool:
    """Whether what runs, or waits to, is the supervisor's. Raises Conflict where it is that of another unit."""
    if daemon is None:
        return unit.pid is not None or unit.waits
    if daemon.get("pid") == unit.pid:
        return True
    by, pid = daemon.get("supervisor"), render.plain(daemon.get("pid"))
    if by in _INFORMANTS:
        raise Conflict(
            f"{by} runs the daemon that answers (pid {pid}), but not as the service that is meant: see --system and "
            f"--user, and for the name of its unit: {_INFORMANTS[by]} {pid}"
        )
    return False


def _client(options: Options, supervisor: Supervisor, unit: Unit) -> Client | None:
    """None where no socket is left to try.

    One that waits, and starts a daemon for whoever connects, is none of them; nor is that of the machine's service for
    a user who may not ask it.
    """
    usual = candidates(options.socket, os.environ)
    left = [path for path in usual if not (unit.waits and _same(path, supervisor.control))]
    if options.socket is None and supervisor.control != SYSTEM and not os.access(SYSTEM, os.W_OK):
        left = [path for path in left if path != SYSTEM]
    if len(left) == len(usual):
        return options.client()
    return Client(left, timeout_seconds=options.timeout_seconds) if left else None


def _same(path: str, other: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(other)
