"""How a process becomes the daemon: its configuration, home, log and descriptors, and who is told how that went.

A daemon is started in three ways: in the foreground (a terminal, systemd, launchd), in the background (``start``), or
by the one that it replaces (``--takeover``). All of them end in :func:`run`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import secrets
import select
import signal
import sys
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from claude_daemon import __version__
from claude_daemon.supervise.inherited import BadSockets, inherited, rebound
from claude_daemon.supervise.stages import Stage, Teller

EX_CRASH: Final = 1
EX_CANTCREAT: Final = 73
EX_NOPERM: Final = 77
EX_CONFIG: Final = 78

START_PATIENCE_S: Final = 120.0
"""How long ``start`` waits for the daemon to say that it listens: a store may have to be migrated or recovered."""
READY_PATIENCE_S: Final = 30.0
"""And for its first probe of Claude Code after that."""
EXIT_PATIENCE_S: Final = 5.0
"""How long ``stop`` waits for the process of a daemon that has given up its home: some hundredths of a second do."""

Flags = Mapping[str, Any]


def loaded_or_exit(flags: Flags, teller: Teller | None = None) -> Any:
    """The configuration, or all that is wrong with it on stderr and exit 78."""
    from claude_daemon.config import ConfigError, load

    try:
        loaded = load(flags, os.environ)
    except ConfigError as error:
        faults = [str(fault) for fault in error.faults]
        for fault in faults:
            click.echo(f"claude-daemon: {fault}", err=True)
        if teller is not None:
            teller.tell(Stage.FAILED, status=EX_CONFIG, message="; ".join(faults))
        sys.exit(EX_CONFIG)
    return loaded


def run(flags: Flags, *, takeover: bool = False, teller: Teller | None = None, detached: bool = False) -> int:
    """Serves until told to stop; the exit status. ``teller``: whom ``start`` has waiting."""
    gc.disable()  # until all is loaded: nothing of that is garbage, and to look for some takes a tenth of the start
    try:
        status = _run(flags, takeover=takeover, teller=teller, detached=detached)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0
    gc.freeze()  # the interpreter would look through all objects once more: 0.1 s, for which whoever waits for us waits
    return _for_supervisor(status)


def _run(flags: Flags, *, takeover: bool, teller: Teller | None, detached: bool) -> int:
    # until the daemon handles it itself there is nothing to drain and nothing to leave behind
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, _leave)
    try:
        given = inherited(os.environ, pid=os.getpid(), takeover=takeover)
    except BadSockets as error:
        return say(EX_CONFIG, error)
    teller = teller or Teller(given.handover)
    loaded = loaded_or_exit(flags, teller)
    os.umask(0o077)
    return _Start(flags, loaded, teller, given, takeover=takeover, detached=detached).run()


class _Start:
    """From a good configuration to a daemon that runs."""

    def __init__(
        self, flags: Flags, loaded: Any, teller: Teller, given: Any, *, takeover: bool, detached: bool
    ) -> None:
        self._flags = flags
        self._loaded = loaded
        self._teller = teller
        self._given = given
        self._takeover = takeover
        self._detached = detached

    def run(self) -> int:
        from claude_daemon.home import take
        from claude_daemon.supervise.pidfile import running
        from claude_daemon.telemetry.logging import configure, get_logger

        paths = self._loaded.paths
        try:
            repaired = take(paths.home)
            holder = None if self._takeover else running(paths.pid_file)
            if holder is not None:  # said before all that takes time to import; the lock itself decides later
                return self._failed(EX_CANTCREAT, f"already running (pid {holder}, {paths.pid_file})")
            if paths.log_file is not None:
                paths.log_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            known = self._loaded.secrets.values()
            log = configure(self._loaded.settings.log, stream=sys.stderr, path=paths.log_file, secrets=known)
        except OSError as error:
            return self._failed(_status_of(error), error)
        try:
            if repaired is not None:
                get_logger("claude_daemon.home").warning("home.repaired", reason=repaired)
            return self._serve(log)
        finally:
            log.close()

    def _serve(self, log: Any) -> int:
        from claude_daemon.daemon import Daemon
        from claude_daemon.home import BadKeyFile
        from claude_daemon.ports import StoreBroken, StoreUnavailable
        from claude_daemon.supervise.descriptors import allow
        from claude_daemon.supervise.pidfile import AlreadyRunning
        from claude_daemon.supervise.sockets import PathTooLong, SocketInUse
        from claude_daemon.usable import BadSetting

        allow(self._loaded.settings.http.max_connections)

        async def main() -> int:
            return await Daemon(self._loaded, self._surroundings(log)).run(announce=_announce)

        try:
            self._check()
            self._teller.tell(Stage.CHECKED)  # what takes time is loaded, too: whoever makes way for us need not wait
            gc.freeze()  # nor is any of it looked at again while the loop serves
            gc.enable()
            return _run_loop(main())
        except (BadKeyFile, BadSetting, StoreBroken) as error:
            return self._failed(EX_CONFIG, error)
        except (AlreadyRunning, SocketInUse, PathTooLong, StoreUnavailable) as error:
            return self._failed(EX_CANTCREAT, error)
        except OSError as error:
            http = self._loaded.settings.http
            # an error without a file is the network's
            where = f" ({http.host}:{http.port})" if error.filename is None else ""
            return self._failed(_status_of(error), f"{error}{where}")

    def _check(self) -> None:
        """What could fail later than the daemon before can take back that it makes way for us. Raises as the start."""
        from claude_daemon import usable
        from claude_daemon.home import audit_key, local_secret

        settings, paths = self._loaded.settings, self._loaded.paths
        usable.tls(settings)
        usable.validate(settings)
        if self._takeover:
            if paths.local_key.exists():
                local_secret(paths.local_key, secrets.token_bytes, lambda repaired: None)
            if paths.audit_key.exists():
                audit_key(paths.audit_key, secrets.token_bytes, lambda repaired: None)
            http, control = settings.http, settings.control
            self._given = rebound(
                self._given, host=http.host, port=http.port, control=paths.control_socket, mode=control.mode
            )

    def _surroundings(self, log: Any) -> Any:
        from claude_daemon.config import load
        from claude_daemon.supervise.notify import Notifier
        from claude_daemon.surroundings import Surroundings

        environ = dict(os.environ)
        notifier = Notifier.of(environ, pid=os.getpid(), monotonic=time.monotonic)
        return Surroundings(
            environ=environ,
            reload=lambda: load(self._flags, environ),
            argv=_successor(self._flags),
            log=log,
            inherited=self._given,
            notifier=notifier,
            teller=self._teller,
            supervisor=self._loaded.supervisor or self._supervisor(notifier.active),
            takeover=self._takeover,
        )

    def _supervisor(self, notified: bool) -> str:
        """Whoever does not say so: a unit of somebody's own, a container."""
        if notified:
            return "systemd"
        if os.getpid() == 1:
            return "init"
        return "detached" if self._detached or self._takeover else "none"

    def _failed(self, status: int, error: object) -> int:
        from claude_daemon.telemetry.logging import get_logger

        get_logger("claude_daemon.daemon").critical("daemon.not_started", reason=str(error), status=status)
        self._teller.tell(Stage.FAILED, status=status, message=str(error))
        return say(status, error)


def start(flags: Flags) -> int:
    """Runs the daemon in the background; the exit status of whoever asked for that."""
    from claude_daemon.supervise.detach import detached

    loaded = loaded_or_exit(flags)  # what is wrong is said here, where somebody reads it
    if loaded.paths.log_file is None:
        return say(EX_CONFIG, "log.file is none: a daemon in the background would have nowhere to say anything")
    started = detached(lambda teller: run(flags, teller=teller, detached=True))
    where = f"its log is {loaded.paths.log_file}"
    url, pid = "", None
    patience = START_PATIENCE_S
    while (told := started.listener.wait(patience)) is not None:
        if told.stage is Stage.FAILED:
            return say(int(told.fields["status"]), told.fields["message"])
        if told.stage is Stage.LISTENING:
            url, pid, patience = told.fields["url"], told.fields["pid"], READY_PATIENCE_S
        if told.stage is Stage.READY:
            return _started(told.fields)
    if started.listener.ended:
        return say(EX_CRASH, f"the daemon ended before it was ready; {where}")
    if pid is None:
        return say(EX_CRASH, f"the daemon does not listen after {patience:g} s, and is still at it; {where}")
    click.echo(f"claude-daemon {__version__} listens at {url} (pid {pid})")
    click.echo(f"claude-daemon: it has not become ready yet; {where}", err=True)
    return 0


def _started(told: Mapping[str, Any]) -> int:
    offline = ", on the offline model: no account, no network" if told["upstream"] == "offline" else ""
    click.echo(f"claude-daemon {__version__} serves at {told['url']} (pid {told['pid']}){offline}")
    if not told["ready"]:
        click.echo(f"claude-daemon: it is not ready: {told['reason']}", err=True)
    return 0


def stop() -> int:
    """Ends the daemon that has the home, and waits until it is gone; the exit status."""
    from claude_daemon.config.layout import Layout
    from claude_daemon.supervise.pidfile import running

    pid_file = Layout.of(os.environ, None).run / "daemon.pid"  # a configuration that is bad stops nobody from this
    told: set[int] = set()
    try:
        while (pid := running(pid_file)) is not None and pid not in told:
            told.add(pid)
            _end(pid, pid_file)
    except OSError as error:
        return refused(error)
    click.echo("stopped" if told else f"claude-daemon is not running ({pid_file})")
    return 0


def _end(pid: int, pid_file: Path) -> None:
    """Returns when it is gone: when it has given up the home, and its process, which then has nothing left to do, has
    ended."""
    from claude_daemon.supervise.pidfile import wait_until_free

    process = _process(pid)
    try:
        with contextlib.suppress(ProcessLookupError):  # it went by itself
            os.kill(pid, signal.SIGTERM)
        wait_until_free(pid_file)
        if process is not None:
            select.select([process], [], [], EXIT_PATIENCE_S)
    finally:
        if process is not None:
            os.close(process)


def _process(pid: int) -> int | None:
    """What can be read once the process ends, though it is not our child; None where there is no such thing."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # it went by itself, or what confines us forbids this
        return None


def _successor(flags: Flags) -> list[str]:
    """The command that starts another one like this."""
    named = {"config": "--config", "profile": "--profile", "http.port": "--port"}
    given = [part for key, flag in named.items() if flags.get(key) is not None for part in (flag, str(flags[key]))]
    offline = ["--offline"] if flags.get("offline") else []
    return [sys.executable, "-P", "-m", "claude_daemon", "run", "--takeover", *given, *offline]


def _for_supervisor(status: int) -> int:
    """launchd starts again whatever does not exit with 0: a configuration that is bad would be tried for ever."""
    return 0 if status == EX_CONFIG and os.environ.get("CLAUDE_DAEMON_SUPERVISOR") == "launchd" else status


def _run_loop(main: Coroutine[Any, Any, int]) -> int:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


def _leave(number: int, frame: object) -> NoReturn:
    sys.exit(0)


def _status_of(error: OSError) -> int:
    return EX_NOPERM if isinstance(error, PermissionError) else EX_CANTCREAT


def refused(error: OSError) -> int:
    return say(_status_of(error), error)


def _announce(daemon: Any) -> None:
    """What a person who started it in a terminal wants to know; nothing where nobody reads it."""
    key = daemon.started.paths.local_key
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


def say(status: int, error: object) -> int:
    click.echo(f"claude-daemon: {error}", err=True)
    return status
