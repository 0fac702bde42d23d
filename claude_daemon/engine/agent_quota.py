"""How much an agent may keep in a directory of its own; pure but for looking."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

EVERY_S: Final = 2.0
"""How often it is looked: a disk writes some gigabytes meanwhile, so a quota is no reserve."""
_BLOCK_BYTES: Final = 512  # what st_blocks counts in, on every system
_ENTRY_BYTES: Final = 1024
"""What an entry counts besides: an inode is not free, however small the file."""


def larger_than(most_bytes: int, *directories: Path) -> bool:
    """Whether what lies beneath them takes more than this on the disk, all together. Follows no symlink; what cannot be
    read is passed over, and so is what goes meanwhile."""
    used, beneath = 0, [os.fspath(directory) for directory in directories]
    while beneath:
        with suppress(OSError), os.scandir(beneath.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    used += entry.stat(follow_symlinks=False).st_blocks * _BLOCK_BYTES + _ENTRY_BYTES
                    if entry.is_dir(follow_symlinks=False):
                        beneath.append(entry.path)
                if used > most_bytes:
                    return True
    return False
