"""``claude-daemon``: runs the daemon, and checks its configuration. ``claudectl`` does everything else."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

import click

from claude_daemon import __version__

EX_USAGE: Final = 64
EX_CANTCREAT: Final = 73
EX_NOPERM: Final = 77
EX_CONFIG: Final = 78

_PROFILES = click.Choice(["dev", "staging", "prod"])
_CONFIG = click.option(
    "--config", type=click.Path(), metavar="FILE", help="Read FILE instead of config.toml in the home."
)
_PROFILE = click.option("--profile", type=_PROFILES, help="Defaults for a situation (dev unless set otherwise).")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="claude-daemon")
def cli() -> None:
    """Claude Code as a service that one can leave running."""


@cli.command()
@_CONFIG
@_PROFILE
@click.option("--offline", is_flag=True, help="Answer from the built-in offline model: no account, no network.")
@click.option("--port", type=int, help="Listen on this port (0: any free one) instead of http.port.")
def run(config: str | None, profile: str | None, offline: bool, port: int | None) -> None:
    """Serve in the foreground until told to stop (SIGTERM, Ctrl-C, claudectl drain --stop).

    Example: claude-daemon run --offline
    """
    flags: dict[str, Any] = {"config": config, "profile": profile, "offline": offline, "http.port": port}
    sys.exit(_run(flags, os.environ))


@cli.command("check-config")
@_CONFIG
@_PROFILE
def check_config(config: str | None, profile: str | None) -> None:
    """Print every setting with its value and where it comes from; secrets are masked.

    Example: claude-daemon check-config --profile prod
    """
    from claude_daemon.layers import explain

    loaded = _load({"config": config, "profile": profile}, os.environ)
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

    def work(database: Path) -> int:
        if check:
            needed = needs_migration(database)
            click.echo(f"{database} {'needs to be migrated' if needed else 'is up to date'}")
            return 1 if needed else 0
        kept = migrate_store(database)
        click.echo(f"{database} is up to date" if kept is None else f"{database} is migrated; it was kept as {kept}")
        return 0

    sys.exit(_with_store({"config": config, "profile": profile}, work))


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

    sys.exit(_with_store({"config": config, "profile": profile}, work))


def _with_store(flags: Mapping[str, Any], work: Callable[[Path], int]) -> int:
    """Does something to the store's file while no daemon has it open; the exit status."""
    from claude_daemon.home import take
    from claude_daemon.ports import StoreBroken, StoreUnavailable
    from claude_daemon.supervise.pidfile import AlreadyRunning, PidFile

    paths = _load(flags, os.environ).paths
    os.umask(0o077)
    try:
        take(paths.home)
        paths.run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with PidFile(paths.pid_file):
            return work(paths.database)
    except StoreBroken as error:
        return _say(EX_CONFIG, error)
    except (AlreadyRunning, StoreUnavailable) as error:
        return _say(EX_CANTCREAT, error)
    except OSError as error:
        return _refused(error)


def _load(flags: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
    """The configuration, or all that is wrong with it on stderr and exit 78."""
    from claude_daemon.config import ConfigError, load
    from claude_daemon.config.in_force import idle, refused

    try:
        loaded = load(flags, environ)
        if faults := refused(loaded):
            raise ConfigError(faults)
        for key in idle(loaded):
            click.echo(f"claude-daemon: {key} does nothing yet in this version", err=True)
        return loaded
    except ConfigError as error:
        for fault in error.faults:
            click.echo(f"claude-daemon: {fault}", err=True)
        sys.exit(EX_CONFIG)


def _run(flags: Mapping[str, Any], environ: Mapping[str, str]) -> int:
    # until the daemon handles it itself there is nothing to drain and nothing to leave behind
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGHUP, _leave)
    from claude_daemon.home import take
    from claude_daemon.supervise.pidfile import running
    from claude_daemon.telemetry.logging import configure, get_logger

    loaded = _load(flags, environ)
    os.umask(0o077)
    paths = loaded.paths
    try:
        repaired = take(paths.home)
        holder = running(paths.pid_file)
        if holder is not None:  # said before all that takes time to import; the lock itself decides later
            return _say(EX_CANTCREAT, f"already running (pid {holder}, {paths.pid_file})")
        if paths.log_file is not None:
            paths.log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = configure(loaded.settings.log, stream=sys.stderr, path=paths.log_file, secrets=loaded.secrets.values())
    except OSError as error:
        return _refused(error)
    try:
        if repaired is not None:
            get_logger("claude_daemon.home").warning("home.repaired", reason=repaired)
        return _serve(loaded, environ)
    finally:
        handle.close()


def _serve(loaded: Any, environ: Mapping[str, str]) -> int:
    from claude_daemon.assembly import BadSetting
    from claude_daemon.daemon import Daemon
    from claude_daemon.home import BadKeyFile
    from claude_daemon.ports import StoreBroken, StoreUnavailable
    from claude_daemon.supervise.descriptors import allow
    from claude_daemon.supervise.pidfile import AlreadyRunning
    from claude_daemon.supervise.sockets import PathTooLong, SocketInUse

    allow(loaded.settings.http.max_connections)

    async def main() -> int:
        return await Daemon(loaded, environ).run(announce=_announce)

    try:
        return _run_loop(main())
    except (BadKeyFile, BadSetting, StoreBroken) as error:
        return _say(EX_CONFIG, error)
    except (AlreadyRunning, SocketInUse, PathTooLong, StoreUnavailable) as error:
        return _say(EX_CANTCREAT, error)
    except OSError as error:
        # an error without a file is the network's
        where = f" ({loaded.settings.http.host}:{loaded.settings.http.port})" if error.filename is None else ""
        return _refused(error, where)


def _run_loop(main: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def _leave(number: int, frame: object) -> None:
    sys.exit(0)


def _refused(error: OSError, where: str = "") -> int:
    return _say(EX_NOPERM if isinstance(error, PermissionError) else EX_CANTCREAT, f"{error}{where}")


def _announce(daemon: Any) -> None:
    """What a person who started it in a terminal wants to know; nothing where nobody reads it."""
    key = daemon.loaded.paths.local_key
    offline = " (the offline model: no account, no network)" if daemon.source.name == "offline" else ""
    text = f"""
claude-daemon {__version__} serves at {daemon.url}{offline}
The key is in {key}. Try it:

  curl -N {daemon.url}/v1/chat/completions \\
    -H "Authorization: Bearer $(cat {key})" -H 'Content-Type: application/json' \\
    -d '{{"model": "sonnet", "stream": true, "messages": [{{"role": "user", "content": "Hello!"}}]}}'

Add -H 'Claude-Daemon-Lane: text' to be answered by a warm Claude Code process.
{Path(sys.executable).with_name("claudectl")} status shows how it is; Ctrl-C drains and stops it.
"""
    try:
        click.echo(text)
    except OSError:  # whoever started it has gone: what is still buffered must not fail once more at the end
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _say(status: int, error: object) -> int:
    click.echo(f"claude-daemon: {error}", err=True)
    return status


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
