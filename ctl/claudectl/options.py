"""What every command takes, before or after its name, and what it makes of it."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from claudectl.client import Client
    from claudectl.render import Document, Paint


class Options:
    """The global options of one invocation, as far as they were given."""

    def __init__(self) -> None:
        self.socket: str | None = None
        self.json = False
        self.timeout_seconds: float | None = None

    def client(self) -> Client:
        """A client for the daemon that these options and the environment mean. Connects to nothing yet."""
        from claudectl.client import Client
        from claudectl.sockets import candidates

        return Client(
            candidates(self.socket, os.environ),
            timeout_seconds=self.timeout_seconds,
            note=note if _environment_names_a_daemon() else None,
        )

    @property
    def coloured(self) -> bool:
        """Whether colours are wanted: on a terminal, unless the environment says otherwise."""
        return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def show(self, document: Document, text: Callable[[Document, Paint], str]) -> None:
        """Prints ``document``: as it is with --json, else as ``text`` makes it, in colour on a terminal."""
        if self.json:
            self.show_json(document)
        else:
            self.show_text(lambda paint: text(document, paint))

    def show_json(self, document: Document) -> None:
        click.echo(_json(document))

    def show_text(self, text: Callable[[Paint], str]) -> None:
        from claudectl.render import coloured, colourless

        click.echo(text(coloured if self.coloured else colourless))


def _json(document: Document) -> str:
    """ASCII only, so that no terminal can be steered by it."""
    import json

    return json.dumps(document, indent=2)


def _environment_names_a_daemon() -> bool:
    return any(os.environ.get(name) for name in ("CLAUDE_DAEMON_SOCKET", "CLAUDE_DAEMON_HOME"))


def note(text: str) -> None:
    """Tells the user something that is neither the result nor an error."""
    click.echo(f"note: {text}", err=True)


def seconds(text: str) -> float:
    """The type of an option that takes a finite number of seconds, not negative."""
    return amount(text, "a number of seconds")


def amount(text: str, what: str) -> float:
    """A finite number, not negative."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise click.BadParameter(f"{text!r} is not {what}")
    return value


class GlobalOption(click.Option):
    """An option that stands before or after the name of the command; the later one wins."""


def _keep_socket(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    options = ctx.ensure_object(Options)
    if value is not None:
        options.socket = value


def _keep_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    options = ctx.ensure_object(Options)
    options.json = options.json or value


def _keep_timeout(ctx: click.Context, _: click.Parameter, value: float | None) -> None:
    options = ctx.ensure_object(Options)
    if value is not None:
        options.timeout_seconds = value


def _show_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from claude_daemon import __version__

        click.echo(f"claudectl {__version__}")
        ctx.exit()


def _global_options() -> list[click.Parameter]:
    return [
        GlobalOption(
            ["--socket"],
            metavar="PATH",
            expose_value=False,
            callback=_keep_socket,
            help="The control socket. Without it: where a daemon usually listens, the first that answers.",
        ),
        GlobalOption(
            ["--json"],
            is_flag=True,
            expose_value=False,
            callback=_keep_json,
            help="Print the daemon's JSON: one document, or a line an event for streams.",
        ),
        GlobalOption(
            ["--timeout"],
            type=seconds,
            metavar="S",
            expose_value=False,
            callback=_keep_timeout,
            help="Give up after S seconds, with exit code 124.",
        ),
        GlobalOption(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version of claudectl.",
        ),
    ]


class Command(click.Command):
    """A command with the global options, listed under a heading of their own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *_global_options()]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_options(self.get_params(ctx), ctx, formatter)


class Group(click.Group):
    """A group with the global options, whose commands have them too."""

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params = [*self.params, *_global_options()]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        _write_options(self.get_params(ctx), ctx, formatter)
        self.format_commands(ctx, formatter)


def _write_options(params: Sequence[click.Parameter], ctx: click.Context, formatter: click.HelpFormatter) -> None:
    for heading, shared in (("Options", False), ("Global options", True)):
        chosen = [param for param in params if isinstance(param, GlobalOption) is shared]
        records = [record for param in chosen if (record := param.get_help_record(ctx)) is not None]
        if records:
            with formatter.section(heading):
                formatter.write_dl(records)
