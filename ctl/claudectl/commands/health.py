"""``claudectl health``."""

from __future__ import annotations

import click

from claudectl import render
from claudectl.errors import Exit
from claudectl.options import Command, Options

# States in which the daemon takes no work, whatever its checks say.
TAKES_NO_WORK = frozenset({"draining", "drained", "stopping"})


@click.command(cls=Command, name="health")
@click.pass_obj
def command(options: Options) -> None:
    """Show how the daemon is, check by check.

    Ends with 0 when it passes or warns, with 3 when it fails or drains.

    \b
    Examples:
      claudectl health
      claudectl health --json | jq '.checks.engine'
    """
    _, document = options.client().get("health", also=(503,))
    options.show(document, render.health)
    serves = document.get("status") in ("pass", "warn") and document.get("state") not in TAKES_NO_WORK
    click.get_current_context().exit(Exit.DONE if serves else Exit.NOT_READY)
