"""A drain, followed from outside to its end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from claudectl import render
from claudectl.client import Client, Document, StreamCut, decoded
from claudectl.departure import Departure
from claudectl.errors import ControlError, Interrupted, NotRunning
from claudectl.options import Options, note
from claudectl.progress import Progress

ENDED = frozenset({"drained", "stopping"})


@contextmanager
def detachable() -> Iterator[None]:
    """Ctrl-C leaves the block, and the drain alone."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted("detached; the drain goes on (see: claudectl status)") from None


def begin(options: Options, verb: str, body: Document) -> None:
    """Posts ``body`` to ``verb`` and shows the state that the daemon is in then."""
    options.show(options.client().post(verb, body), render.state)


def to_its_end(options: Options, verb: str, body: Document, *, stops: bool) -> None:
    """Posts ``body`` to ``verb`` and shows the drain that this begins, line by line, up to its end.

    ``stops``: waits until the daemon is gone. Raises ControlError unless it ended as asked, with all state saved.
    """
    client = options.client()
    departure = Departure(client) if stops else None
    last = _Last()
    with Progress(last.line, wanted=not options.json) as progress:
        try:
            _follow(client, verb, body, last, raw=options.json)
        except (StreamCut, NotRunning):
            if departure is None:  # else it is what was asked for
                raise
        if departure is not None:
            departure.wait(client.deadline(None))
        progress.erase()
    _conclude(last.document, departure, quiet=options.json)


class _Last:
    """The latest word of the daemon on its drain."""

    def __init__(self) -> None:
        self.document: Document = {"state": "draining"}

    def line(self, _: float) -> str:
        return render.drain(self.document)


def _follow(client: Client, verb: str, body: Document, last: _Last, *, raw: bool) -> None:
    with client.stream(verb, body) as lines:
        for line in lines:
            last.document = decoded(line)
            if raw:
                sys.stdout.write(line.decode() + "\n")
                sys.stdout.flush()


def _conclude(document: Document, departure: Departure | None, *, quiet: bool) -> None:
    if document.get("saved") is False:
        raise ControlError("not all state could be saved")
    state = render.plain(document.get("state"))
    if departure is None and document.get("state") not in ENDED:
        raise ControlError(f"the drain ended early: the daemon is {state}")
    if not quiet:
        click.echo(state if departure is None else "stopped")
    if departure is not None and departure.wakes_again:
        note("systemd holds the socket: whoever connects starts the daemon again (stop its socket units too)")
