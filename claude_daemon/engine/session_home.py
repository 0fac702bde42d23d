"""Where a session lives on the disk: a configuration directory of its own with its transcript, and one to work in.

Nothing here trusts what is in them: the session's own tools have written there.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from io import FileIO
from pathlib import Path
from typing import Final

from claude_daemon.engine.removal import remove_tree

_CHUNK: Final = 1024 * 1024
_PART: Final = "config.part"
_CONVERSATIONS: Final = "projects"


class Home:
    """``directory`` is the session's own, and of no other. All of it blocks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.config = directory / "config"
        self.work = directory / "work"

    def make(self) -> None:
        """Ready for a process to begin, while there is none. Of the configuration the conversations alone are kept:
        what else a command of an earlier turn has written there would be settings of the next one, its way to the model
        included. Raises OSError."""
        for path in (self.directory, self.config):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self.config.iterdir():
            if path.name == _CONVERSATIONS and stat.S_ISDIR(path.lstat().st_mode):
                continue
            if not remove_tree(path):
                path.unlink()

    def transcript(self, name: str) -> Path | None:
        """The file that holds the conversation of this name (``projects/<cwd>/<name>.jsonl``), if there is one."""
        return next((path for path in self.config.glob(f"{_CONVERSATIONS}/*/{name}.jsonl") if _is_file(path)), None)

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
    """Files and directories; symlinks as they are, and nothing that is neither. Raises OSError.

    ``shutil.copytree`` is for directories of one's own making: it raises RecursionError at a thousand levels, and fills
    the disk with the zeros of holes, which took none of it.
    """
    beneath, directories = [(source, to)], []
    while beneath:
        directory, copy = beneath.pop()
        copy.mkdir(mode=0o700)
        directories.append((directory, copy))
        with os.scandir(directory) as entries:
            for entry in entries:
                path, its_copy = Path(entry.path), copy / entry.name
                if entry.is_symlink():
                    its_copy.symlink_to(path.readlink())
                elif entry.is_dir(follow_symlinks=False):
                    beneath.append((path, its_copy))
                elif entry.is_file(follow_symlinks=False):
                    _copy_file(path, its_copy)
    for directory, copy in reversed(directories):  # last: one that nobody may write into is written until then
        shutil.copystat(directory, copy)


def _copy_file(source: Path, to: Path) -> None:
    with _opened(source) as file, to.open("xb") as copy:
        descriptor = file.fileno()
        size, at = os.fstat(descriptor).st_size, 0
        while at < size and (at := _next_data(descriptor, at, size)) < size:
            hole = os.lseek(descriptor, at, os.SEEK_HOLE)
            os.lseek(descriptor, at, os.SEEK_SET)
            copy.seek(at)
            while at < hole and (chunk := file.read(min(_CHUNK, hole - at))):
                at += copy.write(chunk)
            at = max(at, hole)  # shorter than it was a moment ago
        copy.truncate(size)
    shutil.copystat(source, to)


def _next_data(descriptor: int, at: int, size: int) -> int:
    """Where something stands from ``at`` on; ``size`` where nothing does. Raises OSError."""
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise


def _opened(path: Path) -> FileIO:
    """For reading. Never waits, whatever the path has become meanwhile. Raises OSError."""
    return FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _contains(path: Path, word: bytes) -> bool:
    """Raises OSError."""
    with _opened(path) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return False
        tail = b""
        while chunk := file.read(_CHUNK):
            if word in tail + chunk:
                return True
            tail = chunk[-len(word) :]
    return False
