"""``claudectl service``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import click

from claudectl import draining, render
from claudectl.client import Document
from claudectl.commands.ready import wait_until_ready
from claudectl.errors import Conflict, ControlError, Exit, NotRunning
from claudectl.logs import place
from claudectl.options import Group, Options, note
from claudectl.supervisors import Programs, Wish, choose, tail
from claudectl.supervisors.answering import is_supervised, look

RESTART_SECONDS: Final = 60.0
"""How long the next daemon may take to be ready: it probes Claude Code, and has a store to open."""


def _scoped(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the supervisor that ``--system`` or ``--user`` means."""
    return click.option(
        "--user", "scope", flag_value="user", help="This user's service manager (unless you are root, the default)."
    )(click.option("--system", "scope", flag_value="system", help="The machine's service manager.")(function))


def _wishes(function: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--agents-bash", is_flag=True, help="Allow the namespaces that agents with Bash are confined by."),
        click.option(
            "--credential",
            "credentials",
            multiple=True,
            metavar="NAME=FILE",
            help="Hand a secret over as a systemd credential, e.g. ANTHROPIC_API_KEY=/etc/keys/anthropic.",
        ),
        click.option("--listen", default="127.0.0.1:8006", metavar="ADDRESS:PORT", help="Where the socket listens."),
        click.option("--root", "roots", multiple=True, metavar="DIR", help="A directory that tasks may work in."),
    ):
        function = option(function)
    return function


@click.group(cls=Group, name="service")
def command() -> None:
    """Have the daemon supervised: by systemd, for the machine or for you, or by launchd.

    start, stop, restart and status tell the truth whoever started the daemon.

    \b
    Examples:
      sudo claudectl service install --start --credential ANTHROPIC_API_KEY=/etc/keys/anthropic
      claudectl service status
      claudectl service restart
    """


@command.command("install")
@_scoped
@_wishes
@click.option("--start", is_flag=True, help="Start it, too.")
@click.pass_obj
def install(options: Options, /, scope: str | None, start: bool, **wishes: Any) -> None:
    """Write the units and enable them. Said again, it brings them up to date.

    \b
    Examples:
      sudo claudectl service install --start
      claudectl service install --user --listen 127.0.0.1:9000
    """
    _tell(options, choose(scope).install(_wish(**wishes), start=start))


@command.command("print")
@_scoped
@_wishes
@click.pass_obj
def print_(options: Options, /, scope: str | None, **wishes: Any) -> None:
    """Show what install would write, and write nothing.

    \b
    Example:
      claudectl service print --system
    """
    with _as_usage():
        files = choose(scope).files(_wish(**wishes))
    told = {str(path): content.decode() for path, content in files.items()}
    if options.json:
        options.show_json({"files": told})
        return
    for name, content in told.items():
        click.echo(f"# {name}\n{content}")


@command.command("uninstall")
@_scoped
@click.pass_obj
def uninstall(options: Options, scope: str | None) -> None:
    """Stop the service and remove what install has written. State and logs stay.

    \b
    Example:
      sudo claudectl service uninstall
    """
    _tell(options, choose(scope).uninstall())


@command.command("start")
@_scoped
@click.pass_obj
def start(options: Options, scope: str | None) -> None:
    """Start the supervised daemon.

    \b
    Example:
      claudectl service start
    """
    supervisor = choose(scope)
    unit, daemon = look(options, supervisor)
    if daemon is not None:
        raise Conflict(f"a daemon runs already: {_who(daemon)}")
    if unit.pid is not None:
        raise Conflict(f"{supervisor.name} runs it already: pid {unit.pid}, {unit.state}, which gives you no answer")
    if not unit.installed:
        raise ControlError(
            "it is not installed: claudectl service install --start, or without one: claude-daemon start"
        )
    supervisor.start()
    _done(options, "started")


@command.command("stop")
@_scoped
@click.pass_obj
def stop(options: Options, scope: str | None) -> None:
    """Drain and stop the daemon, whoever started it.

    \b
    Example:
      claudectl service stop
    """
    supervisor = choose(scope)
    unit, daemon = look(options, supervisor)
    if is_supervised(unit, daemon):
        supervisor.stop()
        _done(options, "stopped")
    elif daemon is None:
        _done(options, "not running", "it is not running")
    else:
        with draining.detachable():
            draining.to_its_end(options, "stop", {"mode": "smart", "wait": True}, stops=True)


@command.command("restart")
@_scoped
@click.pass_obj
def restart(options: Options, scope: str | None) -> None:
    """Restart the daemon, whoever started it. New connections wait meanwhile, and nobody's request is dropped.

    \b
    Example:
      claudectl service restart
    """
    supervisor = choose(scope)
    unit, daemon = look(options, supervisor)
    if is_supervised(unit, daemon) or (daemon is None and unit.installed):
        if daemon is not None:
            _refuse_what_would_not_start(options, daemon)
        supervisor.restart()
        _done(options, "restarted")
    elif daemon is None:
        raise NotRunning("it is not running, and not installed: claude-daemon start, or claudectl service install")
    else:
        _replace(options)


@command.command("status")
@_scoped
@click.pass_obj
def status(options: Options, scope: str | None) -> None:
    """Tell what the supervisor says, and what the daemon says. Ends with 0 if one runs, with 4 if none does.

    \b
    Example:
      claudectl service status --json
    """
    supervisor = choose(scope)
    unit, daemon = look(options, supervisor)
    told = {
        "supervisor": supervisor.name,
        "installed": unit.installed,
        "state": unit.state,
        "pid": unit.pid,
        "waits": unit.waits,
        "daemon": daemon and {key: daemon.get(key) for key in ("pid", "state", "supervisor", "url")},
    }
    options.show(told, lambda document, paint: _shown(document))
    runs = daemon is not None or unit.pid is not None
    click.get_current_context().exit(Exit.DONE if runs else Exit.NOT_RUNNING)


@command.command("logs")
@_scoped
@click.option("-f", "--follow", is_flag=True, help="Go on with what is written from now on.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=50, show_default=True, help="So many of the last.")
@click.pass_obj
def logs(options: Options, scope: str | None, follow: bool, lines: int) -> None:
    """Show the service's log; that of the daemon itself, where nobody supervises it.

    With --json the journal's records; the lines of a file are shown as they are.

    \b
    Example:
      claudectl service logs -f
    """
    supervisor = choose(scope)
    unit, daemon = look(options, supervisor)
    if daemon is None or is_supervised(unit, daemon):
        shown = supervisor.logs(follow=follow, lines=lines)
        if options.json and shown[0] == "journalctl":
            shown = [*shown, "--output=json"]
    else:
        shown = tail(place.file_of(daemon), follow=follow, lines=lines)
    try:
        os.execvp(shown[0], list(shown))  # noqa: S606 - journalctl and tail, by their names
    except OSError as error:
        raise ControlError(f"{shown[0]}: {error.strerror}") from error


def _wish(roots: tuple[str, ...], listen: str, credentials: tuple[str, ...], agents_bash: bool) -> Wish:
    """Raises click's UsageError."""
    named = dict(given.partition("=")[::2] for given in credentials)
    for name, file in named.items():
        if not name.isidentifier() or not file.startswith("/"):
            raise click.UsageError(f"--credential {name}={file}: NAME=FILE with an absolute path is needed")
    for root in roots:
        if not root.startswith("/"):
            raise click.UsageError(f"--root {root}: must be absolute")
    _, colon, port = listen.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise click.UsageError(f"--listen {listen}: ADDRESS:PORT is needed")
    return Wish(
        programs=Programs.here(),
        listen=listen,
        roots=tuple(map(Path, roots)),
        credentials={name: Path(file) for name, file in named.items()},
        agents_bash=agents_bash,
    )


def _tell(options: Options, lines: Iterator[str]) -> None:
    """What is done, as it is done; as JSON, when all of it is."""
    told = []
    with _as_usage():
        for line in lines:
            told.append(line)
            if not options.json:
                click.echo(line)
    if options.json:
        options.show_json({"done": told})


def _done(options: Options, state: str, text: str | None = None) -> None:
    """As JSON one line, for it may be the last of a drain's."""
    if options.json:
        click.echo(json.dumps({"state": state}))
    else:
        click.echo(text or state)


@contextmanager
def _as_usage() -> Iterator[None]:
    """A path that no unit can name was named on the command line."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _refuse_what_would_not_start(options: Options, daemon: Document) -> None:
    """The one that runs reads its new configuration first: what it refuses would end the next one at its start."""
    if render.mapping(daemon.get("config")).get("changed_on_disk"):
        options.client().post("reload", {})


def _replace(options: Options) -> None:
    """A daemon that nobody supervises starts the next one itself, and hands its listeners over."""
    with draining.detachable():
        draining.to_its_end(options, "restart", {"wait": True}, stops=False)
    client = options.client()
    status, ready = wait_until_ready(client, RESTART_SECONDS)
    _done(options, "restarted", f"restarted: {_who(client.get('status')[1])}")
    if status != HTTPStatus.OK:
        note(f"it is not ready: {render.plain(ready.get('reason'))}")


def _who(daemon: Document) -> str:
    by = daemon.get("supervisor")
    how = {"none": "in a terminal", "detached": "in the background"}.get(str(by), f"by {by}")
    return render.plain(f"pid {daemon.get('pid')}, started {how}, at {daemon.get('url')}")


def _shown(told: Document) -> str:
    installed = "" if told["installed"] else "not installed; "
    unit = f"{told['supervisor']}: {installed}{told['state']}"
    if told["pid"]:
        unit += f", pid {told['pid']}"
    if told["waits"]:
        unit += "; its sockets wait, and start it for whoever connects"
    daemon = told["daemon"]
    if daemon is not None:
        answers = f"{render.plain(daemon['state'])}, {_who(daemon)}"
    else:
        answers = "gives you no answer" if told["pid"] else "not running"
    return f"{render.plain(unit)}\ndaemon: {answers}"
