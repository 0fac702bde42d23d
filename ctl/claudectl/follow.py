"""A task followed to its end, whatever becomes of the daemon meanwhile."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self
from urllib.parse import quote

import click

from claude_daemon.core import event as event_types
from claudectl.client import Client, StreamCut, decoded
from claudectl.errors import Conflict, Interrupted, NotFound, NotReady, NotRunning, TimedOut
from claudectl.render import Document, mapping, plain
from claudectl.sockets import Deadline
from claudectl.transcript import End, Transcript

# A daemon that restarts is back within seconds; one that drains before that keeps its streams meanwhile.
PATIENCE_SECONDS = 60.0
# Between two tries: nothing tells us when a socket appears that does not exist yet.
PAUSE_SECONDS = 0.1

GONE = "the daemon went away; waiting for it to come back"

# As core.task has them; a test compares.
ENDED = frozenset({"succeeded", "failed", "cancelled"})


def task_path(task_id: str, below: str = "") -> str:
    """Where a task is, however its id was typed."""
    return f"tasks/{quote(os.fsencode(task_id), safe='')}{below}"


def approval_path(task_id: str, approval: str) -> str:
    return task_path(task_id, f"/approvals/{quote(os.fsencode(approval), safe='')}")


class Reader:
    """Tells of one task's events: as they are with ``raw``, else as a transcript. Knows how far it has come.

    ``task_id`` None: the events will say it, and ``begun`` is told. ``asks``: over which somebody at the terminal
    answers what is asked.
    """

    def __init__(
        self,
        *,
        raw: bool,
        task_id: str | None = None,
        after: int = 0,
        asks: Client | None = None,
        begun: Callable[[str], None] = lambda task_id: None,
    ) -> None:
        self._asks = asks
        self._begun = begun
        self.task_id = task_id
        self.after = after
        self._raw = raw
        self._transcript = Transcript(wanted=not raw)
        self._last: Document = {}

    def __enter__(self) -> Self:
        self._transcript.progress.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._transcript.progress.__exit__(kind, error, tb)
        self._transcript.close()

    def read(self, lines: Iterable[bytes]) -> End:
        """Tells of all ``lines``; the task's end, or StreamCut where they stop before it.

        An end is not always the last event: a task that was tried again has more.
        """
        try:
            for line in lines:
                self._take(line)
        except StreamCut:
            if not self._over:
                raise
        if not self._over:
            raise StreamCut("the daemon ended its answer before the task was over")
        data = mapping(self._last.get("data"))
        state = str(self._last["type"]).removeprefix("task.")
        return End(state, data.get("error"), data.get("stop_reason"))

    def remark(self, text: str | None) -> None:
        """Says what has befallen the stream; None when that is over."""
        self._transcript.remark(text)

    def how_to_go_on(self) -> str:
        """A line for somebody who could not be told the rest."""
        if self.task_id is None:
            return ""
        return f"\nGo on with: claudectl tasks follow {plain(self.task_id)} --after {self.after}"

    @property
    def _over(self) -> bool:
        return self._last.get("type") in event_types.TERMINAL

    def _take(self, line: bytes) -> None:
        self._last = event = decoded(line)
        if isinstance(seq := event.get("seq"), int):
            self.after = seq
        if self.task_id is None and isinstance(task := event.get("task"), str):
            self.task_id = task
            self._begun(task)
        if self._raw:
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()
        else:
            self._transcript.tell(event)
        if event.get("type") == event_types.APPROVAL_REQUESTED and self._asks is not None:
            self._ask(self._asks, mapping(event.get("data")))

    def _ask(self, client: Client, asked: Document) -> None:
        """On the terminal. What is asked here may be answered elsewhere meanwhile: then that stands."""
        approval = str(asked.get("approval"))
        try:
            allow = self._transcript.confirm()
        except click.Abort:
            raise KeyboardInterrupt from None
        try:
            # not bounded by --timeout: whoever is asked takes the time that they need
            client.post(approval_path(self.task_id or "", approval), {"allow": allow})
        except (Conflict, NotFound) as error:
            self._transcript.remark(str(error))
            self._transcript.remark(None)


def follow(client: Client, task_id: str, reader: Reader) -> None:
    """Tells of the task up to its end; goes on where it was when the daemon comes back after a cut.

    Raises ControlError unless the task succeeded; where the rest could not be had, it says how to go on.
    """
    try:
        with reader:
            try:
                end = _read(client, task_id, reader)
            except StreamCut:
                end = _read_on(client, task_id, reader)
    except KeyboardInterrupt:
        raise Interrupted(f"detached; the task goes on{reader.how_to_go_on()}") from None
    except TimedOut as error:
        raise TimedOut(f"{error}{reader.how_to_go_on()}") from None
    end.conclude()


def _read(client: Client, task_id: str, reader: Reader) -> End:
    with client.stream(task_path(task_id, f"/events?after={reader.after}")) as lines:
        return reader.read(lines)


def _read_on(client: Client, task_id: str, reader: Reader) -> End:
    """The same after a cut, across as many as there are; raises TimedOut when nothing new comes for too long."""
    patience = client.deadline(PATIENCE_SECONDS)
    while True:
        reached = reader.after
        try:
            return _ended(client, task_id, reader, patience) or _read(client, task_id, reader)
        except (StreamCut, NotRunning, NotReady):
            reader.remark(GONE)
        if reader.after != reached:
            patience = client.deadline(PATIENCE_SECONDS)
        patience.remaining_seconds()
        time.sleep(PAUSE_SECONDS)


def _ended(client: Client, task_id: str, reader: Reader, patience: Deadline) -> End | None:
    """The end that the task has come to with nothing more to be read; else None."""
    left = patience.remaining_seconds()
    _, task = client.get(task_path(task_id), patience_seconds=left or PATIENCE_SECONDS)
    reader.remark(None)
    last_seq = task.get("last_seq")
    if task.get("state") not in ENDED or (isinstance(last_seq, int) and last_seq > reader.after):
        return None
    return End(task["state"], task.get("error"), mapping(task.get("result")).get("stop_reason"))
