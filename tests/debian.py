"""Servers that a test needs beside ours: the machine's own, else Debian's package where this process may install it."""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Where Debian puts servers; the PATH of a user who is not root leaves it out.
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
# Where systemd runs, the next boot would start what is installed; that is for the machine's owner to say.
_SYSTEMD = Path("/run/systemd/system")
_DPKG = Path("/var/lib/dpkg")
_POLICY = Path("/usr/sbin/policy-rc.d")
_FORBIDDEN = "#!/bin/sh\nexit 101\n"

# A test has 60 s in all; a mirror that is slower than this would fail it rather than skip it.
_NETWORK_TIMEOUT_S = 40.0
# Another process of this run installs meanwhile; apt's own lock is waited for as long.
_APT = ("apt-get", "-qq", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=40", "-o", "Acquire::Retries=1")


def program(name: str, package: str) -> Path:
    """The path of a server. Skips the test, with the command to run, where it is missing and cannot be installed."""
    found = _found(name)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get") and not _SYSTEMD.exists():
        with _alone():
            found = _found(name) or _installed(name, package)
    if found is None:
        pytest.skip(f"{name} is not here: apt-get install -y --no-install-recommends {package}")
    return found


def _found(name: str) -> Path | None:
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")
    return Path(path) if path else None


@contextmanager
def _alone() -> Iterator[None]:
    """One process at a time: pytest runs in several. The lock is on a directory, so that no file of ours is left."""
    directory = os.open(_DPKG, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _installed(name: str, package: str) -> Path | None:
    """Installs the package, if its archives can be had. What is known of the mirror may be old: asked again once."""
    download = ("install", "--download-only", package)
    if not (_run(*download) or (_updated() and _run(*download))):
        return None
    with _no_service_started():
        _run("install", package, timeout_s=None)  # no network from here on, and dpkg must not be killed half-way
    return _found(name)


@functools.cache
def _updated() -> bool:
    return _run("update")


def _run(*args: str, timeout_s: float | None = _NETWORK_TIMEOUT_S) -> bool:
    """Whether apt-get did it, and in time."""
    path = f"{os.environ.get('PATH', os.defpath)}:{_SBIN}"
    environ = {**os.environ, "PATH": path, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run([*_APT, *args], env=environ, stdin=subprocess.DEVNULL, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


@contextmanager
def _no_service_started() -> Iterator[None]:
    """Packages start their service when they are installed, unless this script says 101; one that is there stays."""
    try:
        file = os.open(_POLICY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755)
    except FileExistsError:
        yield
        return
    try:
        with os.fdopen(file, "w") as policy:
            policy.write(_FORBIDDEN)
            os.fchmod(policy.fileno(), 0o755)  # whatever the umask
        yield
    finally:
        _POLICY.unlink()
