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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from claude_daemon.engine.sandbox import NotBeneath, Place, open_file_beneath

PATHS: Final = {"Edit": "file_path", "Write": "file_path", "NotebookEdit": "notebook_path"}
"""The input that names the file, by tool."""
MAX_FILES: Final = 256
"""Files of one task that are remembered."""
MAX_FILE_BYTES: Final = 1024 * 1024
"""A larger file is no source text."""
MAX_HELD_BYTES: Final = 16 * 1024 * 1024
MAX_DIFF_BYTES: Final = 256 * 1024
MAX_COMPARED: Final = 4_000_000
"""Pairs of lines that are compared for one diff, from the first that differs to the last: with more a comparison could
take hours. What is beyond is told as all the old and all the new lines: 2,000 lines have changed throughout."""
_CONTEXT: Final = 3
_CUT: Final = "\n[cut here: the whole diff is longer]\n"


class Untold:
    """In the place of a text that there is, and that is not told."""


UNTOLD: Final = Untold()


class Changes:
    """``places``: the task's directories, open for as long as this is used."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._before: dict[str, str | Untold | None] = {}
        self._held = 0

    async def before(self, tool: str, given: Mapping[str, Any]) -> None:
        """Before a call is allowed: remembers the file that it may change."""
        path = given.get(PATHS.get(tool, ""))
        if not isinstance(path, str) or path in self._before or len(self._before) >= MAX_FILES:
            return
        text = await asyncio.to_thread(self._read, path)
        if isinstance(text, str):
            self._held += len(text)
            text = text if self._held <= MAX_HELD_BYTES else UNTOLD
        self._before[path] = text

    async def diff(self) -> str | None:
        """None where nothing is known to have changed."""
        return await asyncio.to_thread(self._diff) if self._before else None

    def _diff(self) -> str | None:
        told, compared = bytearray(), 0
        for path, before in sorted(self._before.items()):
            after = self._read(path)
            if before == after and before is not UNTOLD:
                continue
            if before is UNTOLD or after is UNTOLD:
                told += f"[{self._name(path)} is too large to be compared]\n".encode()
                continue
            assert not isinstance(before, Untold) and not isinstance(after, Untold)
            old, new = _lines(before), _lines(after)
            matcher, pairs = _compared(old, new, MAX_COMPARED - compared)
            compared += pairs
            name = self._name(path)
            heads = "/dev/null" if before is None else f"a/{name}", "/dev/null" if after is None else f"b/{name}"
            for line in _unified(heads, old, new, matcher):
                told += (line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n").encode()
                if len(told) > MAX_DIFF_BYTES:
                    return told[:MAX_DIFF_BYTES].decode(errors="ignore") + _CUT
        return told.decode() or None

    def _name(self, path: str) -> str:
        cwd = self._places[0].path
        return str(Path(path).relative_to(cwd)) if Path(path).is_relative_to(cwd) else path.lstrip("/")

    def _read(self, path: str) -> str | Untold | None:
        """The text of a file in one of the directories; None where there is none."""
        for place in self._places:
            if not Path(path).is_relative_to(place.path):
                continue
            try:
                fd = open_file_beneath(place, str(Path(path).relative_to(place.path)))
            except (NotBeneath, OSError):
                return None
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    return None
                with os.fdopen(fd, "rb", closefd=False) as file:
                    content = file.read(MAX_FILE_BYTES + 1)
            except OSError:
                return None
            finally:
                os.close(fd)
            return content.decode(errors="replace") if len(content) <= MAX_FILE_BYTES else UNTOLD
        return None


def _compared(old: Sequence[str], new: Sequence[str], most: int) -> tuple[difflib.SequenceMatcher[str], int]:
    """What the lines have in common, and how many pairs were compared for it: at most so many."""
    shorter = min(len(old), len(new))
    head = next((n for n in range(shorter) if old[n] != new[n]), shorter)
    tail = next((n for n in range(shorter - head) if old[-1 - n] != new[-1 - n]), shorter - head)
    within_old, within_new = old[head : len(old) - tail], new[head : len(new) - tail]
    pairs = len(within_old) * len(within_new)
    if pairs <= most:
        within = difflib.SequenceMatcher(None, within_old, within_new).get_opcodes()
    else:
        within, pairs = [("replace", 0, len(within_old), 0, len(within_new))], 0
    matcher = difflib.SequenceMatcher(None, "", "")
    matcher.opcodes = [  # type: ignore[attr-defined]
        *([("equal", 0, head, 0, head)] if head else []),
        *((tag, a + head, b + head, c + head, d + head) for tag, a, b, c, d in within),
        *([("equal", len(old) - tail, len(old), len(new) - tail, len(new))] if tail else []),
    ]
    return matcher, pairs


def _unified(
    heads: tuple[str, str], old: Sequence[str], new: Sequence[str], matcher: difflib.SequenceMatcher[str]
) -> Iterator[str]:
    """As :func:`difflib.unified_diff` has it, of what is compared already."""
    yield from (f"--- {heads[0]}\n", f"+++ {heads[1]}\n")
    for group in matcher.get_grouped_opcodes(_CONTEXT):
        (_, a, _, c, _), (_, _, b, _, d) = group[0], group[-1]
        yield f"@@ -{_range(a, b)} +{_range(c, d)} @@\n"
        for tag, a, b, c, d in group:
            if tag == "equal":
                yield from (f" {line}" for line in old[a:b])
            else:
                yield from (f"-{line}" for line in old[a:b])
                yield from (f"+{line}" for line in new[c:d])


def _range(start: int, stop: int) -> str:
    length = stop - start
    first = start + 1 if length else start
    return str(first) if length == 1 else f"{first},{length}"


def _lines(text: str | None) -> list[str]:
    return (text or "").splitlines(keepends=True)
