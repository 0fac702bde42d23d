"""Which workers are ours: one small file a worker, for the start after a SIGKILL.

A pid alone names nobody: it may belong to somebody else by then. A worker is ours if its start time is the recorded
one and its environment carries the recorded nonce. The file is there before the process, so that a daemon killed
between the two leaves nothing unknown; on Linux the nonce then finds the process, and what it left behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from claude_daemon.engine.launch import NONCE_VARIABLE

_LINUX: bool = sys.platform == "linux"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """``started`` is the kernel's word for the start time (clock ticks since boot on Linux), compared, never read.

    ``pid`` and ``started`` are None until the process exists.
    """

    nonce: str
    pid: int | None = None
    started: str | None = None


class Ledger:
    """The files of one directory, one a nonce."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def announce(self, nonce: str) -> None:
        """A process with this nonce is about to be started."""
        self._write(Entry(nonce=nonce))

    def add(self, pid: int, nonce: str) -> None:
        """It has been started."""
        started = start_time(pid)
        if started is not None:
            self._write(Entry(nonce=nonce, pid=pid, started=started))

    def remove(self, nonce: str) -> None:
        self._path(nonce).unlink(missing_ok=True)

    def end_old_workers(self) -> list[int]:
        """Kills the workers that an earlier daemon left behind, and only those; tells their pids."""
        entries = []
        for path in sorted(self._directory.iterdir()):
            entry = _read(path)
            if entry is not None:
                entries.append(entry)
            path.unlink(missing_ok=True)
        named = [entry.pid for entry in entries if entry.pid is not None and is_alive(entry)]
        marked = processes_with({entry.nonce for entry in entries}) if entries else []
        return [pid for pid in dict.fromkeys([*named, *marked]) if _kill(pid)]

    def _write(self, entry: Entry) -> None:
        path = self._path(entry.nonce)
        fresh = path.with_suffix(".new")
        fresh.write_bytes(orjson.dumps(asdict(entry)))
        fresh.replace(path)

    def _path(self, nonce: str) -> Path:
        return self._directory / f"{nonce}.json"


def is_alive(entry: Entry) -> bool:
    """Whether the very process of the entry still runs. Where environments are hidden the start time decides."""
    if entry.pid is None or entry.pid <= 1 or start_time(entry.pid) != entry.started:
        return False
    nonce = nonce_of(entry.pid)
    return nonce == entry.nonce if _LINUX else nonce in (None, entry.nonce)


def processes_with(nonces: set[str]) -> list[int]:
    """Every process that was started with one of these nonces in its environment (Linux; elsewhere none)."""
    return [pid for pid in _pids() if nonce_of(pid) in nonces and start_time(pid) is not None]


def nonce_of(pid: int) -> str | None:
    """The nonce that a process was started with, None where there is none or it may not be seen (Linux)."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    prefix = f"{NONCE_VARIABLE}=".encode()
    for item in environ.split(b"\0"):
        if item.startswith(prefix):
            return item[len(prefix) :].decode(errors="replace")
    return None


def start_time(pid: int) -> str | None:
    """The start time of a process, None if there is none (a zombie counts as none)."""
    if _LINUX:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return None
        # the command's name, in parentheses, may itself hold spaces and parentheses
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    said = subprocess.run(["/bin/ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return said.stdout.strip() or None


def _pids() -> Iterator[int]:
    with contextlib.suppress(OSError):
        for path in Path("/proc").iterdir():
            if path.name.isdigit():
                yield int(path.name)


def _kill(pid: int) -> bool:
    """Ends a process and its group; whether there was one."""
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # each worker leads a session of its own; for others there is no such group
    return True


def _read(path: Path) -> Entry | None:
    """None for what is no entry: a file half written, or of another version."""
    try:
        said = orjson.loads(path.read_bytes())
        entry = Entry(**said)
        return entry if isinstance(said["nonce"], str) and isinstance(said["pid"], int | None) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
