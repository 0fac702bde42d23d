"""What a supervisor can be asked to do, and what it needs for that."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from claude_daemon.supervise.units import MARK, MARKER
from claudectl.clean import clean_line
from claudectl.errors import Conflict, ControlError, Denied


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """Where ours are installed."""

    daemon: Path
    claudectl: Path
    prefixes: Sequence[Path]
    """Everything that must be readable to run them: the environment, and the interpreter behind it."""

    @classmethod
    def here(cls) -> Programs:
        """Those beside the interpreter that runs this."""
        directory = Path(sys.executable).parent
        prefixes = (Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve())
        return cls(daemon=directory / "claude-daemon", claudectl=directory / "claudectl", prefixes=prefixes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be installed. ``credentials``: secrets by the name of their variable, each in a file."""

    programs: Programs
    listen: str
    roots: Sequence[Path] = ()
    credentials: Mapping[str, Path] = field(default_factory=dict)
    agents_bash: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What a supervisor knows of the daemon. ``pid`` None: it does not run one.

    ``waits``: it holds the sockets, and would start one for whoever connects.
    """

    installed: bool
    state: str
    pid: int | None = None
    waits: bool = False


class Supervisor(Protocol):
    """Each may raise ControlError. What is done is told line by line, as it is done."""

    name: str
    """As the daemon tells it: systemd or launchd."""
    control: str
    """The control socket of the daemon that it runs."""

    def files(self, wish: Wish) -> Mapping[Path, bytes]:
        """What :meth:`install` would write."""

    def install(self, wish: Wish, *, start: bool) -> Iterator[str]: ...
    def uninstall(self) -> Iterator[str]: ...
    def unit(self) -> Unit: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def restart(self) -> None: ...

    def logs(self, *, follow: bool, lines: int) -> Sequence[str]:
        """The command that shows them."""

    def environment(self) -> Mapping[str, str]:
        """What the daemon is told by its environment, as far as this user may know it: for who looks at what it would
        look at."""


def home_of(environ: Mapping[str, str]) -> Path | None:
    """The daemon's home where the environment names one; absolute, for who supervises starts it elsewhere."""
    named = environ.get("CLAUDE_DAEMON_HOME")
    return Path(named).expanduser().absolute() if named else None


def run(*command: str) -> str:
    """What a program says; raises ControlError with its own words where it fails, or is not there."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ControlError(f"{command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        raise ControlError("\n".join([f"{' '.join(command)}:", *map(clean_line, said.splitlines())]))
    return done.stdout


def tail(file: Path, *, follow: bool, lines: int) -> Sequence[str]:
    """The command that shows a log, and goes on when it is rotated."""
    return ["tail", "-n", str(lines), *(["-F"] if follow else []), str(file)]


def write(files: Mapping[Path, bytes]) -> Iterator[str]:
    """Writes files of ours; raises Conflict, and nothing was written, where one of them is somebody else's."""
    foreign = [path for path in files if path.exists() and not is_ours(path)]
    if foreign:
        raise Conflict("\n".join(["there are files that claudectl has not written:", *map(str, foreign)]))
    for path, content in files.items():
        if path.exists() and path.read_bytes() == content:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            path.chmod(0o644)
        except PermissionError as error:
            raise Denied(f"{path}: {error.strerror}") from error
        yield f"wrote {path}"


def remove(path: Path) -> Iterator[str]:
    """Removes a file of ours, and its directory where that is empty then."""
    if path.exists() and is_ours(path):
        path.unlink()
        yield f"removed {path}"
        if path.parent.suffix == ".d" and not any(path.parent.iterdir()):
            path.parent.rmdir()


def is_ours(path: Path) -> bool:
    lines = path.read_bytes().splitlines()
    return lines[:1] == [MARKER.encode()] or lines[1:2] == [MARK.encode()]
