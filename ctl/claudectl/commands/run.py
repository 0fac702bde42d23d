"""``claudectl run``."""

from __future__ import annotations

import sys
from contextlib import closing

import click

from claude_daemon.core import event as event_types
from claudectl.clean import Cleaner
from claudectl.client import Document, StreamCut, decoded
from claudectl.errors import BadInput, ControlError, Interrupted
from claudectl.options import Command, Options, note
from claudectl.progress import Progress
from claudectl.render import plain


class Type:
    """Public event types that have no inner form of their own: the daemon makes them from messages."""

    TEXT_DELTA = "text.delta"
    TEXT_RESET = "text.reset"
    THINKING_DELTA = "thinking.delta"


# Ends that a reader expects; any other means that the answer is not whole.
WHOLE = frozenset({"end_turn", "stop_sequence"})


@click.command(cls=Command, name="run")
@click.argument("prompt", required=False)
@click.option("--model", metavar="NAME", help="An alias or a model's name instead of engine.default_model.")
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option("--lane", type=click.Choice(["text", "direct"]), help="The lane that the task runs in.")
@click.pass_obj
def command(options: Options, /, prompt: str | None, **asked: str | None) -> None:
    """Run PROMPT as a task and print its answer as it comes.

    Without PROMPT, or with -, the prompt is read from stdin. Ctrl-C cancels the task.

    \b
    Examples:
      claudectl run "Why is the sky blue?"
      git diff | claudectl run --system "Review this diff." --model haiku
      claudectl run --json - < prompt.txt
    """
    body = {"prompt": _prompt(prompt), **{name: value for name, value in asked.items() if value is not None}}
    _require_unicode(body)
    try:
        _run(options, body)
    except KeyboardInterrupt:
        raise Interrupted("interrupted: the task is cancelled") from None


def _prompt(given: str | None) -> str:
    if given is not None and given != "-":
        prompt = given
    elif given is None and sys.stdin.isatty():
        raise click.UsageError("no prompt: give one, or - to type it on stdin")
    else:
        prompt = _read_stdin()
    if not prompt:
        raise click.UsageError("the prompt is empty")
    return prompt


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"stdin is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}") from None


def _require_unicode(body: Document) -> None:
    """Arguments that are no UTF-8 arrive with lone surrogates, which JSON for others cannot carry."""
    for name, value in body.items():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadInput(f"{name} is not UTF-8") from None


def _run(options: Options, body: Document) -> None:
    transcript = Transcript()
    with (
        Progress(transcript.waiting, wanted=not options.json) as progress,
        options.client().stream("tasks", body) as lines,
        closing(transcript),
    ):
        for line in lines:
            event = decoded(line)
            if options.json:
                _pass_on(line)
            else:
                transcript.tell(event, progress)
            if event.get("type") in event_types.TERMINAL:
                break
        else:
            raise StreamCut("the daemon ended its answer before the task was over")
    _conclude(event)


def _pass_on(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


class Transcript:
    """Tells a person about a task as it goes: its text on stdout, what else there is to know on stderr."""

    def __init__(self) -> None:
        self._cleaner = Cleaner()
        self._phase = "queued"
        self._mid_line = False
        self._begun = False
        self._cut = False

    def waiting(self, elapsed_seconds: float) -> str:
        """The line to show while there is no text yet."""
        return f"waiting · {elapsed_seconds:.1f} s · {self._phase}"

    def tell(self, event: Document, progress: Progress) -> None:
        """Shows ``event``; erases ``progress`` before the first text. Unknown types are passed over."""
        data = _data(event)
        match event.get("type"):
            case event_types.TASK_STARTED:
                self._phase = f"running {plain(data['start'])}" if "start" in data else "running"
            case event_types.RETRY:
                self._phase = f"retry {plain(data.get('attempt'))}"
            case Type.THINKING_DELTA:
                self._phase = "thinking"
            case Type.TEXT_DELTA:
                self._say(self._cleaner.feed(str(data.get("text", ""))), progress)
                self._cut = self._cut or bool(data.get("truncated"))
            case Type.TEXT_RESET:
                self._start_over()

    def close(self) -> None:
        """Writes what was held back, and ends the line that the text left open."""
        self._write(self._cleaner.flush())
        if self._mid_line:
            self._write("\n")
        if self._cut:
            note("the daemon cut a piece of this answer that was too large")
            self._cut = False

    def _say(self, text: str, progress: Progress) -> None:
        if text:
            progress.erase()
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


def _data(event: Document) -> Document:
    data = event.get("data")
    return data if isinstance(data, dict) else {}


def _conclude(event: Document) -> None:
    """Raises ControlError unless the task succeeded; says when its answer is not whole."""
    data = _data(event)
    match event.get("type"):
        case event_types.TASK_FAILED:
            error = data.get("error")
            known = error if isinstance(error, dict) else {}
            raise ControlError(f"{plain(known.get('code'))}: {plain(known.get('message'))}")
        case event_types.TASK_CANCELLED:
            raise ControlError("cancelled: the task was cancelled")
        case _:
            reason = data.get("stop_reason")
            if reason is not None and reason not in WHOLE:
                note(f"the answer is not whole: it stopped with {plain(reason)}")
