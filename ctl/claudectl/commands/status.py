"""``claudectl status``."""

from __future__ import annotations

import click

from claudectl.options import Command, Options


@click.command(cls=Command, name="status")
@click.pass_obj
def command(options: Options) -> None:
    """Show the whole daemon on one screen: what it does, what it is, and how it is.

    As wide as the terminal, or as COLUMNS says; colours only on a terminal, and none with NO_COLOR.

    \b
    Examples:
      claudectl status
      claudectl status --json | jq .workers
      watch claudectl status
    """
    _, document = options.client().get("status")
    if options.json:
        options.show_json(document)
        return
    from claudectl import screen

    screen.show(screen.Status(document))
