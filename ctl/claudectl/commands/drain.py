"""``claudectl drain``."""

from __future__ import annotations

import sys
from typing import Any

import click

from claudectl import render
from claudectl.client import Client, Document, StreamCut, decoded
from claudectl.departure import Departure
from claudectl.errors import ControlError, Interrupted, NotRunning
from claudectl.options import Command, Options, seconds
from claudectl.progress import Progress

ENDED = frozenset({"drained", "stopping"})


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
    client = options.client()
    try:
        if no_wait:
            _begin(client, body, options)
        else:
            _drain(client, body, options)
    except KeyboardInterrupt:
        raise Interrupted("detached; the drain goes on (see: claudectl status)") from None


def _begin(client: Client, body: Document, options: Options) -> None:
    options.show(client.post("drain", body), render.state)


def _drain(client: Client, body: Document, options: Options) -> None:
    departure = Departure(client) if body["stop"] else None
    last = _Last()
    with Progress(last.line, wanted=not options.json) as progress:
        try:
            _follow(client, body, last, raw=options.json)
        except (StreamCut, NotRunning):
            if departure is None:  # else it is what was asked for
                raise
        if departure is not None:
            departure.wait(client.deadline(None))
        progress.erase()
    _conclude(last.document, stopped=departure is not None, quiet=options.json)


class _Last:
    """The latest word of the daemon on its drain."""

    def __init__(self) -> None:
        self.document: Document = {"state": "draining"}

    def line(self, _: float) -> str:
        return render.drain(self.document)


def _follow(client: Client, body: Document, last: _Last, *, raw: bool) -> None:
    with client.stream("drain", body) as lines:
        for line in lines:
            last.document = decoded(line)
            if raw:
                sys.stdout.write(line.decode() + "\n")
                sys.stdout.flush()


def _conclude(document: Document, *, stopped: bool, quiet: bool) -> None:
    """Says how it ended; raises ControlError unless it ended as asked, with all state saved."""
    if document.get("saved") is False:
        raise ControlError("not all state could be saved")
    if not stopped and document.get("state") not in ENDED:
        raise ControlError(f"the drain ended early: the daemon is {render.plain(document.get('state'))}")
    if not quiet:
        click.echo("stopped" if stopped else render.plain(document.get("state")))
