"""``claudectl log-level``."""

from __future__ import annotations

import click

from claudectl.options import Command, Options
from claudectl.render import Document, Paint, mapping, plain, table

LEVELS = ("debug", "info", "warning", "error", "critical")
# The daemon's name for the one that all others inherit from.
ROOT = ""


@click.command(cls=Command, name="log-level")
@click.argument("level", type=click.Choice(LEVELS), required=False)
@click.option("--logger", metavar="NAME", help="Only this logger and those below it.")
@click.option("--reset", is_flag=True, help="Give the logger back to its parent.")
@click.pass_obj
def command(options: Options, level: str | None, logger: str | None, reset: bool) -> None:
    """Show the log levels, or set one.

    Holds until the next restart or reload, which bring back what is configured.

    \b
    Examples:
      claudectl log-level
      claudectl log-level debug --logger claude_daemon.engine
      claudectl log-level --reset --logger claude_daemon.engine
    """
    if reset and (level is not None or not logger):
        raise click.UsageError("--reset needs --logger NAME, and no level (all back as configured: claudectl reload)")
    if logger is not None and level is None and not reset:
        raise click.UsageError("--logger needs a level or --reset")
    client = options.client()
    if level is None and not reset:
        _, document = client.get("log-level")
    else:
        document = client.post("log-level", {"level": level, "logger": logger or ROOT})
    options.show(document, _levels)


def _levels(document: Document, paint: Paint) -> str:
    levels = mapping(document.get("levels"))
    rows = [[plain(name) if name != ROOT else "(all)", plain(level)] for name, level in sorted(levels.items())]
    return table(("LOGGER", "LEVEL"), rows, paint, right=frozenset())
