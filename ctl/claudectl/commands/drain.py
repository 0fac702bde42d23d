"""``claudectl drain``."""

from __future__ import annotations

from typing import Any

import click

from claudectl import draining
from claudectl.options import Command, Options, seconds


@click.command(cls=Command, name="drain")
@click.option("--deadline", type=seconds, metavar="S", help="Give running work S seconds instead of drain.deadline_s.")
@click.option("--stop", is_flag=True, help="Then stop the daemon, and wait until it is gone.")
@click.option("--no-wait", is_flag=True, help="Begin the drain and return at once.")
@click.pass_obj
def command(options: Options, deadline: float | None, stop: bool, no_wait: bool) -> None:
    """Take no new work and finish what runs.

    Waits for the end. Ctrl-C only stops waiting: the drain goes on.

    \b
    Examples:
      claudectl drain && claudectl status
      claudectl drain --deadline 30 --stop
    """
    body: dict[str, Any] = {"stop": stop, "wait": not no_wait}
    if deadline is not None:
        body["deadline_s"] = deadline
    with draining.detachable():
        if no_wait:
            draining.begin(options, "drain", body)
        else:
            draining.to_its_end(options, "drain", body, stops=stop)
