"""MCP servers that are programs: started for one attempt, outside of its sandbox, and ended with it.

Such a program is the operator's, and runs as the daemon's user; of the daemon's environment it has an allow-list.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from claude_daemon.engine.process import Process, SpawnFailed
from claude_daemon.engine.spawner import Command, Spawner
from claude_daemon.ports import Heard, Lost, McpFailed, McpServer

_INHERITED: Final = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""What the published SDKs hand on, the language and the places for files; nothing that could be a credential."""
_STOP_STEP_S: Final = 1.0
"""Between the end of its input, SIGTERM and SIGKILL: a server that is idle ends within milliseconds."""

Told = Callable[[str, str], None]
"""A server's name, and what it last wrote to stderr, when it is over."""


class StdioServer:
    """Implements :class:`~claude_daemon.ports.McpTransport`. Its messages are lines of JSON."""

    def __init__(self, server: McpServer, heard: Heard, lost: Lost, *, spawner: Spawner, told: Told) -> None:
        self._server = server
        self._heard = heard
        self._lost = lost
        self._spawner = spawner
        self._told = told
        self._process: Process | None = None
        self._nonce: str | None = None
        self._closed = False

    async def open(self) -> None:
        assert self._server.command is not None
        argv = [self._server.command, *self._server.args]
        env = server_environment(self._spawner.environ, self._server.env)
        self._nonce = self._spawner.new_nonce()
        try:
            self._process = await self._spawner.start_beside(
                Command(argv=argv, env=env, cwd=Path("/")), self._nonce, self._received, self._ended
            )
        except SpawnFailed as failed:
            raise McpFailed(f"it cannot be started: {failed}") from None
        if self._closed:
            await self.close()
            raise McpFailed("the task is over")

    def _received(self, messages: list[dict[str, Any]], size_bytes: int) -> None:
        for message in messages:
            if not self._closed:
                self._heard(message)

    def _ended(self) -> None:
        process = self._process
        if not self._closed:
            status = process.returncode if process is not None else None
            self._lost(process.broken if process is not None and process.broken else f"it ended with status {status}")

    def send(self, message: Mapping[str, Any]) -> None:
        if self._process is not None and not self._process.gone:
            self._process.write(orjson.dumps(message) + b"\n")

    def speak(self, version: str) -> None:
        """Nothing depends on it here."""

    async def close(self) -> None:
        """The end of its input, SIGTERM, SIGKILL; then whatever is left of its process group, and its orphans."""
        self._closed = True
        process = self._process
        if process is not None:
            process.close_stdin()
            for number in (None, signal.SIGTERM, signal.SIGKILL):
                if number is not None:
                    process.kill(number)
                if await process.wait_gone(_STOP_STEP_S):
                    break
            process.bury()
            if words := process.stderr_tail().strip():
                self._told(self._server.name, words)
        if self._nonce is not None:
            self._spawner.forget_beside(self._nonce)


def server_environment(environ: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a server: of the daemon's an allow-list, and what was configured for it."""
    inherited = {name: environ[name] for name in _INHERITED if name in environ}
    return {"PATH": os.defpath, **inherited, **own}
