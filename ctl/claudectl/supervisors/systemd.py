"""systemd, as the manager of the machine or of one user."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

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
from claudectl.supervisors.kind import Programs, Unit, Wish, remove, run, write

SERVICE: Final = "claude-daemon.service"
SOCKETS: Final = ("claude-daemon.socket", "claude-daemon-control.socket")
_AGENTS: Final = "10-agents-bash.conf"
_ROOTS: Final = "20-roots.conf"
_CREDENTIALS: Final = "30-credentials.conf"
_PROPERTIES: Final = ("LoadState", "ActiveState", "SubState", "MainPID", "UnitFileState")
# What the service's user may not enter, whatever the modes are below it (ProtectHome=).
_HOMES: Final = ("/home", "/root", "/run/user")


class Systemd:
    """What both managers have in common."""

    name = "systemd"

    def __init__(self, directory: Path, *, scope: Sequence[str]) -> None:
        self._directory = directory
        self._scope = scope

    def install(self, wish: Wish, *, start: bool) -> Iterator[str]:
        self._check(wish.programs)
        files = self.files(wish)
        for path in self._owned() - files.keys():
            yield from remove(path)
        yield from write(files)
        yield from self._prepare()
        self._systemctl("daemon-reload")
        self._systemctl("enable", SERVICE, *SOCKETS)
        yield f"enabled {SERVICE}, {', '.join(SOCKETS)}"
        if start:
            self.start()
            yield "started"

    def _check(self, programs: Programs) -> None:
        """Raises ControlError."""
        if not programs.daemon.exists():
            raise ControlError(f"{programs.daemon} is not there: install claude-daemon where claudectl is")

    def _prepare(self) -> Iterator[str]:
        yield from ()

    def files(self, wish: Wish) -> Mapping[Path, bytes]:
        raise NotImplementedError

    def _drop_ins(self, wish: Wish) -> dict[str, str]:
        drop_ins = {}
        if wish.agents_bash:
            drop_ins[_AGENTS] = agents_drop_in()
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
        if not self.unit().installed:
            yield "it is not installed"
            return
        self.stop()
        self._systemctl("disable", "--quiet", SERVICE, *SOCKETS)
        yield "stopped and disabled"
        for path in sorted(self._owned()):
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

    def start(self) -> None:
        self._systemctl("start", *SOCKETS, SERVICE)

    def stop(self) -> None:
        """The sockets first: who connects meanwhile would start the next one."""
        self._systemctl("stop", *SOCKETS, SERVICE)

    def restart(self) -> None:
        self._systemctl("start", *SOCKETS)
        self._systemctl("restart", SERVICE)

    def _systemctl(self, *words: str) -> str:
        return run("systemctl", *self._scope, "--no-pager", *words)


class SystemdOfTheMachine(Systemd):
    """Root installs, a user of its own runs the daemon."""

    def __init__(
        self, directory: Path = Path("/etc/systemd/system"), user: Path = Path("/etc/sysusers.d/claude-daemon.conf")
    ) -> None:
        super().__init__(directory, scope=("--system",))
        self._user = user

    def files(self, wish: Wish) -> Mapping[Path, bytes]:
        site = _site(wish)
        texts = {**system_units(site), **template_units(site), **self._drop_ins(wish)}
        files = {self._directory / name: text.encode() for name, text in texts.items()}
        return {self._user: sysusers(site).encode(), **files}

    def _owned(self) -> set[Path]:
        templates = ("claude-daemon@.service", "claude-daemon@.socket", "claude-daemon-control@.socket")
        return {*super()._owned(), self._user, *(self._directory / name for name in templates)}

    def _check(self, programs: Programs) -> None:
        if os.geteuid() != 0:
            raise Denied("a system service is installed by root: sudo claudectl service install, or --user")
        super()._check(programs)
        for prefix in programs.prefixes:
            if any(prefix.is_relative_to(home) for home in _HOMES):
                raise ControlError(f"{prefix} is below a home directory, where a system service sees nothing.\n{_OPT}")

    def _prepare(self) -> Iterator[str]:
        run("systemd-sysusers", str(self._user))
        yield "the user claude-daemon is there"

    def uninstall(self) -> Iterator[str]:
        yield from super().uninstall()
        yield "its state stays in /var/lib/claude-daemon, its logs in /var/log/claude-daemon"

    def logs(self, *, follow: bool, lines: int) -> Sequence[str]:
        return ["journalctl", f"--unit={SERVICE}", f"--lines={lines}", *(["--follow"] if follow else [])]


_OPT: Final = """Install it where the service's user can read it, and from there:

  /usr/bin/python3 -m venv /opt/claude-daemon
  /opt/claude-daemon/bin/pip install claude-daemon
  /opt/claude-daemon/bin/claudectl service install --start"""


class SystemdOfTheUser(Systemd):
    """A user installs and runs it."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> SystemdOfTheUser:
        config = environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
        return cls(Path(config) / "systemd" / "user", scope=("--user",))

    def files(self, wish: Wish) -> Mapping[Path, bytes]:
        if wish.roots:
            raise ControlError("--root is for a system service: a user's own sees all that the user sees")
        texts = {**user_units(_site(wish)), **self._drop_ins(wish)}
        return {self._directory / name: text.encode() for name, text in texts.items()}

    def uninstall(self) -> Iterator[str]:
        yield from super().uninstall()
        yield "its state stays in ~/.claude-daemon"

    def logs(self, *, follow: bool, lines: int) -> Sequence[str]:
        return ["journalctl", f"--user-unit={SERVICE}", f"--lines={lines}", *(["--follow"] if follow else [])]


def _site(wish: Wish) -> Site:
    return Site(daemon=wish.programs.daemon, claudectl=wish.programs.claudectl, listen=wish.listen)
