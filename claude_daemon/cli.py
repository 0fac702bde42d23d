"""``claude-daemon``: runs the daemon, and checks its configuration. ``claudectl`` does everything else."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from claude_daemon import __version__

EX_USAGE: Final = 64

_PROFILES = click.Choice(["dev", "staging", "prod"])
_CONFIG = click.option(
    "--config", type=click.Path(), metavar="FILE", help="Read FILE instead of config.toml in the home."
)
_PROFILE = click.option("--profile", type=_PROFILES, help="Defaults for a situation (dev unless set otherwise).")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="claude-daemon")
def cli() -> None:
    """Claude Code as a service that one can leave running."""


_OFFLINE = click.option(
    "--offline", is_flag=True, help="Answer from the built-in offline model: no account, no network."
)
_PORT = click.option("--port", type=int, help="Listen on this port (0: any free one) instead of http.port.")


@cli.command()
@_CONFIG
@_PROFILE
@_OFFLINE
@_PORT
@click.option("--takeover", is_flag=True, help="Wait for the daemon that has this home to go, instead of exit 73.")
def run(config: str | None, profile: str | None, offline: bool, port: int | None, takeover: bool) -> None:
    """Serve in the foreground until told to stop (SIGTERM, Ctrl-C, claudectl drain --stop).

    Example: claude-daemon run --offline
    """
    from claude_daemon.running import run as run_daemon

    sys.exit(run_daemon(_flags(config, profile, offline, port), takeover=takeover))


@cli.command()
@_CONFIG
@_PROFILE
@_OFFLINE
@_PORT
def start(config: str | None, profile: str | None, offline: bool, port: int | None) -> None:
    """Start the daemon in the background, and return when it listens.

    Its words go to the log (log.file). Stop it with: claude-daemon stop

    Example: claude-daemon start --profile prod
    """
    from claude_daemon.running import start as start_daemon

    sys.exit(start_daemon(_flags(config, profile, offline, port)))


@cli.command()
def stop() -> None:
    """Stop the daemon of this home, whoever started it: it drains, and this returns when it is gone.

    Example: claude-daemon stop
    """
    from claude_daemon.running import stop as stop_daemon

    sys.exit(stop_daemon())


def _flags(config: str | None, profile: str | None, offline: bool = False, port: int | None = None) -> dict[str, Any]:
    """As ``config.load`` takes them. A file is named absolutely: a daemon stands elsewhere than its caller."""
    where = None if config is None else os.path.abspath(os.path.expanduser(config))  # noqa: PTH100, PTH111
    return {"config": where, "profile": profile, "offline": offline, "http.port": port}


@cli.command("check-config")
@_CONFIG
@_PROFILE
def check_config(config: str | None, profile: str | None) -> None:
    """Print every setting with its value and where it comes from; secrets are masked.

    Example: claude-daemon check-config --profile prod
    """
    from claude_daemon.layers import explain
    from claude_daemon.running import EX_CONFIG, loaded_or_exit
    from claude_daemon.usable import faults

    loaded = loaded_or_exit(_flags(config, profile))
    if found := faults(loaded.settings):
        for fault in found:
            click.echo(f"claude-daemon: {fault}", err=True)
        sys.exit(EX_CONFIG)
    rows = explain(loaded)
    width = max(len(key) for key, _, _ in rows)
    for key, value, origin in rows:
        click.echo(f"{key:<{width}}  {value}  ({origin})")


@cli.command()
@_CONFIG
@_PROFILE
@click.option("--check", is_flag=True, help="Only tell whether there is something to do: exit 1 if there is.")
def migrate(config: str | None, profile: str | None, check: bool) -> None:
    """Bring the store to this version's schema, as the next start would; the file from before is kept beside it.

    Example: claude-daemon migrate --check
    """
    from claude_daemon.store import migrate as migrate_store
    from claude_daemon.store import needs_migration

    def look(database: Path) -> int:
        needed = needs_migration(database)
        click.echo(f"{database} {'needs to be migrated' if needed else 'is up to date'}")
        return 1 if needed else 0

    def work(database: Path) -> int:
        kept = migrate_store(database)
        click.echo(f"{database} is up to date" if kept is None else f"{database} is migrated; it was kept as {kept}")
        return 0

    sys.exit(_with_store(_flags(config, profile), look if check else work, alone=not check))


@cli.command()
@_CONFIG
@_PROFILE
@click.argument("file", type=click.Path(path_type=Path))
def restore(config: str | None, profile: str | None, file: Path) -> None:
    """Put a backup (claudectl backup FILE) in the store's place, with the queue paused; the file from before is kept.

    Look through what it holds (claudectl tasks list), then let it run: claudectl queue resume.

    Example: claude-daemon restore /var/backups/claude-daemon.db
    """
    from claude_daemon.store import restore as restore_store

    def work(database: Path) -> int:
        kept = restore_store(file.absolute(), database)
        beside = "" if kept is None else f"; the file from before is {kept}"
        click.echo(f"{database} is restored, its queue paused{beside}")
        return 0

    sys.exit(_with_store(_flags(config, profile), work))


def _with_store(flags: Mapping[str, Any], work: Callable[[Path], int], *, alone: bool = True) -> int:
    """Does something to the store's file, ``alone``: while no daemon has it open; the exit status."""
    from claude_daemon.home import take
    from claude_daemon.ports import StoreBroken, StoreUnavailable
    from claude_daemon.running import EX_CANTCREAT, EX_CONFIG, loaded_or_exit, refused, say
    from claude_daemon.supervise.pidfile import AlreadyRunning, PidFile

    paths = loaded_or_exit(flags).paths
    os.umask(0o077)
    try:
        if not alone:
            return work(paths.database)
        take(paths.home)
        paths.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with PidFile(paths.pid_file):
            return work(paths.database)
    except StoreBroken as error:
        return say(EX_CONFIG, error)
    except (AlreadyRunning, StoreUnavailable) as error:
        return say(EX_CANTCREAT, error)
    except OSError as error:
        return refused(error)


def main() -> None:
    """The entry point; click's own usage errors exit 64, as sysexits has it."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(EX_USAGE)
    except click.Abort:
        sys.exit(130)
