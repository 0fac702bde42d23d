"""How many descriptors this process may have."""

from __future__ import annotations

import contextlib
import resource
from typing import Final

OWN: Final = 512
"""Beside the connections of clients: workers' pipes, the store, logs, listeners, and those that are being closed."""


def allow(connections: int) -> int:
    """Raises the soft limit to what so many connections need, as far as the hard one lets it; what it is then.

    The usual soft limit of 1024 is there for programs that use ``select()``; servers are meant to raise it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OWN if hard == resource.RLIM_INFINITY else min(hard, connections + OWN)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a second limit, which it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
