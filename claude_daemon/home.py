"""The home: a directory and a key in it that nobody else may read.

What is found in the home is run and believed (``config.toml`` names programs, ``local.key`` who may ask), so whose it
is matters more than who can read it. Refused is what others could have written: a home or a key that belongs to
somebody else, a home that others may write to. Merely readable is what ``mkdir`` makes of it, and is repaired, and said
so; but not where the directory holds anything that is not ours: a home set to ``/srv`` by mistake stays as it was.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from claude_daemon.core.key import new_secret, well_formed

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600
_NAMES: Final = frozenset({"config.toml", "local.key", "audit.key", "run", "log", "engine", "work"})
_PREFIXES: Final = ("daemon.db", "local.key.", "audit.key.", ".DS_Store")
_MAX_KEY_FILE_BYTES: Final = 1024  # a key and some white space
AUDIT_KEY_BYTES: Final = 32
_AUDIT_KEY: Final = re.compile(rf"[0-9a-f]{{{2 * AUDIT_KEY_BYTES}}}", re.ASCII)


class Unsafe(PermissionError):
    """Somebody else could have put there what we would believe."""


class BadKeyFile(ValueError):
    """``local.key`` or ``audit.key`` holds no key."""


def take(home: Path) -> str | None:
    """Makes the home, or makes sure of it; what had to be repaired, None if nothing. Raises OSError, Unsafe."""
    try:
        home.mkdir(parents=True, mode=DIRECTORY_MODE)
    except FileExistsError:
        return _checked(home)
    return None


def _checked(home: Path) -> str | None:
    found = home.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{home} is not a directory")
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid != os.geteuid():
        raise Unsafe(f"{home} belongs to uid {found.st_uid}, and this is uid {os.geteuid()}")
    if mode & 0o022:
        why = "others may write to it, so what is in it may be theirs"
        raise Unsafe(f"{home} has mode {mode:04o}: {why}. Look through it, then: chmod 700 {home}")
    if mode & 0o055:
        strange = next((name for name in sorted(os.listdir(home)) if not _ours(name)), None)  # noqa: PTH208
        if strange is not None:
            why = f"others may read it, and it holds {strange}, which is not ours to hide"
            raise Unsafe(f"{home} has mode {mode:04o}: {why}. Give the daemon a directory of its own, or chmod 700 it")
        home.chmod(DIRECTORY_MODE)
        return f"{home} could be read by others (mode {mode:04o}) and is 0700 now"
    return None


def _ours(name: str) -> bool:
    return name in _NAMES or name.startswith(_PREFIXES)


def local_secret(path: Path, randbytes: Callable[[int], bytes], repaired: Callable[[str], None]) -> str:
    """The ``local`` key's secret; made when there is none. ``repaired`` is told of a mode that had to be changed.

    Raises BadKeyFile, Unsafe, OSError.
    """
    text = _found(path, repaired)
    if text is None:
        return _written(path, new_secret(randbytes))
    if not well_formed(text):
        what = "is empty" if not text else "does not hold a key (cd_ and 43 characters)"
        raise BadKeyFile(f"{path} {what}: delete it, and the next start makes a new one")
    return text


def audit_key(path: Path, randbytes: Callable[[int], bytes], repaired: Callable[[str], None]) -> bytes:
    """What the audit's records are sealed with; made when there is none. Raises as :func:`local_secret` does."""
    text = _found(path, repaired)
    if text is None:
        text = _written(path, randbytes(AUDIT_KEY_BYTES).hex())
    if not is_audit_key(text):
        what = "is empty" if not text else f"does not hold a key ({2 * AUDIT_KEY_BYTES} hexadecimal digits)"
        why = "put it back, for what it has sealed cannot be proven without it, or delete it"
        raise BadKeyFile(f"{path} {what}: {why}, and the next start makes a new one")
    return bytes.fromhex(text)


def is_audit_key(text: str) -> bool:
    """Whether ``audit.key`` may hold this, but for white space around it."""
    return _AUDIT_KEY.fullmatch(text) is not None


def _found(path: Path, repaired: Callable[[str], None]) -> str | None:
    """What is in a file of ours that nobody else may read or write; None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise Unsafe(f"{path} belongs to uid {found.st_uid}, and this is uid {os.geteuid()}")
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o022:
            raise Unsafe(f"{path} has mode {mode:04o}: others could have written it. Delete it for a new key")
        if mode != FILE_MODE:
            os.fchmod(descriptor, FILE_MODE)
            repaired(f"{path} had mode {mode:04o} and is 0600 now; if somebody else read it, delete it for a new key")
        return file.read(_MAX_KEY_FILE_BYTES).decode("utf-8", "replace").strip()


def _written(path: Path, secret: str) -> str:
    """A key under its name is whole: a crash half-way leaves another file. For the one who holds the pid file."""
    unfinished = path.with_name(f"{path.name}.new")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(descriptor)
    unfinished.replace(path)
    return secret
