"""``claudectl status``."""

from __future__ import annotations

import click

from claudectl import render
from claudectl.options import Command, Options


@click.command(cls=Command, name="status")
@click.pass_obj
def command(options: Options) -> None:
    """Show the daemon on one screen: where it listens, what it runs on, how busy it is.

    \b
    Examples:
      claudectl status
      claudectl status --json | jq -r .url
    """
    _, document = options.client().get("status")
    options.show(document, render.status)
