"""``claudectl workers``."""

from __future__ import annotations

import click

from claudectl import render
from claudectl.options import Group, Options


@click.group(cls=Group, name="workers")
def command() -> None:
    """The warm Claude Code processes.

    \b
    Example:
      claudectl workers list
    """


@command.command("list")
@click.pass_obj
def list_(options: Options) -> None:
    """List the workers: state, lane, turns, age and memory.

    \b
    Examples:
      claudectl workers list
      claudectl workers list --json | jq '.workers[].pid'
    """
    _, document = options.client().get("workers")
    options.show(document, render.workers)
