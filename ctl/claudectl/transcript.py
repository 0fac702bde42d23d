"""A task's events, told to a person as they come."""

from __future__ import annotations

import sys
from typing import NamedTuple

import click

from claude_daemon.core import event as event_types
from claudectl import tasktext
from claudectl.clean import Cleaner
from claudectl.errors import ControlError
from claudectl.options import note
from claudectl.progress import Progress
from claudectl.render import Document, mapping, plain


class Type:
    """Public event types that have no inner form of their own: the daemon makes them from messages."""

    TEXT_DELTA = "text.delta"
    THINKING_DELTA = "thinking.delta"


# Ends that a reader expects; any other means that the answer is not whole.
WHOLE = frozenset({"end_turn", "stop_sequence"})


class Transcript:
    """Tells a person about a task as it goes: its text on stdout, what else there is to know on stderr.

    ``progress`` is the line to show while there is no text yet; it is erased before the first.
    """

    def __init__(self, *, wanted: bool = True) -> None:
        self.progress = Progress(self._waiting, wanted=wanted)
        self._cleaner = Cleaner()
        self._phase = "queued"
        self._remark: str | None = None
        self._remarked = False
        self._mid_line = False
        self._begun = False
        self._cut = False

    def tell(self, event: Document) -> None:
        """Shows ``event``. Unknown types are passed over."""
        self._remarked = False
        data = mapping(event.get("data"))
        match event.get("type"):
            case event_types.TASK_QUEUED | event_types.TASK_REQUEUED:
                self._phase = "queued"
                self._start_over()  # what a life of the task that is over has said
            case event_types.TASK_STARTED:
                self._phase = f"running {plain(data['start'])}" if "start" in data else "running"
            case event_types.RETRY:
                self._phase = f"retry {plain(data.get('attempt'))}"
            case Type.THINKING_DELTA:
                self._phase = "thinking"
            case Type.TEXT_DELTA:
                self._say(self._cleaner.feed(str(data.get("text", ""))))
                self._cut = self._cut or bool(data.get("truncated"))
            case event_types.TEXT_RESET:
                self._start_over()
            case event_types.TOOL_USE:
                self._phase = f"running {plain(data.get('name'))}"
                self._aside(f"{_depth(data)}{tasktext.call(data.get('name'), data.get('input'))}")
            case event_types.TOOL_RESULT if data.get("is_error"):
                first = str(data.get("content", "")).strip().partition("\n")[0]
                self._aside(f"{_depth(data)}{plain(data.get('name'))} failed: {plain(first[: tasktext.MAX_CALL])}")
            case event_types.TOOL_DENIED:
                self._aside(f"{plain(data.get('name'))} denied: {plain(data.get('message'))}")
            case event_types.FILE_CHANGED:
                self._aside(f"changed {plain(data.get('path'))}")
            case event_types.APPROVAL_REQUESTED:
                self._phase = "waiting for an approval"
                self._aside(_asked(event, data))
            case event_types.APPROVAL_RESOLVED:
                self._phase = "running"
                self._aside(f"{'allowed' if data.get('allow') else 'denied'} by {plain(data.get('by'))}")

    def remark(self, text: str | None) -> None:
        """Says what has befallen the stream, once until the next event: in the progress line where there is one,
        else as a note. None when it is over."""
        self._remark = text
        if text is None or self._remarked or self.progress.shows:
            return
        self._remarked = True
        if self._mid_line and sys.stdout.isatty():
            sys.stderr.write("\n")  # not into the answer's line, nor into the answer
        note(text)

    def confirm(self) -> bool:
        """Asks on the terminal. Raises click.Abort at Ctrl-C and at the end of input."""
        self.progress.erase()
        return click.confirm("Allow this call?", default=False, err=True)

    def _aside(self, text: str) -> None:
        """A line on stderr, beside the answer and not in the middle of one of its lines."""
        self.progress.erase()
        if self._mid_line and sys.stdout.isatty():
            sys.stderr.write("\n")
        note(text)

    def close(self) -> None:
        """Writes what was held back, and ends the line that the text left open."""
        self._write(self._cleaner.flush())
        if self._mid_line:
            self._write("\n")
        if self._cut:
            note("the daemon cut a piece of this answer that was too large")
            self._cut = False

    def _waiting(self, elapsed_seconds: float) -> str:
        return f"waiting · {elapsed_seconds:.1f} s · {self._remark or self._phase}"

    def _say(self, text: str) -> None:
        if text:
            self.progress.erase()
            self._begun = True
            self._write(text)

    def _start_over(self) -> None:
        self.close()
        if self._begun:
            note("the answer starts over; what stands above is superseded")
        self._begun = False

    def _write(self, text: str) -> None:
        if text:
            self._mid_line = not text.endswith("\n")  # first: Ctrl-C may come while it is written
            sys.stdout.write(text)
            sys.stdout.flush()


def _depth(data: Document) -> str:
    """What a subagent does stands below the call that started it."""
    return "  " if data.get("parent") is not None else ""


def _asked(event: Document, data: Document) -> str:
    """What is asked, where, and how it is answered; of an edit, what goes and what comes."""
    given = mapping(data.get("input"))
    lines = [f"may it run {tasktext.call(data.get('tool'), given)}"]
    if data.get("cwd") is not None:
        lines.append(f"  in {plain(data.get('cwd'))}")
    lines += [f"  {line}" for line in tasktext.proposal(given, data.get("diff"))]
    if data.get("truncated"):
        lines.append("  this is not all of it: claudectl tasks approvals --json has the whole")
    lines.append(f"  claudectl tasks approve {plain(event.get('task'))} {plain(data.get('approval'))} [--deny]")
    return "\n".join(lines)


class End(NamedTuple):
    """How a task ended, as the daemon told it."""

    state: object
    error: object
    stop_reason: object

    def conclude(self) -> None:
        """Raises ControlError unless the task succeeded; says when its answer is not whole."""
        if self.state == "failed":
            failure = mapping(self.error)
            raise ControlError(f"{plain(failure.get('code'))}: {plain(failure.get('message'))}")
        if self.state == "cancelled":
            raise ControlError("cancelled: the task was cancelled")
        if self.stop_reason is not None and self.stop_reason not in WHOLE:
            note(f"the answer is not whole: it stopped with {plain(self.stop_reason)}")
