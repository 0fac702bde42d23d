"""Where a session lives on the disk: a configuration directory of its own with its transcript, and one to work in.

Nothing here trusts what is in them: the session's own tools have written there.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from claude_daemon.engine.removal import remove_tree

_CHUNK: Final = 1024 * 1024
_PART: Final = "config.part"


class Home:
    """``directory`` is the session's own, and of no other. All of it blocks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "config"
        self.work = directory / "work"

    def make(self) -> None:
        for path in (self.directory, self.config):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)

    def transcript(self, name: str) -> Path | None:
        """The file that holds the conversation of this name (``projects/<cwd>/<name>.jsonl``), if there is one."""
        return next((path for path in self.config.glob(f"projects/*/{name}.jsonl") if _is_file(path)), None)

    def holds(self, name: str, message: str) -> bool:
        """Whether the conversation has the message of this id. Raises OSError."""
        path = self.transcript(name)
        return path is not None and _contains(path, message.encode())

    def copy(self, source: Home) -> None:
        """Begins as the other one is, all or nothing; without effect where it has begun. Raises OSError."""
        if self.config.exists():
            return
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = self.directory / _PART
        for path in (part, self.work):
            remove_tree(path)
        source.make()
        if source.work.exists():
            _copy_tree(source.work, self.work)
        _copy_tree(source.config, part)
        part.rename(self.config)

    def remove(self) -> None:
        remove_tree(self.directory)


def _copy_tree(source: Path, to: Path) -> None:
    """Files and directories; symlinks as they are, and nothing that is neither."""
    shutil.copytree(source, to, symlinks=True, ignore=_special)


def _special(directory: str, names: Iterable[str]) -> set[str]:
    kinds = {name: os.lstat(Path(directory, name)).st_mode for name in names}
    return {
        name for name, mode in kinds.items() if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))
    }


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _contains(path: Path, word: bytes) -> bool:
    """Never waits, whatever the path has become meanwhile. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        tail = b""
        while chunk := file.read(_CHUNK):
            if word in tail + chunk:
                return True
            tail = chunk[-len(word) :]
    return False
