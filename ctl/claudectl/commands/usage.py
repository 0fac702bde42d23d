"""``claudectl usage``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from urllib.parse import urlencode

import click

from claudectl.figures import count
from claudectl.options import Command, Options
from claudectl.render import Document, Paint, documents, mapping, plain, table

# The daemon tells no more.
MAX_DAYS = 366
BAR_WIDTH = 24
"""Columns: beside the numbers it fits on a terminal of 120."""
_EIGHTHS = " ▏▎▍▌▋▊▉"


@click.command(cls=Command, name="usage")
@click.option(
    "--by", type=click.Choice(("key", "model", "day")), default="day", help="A line for each; day without it."
)
@click.option("--days", type=click.IntRange(1, MAX_DAYS), metavar="N", help="The last N days, today included; 7.")
@click.pass_obj
def command(options: Options, by: str, days: int | None) -> None:
    """Show what was used and what it cost, and how the budgets stand.

    COST is metered usage at the prices in force; a + behind it says that some of it has no price. CHARGED is what
    counts against budgets: where a cost cannot be told, what was set aside for it.

    \b
    Examples:
      claudectl usage
      claudectl usage --by key --days 30
      claudectl usage --json | jq .total.cost_usd
    """
    query = {"by": by, **({} if days is None else {"days": str(days)})}
    _, document = options.client().get(f"usage?{urlencode(query)}")
    options.show(document, _usage)


def _usage(document: Document, paint: Paint) -> str:
    rows = documents(document.get("data"))
    by = plain(document.get("by"))
    parts = [f"{plain(document.get('since'))} to {plain(document.get('until'))} ({plain(document.get('timezone'))})"]
    parts.append(_table(by, rows, mapping(document.get("total")), paint) if rows else "nothing was used")
    parts += list(_budgets(documents(document.get("budgets"))))
    return "\n".join(parts)


def _table(by: str, rows: list[Document], total: Document, paint: Paint) -> str:
    header = [by.upper(), "TASKS", "CALLS", "INPUT", "CACHED", "OUTPUT", "COST", "CHARGED"]
    cells = [[_name(row, by), *_numbers(row)] for row in rows]
    cells.append(["total", *_numbers(total)])
    right = frozenset(header[1:])
    if sys.stdout.isatty():
        header.append("")
        most = max((_number(row.get("charged_usd")) for row in rows), default=0.0)
        for row, told in zip(rows, cells, strict=False):
            told.append(bar(_number(row.get("charged_usd")), most))
        cells[-1].append("")
    return table(header, cells, paint, right=right)


def _name(row: Document, by: str) -> str:
    if by == "key":
        return plain(row.get("name") or row.get("key_id"))
    return plain(row.get(by))


def _numbers(row: Document) -> list[str]:
    written, read = _number(row.get("cache_creation_input_tokens")), _number(row.get("cache_read_input_tokens"))
    return [
        *(count(row.get(name)) for name in ("tasks", "model_calls", "input_tokens")),
        count(written + read),
        count(row.get("output_tokens")),
        dollars(row.get("cost_usd")) + ("+" if row.get("unpriced") else ""),
        dollars(row.get("charged_usd")),
    ]


def _budgets(budgets: list[Document]) -> Iterator[str]:
    for budget in budgets:
        for span in ("day", "month"):
            told = mapping(budget.get(span))
            if told.get("limit_usd") is None:
                continue
            whose = plain(budget.get("purse")) if not budget.get("name") else f"{budget['purse']} {budget['name']}"
            spent, most = _number(told.get("spent_usd")), _number(told["limit_usd"])
            share = f"{100 * spent / most:.0f} %" if most else "nothing allowed"
            line = f"budget of {plain(whose)}, {span}: {dollars(spent)} of {dollars(most)} USD ({share})"
            reserved = _number(budget.get("reserved_usd"))
            yield line + (f", {dollars(reserved)} set aside" if reserved else "")


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def dollars(value: object) -> str:
    """Two digits, and as many more as a small sum needs.

    >>> [dollars(n) for n in (0, 12.5, 0.0312, 0.000001, None)]
    ['0.00', '12.50', '0.0312', '0.000001', '-']
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return "-"
    if value == 0 or value >= 0.1:
        return f"{value:.2f}"
    return f"{value:.6f}".rstrip("0")


def bar(value: float, most: float, width: int = BAR_WIDTH) -> str:
    """A bar in eighths of a column; what is more than nothing shows.

    >>> [bar(n, 8.0, 2) for n in (0.0, 0.1, 4.0, 6.0, 8.0)]
    ['', '▏', '█', '█▌', '██']
    """
    if most <= 0 or value <= 0:
        return ""
    eighths = max(1, round(8 * width * value / most))
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()
