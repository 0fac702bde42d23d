"""The home and what is in it, the directories that tasks may work in, and the disks below: looked at, not changed."""

from __future__ import annotations

import os
import resource
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from claude_daemon.config import Loaded
from claude_daemon.core.key import well_formed
from claude_daemon.doctor.finding import Finding, Status
from claude_daemon.home import is_audit_key
from claude_daemon.ports import StoreBroken, StoreUnavailable
from claude_daemon.service.space import measured
from claude_daemon.store import needs_migration
from claude_daemon.supervise.descriptors import OWN
from claude_daemon.supervise.sockets import MAX_PATH_BYTES


def home(loaded: Loaded) -> Iterator[Finding]:
    path = loaded.paths.home
    name = f"home {path}"
    try:
        found = path.stat()
    except FileNotFoundError:
        yield _to_be_made(name, path)
        return
    except OSError as error:
        yield Finding(name=name, status="fail", reason=f"{error.strerror}")
        return
    owner = _owner(path)
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISDIR(found.st_mode):
        yield Finding(name=name, status="fail", reason="it is not a directory", todo="set CLAUDE_DAEMON_HOME")
    elif found.st_uid != owner:
        reason = f"it belongs to uid {found.st_uid}, and this is uid {owner}"
        yield Finding(name=name, status="fail", reason=reason, todo="run as that user, or set CLAUDE_DAEMON_HOME")
    elif mode & 0o022:
        todo = f"look through it, for what is in it may be theirs, then: chmod 700 {path}"
        yield Finding(name=name, status="fail", reason=f"others may write to it (mode {mode:04o})", todo=todo)
    elif mode & 0o055:
        yield Finding(
            name=name, status="warn", reason=f"others may read it (mode {mode:04o})", todo=f"chmod 700 {path}"
        )
    elif not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(name=name, status="fail", reason="it cannot be written to")
    else:
        yield Finding(name=name, status="pass")
    yield from _keys(loaded)


def _owner(path: Path) -> int:
    """Whose files are right: this user's, and for root the home's own."""
    return path.stat().st_uid if os.geteuid() == 0 else os.geteuid()


def _to_be_made(name: str, path: Path) -> Finding:
    above = next(parent for parent in path.parents if parent.exists())
    if os.access(above, os.W_OK | os.X_OK):
        return Finding(name=name, status="pass", reason="the first start makes it")
    return Finding(name=name, status="fail", reason=f"it cannot be made: {above} cannot be written to")


def _keys(loaded: Loaded) -> Iterator[Finding]:
    paths, owner = loaded.paths, _owner(loaded.paths.home)
    secrets = [paths.local_key, paths.audit_key, paths.database]
    wrong = [finding for path in secrets if (finding := private(path, owner)) is not None]
    yield from wrong
    anew = "delete it, and the next start makes a new one"
    kept = f"put it back, for what it has sealed cannot be proven without it, or {anew}"
    no_keys = [
        Finding(name=str(path), status="fail", reason="it holds no key", todo=todo)
        for path, is_key, todo in ((paths.local_key, well_formed, anew), (paths.audit_key, is_audit_key, kept))
        if (text := _text_of(path)) is not None and not is_key(text)
    ]
    yield from no_keys
    if not wrong and not no_keys:
        there = [path.name for path in secrets if path.exists()]
        yield Finding(name="private files", status="pass", reason=", ".join(there) or "none yet")


def _text_of(path: Path) -> str | None:
    """None where there is no ordinary file, or none that can be read: that is said elsewhere."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        return path.read_bytes().decode("utf-8", "replace").strip()
    except OSError:
        return None


def private(path: Path, owner: int) -> Finding | None:
    """What is wrong with a file that nobody else may read; None for nothing, or no file."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    except OSError as error:
        return Finding(name=str(path), status="fail", reason=str(error.strerror))
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISREG(found.st_mode):
        return Finding(name=str(path), status="fail", reason="it is no ordinary file", todo="put the file itself there")
    if found.st_uid != owner:
        reason = f"it belongs to uid {found.st_uid}, and this is uid {owner}"
        return Finding(name=str(path), status="fail", reason=reason, todo=f"chown it to uid {owner}")
    if mode & 0o022:
        todo = "a key: delete it for a new one; else look through it, then chmod 600"
        return Finding(name=str(path), status="fail", reason=f"others may write it (mode {mode:04o})", todo=todo)
    if mode & 0o055:
        todo = f"chmod 600 {path}; if somebody else read it, replace what it holds"
        return Finding(name=str(path), status="warn", reason=f"others may read it (mode {mode:04o})", todo=todo)
    return None


def store(loaded: Loaded) -> Iterator[Finding]:
    path = loaded.paths.database
    try:
        migrate = needs_migration(path)
    except StoreBroken as error:
        yield Finding(name="store", status="fail", reason=str(error), todo="claude-daemon restore BACKUP")
    except (StoreUnavailable, OSError) as error:
        yield Finding(name="store", status="fail", reason=str(error))
    else:
        reason = "the first start makes it" if not path.exists() else str(path)
        if migrate:
            reason += "; the next start brings it to this version, and keeps the file from before"
        yield Finding(name="store", status="pass", reason=reason)


def control_socket(loaded: Loaded) -> Iterator[Finding]:
    """For when no daemon of this home answers: it is connected to."""
    path = loaded.paths.control_socket
    name = f"control socket {path}"
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        reason = f"its path has {length} bytes, {MAX_PATH_BYTES} is the limit"
        yield Finding(name=name, status="fail", reason=reason, todo="a shorter CLAUDE_DAEMON_HOME or control.socket")
    elif not path.exists():
        yield Finding(name=name, status="pass", reason="nobody listens yet")
    elif not path.is_socket():
        yield Finding(name=name, status="fail", reason="something else is in its place", todo=f"move {path} away")
    else:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(0.5)
            answers = probe.connect_ex(str(path)) == 0
        reason = "somebody listens there" if answers else "left behind; the next start replaces it"
        yield Finding(name=name, status="warn" if answers else "pass", reason=reason)


def log_file(loaded: Loaded) -> Iterator[Finding]:
    path = loaded.paths.log_file
    if path is None:
        yield Finding(name="log", status="pass", reason="stderr alone")
        return
    there = path if path.exists() else next(parent for parent in path.parents if parent.exists())
    if os.access(there, os.W_OK):
        yield Finding(name=f"log {path}", status="pass")
    else:
        yield Finding(name=f"log {path}", status="fail", reason=f"{there} cannot be written to", todo="log.file")


def roots(loaded: Loaded) -> Iterator[Finding]:
    if not loaded.settings.roots:
        reason = "none: agents work in directories of their own alone"
        yield Finding(name="roots", status="pass", reason=reason)
    for root in loaded.settings.roots:
        yield _root(root.path, trusted=root.trusted, home=loaded.paths.home)


def _root(path: Path, *, trusted: bool, home: Path) -> Finding:
    name = f"root {path}"
    try:
        found = path.stat()
    except OSError as error:
        return Finding(
            name=name, status="fail", reason=str(error.strerror), todo="make it, or take it out of [[roots]]"
        )
    if not stat.S_ISDIR(found.st_mode):
        return Finding(name=name, status="fail", reason="it is not a directory", todo="take it out of [[roots]]")
    if not os.access(path, os.R_OK | os.X_OK):
        return Finding(name=name, status="fail", reason="this user may not read it", todo="grant it to this user")
    if trusted and found.st_mode & 0o002:
        reason = "it is trusted, and anybody may write to it: their settings would count"
        return Finding(name=name, status="warn", reason=reason, todo=f"chmod o-w {path}")
    if home.is_relative_to(path.resolve()):
        reason = "the daemon's home is in it; tasks are kept out of that, and may use the rest"
        return Finding(name=name, status="warn", reason=reason, todo="a root that does not hold the home")
    if not os.access(path, os.W_OK):
        return Finding(name=name, status="warn", reason="tasks can read there and not write")
    return Finding(name=name, status="pass")


def disks(loaded: Loaded) -> Iterator[Finding]:
    try:
        spaces = measured(loaded.paths.written)
    except OSError as error:
        yield Finding(name="disk", status="fail", reason=str(error))
        return
    for space in spaces:
        status, reason = space.judged()
        words: dict[str, Status] = {"pass": "pass", "warn": "warn", "fail": "fail"}
        free = reason or f"{space.free_bytes // 2**20} MiB free"
        todo = "" if not reason else "make room: claudectl tasks purge, queue.retention_days, log rotation"
        yield Finding(name=f"disk of {space.paths[0]}", status=words[status.value], reason=free, todo=todo)


def descriptors(loaded: Loaded) -> Iterator[Finding]:
    """The soft limit is raised at the start; the hard one is somebody else's word."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = loaded.settings.http.max_connections + OWN
    if hard != resource.RLIM_INFINITY and hard < wanted:
        reason = f"{hard} may be open at once, http.max_connections wants {wanted}"
        todo = "ulimit -Hn, or LimitNOFILE= in the unit; or fewer http.max_connections"
        yield Finding(name="file descriptors", status="warn", reason=reason, todo=todo)
    else:
        yield Finding(name="file descriptors", status="pass")
