"""A Claude Code that notes when it says something: the real one, its stdout passed on by a child that looks at a clock.

The process that is started becomes the CLI itself, so that its pid, its signals and its memory are what they were; the
child only stands in its pipe. What is measured from these times is not how long the child takes: a time is taken right
before the write into the pipe that the daemon reads.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

_MARK = b'"text_delta"'
_PROGRAM = """\
#!{python} -IS
import os, sys, time

reads, writes = os.pipe()
if os.fork():
    os.dup2(writes, 1)
    os.execv({cli!r}, [{cli!r}, *sys.argv[1:]])
os.close(writes)
os.close(0)
times = os.open({times!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
while data := os.read(reads, 65536):
    now = time.time()
    rest = data
    while rest:
        rest = rest[os.write(1, rest):]
    if count := data.count({mark!r}):
        os.write(times, f"{{now!r}}\\n".encode() * count)
"""


@dataclass(frozen=True, slots=True)
class StampedCli:
    """``path`` is the program, ``times`` a line for each text delta that any of its processes has said."""

    path: Path
    times: Path

    @classmethod
    def write(cls, cli: Path, directory: Path) -> StampedCli:
        path, times = directory / "claude", directory / "times"
        path.write_text(_PROGRAM.format(python=sys.executable, cli=str(cli), times=str(times), mark=_MARK))
        path.chmod(0o700)
        return cls(path, times)

    def taken(self) -> list[float]:
        """All times so far, in seconds since the epoch."""
        return [float(line) for line in self.times.read_text().splitlines()] if self.times.exists() else []
