"""``claudectl engine``."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

import click

from claudectl.client import StreamCut, decoded
from claudectl.errors import ControlError, Exit
from claudectl.findings import line
from claudectl.options import Group, Options
from claudectl.progress import Progress
from claudectl.render import Document, known, plain


@click.group(cls=Group, name="engine")
def command() -> None:
    """The Claude Code that does the work.

    \b
    Example:
      claudectl engine check
    """


@command.command("check")
@click.pass_obj
def check(options: Options) -> None:
    """Try the installed Claude Code: what it can do, and that its launches hold what they promise.

    It is started some ten times beside the workers that serve; no upstream is asked. Ends with 0 when all passes or
    warns, with 1 when something fails. What a busy machine made fail is worth a second try.

    \b
    Examples:
      claudectl engine check
      claudectl engine check --json | jq -r 'select(.status == "fail") | .name'
    """
    last: Document = {}
    with options.client().stream("engine/check", {}) as lines, _Steps(wanted=not options.json) as steps:
        for encoded in lines:
            last = decoded(encoded)
            if options.json:
                sys.stdout.write(encoded.decode() + "\n")
                sys.stdout.flush()
            elif "step" in last:
                steps.begin(plain(last["step"]))
            else:
                steps.over()
                if "name" in last:
                    _show(options, last)
    if last.get("done") is not True:
        raise StreamCut("the check ended before it was complete")
    if not options.json:
        click.echo(f"Claude Code {known(last.get('version')) or '(unknown)'} at {plain(last.get('cli'))}")
    if last.get("status") == "fail":
        raise ControlError("the installed Claude Code does not hold what the daemon relies on")
    click.get_current_context().exit(Exit.DONE)


def _show(options: Options, row: Document) -> None:
    options.show_text(lambda paint: line(row, paint))


class _Steps:
    """On a terminal, what is being done and for how long; gone before its results are shown."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._shown: Progress | None = None

    def begin(self, step: str) -> None:
        self.over()
        self._shown = Progress(lambda elapsed: f"{step} … {elapsed:.0f} s", wanted=self._wanted).__enter__()

    def over(self) -> None:
        if self._shown is not None:
            self._shown.erase()
            self._shown = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.over()
