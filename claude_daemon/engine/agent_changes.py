"""What an agent changed with its file tools, as one unified diff.

Each file is read before the first call that may change it, and once more at the end. It is read through the descriptors
of the task's own directories, so nothing else can come into a diff. What a command changed is not known, unless a file
tool has touched the file too.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import json
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

    def reaches(self, tool: str, given: Mapping[str, Any]) -> bool:
        """Whether the file that the call may change is named as one in the task's directories."""
        path = given.get(PATHS.get(tool, ""))
        return isinstance(path, str) and any(_beneath(os.path.normpath(path), place) for place in self._places)

    async def proposed(self, tool: str, given: Mapping[str, Any]) -> str | None:
        """What the call would change in its file as that is now; None where that cannot be told."""
        return await asyncio.to_thread(self._proposed, tool, given) if self.reaches(tool, given) else None

    def _proposed(self, tool: str, given: Mapping[str, Any]) -> str | None:
        path = given[PATHS[tool]]
        before = self._read(path)
        if before is UNTOLD:
            return f"[{self._name(path)} is too large to be compared]\n"
        assert not isinstance(before, Untold)
        texts = _would_be(tool, before, given)
        told = _Told()
        if texts is not None and texts[0] != texts[1]:
            told.add(self._name(path), *texts)
        return told.text

    def _diff(self) -> str | None:
        told = _Told()
        for path, before in sorted(self._before.items()):
            after = self._read(path)
            if before == after and before is not UNTOLD:
                continue
            if isinstance(before, Untold) or isinstance(after, Untold):
                told.remark(f"[{self._name(path)} is too large to be compared]\n")
            else:
                told.add(self._name(path), before, after)
            if told.full:
                break
        return told.text

    def _name(self, path: str) -> str:
        cwd = self._places[0].path
        return str(Path(path).relative_to(cwd)) if Path(path).is_relative_to(cwd) else path.lstrip("/")

    def _read(self, path: str) -> str | Untold | None:
        """The text of a file in one of the directories; None where there is none."""
        for place in self._places:
            if not _beneath(path, place):
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


class _Told:
    """A diff as it grows; ``full`` once no more of it is told."""

    def __init__(self) -> None:
        self._told = bytearray()
        self._compared = 0
        self.full = False

    @property
    def text(self) -> str | None:
        """None where nothing is told."""
        if self.full:
            return self._told[:MAX_DIFF_BYTES].decode(errors="ignore") + _CUT
        return self._told.decode() or None

    def remark(self, line: str) -> None:
        self._told += line.encode()
        self.full = len(self._told) > MAX_DIFF_BYTES

    def add(self, name: str, before: str | None, after: str | None) -> None:
        """One file; None: there is none."""
        old, new = _lines(before), _lines(after)
        matcher, pairs = _compared(old, new, MAX_COMPARED - self._compared)
        self._compared += pairs
        heads = "/dev/null" if before is None else f"a/{name}", "/dev/null" if after is None else f"b/{name}"
        for line in _unified(heads, old, new, matcher):
            self.remark(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n")
            if self.full:
                return


def _beneath(path: str, place: Place) -> bool:
    return Path(path).is_relative_to(place.path)


def _would_be(tool: str, before: str | None, given: Mapping[str, Any]) -> tuple[str | None, str | None] | None:
    """The text before and after the call, of a notebook that of one cell; None where the tool would fail, or does more
    than is known of it."""
    if tool == "Write":
        content = given.get("content")
        return (before, content) if isinstance(content, str) else None
    if tool == "Edit":
        return _edited(before, given)
    return None if before is None else _cell_edited(before, given)


def _edited(before: str | None, given: Mapping[str, Any]) -> tuple[str | None, str] | None:
    old, new = given.get("old_string"), given.get("new_string")
    if not isinstance(old, str) or not isinstance(new, str):
        return None
    if not old:  # makes a file, or fills an empty one
        return (before, new) if not before else None
    text = (before or "").replace("\r\n", "\n")  # as Claude Code reads it
    found = text.count(old)
    every = given.get("replace_all") is True
    return (text, text.replace(old, new)) if found == 1 or (found and every) else None


def _cell_edited(before: str, given: Mapping[str, Any]) -> tuple[str, str] | None:
    """A new cell has nothing before it, one that is deleted nothing after it."""
    mode, new = given.get("edit_mode") or "replace", given.get("new_source")
    if mode == "insert":
        return ("", new) if isinstance(new, str) else None
    wanted = given.get("cell_id")
    with contextlib.suppress(ValueError, TypeError, AttributeError, KeyError, RecursionError):
        for number, cell in enumerate(json.loads(before)["cells"]):
            if wanted in (cell.get("id"), f"cell-{number}"):
                source = cell["source"]
                old = source if isinstance(source, str) else "".join(source)
                return old, "" if mode == "delete" else str(new or "")
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
    """A form feed or a lone carriage return ends no line of a diff, as ``splitlines`` would have it."""
    *whole, rest = (text or "").split("\n")
    return [f"{line}\n" for line in whole] + ([rest] if rest else [])
