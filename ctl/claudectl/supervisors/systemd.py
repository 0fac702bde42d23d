"""systemd, as the manager of the machine or of one user."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from claude_daemon.supervise.units import (
    Site,
    agents_drop_in,
    credentials_drop_in,
    roots_drop_in,
    system_units,
    sysusers,
    template_units,
    user_units,
)
from claudectl.errors import ControlError, Denied
from claudectl.sockets import IN_HOME, SYSTEM
from claudectl.supervisors.kind import Unit, Wish, home_of, is_ours, remove, run, write

SERVICE: Final = "claude-daemon.service"
SOCKETS: Final = ("claude-daemon.socket", "claude-daemon-control.socket")
# Those, but no instance of the template; a pattern may match nothing, where names of units that never failed may not.
OURS: Final = "claude-daemon[.-]*"
_AGENTS: Final = "10-agents-bash.conf"
_ROOTS: Final = "20-roots.conf"
_CREDENTIALS: Final = "30-credentials.conf"
_PROPERTIES: Final = ("LoadState", "ActiveState", "SubState", "MainPID", "UnitFileState")
# What the service's user may not enter, whatever the modes are below it (ProtectHome=).
_HOMES: Final = ("/home", "/root", "/run/user")


class Systemd:
    """What both managers have in common."""

    name = "systemd"

    def __init__(self, directory: Path, control: str, *, scope: Sequence[str]) -> None:
        self._directory = directory
        self._scope = scope
        self.control = control

    @property
    def written(self) -> bool:
        """Whether install has been here."""
        return (self._directory / SERVICE).exists()

    def install(self, wish: Wish, *, start: bool) -> Iterator[str]:
        self._check(wish)
        self._systemctl("show", "--property=Version")  # it says why where it is not there, and nothing is written
        files = self.files(wish)
        changes = []
        for change in self._write(files):
            changes.append(change)
            yield change
        yield from self._prepare(wish)
        self._systemctl("daemon-reload")
        self._systemctl("enable", SERVICE, *SOCKETS)
        yield f"enabled {SERVICE}, {', '.join(SOCKETS)}"
        if self.unit().pid is not None:
            yield from _until_when(changes)
        elif start:
            self.start()
            yield "started"

    def _write(self, files: Mapping[Path, bytes]) -> Iterator[str]:
        yield from write(files)
        for path in sorted(self._owned() - files.keys()):
            yield from remove(path)

    def _check(self, wish: Wish) -> None:
        """Raises ControlError for what would keep the service from starting."""
        daemon = wish.programs.daemon
        if not daemon.exists():
            raise ControlError(f"{daemon} is not there: install claude-daemon where claudectl is")
        for root in wish.roots:
            if not root.is_dir():
                raise ControlError(f"--root {root}: there is no such directory")
        for name, file in wish.credentials.items():
            if not file.is_file():
                raise ControlError(f"--credential {name}={file}: there is no such file")

    def _prepare(self, wish: Wish) -> Iterator[str]:
        """What is to be done, or said, beside the units."""
        raise NotImplementedError

    def files(self, wish: Wish) -> Mapping[Path, bytes]:
        raise NotImplementedError

    def _drop_ins(self, wish: Wish) -> dict[str, str]:
        drop_ins = {}
        if wish.agents_bash:
            drop_ins[_AGENTS] = agents_drop_in(user="--user" in self._scope)
        if wish.roots:
            drop_ins[_ROOTS] = roots_drop_in(wish.roots)
        if wish.credentials:
            drop_ins[_CREDENTIALS] = credentials_drop_in(wish.credentials)
        return {f"{SERVICE}.d/{name}": text for name, text in drop_ins.items()}

    def _owned(self) -> set[Path]:
        """Every file that may be ours."""
        names = [SERVICE, *SOCKETS, *(f"{SERVICE}.d/{name}" for name in (_AGENTS, _ROOTS, _CREDENTIALS))]
        return {self._directory / name for name in names}

    def uninstall(self) -> Iterator[str]:
        ours = [path for path in sorted(self._owned()) if path.exists() and is_ours(path)]
        if not ours:
            yield "it is not installed"
            return
        units = [path.name for path in ours if path.suffix in (".service", ".socket")]
        if units:
            self._systemctl("stop", *(unit.replace("@.", "@*.") for unit in units))
            self._systemctl("disable", "--quiet", *units)
            yield "stopped and disabled"
        for path in ours:
            yield from remove(path)
        self._systemctl("daemon-reload")

    def unit(self) -> Unit:
        try:
            shown = self._systemctl("show", SERVICE, f"--property={','.join(_PROPERTIES)}")
        except ControlError:
            return Unit(installed=False, state="systemd does not answer here")
        values = dict(line.partition("=")[::2] for line in shown.splitlines())
        pid = int(values.get("MainPID") or 0)
        sockets = self._systemctl("show", *SOCKETS, "--property=ActiveState", "--value").split()
        return Unit(
            installed=values.get("LoadState") == "loaded",
            state=f"{values.get('ActiveState')} ({values.get('SubState')}), {values.get('UnitFileState') or 'no unit'}",
            pid=pid or None,
            waits="active" in sockets and not pid,
        )

    def environment(self) -> Mapping[str, str]:
        """A credential that is handed over is read from the file that it is in. systemctl shows none (252), so they are
        read off the units."""
        try:
            shown = self._systemctl("show", SERVICE, "--property=Environment", "--value")
            units = self._systemctl("cat", SERVICE)
        except ControlError:
            return {}
        told = dict(entry.partition("=")[::2] for entry in shlex.split(shown))
        for line in units.splitlines():
            name, _, value = line.partition("=")
            credential, colon, file = value.partition(":")
            if name == "LoadCredential" and colon:
                told[f"{credential}_FILE"] = file
        return told

    def start(self) -> None:
        self._forget_failures()
        self._systemctl("start", *SOCKETS, SERVICE)

    def stop(self) -> None:
        """The sockets first: who connects meanwhile would start the next one."""
        self._systemctl("stop", *SOCKETS, SERVICE)

    def restart(self) -> None:
        self._forget_failures()
        self._systemctl("start", *SOCKETS)
        self._systemctl("restart", SERVICE)

    def _forget_failures(self) -> None:
        """Of those who failed too often systemd starts none for a while: it means loops, not people who mended it."""
        self._systemctl("reset-failed", OURS)

    def _systemctl(self, *words: str) -> str:
        return run("systemctl", *self._scope, "--no-pager", *words)


class SystemdOfTheMachine(Systemd):
    """Root installs, a user of its own runs the daemon."""

    def __init__(
        self,
        directory: Path = Path("/etc/systemd/system"),
        user: Path = Path("/etc/sysusers.d/claude-daemon.conf"),
        control: str = SYSTEM,
    ) -> None:
        super().__init__(directory, control, scope=("--system",))
        self._user = user

    def files(self, wish: Wish) -> Mapping[Path, bytes]:
        site = _site(wish)
        texts = {**system_units(site), **template_units(site), **self._drop_ins(wish)}
        files = {self._directory / name: text.encode() for name, text in texts.items()}
        return {self._user: sysusers(site).encode(), **files}

    def _owned(self) -> set[Path]:
        templates = ("claude-daemon@.service", "claude-daemon@.socket", "claude-daemon-control@.socket")
        return {*super()._owned(), self._user, *(self._directory / name for name in templates)}

    def _check(self, wish: Wish) -> None:
        if os.geteuid() != 0:
            raise Denied("a system service is installed by root: sudo claudectl service install, or --user")
        super()._check(wish)
        for prefix in wish.programs.prefixes:
            if any(prefix.is_relative_to(home) for home in _HOMES):
                where = f"{prefix} is below a home directory, where a system service sees nothing."
                raise ControlError(f"{where}\n{_way_out()}")

    def _prepare(self, wish: Wish) -> Iterator[str]:
        run("systemd-sysusers", str(self._user))
        yield "the user claude-daemon is there"
        if wish.roots:
            yield (
                "tasks may work in its roots where [[roots]] in /etc/claude-daemon/config.toml names them "
                "and the user claude-daemon has the right to"
            )

    def environment(self) -> Mapping[str, str]:
        directories = {
            f"{kind}_DIRECTORY": f"{above}/claude-daemon"
            for kind, above in (
                ("STATE", "/var/lib"),
                ("RUNTIME", "/run"),
                ("LOGS", "/var/log"),
                ("CONFIGURATION", "/etc"),
            )
        }
        return {"HOME": directories["STATE_DIRECTORY"], **directories, **super().environment()}

    def uninstall(self) -> Iterator[str]:
        yield from super().uninstall()
        yield "its state stays in /var/lib/claude-daemon, its logs in /var/log/claude-daemon; so does its user"

    def logs(self, *, follow: bool, lines: int) -> Sequence[str]:
        return ["journalctl", f"--unit={SERVICE}", f"--lines={lines}", *(["--follow"] if follow else [])]


def _way_out() -> str:
    return f"""Install it where the service's user can read it, and from there:

  /usr/bin/python3 -m venv /opt/claude-daemon
  /opt/claude-daemon/bin/pip install {shlex.quote(_source())}
  /opt/claude-daemon/bin/claudectl service install --start"""


def _source() -> str:
    """What pip would install once more: the clone that this was installed from, else the package by its name."""
    try:
        told = distribution("claude-daemon").read_text("direct_url.json")
    except PackageNotFoundError:
        told = None
    url = urlsplit(json.loads(told)["url"] if told else "")
    return unquote(url.path) if url.scheme == "file" else "claude-daemon"


class SystemdOfTheUser(Systemd):
    """A user installs and runs it."""

    def __init__(self, directory: Path, home: Path | None) -> None:
        """``home``: the daemon's; None is where it usually is."""
        self._home = home
        self._state = home or Path.home() / ".claude-daemon"
        super().__init__(directory, str(self._state / IN_HOME), scope=("--user",))

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> SystemdOfTheUser:
        config = environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        return cls(Path(config) / "systemd" / "user", home_of(environ))

    def files(self, wish: Wish) -> Mapping[Path, bytes]:
        if wish.roots:
            raise ControlError("--root is for a system service: a user's own sees all that the user sees")
        texts = {**user_units(_site(wish), self._home), **self._drop_ins(wish)}
        return {self._directory / name: text.encode() for name, text in texts.items()}

    def _prepare(self, wish: Wish) -> Iterator[str]:
        yield "it runs while you are logged in; and beyond that after: loginctl enable-linger"

    def uninstall(self) -> Iterator[str]:
        yield from super().uninstall()
        yield f"its state stays in {self._state}"

    def logs(self, *, follow: bool, lines: int) -> Sequence[str]:
        return ["journalctl", f"--user-unit={SERVICE}", f"--lines={lines}", *(["--follow"] if follow else [])]


def _until_when(changes: Sequence[str]) -> Iterator[str]:
    """When what runs already will be as the files say."""
    if any(change.endswith(".socket") for change in changes):
        yield "it runs, with the sockets of before until: claudectl service stop, then claudectl service start"
    elif changes:
        yield "it runs, as before until: claudectl service restart"
    else:
        yield "it runs already"


def _site(wish: Wish) -> Site:
    return Site(daemon=wish.programs.daemon, claudectl=wish.programs.claudectl, listen=wish.listen)
