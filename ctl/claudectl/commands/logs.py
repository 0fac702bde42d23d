"""``claudectl logs``."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import click

from claudectl import moment
from claudectl.clean import clean_line
from claudectl.errors import BadInput, ControlError, Denied, NotRunning
from claudectl.logs import files, place
from claudectl.logs import lines as log_lines
from claudectl.logs.lines import LEVELS, parsed
from claudectl.logs.story import MAX_LINES, Story, records, told
from claudectl.options import Command, Options, note

_ALL: Final = 1_000_000_000
AUDIT_LIMIT: Final = 1000
AUDIT_SECONDS: Final = 60.0
"""The audit has no index by request: a year's is read through."""


@click.command(cls=Command, name="logs")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("-n", "--lines", type=click.IntRange(min=0), metavar="N", help="The last N; without any option, 100.")
@click.option("--level", type=click.Choice(LEVELS), help="Only lines of at least this level.")
@click.option("--request", metavar="ID", help="The whole story of a request: its tasks, workers, model calls, audit.")
@click.option("--task", metavar="ID", help="The same of a task.")
@click.option("--since", metavar="AGE|DATE", help="Only what is younger: 10m, 12h, or a date like 2026-01-31T12:00.")
@click.option("--file", type=click.Path(path_type=Path), help="Another log than the daemon's, as one that was copied.")
@click.pass_context
def command(ctx: click.Context, /, **wishes: Any) -> None:
    """Show the daemon's log, rotated files too, or the journal where it writes to that alone; it need not run.

    \b
    Examples:
      claudectl logs -f --level warning
      claudectl logs --request req_01m8f4f1dakyn982qwrg36srpr
      claudectl logs --since 1h --json | jq 'select(.event == "task.settled") | .cost_usd'
    """
    _Reading(ctx.ensure_object(Options), **wishes).run()


class _Reading:
    """One invocation."""

    def __init__(
        self,
        options: Options,
        *,
        follow: bool,
        lines: int | None,
        level: str | None,
        request: str | None,
        task: str | None,
        since: str | None,
        file: Path | None,
    ) -> None:
        self._options = options
        self._follow = follow
        self._level = level
        self._request = request
        self._task = task
        self._since = None if since is None else _moment(since)
        self._file = file
        self._story = Story(request, task) if request is not None or task is not None else None
        self._last = lines if lines is not None or since is not None or self._story is not None else 100
        self._answers = False
        self._deadline = options.client().deadline(None)
        for name in (request, task):
            if name is not None and (not name or not name.isprintable() or " " in name or '"' in name):
                raise BadInput(f"{clean_line(name)!r} is no id")

    def run(self) -> None:
        source = self._source()
        try:
            if self._story is None:
                self._plain(source)
            else:
                self._told(source, self._story)
        finally:
            source.close()

    # where from

    def _source(self) -> Source:
        path = self._file or self._found()
        if path is not None:
            return _File(path, self._since, follow=self._follow)
        from claudectl.supervisors import choose

        return _Journal(lambda follow, lines: choose(None).logs(follow=follow, lines=lines), self._since)

    def _found(self) -> Path | None:
        """None: the journal has it. Raises ControlError."""
        try:
            _, status = self._options.client().get("status")
        except (NotRunning, Denied) as error:
            path, tried = place.guessed(self._options.socket, os.environ)
            if path is None:
                why = str(error).splitlines()[0].removesuffix("; tried:")
                raise type(error)("\n  ".join([f"{why}; and no log is found, looked at:", *map(str, tried)])) from None
            return path
        self._answers = True
        return place.told(status) if status.get("supervisor") == "systemd" else place.file_of(status)

    # plainly

    def _plain(self, source: Source) -> None:
        wanted = None if self._level is None and self._since is None else self._wanted
        for raw in source.last(self._last, wanted) if self._last is not None else source.all(self._wanted):
            self._show(raw)
        if self._follow:
            for raw in source.growing(self._pause):
                if self._wanted(raw):
                    self._show(raw)

    def _wanted(self, raw: bytes) -> bool:
        line = parsed(raw)
        if line is None:  # of a console, or cut: nobody knows when it was, or how severe
            return self._level is None
        return self._recent(line) and log_lines.severe(line, self._level)

    def _recent(self, line: dict[str, Any]) -> bool:
        if self._since is None:
            return True
        at = log_lines.moment(line)
        return at is not None and at >= self._since

    def _show(self, raw: bytes) -> None:
        line = parsed(raw)
        if line is not None:
            self._show_line(line)
        elif self._options.json:
            click.echo(json.dumps({"raw": raw.decode(errors="replace")}))
        else:
            click.echo(log_lines.escaped(raw.decode(errors="replace")))

    def _show_line(self, line: dict[str, Any]) -> None:
        if self._options.json:
            click.echo(json.dumps(line))
        else:
            click.echo(log_lines.shown(line, coloured=self._options.coloured))
        sys.stdout.flush()

    # the story of one

    def _told(self, source: Source, story: Story) -> None:
        """Read twice: what a worker was before it served the request is known only when that is."""
        for raw in source.all(story.may_be):
            if (line := parsed(raw)) is not None:
                story.learn(line)
        kept: deque[dict[str, Any]] = deque(maxlen=MAX_LINES)
        count = 0
        for raw in source.all(story.may_be):
            line = parsed(raw)
            if line is not None and story.wants(line) and self._recent(line) and log_lines.severe(line, self._level):
                count += 1
                kept.append(line)
        if count > MAX_LINES:
            note(f"these are the last {MAX_LINES} lines of {count}")
        found = list(kept)
        found += self._audit()
        if self._last is not None:
            found = found[-self._last :] if self._last else []
        if not found and not self._follow:
            raise ControlError(f"the log has nothing of {self._request or self._task}")
        if self._options.json:
            for line in found:
                click.echo(json.dumps(line))
        else:
            for text in told(found, coloured=self._options.coloured):
                click.echo(text)
        if self._follow:
            self._go_on(source, story)

    def _go_on(self, source: Source, story: Story) -> None:
        for raw in source.growing(self._pause):
            line = parsed(raw)
            if line is None:
                continue
            story.learn(line)
            if story.wants(line) and log_lines.severe(line, self._level):
                self._show_line(line)

    def _audit(self) -> list[dict[str, Any]]:
        if not self._answers:
            note("no daemon answers: what its audit has of this is not shown")
            return []
        about = [("request", self._request), ("task", self._task)]
        query = urlencode([("limit", str(AUDIT_LIMIT)), *((name, one) for name, one in about if one is not None)])
        _, document = self._options.client().get(f"audit?{query}", patience_seconds=AUDIT_SECONDS)
        return records(document)

    def _pause(self) -> None:
        left = self._deadline.remaining_seconds()
        time.sleep(files.PAUSE_SECONDS if left is None else min(files.PAUSE_SECONDS, left))


class _File:
    """A file with its neighbours."""

    def __init__(self, path: Path, since: float | None, *, follow: bool) -> None:
        self._growing = files.Growing(path) if follow else None
        self._end = None if self._growing is None else self._growing.begins
        self._paths = files.neighbours(path, since)

    def last(self, count: int, wanted: files.Wanted | None) -> list[bytes]:
        return files.last(self._paths, count, wanted, end=self._end)

    def all(self, wanted: files.Wanted) -> Iterator[bytes]:
        return files.lines(self._paths, wanted, end=self._end)

    def growing(self, pause: Callable[[], None]) -> Iterator[bytes]:
        assert self._growing is not None
        return self._growing.lines(pause)

    def close(self) -> None:
        if self._growing is not None:
            self._growing.close()


class _Journal:
    """The journal, by the command of whoever supervises the daemon."""

    def __init__(self, shown: Callable[[bool, int], Any], since: float | None) -> None:
        self._shown = shown
        self._since = since

    def last(self, count: int, wanted: files.Wanted | None) -> list[bytes]:
        if not count:
            return []
        if wanted is None:
            return list(self._lines(follow=False, lines=count))
        return [raw for raw in self._lines(follow=False, lines=_ALL) if wanted(raw)][-count:]

    def all(self, wanted: files.Wanted) -> Iterator[bytes]:
        return (raw for raw in self._lines(follow=False, lines=_ALL) if wanted(raw))

    def growing(self, pause: Callable[[], None]) -> Iterator[bytes]:
        return self._lines(follow=True, lines=0)

    def close(self) -> None:
        """Whoever reads has ended it."""

    def _lines(self, *, follow: bool, lines: int) -> Iterator[bytes]:
        from claudectl.logs import journal

        return journal.lines(journal.command(self._shown(follow, lines), since=self._since))


Source = _File | _Journal


def _moment(text: str) -> float:
    try:
        return moment.before(text, time.time())
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--since") from None
