"""The first root of a guest: a cpio archive as Linux unpacks it (Documentation/driver-api/early-userspace)."""

from __future__ import annotations

import gzip
import stat
from collections.abc import Mapping


def initramfs(files: Mapping[str, tuple[int, bytes]]) -> bytes:
    """``files``: path without a leading slash → permissions and content; their directories come by themselves."""
    directories: dict[str, None] = {}
    for path in files:
        parts = path.split("/")
        directories |= dict.fromkeys("/".join(parts[:depth]) for depth in range(1, len(parts)))
    entries = [(path, stat.S_IFDIR | 0o755, b"") for path in directories]
    entries += [(path, stat.S_IFREG | mode, content) for path, (mode, content) in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    return gzip.compress(b"".join(_entry(number, *entry) for number, entry in enumerate(entries, 1)), compresslevel=1)


def _entry(number: int, path: str, mode: int, content: bytes) -> bytes:
    name = path.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device of the file and of what it stands for, length of the name, sum
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
    return _padded(b"070701" + b"".join(b"%08X" % field for field in fields) + name) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)
