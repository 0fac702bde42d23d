"""What an agent changed with its file tools, as one unified diff.

Each file is read before the first call that may change it, and once more at the end. It is read through the descriptors
of the task's own directories, so nothing else can come into a diff. What a command changed is not known, unless a file
tool has touched the file too.
"""

from __future__ import annotations

import asyncio
import difflib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from claude_daemon.engine.sandbox import NotBeneath, Place, open_file_beneath

PATHS: Final = {"Edit": "file_path", "Write": "file_path", "NotebookEdit": "notebook_path"}
"""The input that names the file, by tool."""
MAX_FILES: Final = 256
"""Files of one task that are remembered."""
MAX_FILE_BYTES: Final = 1024 * 1024
"""A larger file is no source text, and comparing takes time that grows faster than it."""
MAX_HELD_BYTES: Final = 16 * 1024 * 1024
MAX_DIFF_BYTES: Final = 256 * 1024
_CUT: Final = "\n[cut here: the whole diff is longer]\n"


class Changes:
    """``places``: the task's directories, open for as long as this is used."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._before: dict[str, str | None] = {}
        self._held = 0

    async def before(self, tool: str, given: Mapping[str, Any]) -> None:
        """Before a call is allowed: remembers the file that it may change."""
        path = given.get(PATHS.get(tool, ""))
        if not isinstance(path, str) or path in self._before or len(self._before) >= MAX_FILES:
            return
        text = await asyncio.to_thread(self._read, path)
        self._held += len(text or "")
        if self._held <= MAX_HELD_BYTES:
            self._before[path] = text

    async def diff(self) -> str | None:
        """None where nothing is known to have changed."""
        return await asyncio.to_thread(self._diff) if self._before else None

    def _diff(self) -> str | None:
        told = "".join(self._of(path, before) for path, before in sorted(self._before.items()))
        if len(told.encode()) <= MAX_DIFF_BYTES:
            return told or None
        return told.encode()[:MAX_DIFF_BYTES].decode(errors="ignore") + _CUT

    def _of(self, path: str, before: str | None) -> str:
        after = self._read(path)
        if before == after:
            return ""
        name = self._name(path)
        lines = difflib.unified_diff(
            _lines(before),
            _lines(after),
            "/dev/null" if before is None else f"a/{name}",
            "/dev/null" if after is None else f"b/{name}",
        )
        return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)

    def _name(self, path: str) -> str:
        cwd = self._places[0].path
        return str(Path(path).relative_to(cwd)) if Path(path).is_relative_to(cwd) else path.lstrip("/")

    def _read(self, path: str) -> str | None:
        """The text of a file in one of the directories; None where there is none, or none that can be told."""
        for place in self._places:
            if not Path(path).is_relative_to(place.path):
                continue
            try:
                fd = open_file_beneath(place, str(Path(path).relative_to(place.path)))
            except (NotBeneath, OSError):
                return None
            with os.fdopen(fd, "rb") as file:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    return None
                content = file.read(MAX_FILE_BYTES + 1)
            return content.decode(errors="replace") if len(content) <= MAX_FILE_BYTES else None
        return None


def _lines(text: str | None) -> list[str]:
    return (text or "").splitlines(keepends=True)
