"""Which workers are ours: one small file a worker, for the start after a SIGKILL.

A pid alone names nobody: it may belong to somebody else by then. A worker is ours if its start time is the recorded
one and its environment carries the recorded nonce.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from claude_daemon.engine.launch import NONCE_VARIABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """``started`` is the kernel's word for the start time (clock ticks since boot on Linux), compared, never read."""

    pid: int
    started: str
    nonce: str


class Ledger:
    """The files of one directory, ``<pid>.json`` each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def add(self, pid: int, nonce: str) -> None:
        started = start_time(pid)
        if started is not None:
            entry = Entry(pid=pid, started=started, nonce=nonce)
            self._path(pid).write_bytes(orjson.dumps(asdict(entry)))

    def remove(self, pid: int) -> None:
        self._path(pid).unlink(missing_ok=True)

    def end_old_workers(self) -> list[int]:
        """Kills the workers that an earlier daemon left behind, and only those; tells their pids."""
        ended = []
        for path in self._directory.glob("*.json"):
            entry = _read(path)
            if entry is not None and is_alive(entry):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(entry.pid, signal.SIGKILL)  # each worker leads a session of its own
                    ended.append(entry.pid)
            path.unlink(missing_ok=True)
        return ended

    def _path(self, pid: int) -> Path:
        return self._directory / f"{pid}.json"


def is_alive(entry: Entry) -> bool:
    """Whether the very process of the entry still runs."""
    if start_time(entry.pid) != entry.started:
        return False
    nonce = _environment_value(entry.pid, NONCE_VARIABLE)
    return nonce is None or nonce == entry.nonce


def start_time(pid: int) -> str | None:
    """The start time of a process, None if there is none (a zombie counts as none)."""
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return None
        # the command's name, in parentheses, may itself hold spaces and parentheses
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] == "Z" else fields[19]
    said = subprocess.run(["/bin/ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return said.stdout.strip() or None


def _environment_value(pid: int, name: str) -> str | None:
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    prefix = f"{name}=".encode()
    for item in environ.split(b"\0"):
        if item.startswith(prefix):
            return item[len(prefix) :].decode(errors="replace")
    return ""


def _read(path: Path) -> Entry | None:
    try:
        return Entry(**orjson.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
