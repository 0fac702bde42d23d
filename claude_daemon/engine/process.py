"""The only file that spawns the CLI: one process, its three pipes, its signals, and what it leaves behind.

One reader per pipe from the spawn on. stdout is framed and decoded as it arrives; stderr is told line by line, and its
end is kept in a ring that is told with a crash. On Linux the daemon is a child subreaper, so that whatever a worker
leaves behind becomes its own child.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from claude_daemon.engine.stream import LineFramer, LineTooLong, decode

STDERR_RING_BYTES: Final = 16 * 1024  # enough for a traceback, small enough for a log line
STDERR_LINE_BYTES: Final = 4 * 1024  # a longer one is told in parts
PIPE_GRACE_S: Final = 0.5  # what a process that has ended wrote last is read long before
# Workers are the first to go when memory is short, the daemon the last.
WORKER_OOM_SCORE: Final = 500
_PR_SET_CHILD_SUBREAPER: Final = 36
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")

Received = Callable[[list[dict[str, Any]], int], None]
Wrote = Callable[[str], None]
"""A line of stderr, never empty."""


class SpawnFailed(Exception):
    """The CLI could not be started: missing, not executable, not a program for this machine."""


class Process(asyncio.SubprocessProtocol):
    """A running CLI. ``received`` gets the decoded messages of each chunk with its size in bytes, in order."""

    def __init__(self, received: Received, exited: Callable[[], None], wrote: Wrote | None = None) -> None:
        self._received = received
        self._wrote = wrote
        self._words = b""  # of a line of stderr that is not complete
        self._told_exit = exited
        self._framer = LineFramer()
        self._stderr: deque[bytes] = deque()
        self._stderr_held = 0
        self._transport: asyncio.SubprocessTransport | None = None
        self.pid = 0
        self._gone = asyncio.Event()
        self._buried = False
        self.broken: str | None = None
        self.lines_not_json = 0

    @classmethod
    async def spawn(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        received: Received,
        exited: Callable[[], None],
        pass_fds: Sequence[int] = (),
        wrote: Wrote | None = None,
    ) -> Process:
        """Starts the program in a session of its own. ``pass_fds`` stay open in it. ``wrote`` hears what it writes to
        stderr. Raises :class:`SpawnFailed`."""
        loop = asyncio.get_running_loop()
        try:
            _, process = await loop.subprocess_exec(
                lambda: cls(received, exited, wrote),
                *argv,
                env=dict(env),
                cwd=str(cwd),
                start_new_session=True,
                pass_fds=pass_fds,
            )
        except OSError as error:
            raise SpawnFailed(f"{argv[0]}: {error.strerror or error}") from error
        with contextlib.suppress(OSError):
            Path(f"/proc/{process.pid}/oom_score_adj").write_text(str(WORKER_OOM_SCORE))
        return process

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have asyncio's methods, not its classes
        self._transport = cast(asyncio.SubprocessTransport, transport)
        self.pid = self._transport.get_pid() or 0

    def pipe_data_received(self, fd: int, data: bytes | str) -> None:
        assert isinstance(data, bytes)
        if fd == 2:
            self._keep_stderr(data)
            return
        if self.broken is not None:
            return
        try:
            lines = self._framer.feed(data)
        except LineTooLong as error:
            self.broken = str(error)
            self.kill(signal.SIGKILL)
            return
        messages = [message for line in lines if line and (message := decode(line)) is not None]
        self.lines_not_json += len([line for line in lines if line.strip()]) - len(messages)
        if messages:
            self._received(messages, len(data))

    def process_exited(self) -> None:
        # stdout may still hold lines: those are delivered before connection_lost, which is what ends us; but it
        # does not come while a child of the process holds a pipe open
        asyncio.get_running_loop().call_later(PIPE_GRACE_S, self.bury)

    def connection_lost(self, exc: Exception | None) -> None:
        self._tell_stderr(b"\n")
        self._gone.set()
        self._told_exit()

    def _keep_stderr(self, data: bytes) -> None:
        self._stderr.append(data)
        self._stderr_held += len(data)
        while self._stderr_held - len(self._stderr[0]) >= STDERR_RING_BYTES:
            self._stderr_held -= len(self._stderr.popleft())
        self._tell_stderr(data)

    def _tell_stderr(self, data: bytes) -> None:
        if self._wrote is None:
            return
        *lines, self._words = (self._words + data).split(b"\n")
        while len(self._words) > STDERR_LINE_BYTES:
            lines.append(self._words[:STDERR_LINE_BYTES])
            self._words = self._words[STDERR_LINE_BYTES:]
        for line in lines:
            if words := line.decode(errors="replace").strip():
                self._wrote(words)

    @property
    def returncode(self) -> int | None:
        return self._transport.get_returncode() if self._transport else None

    @property
    def gone(self) -> bool:
        return self._gone.is_set()

    def stderr_tail(self) -> str:
        """The last of what it wrote to stderr, at most :data:`STDERR_RING_BYTES`."""
        return b"".join(self._stderr)[-STDERR_RING_BYTES:].decode(errors="replace")

    def write(self, data: bytes) -> None:
        """Queues lines for stdin; to a process that has ended they are lost, as its exit tells."""
        assert self._transport is not None
        stdin = cast(asyncio.WriteTransport | None, self._transport.get_pipe_transport(0))
        if stdin is not None and not stdin.is_closing():
            stdin.write(data)

    def close_stdin(self) -> None:
        if self._transport is not None and (stdin := self._transport.get_pipe_transport(0)) is not None:
            stdin.close()

    def hold(self, held: bool) -> None:
        """Stops (or goes on) reading stdout: the pipe fills, and the CLI waits."""
        assert self._transport is not None
        stdout = cast(asyncio.ReadTransport | None, self._transport.get_pipe_transport(1))
        if stdout is not None and not stdout.is_closing():
            with contextlib.suppress(RuntimeError):  # already in that state
                stdout.pause_reading() if held else stdout.resume_reading()

    def kill(self, number: signal.Signals) -> None:
        """Signals the process alone; one that has ended is no error."""
        if self._transport is not None and self.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                self._transport.send_signal(number)

    async def wait_gone(self, timeout_seconds: float) -> bool:
        """Waits until the process has ended and its pipes are read; False at the timeout."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._gone.wait()
        except TimeoutError:
            return False
        return True

    def bury(self) -> None:
        """Kills what is left of the process group and closes the pipes, whoever still holds them. Once."""
        if self._transport is None or self._buried:
            return
        self._buried = True  # later its number may be another group's
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._transport.close()

    def rss_bytes(self) -> int | None:
        """Resident memory, None where the system does not tell it cheaply."""
        return _rss_bytes(self.pid)

    def tree_rss_bytes(self) -> int | None:
        """The same with all that it has started and that still lives, e.g. within a sandbox. Costs some reads for each
        thread of each process."""
        own = self.rss_bytes()
        return None if own is None else own + sum(_rss_bytes(pid) or 0 for pid in _descendants(self.pid))


def _rss_bytes(pid: int) -> int | None:
    try:
        fields = Path(f"/proc/{pid}/statm").read_text().split()
        return int(fields[1]) * _PAGE_BYTES
    except (OSError, IndexError):  # it has ended, before or while it was read
        return None


def _descendants(pid: int) -> set[int]:
    """Of a process that may be ending: those that are seen."""
    found: set[int] = set()
    unread = [pid]
    while unread:
        new = children_of(unread.pop()) - found
        found |= new
        unread += new
    return found


def children_of(pid: int | str) -> set[int]:
    """The pids of a process's children, zombies among them (Linux; elsewhere none)."""
    found: set[int] = set()
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # it has ended
            for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):  # this thread has
                    found.update(int(word) for word in tasks.read_text().split())
    return found


async def run_briefly(
    argv: Sequence[str], env: Mapping[str, str], cwd: Path, timeout_seconds: float
) -> tuple[int, str]:
    """Runs the CLI to its end, e.g. with ``--version``: status and stdout. Raises :class:`SpawnFailed`."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            env=dict(env),
            cwd=str(cwd),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise SpawnFailed(f"{argv[0]}: {error.strerror or error}") from error
    try:
        async with asyncio.timeout(timeout_seconds):
            said, _ = await process.communicate()
    except TimeoutError:
        raise SpawnFailed(f"{argv[0]} did not end within {timeout_seconds:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode or 0, said.decode(errors="replace")


def become_subreaper() -> bool:
    """Orphans among the daemon's descendants become its own children (Linux); False where that does not exist."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
