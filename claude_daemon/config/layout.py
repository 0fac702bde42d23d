"""The directories that relative paths stand in."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The directories that relative paths stand in; all absolute. ``user`` is what ``~`` means."""

    user: Path
    state: Path
    run: Path
    log: Path
    configuration: Path

    @classmethod
    def of(cls, environ: Mapping[str, str], home: Path | None) -> Layout:
        """What the environment says; ``home`` is a flag, and systemd's directories yield to it."""
        user = Path(environ.get("HOME") or _passwd_home())
        state = home or Path(environ.get("CLAUDE_DAEMON_HOME") or "~/.claude-daemon")
        state = Path(os.path.abspath(user.joinpath(*state.parts[1:]) if state.parts[:1] == ("~",) else state))  # noqa: PTH100

        def directory(variable: str, otherwise: Path) -> Path:
            """systemd joins several with colons; the first is ours."""
            first = environ.get(variable, "").partition(":")[0]
            return Path(first) if first and home is None else otherwise

        return cls(
            user=user,
            state=directory("STATE_DIRECTORY", state),
            run=directory("RUNTIME_DIRECTORY", state / "run"),
            log=directory("LOGS_DIRECTORY", state / "log"),
            configuration=directory("CONFIGURATION_DIRECTORY", state),
        )

    def resolve(self, path: Path) -> Path:
        first, *rest = path.parts or (".",)
        if first == "~":
            return self.user.joinpath(*rest)
        if first in ("run", "log"):
            return (self.run if first == "run" else self.log).joinpath(*rest)
        return self.state / path


def _passwd_home() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return "/"
