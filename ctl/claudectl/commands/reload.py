"""``claudectl reload``."""

from __future__ import annotations

from collections.abc import Iterator

import click

from claudectl.options import Command, Options
from claudectl.render import Document, Paint, documents, mapping, plain, table, texts


@click.command(cls=Command, name="reload")
@click.pass_obj
def command(options: Options) -> None:
    """Read the configuration again and bring it into force.

    All of it is checked first: a bad file changes nothing, and every fault is named. What only a restart brings
    into force is named too.

    \b
    Examples:
      claudectl reload
      claudectl reload --json | jq -r '.needs_restart[]'
    """
    options.show(options.client().post("reload", {}), _reloaded)


def _reloaded(document: Document, paint: Paint) -> str:
    return "\n".join(_lines(document, paint))


def _lines(document: Document, paint: Paint) -> Iterator[str]:
    rows = [_row(change) for change in documents(document.get("changed"))]
    yield table(_HEADER, rows, paint, right=frozenset()) if rows else "nothing has changed"
    if waiting := texts(document.get("needs_restart")):
        yield f"in force after a restart: {', '.join(waiting)}"
    config = mapping(document.get("config"))
    if "hash" in config:
        yield f"configuration {plain(config['hash'])}"


_HEADER = ("KEY", "OLD", "", "NEW")


def _row(change: Document) -> list[str]:
    return [plain(change.get("key")), plain(change.get("old")), "→", plain(change.get("new"))]
