"""launchd, as the manager of one user's agents."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from claude_daemon.supervise.units import LABEL, launch_agent
from claudectl.errors import ControlError
from claudectl.sockets import IN_HOME
from claudectl.supervisors.kind import Unit, Wish, home_of, is_ours, remove, run, tail, write

NOT_LOADED: Final = "not loaded"


class Launchd:
    """``home`` is the daemon's. launchd hands no sockets over: a restart drops what comes in between."""

    name = "launchd"

    def __init__(self, agents: Path, home: Path, uid: int) -> None:
        self._file = agents / f"{LABEL}.plist"
        self._home = home
        self.control = str(home / IN_HOME)
        self._domain = f"gui/{uid}"
        self._service = f"{self._domain}/{LABEL}"

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Launchd:
        home = home_of(environ) or Path.home() / ".claude-daemon"
        return cls(Path.home() / "Library" / "LaunchAgents", home, os.getuid())

    def files(self, wish: Wish) -> Mapping[Path, bytes]:
        if wish.roots or wish.credentials or wish.agents_bash:
            raise ControlError("--root, --credential and --agents-bash are systemd's; an agent sees what its user sees")
        return {self._file: launch_agent(wish.programs.daemon, self._home)}

    def install(self, wish: Wish, *, start: bool) -> Iterator[str]:
        (self._home / "log").mkdir(parents=True, exist_ok=True, mode=0o700)
        changes = list(write(self.files(wish)))
        yield from changes
        unit = self.unit()
        if changes and unit.state != NOT_LOADED:  # kickstart knows the agent as it was loaded
            yield "it is loaded, as before until: claudectl service stop, then claudectl service start"
        elif unit.pid is not None:
            yield "it runs already"
        elif start:
            self.start()
            yield "started"

    def uninstall(self) -> Iterator[str]:
        if not (self._file.exists() and is_ours(self._file)):
            yield "it is not installed"
            return
        self.stop()
        yield "stopped"
        yield from remove(self._file)
        yield f"its state stays in {self._home}"

    def unit(self) -> Unit:
        installed = self._file.exists()
        try:
            said = run("launchctl", "print", self._service)
        except ControlError:
            return Unit(installed=installed, state=NOT_LOADED)
        pid = re.search(r"^\s*pid = (\d+)$", said, re.MULTILINE)
        state = re.search(r"^\s*state = (.+)$", said, re.MULTILINE)
        return Unit(
            installed=installed, state=state[1] if state else "loaded", pid=int(pid[1]) if pid is not None else None
        )

    def start(self) -> None:
        if self.unit().state == NOT_LOADED:
            run("launchctl", "bootstrap", self._domain, str(self._file))
        else:
            run("launchctl", "kickstart", self._service)

    def stop(self) -> None:
        """It is unloaded: launchd would start it again at the next login only."""
        if self.unit().state != NOT_LOADED:
            run("launchctl", "bootout", self._service)

    def restart(self) -> None:
        if self.unit().state == NOT_LOADED:
            self.start()
        else:
            run("launchctl", "kickstart", "-k", self._service)

    def environment(self) -> Mapping[str, str]:
        return {"CLAUDE_DAEMON_HOME": str(self._home), "CLAUDE_DAEMON_SUPERVISOR": self.name}

    def logs(self, *, follow: bool, lines: int) -> Sequence[str]:
        return tail(self._home / "log" / "launchd.log", follow=follow, lines=lines)
