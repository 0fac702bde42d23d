"""A process of its own, in the background: python-daemon's DaemonContext, and a pipe that tells how it went.

The one who asks waits on the pipe; the daemon is no child of theirs any more, so what it would exit with is told there.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from claude_daemon.supervise.stages import Listener, Stage, Teller

UMASK = 0o077


@dataclass(frozen=True, slots=True)
class Started:
    """The daemon to be; close the listener when you have heard enough."""

    listener: Listener


def detached(run: Callable[[Teller], int]) -> Started:
    """Runs it in a process that outlives us, with ``/`` as its directory and ``/dev/null`` as its standard streams.

    Call it before there is a thread or an event loop: it forks. An end before :attr:`Stage.READY` is told as
    :attr:`Stage.FAILED` with ``status`` and ``message``, if ``run`` has not told so itself. Raises OSError.
    """
    hear, tell = os.pipe()
    if os.fork() == 0:
        os.close(hear)
        _become_daemon(run, tell)
    os.close(tell)
    os.wait()  # the first of DaemonContext's two parents ends at once
    return Started(Listener(hear))


def _become_daemon(run: Callable[[Teller], int], tell: int) -> NoReturn:
    from daemon import DaemonContext

    teller = Teller(tell)
    status = 1
    try:
        with DaemonContext(
            detach_process=True,
            umask=UMASK,
            working_directory="/",
            files_preserve=[tell],
            signal_map={},  # the daemon has handlers of its own
        ):
            status = _run(run, teller)
    except Exception as error:
        teller.tell(Stage.FAILED, status=status, message=f"{type(error).__name__}: {error}")
    finally:
        os._exit(status)  # what the caller of our first parent would do at its end is not for us


def _run(run: Callable[[Teller], int], teller: Teller) -> int:
    try:
        return run(teller)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
