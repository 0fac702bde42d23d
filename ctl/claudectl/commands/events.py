"""``claudectl events``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click

from claudectl import moment
from claudectl.options import Command, Options
from claudectl.render import Document, mapping, plain
from claudectl.watching import watch


@click.command(cls=Command, name="events")
@click.pass_obj
def command(options: Options) -> None:
    """Print what happens in the daemon as it happens: its states, tasks that end, workers that come and go.

    Ends with 0 when the daemon stops. Nothing is told of what was before (claudectl logs, claudectl audit).
    Who reads too slowly loses the oldest, and events.lost says how many.

    \b
    Examples:
      claudectl events
      claudectl events --json | jq -c 'select(.type == "task.settled" and .data.state == "failed")'
    """
    for line in watch(options.client(), "events"):
        if options.json:
            sys.stdout.buffer.write(line.raw + b"\n")
            sys.stdout.buffer.flush()
        else:
            click.echo("  ".join(_words(line.document)))


def _words(line: Document) -> Iterator[str]:
    yield moment.clock(line.get("at")) or "-"
    yield plain(line.get("type"))
    for name, value in mapping(line.get("data")).items():
        if value not in (None, ""):
            yield f"{plain(name)}={plain(value)}"
