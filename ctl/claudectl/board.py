"""What the daemon is doing now, as a picture: ``claudectl top``. Imports rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.table import Table
from rich.text import Text

from claudectl import moment, statustext
from claudectl.figures import brief, count
from claudectl.render import COLOURS, DOUBTFUL, Document, documents, known, mapping, plain
from claudectl.screen import HEADING, QUIET, Marks, head

FOOTER: Final = "q quits"
EDGE_LINES: Final = 5
"""The first, those of turns and checks, and an empty one above the last."""
HEADING_LINES: Final = 3
"""Of each table: an empty line, its heading, the names of its columns."""
HAPPENINGS: Final = 8
"""Lines of what happened last, where there is room for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """``wide``: shown only on terminals of at least so many columns."""

    name: str
    cell: Callable[[Document], str]
    wide: int = 0
    right: bool = False
    coloured: bool = False


TASKS: Final = (
    Column(name="AGE", cell=lambda task: brief(task.get("age_seconds")), right=True),
    Column(name="LANE", cell=lambda task: plain(task.get("lane"))),
    Column(name="KIND", cell=lambda task: plain(task.get("kind")), wide=90),
    Column(name="MODEL", cell=lambda task: plain(task.get("model")), wide=130),
    Column(name="KEY", cell=lambda task: plain(task.get("key_id")), wide=110),
    Column(name="START", cell=lambda task: known(task.get("start"))),
    Column(name="WAITED", cell=lambda task: brief(task.get("waited_seconds")), wide=100, right=True),
    Column(name="FIRST", cell=lambda task: brief(task.get("first_delta_seconds")), right=True),
    Column(name="IN", cell=lambda task: count(task.get("input_tokens")), right=True),
    Column(name="OUT", cell=lambda task: count(task.get("output_tokens")), right=True),
    Column(name="WORKER", cell=lambda task: known(task.get("worker_id")), wide=160),
    Column(name="TASK", cell=lambda task: plain(task.get("id"))),
)
WORKERS: Final = (
    Column(name="STATE", cell=lambda worker: plain(worker.get("state")), coloured=True),
    Column(name="LANE", cell=lambda worker: plain(worker.get("lane"))),
    Column(name="TURNS", cell=lambda worker: plain(worker.get("turns")), right=True),
    Column(name="AGE", cell=lambda worker: brief(worker.get("age_seconds")), right=True),
    Column(name="RSS MB", cell=lambda worker: plain(worker.get("rss_mb")), wide=80, right=True),
    Column(name="PID", cell=lambda worker: known(worker.get("pid")), wide=90, right=True),
    Column(name="MODEL", cell=lambda worker: known(worker.get("model")), wide=130),
    Column(name="WORKER", cell=lambda worker: plain(worker.get("id"))),
    Column(name="TASK", cell=lambda worker: known(worker.get("task_id")), wide=150),
)


class Board:
    """One picture: ``line`` is a snapshot as the daemon told it, ``happenings`` what came before it, the last one last.

    ``live``: it is as high as the terminal, what does not fit is counted, and how to leave is said.
    """

    def __init__(self, line: Document, happenings: Sequence[Document] = (), *, live: bool = False) -> None:
        self._at = line.get("at")
        self._snapshot = mapping(line.get("data"))
        self._status = mapping(self._snapshot.get("status"))
        self._happenings = happenings
        self._live = live

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        marks = Marks.of(options)
        width = options.max_width
        yield self._title(marks, width)
        yield self._turns(marks)
        lately = lines_of(self._lately(), width)
        yield from (Text(line, no_wrap=True, overflow="ellipsis") for line in lately)
        yield _checks(self._status, marks)
        tasks, workers = documents(self._snapshot.get("tasks")), documents(self._snapshot.get("workers"))
        more = self._snapshot.get("more")
        untold = more if isinstance(more, int) else 0
        room = max(2, console.size.height - EDGE_LINES - len(lately) - 2 * HEADING_LINES)
        rooms = shares(len(tasks), len(workers), room) if self._live else (len(tasks), len(workers))
        yield from _listed(f"Tasks that run: {len(tasks) + untold}", TASKS, tasks, rooms[0], untold, width)
        yield from _listed(f"Workers: {len(workers)}", WORKERS, workers, rooms[1], 0, width)
        if self._live:
            yield from self._last(room - sum(rooms) - 2)
            yield Text()
            yield Text(FOOTER, style=QUIET, no_wrap=True)

    def _title(self, marks: Marks, width: int) -> Text:
        title = head(self._status, marks)
        at = moment.clock(self._at)
        title.truncate(max(0, width - len(at) - 1), overflow="ellipsis", pad=True)
        return Text.assemble(title, " ", (at, QUIET), no_wrap=True)

    def _turns(self, marks: Marks) -> Text:
        share = statustext.turns(self._status)
        taken = f"  {share.part} of {share.most} turns" if share is not None else ""
        bar = marks.bar(share) if share is not None else Text()
        queue = {name: told for name, told in mapping(self._status.get("queue")).items() if name != "running"}
        told = Text.assemble(bar, taken, "   ", statustext.queue(queue), no_wrap=True, overflow="ellipsis")
        if queue.get("paused"):
            told.stylize(DOUBTFUL, len(told) - len("paused"))
        return told

    def _lately(self) -> list[str]:
        recent, events = mapping(self._snapshot.get("recent")), mapping(self._snapshot.get("events"))
        ended = f"{plain(recent.get('ended'))} ended"
        parts = [f"last {brief(recent.get('seconds'))}: {ended}"]
        parts += [f"{plain(recent[name])} {name}" for name in ("failed", "cancelled") if recent.get(name)]
        for key, name in (("first_delta_seconds", "first delta"), ("turn_seconds", "turn"), ("waited_seconds", "wait")):
            if spread := mapping(recent.get(key)):
                parts.append(f"{name} {brief(spread.get('p50'))} / {brief(spread.get('p95'))}")
        parts.append(f"{count(recent.get('output_tokens'))} tokens")
        parts.append(f"{count(events.get('per_second'))} events/s")
        return parts

    def _last(self, room: int) -> Iterator[Text]:
        shown = list(self._happenings)[-min(HAPPENINGS, room) :] if room > 0 else []
        if shown:
            yield Text()
            yield Text("What happened last", style=HEADING)
        for line in shown:
            yield happening(line)


def lines_of(parts: Sequence[str], width: int) -> list[str]:
    """Parts beside each other, as many as fit on a line; none is torn.

    >>> lines_of(["12 ended", "3 failed", "40 events/s"], 20)
    ['12 ended · 3 failed', '40 events/s']
    """
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return lines


def _checks(status: Document, marks: Marks) -> Text:
    """Those that do not pass."""
    bad = [check for check in statustext.checks(status) if check.status != "pass"]
    told = Text(no_wrap=True, overflow="ellipsis")
    for check in bad:
        told.append_text(Text.assemble("  " if told else "", marks.check(check.status), f" {check.name}"))
        told.append(f": {check.reason}" if check.reason else "")
    return told if bad else Text.assemble(marks.check("pass"), " all checks pass")


def shares(tasks: int, workers: int, room: int) -> tuple[int, int]:
    """How many rows each table gets: what it needs, and of too little neither less than half, if it needs that.

    >>> shares(3, 5, 20), shares(30, 5, 20), shares(30, 30, 20), shares(2, 30, 20)
    ((3, 5), (15, 5), (10, 10), (2, 18))
    """
    if tasks + workers <= room:
        return tasks, workers
    half = room // 2
    first = min(tasks, max(half, room - workers))
    return first, min(workers, room - first)


def _listed(
    heading: str, columns: Sequence[Column], rows: Sequence[Document], room: int, untold: int, width: int
) -> Iterator[Text | Table]:
    left = max(0, len(rows) - room) + untold
    yield Text()
    yield Text.assemble((heading, HEADING), (f"  ({left} not shown)" if left else "", QUIET))
    if not rows:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style=QUIET)
    chosen = [column for column in columns if column.wide <= width]
    for column in chosen:
        justify: JustifyMethod = "right" if column.right else "left"
        table.add_column(column.name, justify=justify, no_wrap=True, overflow="ellipsis")
    for row in rows[:room]:
        cells = [(column, column.cell(row)) for column in chosen]
        table.add_row(*(Text(cell, style=COLOURS.get(cell, "") if column.coloured else "") for column, cell in cells))
    yield table


def happening(line: Document) -> Text:
    """When, what, and with which ids."""
    at = moment.clock(line.get("at"))
    told = Text.assemble((at, QUIET), "  ", plain(line.get("type")), no_wrap=True, overflow="ellipsis")
    for name, value in mapping(line.get("data")).items():
        if value not in (None, ""):
            told.append(f"  {plain(name)}=", style=QUIET)
            told.append(plain(value), style=COLOURS.get(str(value), ""))
    return told
