"""Limits that hold for all processes of an agent together: a cgroup of its own (Linux, cgroup v2).

Only where the daemon's own cgroup is delegated to it: its files may be written, it has controllers for memory and for
processes, and nobody else is in it. A cgroup has either processes or limits for those beneath it, so the daemon moves
itself one deeper first::

    the one that is delegated    what is beneath it may have limits
    ├── daemon-MARK              the daemon, and all that it starts but agents; without limits
    └── agent-MARK-WORKER        an agent: bubblewrap, Claude Code, and what its tools start

MARK stands for the daemon's home, whose lock it holds: what bears it and is not of this daemon was left by an earlier
one, and what bears another one is somebody else's. No agent sees any of it: its sandbox has no /sys.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from claude_daemon.engine.sandbox import Limits

CONTROLLERS: Final = ("memory", "pids")
_MIB: Final = 1024 * 1024
_MARK_CHARS: Final = 16  # of a digest: enough for the few homes that share a cgroup
_OURS: Final = re.compile(rf"daemon-[0-9a-f]{{{_MARK_CHARS}}}")
_END_S: Final = 5.0  # SIGKILL takes milliseconds; a process that waits for a disk may take longer, and is left
_NEEDED: Final = ("memory.max", "memory.oom.group", "pids.max", "cgroup.kill")  # the last one is Linux 5.14's
# The shell puts itself in and becomes the program: there is no moment in which what it starts would be elsewhere. One
# that cannot be put in does not start.
_ENTER: Final = ("/bin/sh", "-c", 'echo 0 >"$0" || exit 125; exec "$@"')


class NotDelegated(Exception):
    """Why the daemon has no cgroup that it may divide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """An agent's cgroup. ``memory_mb``: what all in it may use together."""

    path: Path
    memory_mb: int

    def entering(self, argv: Sequence[str]) -> list[str]:
        """The command that runs ``argv`` in it."""
        return [*_ENTER, str(self.path / "cgroup.procs"), *argv]

    @property
    def out_of_memory(self) -> bool:
        """Whether the kernel has ended what was in it, because it used more; and not for the machine's sake."""
        try:
            events = (self.path / "memory.events").read_text().split()
        except OSError:
            return False
        counts = dict(zip(events[::2], events[1::2], strict=False))
        return all(counts.get(name, "0") != "0" for name in ("oom", "oom_kill"))

    def end(self) -> bool:
        """Kills all that is in it, whatever it is to the daemon, and removes it; whether it is gone.

        Blocks until the last process is.
        """
        try:
            (self.path / "cgroup.kill").write_text("1")
            _wait_until_empty(self.path / "cgroup.events")
            for beneath in sorted(self.path.rglob("*/"), key=lambda path: len(path.parts), reverse=True):
                beneath.rmdir()
            self.path.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


class Cgroups:
    """The delegated cgroup of a daemon that has moved out of its way: :meth:`take` it once, before anything is started.

    ``base``: the delegated one. ``leaf``: where the daemon is.
    """

    def __init__(self, base: Path, leaf: Path, mark: str) -> None:
        self.base = base
        self.leaf = leaf
        self._mark = mark

    @classmethod
    def take(cls, home: Path, process: Path = Path("/proc/self")) -> Cgroups:
        """``home``: the daemon's, which it has locked. ``process``: this one, as /proc tells of it.

        Raises NotDelegated, or OSError where something fails on the way; the daemon is where it was then.
        """
        own = own_cgroup(process)
        base = own.parent if _OURS.fullmatch(own.name) else own  # a successor begins where its predecessor is
        _check(base, own)
        mark = mark_of(home)
        cgroups = cls(base, base / f"daemon-{mark}", mark)
        cgroups._divide(own)
        return cgroups

    def _divide(self, own: Path) -> None:
        """Raises NotDelegated, OSError."""
        try:
            self.leaf.mkdir(exist_ok=True)
            _move_to(self.leaf)
            _control(self.base, "+")
            if absent := [name for name in _NEEDED if not (self.leaf / name).exists()]:
                raise NotDelegated(f"the kernel has no {absent[0]}")
        except (OSError, NotDelegated):
            self._leave(own)
            raise

    def _leave(self, to: Path) -> None:
        """Each step as far as it goes: what cannot be taken back holds nobody up."""
        if to == self.base:
            with suppress(OSError):
                _control(self.base, "-")
        if to != self.leaf:
            with suppress(OSError):
                _move_to(to)
            with suppress(OSError):
                self.leaf.rmdir()

    def make(self, worker_id: str, limits: Limits) -> Group:
        """An empty one for an agent. Raises OSError."""
        path = self.base / f"agent-{self._mark}-{worker_id}"
        path.mkdir()
        try:
            for name, value in {
                "memory.max": limits.max_memory_mb * _MIB,
                "memory.oom.group": 1,  # half an agent is of no use to anybody
                "pids.max": limits.max_processes,
            }.items():
                (path / name).write_text(str(value))
            with suppress(FileNotFoundError):  # a kernel that does not account for swap
                (path / "memory.swap.max").write_text("0")
        except OSError:
            path.rmdir()
            raise
        return Group(path=path, memory_mb=limits.max_memory_mb)

    def sweep(self) -> list[str]:
        """Ends what an earlier daemon of this home has left, before the first :meth:`make`; the names. Blocks."""
        left = sorted(self.base.glob(f"agent-{self._mark}-*/"))
        return [path.name for path in left if Group(path=path, memory_mb=0).end()]

    def give_back(self) -> None:
        """Leaves all as it was found, when no agent is left; unless somebody else is in it: a successor, say."""
        with suppress(OSError):
            alone = _pids(self.leaf) == {os.getpid()} and list(self.base.glob("*/")) == [self.leaf]
            if alone:
                self._leave(self.base)


def mark_of(home: Path) -> str:
    """What stands for the home in the names of cgroups."""
    return hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:_MARK_CHARS]


def own_cgroup(process: Path) -> Path:
    """The directory of the cgroup that the process is in. Raises NotDelegated."""
    try:
        cgroups, mounts = (process / "cgroup").read_text(), (process / "mountinfo").read_text()
    except OSError as error:
        raise NotDelegated(f"there are no cgroups here: {error.strerror}") from error
    unified = [line.removeprefix("0::") for line in cgroups.splitlines() if line.startswith("0::")]
    if not unified:
        raise NotDelegated("there is no cgroup v2 here")
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        if after.split()[0] == "cgroup2" and Path(unified[0]).is_relative_to(root) and ".." not in unified[0]:
            return Path(point) / Path(unified[0]).relative_to(root)
    raise NotDelegated(f"no file system of cgroups is mounted that holds {unified[0]}")


def _check(base: Path, own: Path) -> None:
    """Raises NotDelegated."""
    try:
        there = (base / "cgroup.controllers").read_text().split()
        found, within = _pids(own), _pids(base)
    except OSError as error:
        raise NotDelegated(f"{base} cannot be read: {error.strerror}") from error
    if absent := [name for name in CONTROLLERS if name not in there]:
        raise NotDelegated(f"{base} has no controller for {' and '.join(absent)}")
    for path in (base, base / "cgroup.procs", base / "cgroup.subtree_control"):
        if not os.access(path, os.W_OK):
            raise NotDelegated(f"{path} cannot be written")
    if os.getpid() not in found:
        raise NotDelegated(f"{own} is not where the daemon is")
    if within - {os.getpid()}:
        raise NotDelegated(f"others are in {base} too")


def _pids(cgroup: Path) -> set[int]:
    """Who is in it; 0 is somebody of another pid namespace. Raises OSError."""
    return {int(word) for word in (cgroup / "cgroup.procs").read_text().split()}


def _move_to(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))


def _control(cgroup: Path, sign: str) -> None:
    """Whether those beneath it have limits: ``+`` or ``-``. Raises OSError."""
    (cgroup / "cgroup.subtree_control").write_text(" ".join(f"{sign}{name}" for name in CONTROLLERS))


def _wait_until_empty(events: Path) -> None:
    """Or until :data:`_END_S` are over. Raises OSError."""
    ends = time.monotonic() + _END_S
    fd = os.open(events, os.O_RDONLY | os.O_CLOEXEC)
    try:
        change = select.poll()
        change.register(fd, select.POLLPRI)  # what the kernel says when the file has something new to tell
        while b"populated 1" in os.pread(fd, 256, 0) and (left := ends - time.monotonic()) > 0:
            change.poll(left * 1000)
    finally:
        os.close(fd)
