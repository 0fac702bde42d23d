"""``claude-daemon run`` that SIGKILLs itself at a commit of its store: ``CRASH_AT=verb:before|after:n``.

Nothing of the daemon knows of this: the store's observer, which it has for its own tests, pulls the trigger.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from claude_daemon import cli
from claude_daemon.store import SqliteStore


def trigger(at: str) -> Callable[[str, str], None]:
    """Kills this process the n-th time that the verb reaches the moment."""
    verb, moment, count = at.split(":")
    left = int(count)

    def observe(seen: str, when: str) -> None:
        nonlocal left
        if (seen, when) == (verb, moment):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return observe


def main() -> None:
    observe, ordinary = trigger(os.environ["CRASH_AT"]), SqliteStore.open

    def watched(path: Path, **options: Any) -> SqliteStore:
        return ordinary(path, observer=observe, **options)

    SqliteStore.open = watched  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    main()
