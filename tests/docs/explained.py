"""What ``etc/config.toml`` says of every key: its comments, read as the prose that they are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_HEADER = re.compile(r"\[+([^\]]+)\]+")
_KEY = re.compile(r"#([a-z_]+) = .*")


@dataclass(slots=True)
class Section:
    """A table of the file: ``prose`` stands before it; ``keys`` in their order, those that share a comment share it.

    ``example``: of a table of names, one of them.
    """

    name: str
    prose: str = ""
    keys: dict[str, str] = field(default_factory=dict)
    example: str = ""


def sections(text: str) -> dict[str, Section]:
    """By name; a table of names (``[mcp.tickets]``) by what comes before the name."""
    found: dict[str, Section] = {}
    current: Section | None = None
    for block in re.split(r"\n\s*\n", text)[1:]:
        lines = block.strip("\n").split("\n")
        if "#" in lines:
            at = lines.index("#")
            for paragraph in _paragraphs(lines):
                if _HEADER.match(paragraph[0]):
                    section = _example(paragraph, _text(lines[:at]))
                    known = found.setdefault(section.name, section)
                    known.example = known.example if known is section else f"{known.example}\n\n{section.example}"
            continue
        prose: list[str] = []
        after_key = False
        for line in lines:
            if header := _HEADER.fullmatch(line):
                current = found[header[1]] = Section(header[1], _text(prose))
                prose = []
            elif key := _KEY.fullmatch(line):
                assert current is not None
                current.keys[key[1]] = _text(prose)
            elif line.startswith("# "):
                prose = [line] if after_key else [*prose, line]
            after_key = _KEY.fullmatch(line) is not None
    return found


def _paragraphs(lines: list[str]) -> Iterator[list[str]]:
    paragraph: list[str] = []
    for line in [*lines, "#"]:
        if line == "#":
            if paragraph:
                yield paragraph
            paragraph = []
        else:
            paragraph.append(line.removeprefix("# "))


def _example(lines: list[str], prose: str) -> Section:
    header = _HEADER.match(lines[0])
    assert header is not None
    name = header[1] if lines[0].startswith("[[") else header[1].rpartition(".")[0]
    return Section(name, prose, example="\n".join(lines))


def _text(lines: list[str]) -> str:
    return " ".join(line.removeprefix("# ") for line in lines)
