"""Where the log is: what a running daemon says, else what the configuration of one that is down says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from claudectl.client import Document
from claudectl.errors import ControlError
from claudectl.render import mapping
from claudectl.sockets import IN_HOME

IN_LOG_DIRECTORY: Final = "daemon.log"
SYSTEM: Final = Path("/var/log/claude-daemon") / IN_LOG_DIRECTORY
"""Where a service of the machine has it (LogsDirectory=)."""


def told(status: Document) -> Path | None:
    """Where a daemon that runs says its log is; None where it writes to stderr alone. Raises ControlError."""
    log = mapping(status.get("log"))
    if "file" not in log:
        raise ControlError("this daemon does not say where its log is: claudectl logs --file reads it")
    return None if log["file"] is None else Path(str(log["file"]))


def file_of(status: Document) -> Path:
    """The same of one that has a file. Raises ControlError."""
    file = told(status)
    if file is None:
        raise ControlError("this daemon writes to its stderr alone (log.file is none): whoever started it has it")
    return file


def guessed(socket: str | None, environ: Mapping[str, str]) -> tuple[Path | None, list[Path]]:
    """Of a daemon that is down: its log, None if there is none, and all places that were looked at.

    ``socket``: the one that was named, which then says whose log is meant.
    """
    tried = list(_places(socket, environ))
    return next((path for path in tried if _is_there(path)), None), tried


def _is_there(path: Path) -> bool:
    """One that is closed to us is: who reads it is told so."""
    try:
        return path.exists()
    except PermissionError:
        return True


def _places(socket: str | None, environ: Mapping[str, str]) -> Iterator[Path]:
    user = Path(environ.get("HOME") or "~").expanduser()
    if socket is not None:
        path = Path(socket).absolute()
        if str(path).endswith(f"/{IN_HOME}"):
            yield from _of_home(path.parent.parent, user, {})
        else:  # of a unit: its sockets and its logs have directories of one name
            yield Path("/var/log") / path.parent.name / IN_LOG_DIRECTORY
        return
    if named := environ.get("CLAUDE_DAEMON_HOME"):
        yield from _of_home(Path(named).expanduser().absolute(), user, environ)
        return
    yield from _of_home(user / ".claude-daemon", user, environ)
    yield SYSTEM


def _of_home(home: Path, user: Path, environ: Mapping[str, str]) -> Iterator[Path]:
    """As the daemon's configuration has it: its file, and over that the environment."""
    named = environ.get("CLAUDE_DAEMON_LOG__FILE") or _configured(home / "config.toml")
    if named is None:
        yield home / "log" / IN_LOG_DIRECTORY
    elif named != "none":
        first, _, rest = named.partition("/")
        yield user / rest if first == "~" else Path(os.path.normpath(home / named))


def _configured(file: Path) -> str | None:
    """``log.file`` of a configuration; None where it says nothing, or cannot be read: then the daemon would not start
    with it either."""
    import tomllib

    try:
        document = tomllib.loads(file.read_text())
    except (OSError, ValueError):
        return None
    named = mapping(document.get("log")).get("file")
    return named if isinstance(named, str) else None
