"""systemd's units: one daemon of the machine, one of each name, one of each user."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

MARKER: Final = "# Written by claudectl service install, which writes it again; changes belong into a drop-in."
"""The first line of every file that is ours: what does not begin with it is never touched."""
NAME: Final = "claude-daemon"
DEFAULT_LISTEN: Final = "127.0.0.1:8006"
_HOLE: Final = re.compile(r"@([a-z_]+)@")
_UNSAFE: Final = re.compile(r"[\x00-\x20\"'\\%$]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where the programs are, and what the service is. ``listen`` is an address with a port."""

    daemon: Path
    claudectl: Path
    user: str = NAME
    listen: str = DEFAULT_LISTEN


def system_units(site: Site) -> dict[str, str]:
    """The one daemon of the machine, by file name."""
    return _units(site, _SYSTEM, name=NAME, directory=NAME, runtime=f"/run/{NAME}")


def template_units(site: Site) -> dict[str, str]:
    """Further daemons, each with directories of its own. An instance's name is its port: ``claude-daemon@8007``."""
    holes = {**_SYSTEM, "instance_words": " (port %i)", "listen": f"{site.listen.rpartition(':')[0]}:%i"}
    return _units(site, holes, name=f"{NAME}@", directory=f"{NAME}-%i", runtime=f"/run/{NAME}-%i")


def user_units(site: Site, home: Path | None = None) -> dict[str, str]:
    """The daemon of one user, for ``~/.config/systemd/user``. ``home``: the daemon's; None is where it usually is.

    Its directories are those of the home, as for a daemon that the user starts by hand: one key, one store, and one
    lock for both. Raises ValueError for a home that no unit can name.
    """
    place = _word(home) if home is not None else "%h/.claude-daemon"
    holes = {**_USER, "home": "" if home is None else f"Environment=CLAUDE_DAEMON_HOME={place}\n"}
    units = _units(site, holes, name=NAME, directory=NAME, runtime=f"{place}/run")
    return {name: _without_what_users_may_not(text) for name, text in units.items()}


def agents_drop_in(*, user: bool = False) -> str:
    """For agents with Bash. ``user``: for the daemon of one user, whose cgroups are not covered."""
    return _filled("10-agents-bash.conf", {"cgroups": "" if user else _OWN_CGROUP})


def roots_drop_in(roots: Sequence[Path]) -> str:
    """Directories that tasks may work in. Raises ValueError for a path that no unit can name."""
    lines = [f"BindPaths={_word(root)}\nReadWritePaths={_word(root)}" for root in roots]
    # yes would hide what is bound below a home, too
    return "\n".join([MARKER, "[Service]", "# Homes are empty but for these.", "ProtectHome=tmpfs", *lines, ""])


def credentials_drop_in(credentials: Mapping[str, Path]) -> str:
    """Secrets by name, from files that root alone may read. Raises ValueError as :func:`roots_drop_in`."""
    lines = [f"LoadCredential={_word(name)}:{_word(path)}" for name, path in credentials.items()]
    return "\n".join([MARKER, "[Service]", *lines, ""])


def sysusers(site: Site) -> str:
    """The user of the system service (sysusers.d)."""
    return _filled("sysusers.conf", {"user": site.user, "state": f"/var/lib/{NAME}"})


_OWN_CGROUP: Final = """# All other cgroups stay read-only.
ReadWritePaths=-/sys/fs/cgroup/system.slice/%n
"""
_SYSTEM: Final[Mapping[str, str]] = {
    "instance_words": "",
    "home": "",
    "directory_mode": "0755",
    "oom_score": "OOMScoreAdjust=-100\n",
    "protect_home": "yes",
    "target": "multi-user.target",
}
_USER: Final[Mapping[str, str]] = {
    **_SYSTEM,
    "oom_score": "",  # users may not ask for less than their session has
    "protect_home": "no",
    "target": "default.target",
    "identity": "",
    "owner": "",
    "directory_mode": "0700",
}
_OF_THE_SYSTEM: Final = re.compile(
    r"^(?:After=network-online.*|Wants=network-online.*|PrivateDevices=.*|DevicePolicy=.*|ProtectClock=.*|"
    r"ProtectKernel.*|ProtectHostname=.*|ProtectProc=.*|CapabilityBoundingSet=.*|AmbientCapabilities=.*|"
    r"ProtectControlGroups=.*|ProtectSystem=.*|ProtectHome=.*|PrivateTmp=.*|PrivateMounts=.*|KeyringMode=.*|RemoveIPC=.*|"
    r"(?:State|Runtime|Logs|Cache|Configuration)Directory.*|# The control socket lives there.*)\n",
    re.MULTILINE,
)
"""What a manager of a user cannot do, or only with namespaces of its own, which keep bubblewrap from making any; and
the directories of the system."""


def _units(site: Site, holes: Mapping[str, str], *, name: str, directory: str, runtime: str) -> dict[str, str]:
    control = f"{NAME}-control{name.removeprefix(NAME)}"
    service, instance = f"{name}.service", "%i" if name.endswith("@") else ""
    sockets = [f"{name}{instance}.socket", f"{control}{instance}.socket"]
    given = {
        "daemon": _word(site.daemon),
        "claudectl": _word(site.claudectl),
        "listen": _word(site.listen),
        "identity": f"User={site.user}\nGroup={site.user}\n",
        "owner": f"SocketUser={site.user}\nSocketGroup={site.user}\n",
        "sockets": " ".join(sockets),
        "after_sockets": "".join(f" {socket}" for socket in sockets),
        "service": f"{name}{instance}.service",
        "directory": directory,
        "runtime": runtime,
        **holes,
    }
    return {
        service: _filled("claude-daemon.service", given),
        f"{name}.socket": _filled("claude-daemon.socket", given),
        f"{control}.socket": _filled("claude-daemon-control.socket", given),
    }


def _without_what_users_may_not(text: str) -> str:
    return _OF_THE_SYSTEM.sub("", text)


def _filled(template: str, holes: Mapping[str, str]) -> str:
    text = files(__package__).joinpath("templates", template).read_text()
    return _HOLE.sub(lambda hole: {"marker": MARKER, **holes}.get(hole[1], hole[0]), text)


def _word(text: str | Path) -> str:
    """Text that a unit takes as one word. Raises ValueError where it would be taken for something else."""
    if _UNSAFE.search(str(text)):
        raise ValueError(f"{text}: a unit cannot name what holds spaces, quotes, %, $ or \\")
    return str(text)
