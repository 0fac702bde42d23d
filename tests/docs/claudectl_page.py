"""``docs/claudectl.md``, from the tree of commands: what ``--help`` says, as a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from inspect import cleandoc

import click

from claudectl.errors import Exit
from claudectl.main import cli
from claudectl.options import GlobalOption

HEAD = """\
# claudectl

`claudectl` steers a running daemon over its control socket, as the user of the daemon or as root. It looks for the
socket in the places of `--socket`, `CLAUDE_DAEMON_SOCKET`, `CLAUDE_DAEMON_HOME`, `~/.claude-daemon`,
`$XDG_RUNTIME_DIR` and `/run/claude-daemon`, and takes the first that answers.

This page is made from the commands themselves (`make docs`): it is what `claudectl COMMAND --help` says.
"""
EXITS = {
    Exit.DONE: "done (`health`: it passes or warns)",
    Exit.FAILED: "failed",
    Exit.USAGE: "usage",
    Exit.NOT_READY: "not ready, `health` fails, draining",
    Exit.NOT_RUNNING: "not running",
    Exit.DENIED: "permission denied",
    Exit.MISMATCH: "another version of the control protocol",
    Exit.CONFLICT: "conflict",
    Exit.TIMED_OUT: "timed out",
    Exit.INTERRUPTED: "interrupted",
}


def page() -> str:
    """The whole page."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(_page())).rstrip("\n") + "\n"


def _page() -> Iterator[str]:
    yield HEAD
    top = click.Context(cli)
    commands = [(name, command) for name in cli.list_commands(top) if (command := cli.get_command(top, name))]
    yield "| command | |\n|---|---|"
    for name, command in commands:
        yield f"| [`{name}`](#claudectl-{name}) | {_cell(command.get_short_help_str(200))} |"
    yield "\n## For every command\n\nThese stand before or after its name.\n"
    yield from _options([param for param in cli.params if isinstance(param, GlobalOption)])
    yield "\nIt ends with\n\n| | |\n|---|---|"
    for code in Exit:
        yield f"| {code.value} | {EXITS[code]} |"
    for name, command in commands:
        yield from _command(("claudectl", name), command)


def _command(words: tuple[str, ...], command: click.Command) -> Iterator[str]:
    yield f"\n{'#' * len(words)} {' '.join(words)}\n"
    if not isinstance(command, click.Group) or command.invoke_without_command:
        arguments = [param.make_metavar(click.Context(command)) for param in _own(command, click.Argument)]
        options = ["[OPTIONS]"] if _own(command, click.Option) else []
        below = ["[COMMAND]"] if isinstance(command, click.Group) else []
        yield f"```\n{' '.join([*words, *options, *arguments, *below])}\n```\n"
    yield from _help(command.help or "")
    yield from _options(_own(command, click.Option))
    if isinstance(command, click.Group):
        ctx = click.Context(command)
        for name in command.list_commands(ctx):
            below_it = command.get_command(ctx, name)
            assert below_it is not None
            yield from _command((*words, name), below_it)


def _own(command: click.Command, kind: type[click.Parameter]) -> list[click.Parameter]:
    return [param for param in command.params if isinstance(param, kind) and not isinstance(param, GlobalOption)]


def _help(text: str) -> Iterator[str]:
    """Paragraphs; a block that click is told to leave alone is code."""
    for paragraph in cleandoc(text).split("\n\n"):
        lines = paragraph.strip("\n").split("\n")
        if lines[0] != "\b":
            yield _prose(" ".join(lines)) + "\n"
        elif re.fullmatch("Examples?:", lines[1]):
            yield "```sh\n" + cleandoc("\n".join(lines[2:])) + "\n```\n"
        else:
            yield "```\n" + cleandoc("\n".join(lines[1:])) + "\n```\n"


def _prose(text: str) -> str:
    """Words that would be taken for HTML or emphasis are not; options and keys stand out."""
    text = re.sub(r"([<>*])", r"\\\1", text)
    return re.sub(r"(?<![\w`-])(--[a-z][a-z-]*)", r"`\1`", text)


def _options(params: list[click.Parameter]) -> Iterator[str]:
    if params:
        yield "| option | |\n|---|---|"
    for param in params:
        record = param.get_help_record(click.Context(cli))
        assert record is not None
        yield f"| `{record[0].replace('|', '¦')}` | {_cell(record[1])} |"
    if params:
        yield ""


def _cell(text: str) -> str:
    return _prose(" ".join(text.split())).replace("|", "\\|")
