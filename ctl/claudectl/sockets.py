"""Where the control socket may be, and the first that answers."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from claudectl.errors import Denied, NotRunning, TimedOut

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

IN_HOME = "run/ctl.sock"
SYSTEM = "/run/claude-daemon/ctl.sock"


def candidates(named: str | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The sockets to try, in order.

    One that is named by a flag stands alone: a command for one daemon must never reach another. The places in
    the environment and on the system are only where a daemon usually is.
    """
    if named is not None:
        return (named,)
    places = []
    if at := environ.get("CLAUDE_DAEMON_SOCKET"):
        places.append(at)
    if home := environ.get("CLAUDE_DAEMON_HOME"):
        places.append(f"{home}/{IN_HOME}")
    places.append(f"{_user_home(environ)}/.claude-daemon/{IN_HOME}")
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        places.append(f"{runtime}/claude-daemon/ctl.sock")
    places.append(SYSTEM)
    return tuple(dict.fromkeys(places))


def _user_home(environ: Mapping[str, str]) -> str:
    if home := environ.get("HOME"):
        return home
    from pathlib import Path

    return str(Path.home())


class Deadline:
    """A moment on the monotonic clock by which something must be over, or none."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._ends_at = None if seconds is None else time.monotonic() + seconds

    def remaining_seconds(self) -> float | None:
        """None where there is no bound; raises TimedOut when the moment has passed."""
        if self._ends_at is None:
            return None
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise self.passed()
        return left

    def passed(self) -> TimedOut:
        return TimedOut(f"timed out after {self._seconds:g} s")


class BoundedSocket(socket.socket):
    """A Unix stream socket whose every read and write ends by one moment, however slowly its peer drips."""

    def __init__(self, deadline: Deadline) -> None:
        super().__init__(socket.AF_UNIX, socket.SOCK_STREAM)
        self._deadline = deadline

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        self.settimeout(self._deadline.remaining_seconds())
        return super().recv_into(buffer, nbytes, flags)

    def sendall(self, data: ReadableBuffer, flags: int = 0) -> None:
        self.settimeout(self._deadline.remaining_seconds())
        super().sendall(data, flags)

    def connect_to(self, path: str) -> None:
        self.settimeout(self._deadline.remaining_seconds())
        self.connect(path)


def connect_first(paths: Sequence[str], deadline: Deadline) -> tuple[str, BoundedSocket]:
    """The first of ``paths`` that answers, and a connection to it, which the caller closes.

    Raises NotRunning, or Denied where one is there but closed to us; both name all that was tried. Raises
    TimedOut for a daemon that listens but accepts nobody: it is alive, and to try the next one would reach
    another.
    """
    failures: list[tuple[str, OSError]] = []
    for path in paths:
        connection = BoundedSocket(deadline)
        try:
            connection.connect_to(path)
        except BlockingIOError:  # a socket with a timeout does not wait for room in the backlog
            connection.close()
            raise TimedOut(f"the daemon at {path} accepts no connections: its backlog is full") from None
        except TimeoutError:
            connection.close()
            raise deadline.passed() from None
        except OSError as error:
            connection.close()
            failures.append((path, error))
        except BaseException:
            connection.close()
            raise
        else:
            return path, connection
    raise _unreachable(failures)


def _unreachable(failures: Sequence[tuple[str, OSError]]) -> Denied | NotRunning:
    tried = "".join(f"\n  {path}  ({_reason(error)})" for path, error in failures)
    if any(isinstance(error, PermissionError) for _, error in failures):
        return Denied(f"permission denied on the control socket; tried:{tried}\nUse the daemon's user, or root.")
    return NotRunning(
        f"claude-daemon is not running: no control socket answers; tried:{tried}\nStart it with: claude-daemon run"
    )


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such socket"
    if isinstance(error, ConnectionRefusedError):
        return "left behind, nobody listens"
    if isinstance(error, PermissionError):
        return "permission denied"
    if error.errno == errno.ENOTDIR:
        return "not below a directory"
    return error.strerror or str(error)
