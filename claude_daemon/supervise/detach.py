"""A process of its own, in the background: python-daemon's DaemonContext, and a pipe that tells how it went.

The one who asks waits on the pipe; the daemon is no child of theirs any more, so what it would exit with is told there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

from claude_daemon.supervise.stages import Listener, Stage, Teller

UMASK: Final = 0o077
_STANDARD: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


@dataclass(frozen=True, slots=True)
class Started:
    """The daemon to be; close the listener when you have heard enough."""

    listener: Listener


def detached(run: Callable[[Teller], int]) -> Started:
    """Runs it in a process that outlives us, with ``/`` as its directory and ``/dev/null`` as its standard streams.

    Call it before there is a thread or an event loop: it forks. An end before :attr:`Stage.READY` is told as
    :attr:`Stage.FAILED` with ``status`` and ``message``, if ``run`` has not told so itself. One with status 0, or by a
    signal that nobody handles, is only the end of the pipe. Raises OSError.
    """
    _open_standard_streams()
    hear, tell = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(hear)
        os.close(tell)
        raise
    if pid == 0:
        os.close(hear)
        _become_daemon(run, tell)
    os.close(tell)
    os.waitpid(pid, 0)  # the first of DaemonContext's parents: it ends at once
    return Started(Listener(hear))


def _open_standard_streams() -> None:
    """Puts ``/dev/null`` where we were given none.

    DaemonContext wants all three, and the pipe must not stand in the place of one.
    """
    while (fd := os.open(os.devnull, os.O_RDWR)) < len(_STANDARD):
        pass  # each takes the lowest place that is free
    os.close(fd)
    for fd, (name, mode) in enumerate(_STANDARD):
        if getattr(sys, name) is None:
            stream = os.fdopen(fd, mode, encoding="utf-8", errors="backslashreplace", closefd=False)
            setattr(sys, name, stream)


def _become_daemon(run: Callable[[Teller], int], tell: int) -> NoReturn:
    teller = Teller(tell)
    status, why = 1, ""
    try:
        from daemon import DaemonContext

        with DaemonContext(
            detach_process=True,
            umask=UMASK,
            working_directory="/",
            files_preserve=[tell],
            signal_map={},  # the daemon has handlers of its own
        ):
            for fd in range(len(_STANDARD)):
                os.set_inheritable(fd, True)  # or whatever the daemon spawns would begin without them
            status = _run(run, teller)
        why = f"it ended with status {status}"
    except BaseException as error:  # nothing gets past here: the frames below are those of whoever started us
        why = f"{type(error).__name__}: {error}"
    if status != 0:
        teller.tell(Stage.FAILED, status=status, message=why)
    os._exit(status)


def _run(run: Callable[[Teller], int], teller: Teller) -> int:
    """The status, as the interpreter would make one of a SystemExit."""
    try:
        return run(teller)
    except SystemExit as ended:
        if ended.code is None:
            return 0
        return ended.code if isinstance(ended.code, int) else 1
