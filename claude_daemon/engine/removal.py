"""Removes what a task has left behind, whatever that is.

``shutil.rmtree`` is for directories of one's own making: it gives up at one that its owner may not read, and holds a
descriptor and a frame for each level, so that it raises RecursionError at a thousand of them. Any task can make both.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Final

_ROUNDS: Final = 3
"""Whoever still writes there while it is removed, and is being ended, has ended by then."""
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove_tree(directory: Path) -> bool:
    """Whether it is gone, or was never there. Symlinks are removed, not followed.

    Takes as long as there are files: call it in a thread where a task has written. What cannot be removed stays.
    """
    for _ in range(_ROUNDS):
        with suppress(OSError):
            with _opened(str(directory)) as top:
                _empty(top)
            directory.rmdir()
        if not os.path.lexists(directory):
            return True
    return False


def _empty(top: int) -> None:
    """What is deeper is brought up, so that a few descriptors are enough for any depth. Raises OSError."""
    numbers = count()
    while sum([_removed(name, top, numbers) for name in _names(top)]):
        pass


def _removed(name: str, top: int, numbers: Iterator[int]) -> bool:
    """Whether anything of it is gone, or less deep."""
    if _unlinked(name, top):
        return True
    moved = False
    with suppress(OSError):
        with _opened(name, top) as below:
            for inner in _names(below):
                moved = _unlinked(inner, below) or _brought_up(inner, below, top, numbers) or moved
        os.rmdir(name, dir_fd=top)
        return True
    return moved


def _unlinked(name: str, directory: int) -> bool:
    with suppress(OSError):
        os.unlink(name, dir_fd=directory)
        return True
    return False


def _brought_up(name: str, directory: int, top: int, numbers: Iterator[int]) -> bool:
    with suppress(OSError):
        _grant(name, directory)  # a directory that moves is written: it names the one above it
        os.rename(name, f".removed-{next(numbers)}", src_dir_fd=directory, dst_dir_fd=top)
        return True
    return False


def _names(directory: int) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            yield entry.name


@contextmanager
def _opened(name: str, directory: int | None = None) -> Iterator[int]:
    """Raises OSError, for what is no directory too."""
    _grant(name, directory)
    fd = os.open(name, _OPEN, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def _grant(name: str, directory: int | None) -> None:
    """Its owner may read, write and enter the directory. Raises OSError."""
    mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    if not stat.S_ISDIR(mode):
        raise NotADirectoryError(name)
    if mode & stat.S_IRWXU != stat.S_IRWXU:
        os.chmod(name, stat.S_IRWXU, dir_fd=directory)
