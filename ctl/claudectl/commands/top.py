"""``claudectl top``."""

from __future__ import annotations

import os
import queue
import signal
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Final

import click

from claudectl.beside import beside
from claudectl.client import Client
from claudectl.errors import ControlError, Mismatch
from claudectl.options import Command, Options, note, seconds
from claudectl.render import Document
from claudectl.watching import SNAPSHOT, watch

INTERVAL_SECONDS: Final = 1.0
MIN_INTERVAL_SECONDS: Final = 0.1
"""The daemon draws no more than ten pictures a second."""
MAX_INTERVAL_SECONDS: Final = 3600.0
KEPT: Final = 50
"""Happenings that are kept to be shown: more than fit on any screen beside the tables."""


def _interval(text: str) -> float:
    value = seconds(text)
    if not MIN_INTERVAL_SECONDS <= value <= MAX_INTERVAL_SECONDS:
        raise click.BadParameter(f"{text} is not between {MIN_INTERVAL_SECONDS:g} and {MAX_INTERVAL_SECONDS:g}")
    return value


@click.command(cls=Command, name="top")
@click.option("--interval", type=_interval, default=INTERVAL_SECONDS, metavar="S", help="A picture every S seconds; 1.")
@click.option("--once", is_flag=True, help="One picture, and done; so it is where nothing can be drawn over.")
@click.pass_obj
def command(options: Options, interval: float, once: bool) -> None:
    """Show what the daemon is doing, live: turns, queue, tasks that run, workers, and how it went in the last minute.

    FIRST is the time to the first delta, WAITED that in the queue before. Two times beside each other are the median
    and the 95th percentile. q leaves; so does the end of the daemon. With --json a line for each picture and for each
    thing that happens, until the daemon stops.

    \b
    Examples:
      claudectl top
      claudectl top --once
      claudectl top --json --interval 10 | jq -c 'select(.type == "snapshot") | .data.recent'
    """
    client = options.client()
    path = f"events?interval_s={interval:g}"
    if once or not (options.json or _can_redraw()):
        _show_one(options, client, path)
    elif options.json:
        _pass_on(client, path)
    else:
        _watch(client, path)


def _can_redraw() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")


def _show_one(options: Options, client: Client, path: str) -> None:
    line = next((line.document for line in watch(client, path) if line.document.get("type") == SNAPSHOT), None)
    if line is None:
        raise Mismatch("the daemon told no snapshot")
    if options.json:
        options.show_json(line)
        return
    from claudectl import board, screen

    screen.show(board.Board(line))


def _pass_on(client: Client, path: str) -> None:
    for line in watch(client, path):
        sys.stdout.buffer.write(line.raw + b"\n")
        sys.stdout.buffer.flush()


class _Redraw:
    """The terminal has another size."""


class _Key(str):
    """A key that was pressed."""

    __slots__ = ()


HEED_S: Final = 0.25
"""A signal that comes just before a wait does not end it; so late at most it is heeded."""

# None: there are no more lines.
_Told = Document | ControlError | _Redraw | _Key | None


def _watch(client: Client, path: str) -> None:
    from rich.live import Live

    from claudectl import board, keyboard, screen

    inbox: queue.SimpleQueue[_Told] = queue.SimpleQueue()
    happenings: deque[Document] = deque(maxlen=KEPT)
    last: Document = {}
    beside("events", partial(_read, client, path, inbox))
    with (
        _signals(inbox),
        keyboard.keys(lambda key: inbox.put(_Key(key))),
        Live(console=screen.console(), screen=True, auto_refresh=False, vertical_overflow="crop") as live,
    ):
        while True:
            try:
                told = inbox.get(timeout=HEED_S)
            except queue.Empty:
                continue
            if isinstance(told, ControlError):
                raise told
            if told is None or (isinstance(told, _Key) and told in "qQ"):
                break
            if isinstance(told, _Key):
                continue
            if not isinstance(told, _Redraw):
                if told.get("type") != SNAPSHOT:
                    happenings.append(told)
                    continue
                last = told
            live.update(board.Board(last, happenings, live=True), refresh=True)
    if told is None:
        note("the daemon is stopping")


def _read(client: Client, path: str, inbox: queue.SimpleQueue[_Told]) -> None:
    """In a thread of its own: the screen waits for keys, too."""
    try:
        for line in watch(client, path):
            inbox.put(line.document)
        inbox.put(None)
    except ControlError as error:
        inbox.put(error)


@contextmanager
def _signals(inbox: queue.SimpleQueue[_Told]) -> Iterator[None]:
    """Another size is drawn at once, and who is told to end leaves the terminal as it was."""

    def leave(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    before = {
        signal.SIGWINCH: signal.signal(signal.SIGWINCH, lambda number, frame: inbox.put(_Redraw())),
        signal.SIGTERM: signal.signal(signal.SIGTERM, leave),
        signal.SIGHUP: signal.signal(signal.SIGHUP, leave),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
