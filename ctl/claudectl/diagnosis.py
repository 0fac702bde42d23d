"""Everything that can be found out about a daemon and what is around it, whether or not it runs.

What needs more than the control socket is looked at by a program of its own, ``python -m claude_daemon.doctor``: an
installation that cannot even be imported is a finding like any other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from claude_daemon import __version__
from claudectl.clean import clean_line
from claudectl.errors import ControlError, Denied
from claudectl.options import Options
from claudectl.render import Document, known, mapping, plain
from claudectl.supervisors import Supervisor, Unit, choose
from claudectl.supervisors.answering import look

# It starts Claude Code once and tries the sandbox: seconds, on a busy machine some more.
PROGRAM_SECONDS = 120.0
_MAX_SAID = 2000
# What a program needs; a service has these of its own, or as its user has them.
_KEPT = ("HOME", "LANG", "PATH", "TMPDIR", "XDG_RUNTIME_DIR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Approach:
    """What the supervisor knows, the ``status`` of the daemon that answers, None if none does, and what that makes of
    findings. Nobody was woken by it who waits at a socket of systemd's. ``environ``: that of the daemon that is meant,
    for programs that look at what it looks at."""

    unit: Unit
    status: Document | None
    found: Sequence[Document]
    environ: Mapping[str, str] = field(repr=False)


def examine(approach: Approach, *, config: str | None = None, profile: str | None = None) -> Iterator[Document]:
    """Findings, ``{"name", "status", "reason", "todo"}``, as they are made."""
    yield from approach.found
    yield _service(approach.unit)
    yield from _program(_arguments(approach, config, profile), approach.environ)


def finding(name: str, status: str, reason: str = "", todo: str = "") -> Document:
    return {"name": name, "status": status, "reason": reason, "todo": todo}


def approached(options: Options) -> Approach:
    """From here on ``options`` mean the daemon that has answered."""
    supervisor = choose(None)
    try:
        unit, status = look(options, supervisor)
    except ControlError as error:
        todo = "the daemon's user, or root" if isinstance(error, Denied) else "claudectl stacks; the log"
        reason = clean_line(str(error).splitlines()[0])
        unit, environ = supervisor.unit(), _environ(supervisor, installed=supervisor.unit().installed)
        return Approach(unit=unit, status=None, found=[finding("daemon", "fail", reason, todo)], environ=environ)
    environ = _environ(supervisor, installed=unit.installed and (status is None or status.get("pid") == unit.pid))
    if status is not None:
        return Approach(unit=unit, status=status, found=list(_of_status(status)), environ=environ)
    reason = "not running; its sockets wait, and start it for whoever connects" if unit.waits else "not running"
    todo = "" if unit.waits else "claude-daemon start, or claudectl service install --start"
    return Approach(unit=unit, status=None, found=[finding("daemon", "pass", reason, todo)], environ=environ)


def _environ(supervisor: Supervisor, *, installed: bool) -> Mapping[str, str]:
    """The service's where one is meant: nothing of this terminal's is in it."""
    if not installed:
        return dict(os.environ)
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    return {**kept, **supervisor.environment()}


def _of_status(status: Document) -> Iterator[Document]:
    version, state = plain(status.get("version")), plain(status.get("state"))
    reason = f"{state}, pid {plain(status.get('pid'))}, at {plain(status.get('url'))}"
    if version != __version__:
        todo = "claudectl service restart, or install one version of both"
        yield finding("daemon", "warn", f"{reason}; it is {version}, and this claudectl {__version__}", todo)
    else:
        yield finding("daemon", "pass", reason)
    waiting = mapping(status.get("config")).get("needs_restart")
    if isinstance(waiting, list) and waiting:
        reason = f"in force after a restart: {', '.join(map(plain, waiting))}"
        yield finding("configuration in force", "warn", reason, "claudectl service restart")
    for name, check in mapping(status.get("checks")).items():
        found = mapping(check)
        if found.get("status") in ("warn", "fail"):
            why = known(found.get("reason"))
            yield finding(f"health: {plain(name)}", str(found["status"]), why, "docs/health.md")
    agents = mapping(status.get("agents"))
    if "sandboxed" in agents:  # the daemon's own try: within its unit more may be forbidden than here
        if agents["sandboxed"]:
            yield finding("sandbox", "pass", "agents are confined")
        else:
            reason = known(mapping(mapping(status.get("checks")).get("agents")).get("reason")) or "there is none"
            todo = "bubblewrap 0.11 or newer; in a system service: claudectl service install --agents-bash"
            yield finding("sandbox", "warn", reason, todo)
    credential = mapping(status.get("credential"))
    kind = plain(credential.get("kind"))
    if kind in ("oauth_token", "login"):
        reason = f"{kind}: every key is in one trust domain, and agents and sessions are refused"
        yield finding("credential", "warn", reason, "an API key, where that matters")
    elif kind != "none":  # which health has told
        yield finding("credential", "pass", f"{kind} from {plain(credential.get('origin'))}")


def _service(unit: Unit) -> Document:
    if not unit.installed:
        return finding("service", "pass", "not installed", "claudectl service install, to have it supervised")
    if unit.state.startswith("failed"):
        return finding("service", "fail", unit.state, "claudectl service logs, then claudectl service start")
    return finding("service", "pass", unit.state)


def _arguments(approach: Approach, config: str | None, profile: str | None) -> Sequence[str]:
    """A daemon that runs tells which configuration is meant; whoever names one means that."""
    arguments: list[str] = []
    unit, status = approach.unit, approach.status
    if status is not None:
        arguments.append("--running")
        if "STATE_DIRECTORY" not in approach.environ:  # a flag would stand in all directories' place
            arguments.append(f"--home={plain(status.get('home'))}")
        config = config or known(mapping(status.get("config")).get("file")) or None
        profile = profile or known(status.get("profile")) or None
    elif unit.waits or unit.pid is not None:
        arguments.append("--port-held")
    arguments += [] if config is None else [f"--config={config}"]
    return arguments + ([] if profile is None else [f"--profile={profile}"])


def ended(command: Sequence[str], environ: Mapping[str, str], seconds: float) -> subprocess.CompletedProcess[bytes]:
    """A program at its end, with what it said. Raises ControlError where it cannot be started, or takes longer."""
    try:
        return subprocess.run(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ControlError(clean_line(str(error))) from error


def _program(arguments: Sequence[str], environ: Mapping[str, str]) -> Iterator[Document]:
    """What :mod:`claude_daemon.doctor` finds; how it ends is a finding where it does not end well."""
    try:
        done = ended([sys.executable, "-m", "claude_daemon.doctor", *arguments], environ, PROGRAM_SECONDS)
    except ControlError as error:
        yield finding("installation", "fail", str(error))
        return
    for line in done.stdout.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        todo = f"{sys.executable} -m pip install --force-reinstall claude-daemon"
        yield finding("installation", "fail", clean_line(said[0])[:_MAX_SAID], todo)
