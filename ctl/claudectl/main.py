"""The root command: subcommands loaded on demand, errors turned into exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import click

from claudectl.errors import ControlError, Exit
from claudectl.options import Group

# Each is a module of claudectl.commands ("-" is "_" there) whose `command` it is; in the order of the help.
COMMANDS = (
    "health",
    "ready",
    "status",
    "top",
    "run",
    "tasks",
    "sessions",
    "keys",
    "usage",
    "metrics",
    "audit",
    "queue",
    "workers",
    "connections",
    "events",
    "drain",
    "undrain",
    "reload",
    "stop",
    "panic",
    "logs",
    "config",
    "log-level",
    "test",
    "stacks",
    "backup",
    "service",
    "completion",
)


class Root(Group):
    """Imports a command when it is named, and no other; ends in the exit code that an error stands for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = cmd_name.replace("-", "_")
        command = importlib.import_module(f"claudectl.commands.{module}").command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        with _exit_codes(ctx):
            return super().invoke(ctx)


@contextmanager
def _exit_codes(ctx: click.Context) -> Iterator[None]:
    try:
        yield
    except ControlError as error:
        click.echo(f"error: {error}", err=True)
        ctx.exit(error.exit_code)
    except KeyboardInterrupt:
        ctx.exit(Exit.INTERRUPTED)
    except BrokenPipeError:
        _leave_quietly()
        ctx.exit(Exit.DONE)


def _leave_quietly() -> None:
    """Whoever read our output has seen enough (`| head`): what is still buffered goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@click.command(cls=Root, name="claudectl")
def cli() -> None:
    """Steer a running claude-daemon over its control socket.

    \b
    Examples:
      claudectl health
      claudectl run "Why is the sky blue?"
      claudectl tasks list --state running
      claudectl reload
      claudectl stop

    \b
    Exit codes:
      0 done                   5 permission denied
      1 failed                 6 control protocol mismatch
      2 usage                  7 conflict
      3 not ready, unhealthy   124 timed out
      4 not running            130 interrupted
    """


def main() -> None:
    """The program. Text that the terminal's encoding lacks is replaced, never a reason to fail."""
    _import_http_without_tls()
    for stream in (sys.stdout, sys.stderr):
        _replace_what_cannot_be_encoded(stream)
    cli(prog_name="claudectl")


def _import_http_without_tls() -> None:
    """Saves a tenth of the start: http.client loads OpenSSL where it can, and a Unix socket never speaks TLS.

    Only the program does this, to its own process: whoever imports claudectl keeps http.client whole.
    """
    if "ssl" in sys.modules or "http.client" in sys.modules:
        return
    sys.modules["ssl"] = None  # type: ignore[assignment]  # the import system's way to say: not there
    try:
        importlib.import_module("http.client")
    finally:
        del sys.modules["ssl"]


def _replace_what_cannot_be_encoded(stream: TextIO) -> None:
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
