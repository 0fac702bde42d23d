"""``claudectl ready``."""

from __future__ import annotations

import time

import click

from claudectl import render
from claudectl.client import REQUEST_SECONDS, Answer, Client
from claudectl.errors import Exit, NotRunning
from claudectl.options import Command, Options, seconds

# The daemon holds one question for at most so long.
LONG_POLL_SECONDS = 30.0
# Between two questions: nothing tells us when a socket appears that does not exist yet.
PAUSE_SECONDS = 0.05


@click.command(cls=Command, name="ready")
@click.option("--wait", type=seconds, metavar="S", help="Wait up to S seconds for it, the daemon's start included.")
@click.pass_obj
def command(options: Options, wait: float | None) -> None:
    """Tell whether the daemon takes work, or wait until it does.

    Ends with 0 when it is ready, with 3 when it is not, with 4 when it is not running.

    \b
    Examples:
      claudectl ready
      claude-daemon run & claudectl ready --wait 30
    """
    client = options.client()
    status, document = _ask(client, 0) if wait is None else wait_until_ready(client, wait)
    options.show(document, render.ready)
    click.get_current_context().exit(Exit.DONE if status == 200 else Exit.NOT_READY)


def _ask(client: Client, wait_seconds: float) -> Answer:
    path = f"ready?wait={wait_seconds:.3f}" if wait_seconds else "ready"
    return client.get(path, also=(503,), patience_seconds=wait_seconds + REQUEST_SECONDS)


def wait_until_ready(client: Client, seconds: float) -> Answer:
    """The answer that says ready, or the last one before the time is over; raises NotRunning likewise."""
    ends_at = time.monotonic() + seconds
    while True:
        left = max(0.0, ends_at - time.monotonic())
        try:
            status, document = _ask(client, min(left, LONG_POLL_SECONDS))
            if status == 200 or not left:
                return status, document
        except NotRunning:
            if not left:
                raise
        time.sleep(min(PAUSE_SECONDS, left))
