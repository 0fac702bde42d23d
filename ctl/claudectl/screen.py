"""The daemon on one screen, for a terminal of any width. Imports rich, so only commands that draw import this."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import click
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from claudectl import statustext
from claudectl.render import BAD, COLOURS, DOUBTFUL, GOOD, Document, plain
from claudectl.statustext import Check, Share

USUAL_COLUMNS: Final = 80
"""Where nobody knows how wide it is: a pipe, or a terminal that says 0."""
WIDE_COLUMNS: Final = 120
"""From here on two sections fit beside each other."""
WIDEST_COLUMNS: Final = 180
"""From here on three do."""
BAR_COLUMNS: Final = 16

QUIET: Final = "dim"
HEADING: Final = "bold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """The signs that a terminal can show."""

    state: str
    good: str
    doubtful: str
    bad: str
    full: str
    empty: str

    @classmethod
    def of(cls, options: ConsoleOptions) -> Marks:
        return PLAIN_MARKS if options.ascii_only else MARKS

    def check(self, status: str) -> Text:
        sign = {"pass": self.good, "warn": self.doubtful}.get(status, self.bad)
        return Text(sign, style=COLOURS.get(status, BAD))

    def bar(self, share: Share, columns: int = BAR_COLUMNS) -> Text:
        """What is taken, of what there is; something shows as something, and only all as all."""
        if share.most <= 0:
            return Text()
        filled = min(columns, round(columns * share.part / share.most))
        if 0 < share.part < share.most:
            filled = min(max(filled, 1), columns - 1)
        style = DOUBTFUL if share.part >= share.most else GOOD
        return Text.assemble((self.full * filled, style), (self.empty * (columns - filled), QUIET))


MARKS: Final = Marks(state="●", good="✓", doubtful="!", bad="✗", full="━", empty="─")
PLAIN_MARKS: Final = Marks(state="*", good="+", doubtful="!", bad="x", full="#", empty="-")


def console() -> Console:
    """What stdout is, in colour on a terminal that has some and where nobody has asked for none."""
    return Console(
        width=None if _knows_its_width() else USUAL_COLUMNS,
        no_color=bool(os.environ.get("NO_COLOR")) or None,
        color_system="auto" if sys.stdout.isatty() else None,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=False,
    )


def show(picture: RenderableType) -> None:
    """Prints it, as :func:`console` is; the spaces that fill lines up are left out."""
    terminal = console()
    with terminal.capture() as drawn:
        terminal.print(picture)
    click.echo("\n".join(line.rstrip() for line in drawn.get().splitlines()))


def _knows_its_width() -> bool:
    if os.environ.get("COLUMNS", "").isdigit():
        return True
    try:
        return sys.stdout.isatty() and os.get_terminal_size(sys.stdout.fileno()).columns > 0
    except OSError:
        return False


class Status:
    """The document of ``status`` as a screen."""

    def __init__(self, document: Document) -> None:
        self._document = document

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        marks = Marks.of(options)
        yield head(self._document, marks)
        yield Text()
        load = facts(_load(self._document, marks))
        service = facts((name, Text(text)) for name, text in statustext.service(self._document) if text)
        parts = [section("Load", load), section("Service", service), section("Checks", _checks(self._document, marks))]
        if options.max_width >= WIDEST_COLUMNS:
            yield beside(*parts)
        elif options.max_width >= WIDE_COLUMNS:
            yield beside(Group(parts[0], Text(), parts[2]), parts[1])
        else:
            yield from _below_each_other(parts)


def head(document: Document, marks: Marks) -> Text:
    """The state, and beside it what it is the state of."""
    state = plain(document.get("state"))
    style = COLOURS.get(state, "")
    rest = " · ".join(statustext.title(document))
    return Text.assemble((f"{marks.state} {state}", f"bold {style}".strip()), "  ", rest)


def section(heading: str, content: RenderableType) -> RenderableType:
    return Group(Text(heading, style=HEADING), Padding(content, (0, 0, 0, 2)))


def facts(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """A name and what there is to say of it on each line; what does not fit goes on below."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style=QUIET, no_wrap=True)
    grid.add_column(overflow="fold")
    for name, told in rows:
        grid.add_row(name, told)
    return grid


def beside(*parts: RenderableType) -> Table:
    """Parts of equal width."""
    grid = Table.grid(padding=(0, 4, 0, 0), expand=True)
    for _ in parts:
        grid.add_column(ratio=1)
    grid.add_row(*parts)
    return grid


def _below_each_other(parts: list[RenderableType]) -> Iterator[RenderableType]:
    for number, part in enumerate(parts):
        if number:
            yield Text()
        yield part


def _load(document: Document, marks: Marks) -> Iterator[tuple[str, RenderableType]]:
    for name, text in statustext.load(document):
        if not text:
            continue
        share = statustext.turns(document) if name == "turns" else None
        told = Text(text)
        yield name, told if share is None else Text.assemble(marks.bar(share), "  ", told)


def _checks(document: Document, marks: Marks) -> RenderableType:
    """What passes without a word shares a line, so that the rest is seen."""
    found = statustext.checks(document)
    silent = [check.name for check in found if check.status == "pass" and not check.reason]
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for check in found:
        if check.name not in silent:
            grid.add_row(marks.check(check.status), _check(check))
    if silent:
        grid.add_row(marks.check("pass"), Text(" · ".join(silent)))
    return grid if found else Text("none", style=QUIET)


def _check(check: Check) -> Text:
    if not check.reason:
        return Text(check.name)
    return Text.assemble(check.name, (": ", QUIET), check.reason)
