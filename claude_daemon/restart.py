"""Hot restart: a successor is started, finds its configuration good, and waits for our lock while we finish."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from claude_daemon.core.errors import Code, Refusal
from claude_daemon.supervise.stages import Listener, Stage
from claude_daemon.supervise.successor import spawn

CHECK_S: Final = 30.0
"""An interpreter and a configuration take half a second; on a machine that is busy with what we serve, some more."""

_INSTEAD: Final[Mapping[str, str]] = {
    "systemd": "systemctl restart claude-daemon",
    "launchd": "launchctl kickstart -k gui/$UID/com.claude-daemon",
}

Sockets = Sequence[tuple[str, socket.socket]]


class Restart:
    """``sockets`` gives second descriptors of all listeners, by name. ``supervisor``: who would be surprised."""

    def __init__(
        self, argv: Sequence[str], environ: Mapping[str, str], sockets: Callable[[], Sockets], *, supervisor: str
    ) -> None:
        self._argv = argv
        self._environ = environ
        self._sockets = sockets
        self._supervisor = supervisor
        self._checking = False
        self.pids: set[int] = set()
        """The successor's, while there is one: it is our child, and no stray."""

    async def successor(self) -> int:
        """Starts one; its pid, once it has found its configuration good. Raises Refusal, and nothing has changed."""
        if (instead := _INSTEAD.get(self._supervisor)) is not None:
            raise Refusal.because(Code.CONFLICT, f"{self._supervisor} supervises this daemon: {instead}")
        if self._checking or self.pids:
            raise Refusal.because(Code.CONFLICT, "a restart is under way")
        self._checking = True
        try:
            return await self._start()
        finally:
            self._checking = False

    async def _start(self) -> int:
        hear, tell = os.pipe()
        listener = Listener(hear)
        try:
            try:
                pid = self._spawn(tell)
            finally:
                os.close(tell)
            self.pids.add(pid)
            told = await listener.next(CHECK_S)
            if told is not None and told.stage is Stage.CHECKED:
                return pid
            self._end(pid)
            fields: Mapping[str, Any] = told.fields if told is not None else {}
            why = fields.get("message") or f"it said nothing within {CHECK_S:g} s"
            raise Refusal.because(Code.BAD_CONFIGURATION, f"the successor did not start: {why}")
        finally:
            listener.close()

    def _spawn(self, tell: int) -> int:
        sockets = self._sockets()
        try:
            return spawn(self._argv, self._environ, sockets, tell)
        except OSError as error:
            raise Refusal.because(Code.CONFLICT, f"the successor cannot be started: {error}") from error
        finally:
            for _, sock in sockets:
                sock.close()

    def _end(self, pid: int) -> None:
        """Whatever it is doing, it holds no lock and has opened nothing."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        self.pids.discard(pid)
