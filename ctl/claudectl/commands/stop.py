"""``claudectl stop``."""

from __future__ import annotations

import click

from claudectl import draining
from claudectl.options import Command, Options


@click.command(cls=Command, name="stop")
@click.option("--fast", is_flag=True, help="Interrupt what runs; tasks that may run twice are queued again.")
@click.option("--immediate", is_flag=True, help="As --fast, and kill the workers.")
@click.option("--no-wait", is_flag=True, help="Begin the stop and return at once.")
@click.pass_obj
def command(options: Options, fast: bool, immediate: bool, no_wait: bool) -> None:
    """Stop the daemon, and wait until it is gone.

    What runs may finish first, for up to drain.deadline_s; said again with --fast or --immediate, it may not.
    Queued tasks stay queued for the next start. Ctrl-C only stops waiting: the daemon still stops.

    \b
    Examples:
      claudectl stop
      claudectl stop --fast --timeout 10
    """
    if fast and immediate:
        raise click.UsageError("--fast and --immediate exclude each other")
    mode = "fast" if fast else "immediate" if immediate else "smart"
    body = {"mode": mode, "wait": not no_wait}
    with draining.detachable():
        if no_wait:
            draining.begin(options, "stop", body)
        else:
            draining.to_its_end(options, "stop", body, stops=True)
