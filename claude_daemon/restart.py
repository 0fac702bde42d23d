"""Hot restart: a successor is started, finds its configuration good, and waits for our lock while we finish."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from claude_daemon.core.errors import Code, Refusal
from claude_daemon.supervise.stages import Listener, Stage, Told
from claude_daemon.supervise.successor import spawn

CHECK_S: Final = 30.0
"""An interpreter and a configuration take half a second; on a machine that is busy with what we serve, some more."""

_LONG_S: Final = 3600.0
"""Between two looks at a pipe that tells of its end by itself."""

_INSTEAD: Final[Mapping[str, str]] = {
    "init": "it is the first process of its container, which would end with it",
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
        self._listener: Listener | None = None
        self._watched = False
        self.kept: Sockets = ()
        """What was handed over, for us to go on with should the successor be lost."""
        self.pids: set[int] = set()
        """The successor's, while there is one: it is our child, and no stray."""

    async def successor(self) -> int:
        """Starts one; its pid, once it has found its configuration good. Raises Refusal, and nothing has changed."""
        if (instead := _INSTEAD.get(self._supervisor)) is not None:
            detail = f"this daemon cannot restart itself under {self._supervisor}: {instead}"
            raise Refusal.because(Code.CONFLICT, detail)
        if self._checking or self.pids:
            raise Refusal.because(Code.CONFLICT, "a restart is under way")
        self._checking = True
        try:
            return await self._start()
        finally:
            self._checking = False

    async def _start(self) -> int:
        hear, tell = os.pipe()
        self._listener = listener = Listener(hear)
        try:
            pid = self._spawn(tell)
        except BaseException:
            self.call_off()
            raise
        finally:
            os.close(tell)
        self.pids.add(pid)
        try:
            told = await listener.next(CHECK_S)
        except BaseException:  # whoever asked for it has gone
            self.call_off()
            raise
        if told is not None and told.stage is Stage.CHECKED:
            return pid
        why = _why(told) or ("it ended" if listener.ended else f"it said nothing within {CHECK_S:g} s")
        self.call_off()
        raise Refusal.because(Code.BAD_CONFIGURATION, f"the successor did not start: {why}")

    def _spawn(self, tell: int) -> int:
        self.kept = self._sockets()
        try:
            return spawn(self._argv, self._environ, self.kept, tell)
        except OSError as error:
            raise Refusal.because(Code.CONFLICT, f"the successor cannot be started: {error}") from error

    async def lost(self) -> str:
        """Returns when the successor has ended while it waited for us: why."""
        listener, why = self._listener, None
        self._watched = True
        try:
            while listener is not None and not listener.ended:
                why = _why(await listener.next(_LONG_S)) or why
        finally:
            self._watched = False
            if listener is not None and self._listener is not listener:
                listener.close()
        if listener is None or self._listener is not listener:
            await asyncio.Event().wait()  # called off: nobody has lost it
        return why or "it ended"

    def call_off(self) -> None:
        """There is to be no successor. Whatever it is doing, it holds no lock and has opened nothing."""
        for pid in list(self.pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            self.pids.discard(pid)
        listener, self._listener = self._listener, None
        if listener is not None and not self._watched:  # else whoever reads it closes it
            listener.close()
        for _, sock in self.kept:
            sock.close()
        self.kept = ()


def _why(told: Told | None) -> str | None:
    return str(told.fields["message"]) if told is not None and "message" in told.fields else None
