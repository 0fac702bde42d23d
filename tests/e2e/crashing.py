"""``claude-daemon run`` that SIGKILLs itself at a commit of its store: ``CRASH_AT=verb:before|after:n``.

``CRASH_WHEN``, a file, makes it wait there until the file exists; ``CRASH_AFTER_S`` for so long: time for an answer
that must not be given yet to be seen. Only the store waits meanwhile.

Nothing of the daemon knows of this: the store's observer, which it has for its own tests, pulls the trigger.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from claude_daemon import cli
from claude_daemon.store import SqliteStore

_PATIENCE_S = 20.0


def trigger(at: str) -> Callable[[str, str], None]:
    """Kills this process the n-th time that the verb reaches the moment."""
    verb, moment, count = at.split(":")
    left = int(count)

    def observe(seen: str, when: str) -> None:
        nonlocal left
        if (seen, when) == (verb, moment):
            left -= 1
            if left == 0:
                _wait()
                os.kill(os.getpid(), signal.SIGKILL)

    return observe


def _wait() -> None:
    """In the writer's thread."""
    time.sleep(float(os.environ.get("CRASH_AFTER_S", "0")))
    until = time.monotonic() + _PATIENCE_S
    while (file := os.environ.get("CRASH_WHEN")) and not Path(file).exists() and time.monotonic() < until:
        time.sleep(0.002)


def main() -> None:
    observe, ordinary = trigger(os.environ["CRASH_AT"]), SqliteStore.open

    def watched(path: Path, **options: Any) -> SqliteStore:
        return ordinary(path, observer=observe, **options)

    SqliteStore.open = watched  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    main()
