"""A real Redis for tests: a directory of its own, nothing kept, on a Unix socket and on a port of loopback."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from redis import asyncio as aioredis

from tests.debian import program

START_TIMEOUT_S = 20.0
SERVING = "Ready to accept connections"
LOADING = "Loading RDB"


class RedisServer:
    """One ``redis-server``; :meth:`start` again after :meth:`kill` serves at the same addresses.

    ``tls`` are its certificate and key: the port then speaks TLS only.
    """

    def __init__(self, home: Path, *options: str, tls: tuple[Path, Path] | None = None) -> None:
        """Skips the test where there is no Redis."""
        self._program = program("redis-server", "redis-server")
        self._home = home
        self._options = options
        self._tls = tls
        self._process: asyncio.subprocess.Process | None = None
        self.path = home / "redis.sock"
        self.port = _free_port()

    @property
    def url(self) -> str:
        """Over the port."""
        return f"redis{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.path}"

    async def start(self, *options: str, until: str = SERVING) -> None:
        """Returns once its log has a line with ``until``. Raises RuntimeError with the log if it ends before."""
        ports = ["--port", str(self.port)]
        if self._tls is not None:
            certificate, key = map(str, self._tls)
            ports = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            ports += ["--tls-cert-file", certificate, "--tls-key-file", key]
        where = ["--bind", "127.0.0.1", "--unixsocket", str(self.path), "--dir", str(self._home), *ports]
        kept = ["--save", "", "--appendonly", "no", "--enable-debug-command", "local"]
        self._process = await asyncio.create_subprocess_exec(
            self._program,
            *where,
            *kept,
            *self._options,
            *options,
            env={},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        await self._logged(until)

    async def _logged(self, words: str) -> None:
        assert self._process is not None and self._process.stdout is not None
        log = ""
        async with asyncio.timeout(START_TIMEOUT_S):
            async for line in self._process.stdout:
                log += line.decode(errors="replace")
                if words in log:
                    return
        raise RuntimeError(f"redis-server did not start: {log}")

    def pause(self) -> None:
        """It stops dead: the kernel still accepts for it, and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    async def kill(self) -> None:
        """Waits for its end; one that does not run is left alone."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        # Its output is read to the end, or the transport of the pipe would be left open.
        await self._process.communicate()
        self._process = None

    @asynccontextmanager
    async def client(self) -> AsyncIterator[aioredis.Redis]:
        """Another client, over the Unix socket."""
        client = aioredis.Redis(unix_socket_path=str(self.path))
        try:
            yield client
        finally:
            await client.aclose()

    async def command(self, *words: str) -> Any:
        """What a server that runs answers to it, over a connection of its own."""
        async with self.client() as client:
            return await client.execute_command(*words)  # type: ignore[no-untyped-call]


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
