"""What an agent's process is shut into: bubblewrap, with the directories of its task and nothing else of the files.

Same uid means same power: without this, a command of an agent reaches the control socket, the daemon's home, the
environment of other workers. Inside there are read-only system directories, a HOME and a /tmp that live in memory, the
configuration directory of the worker, and the task's directories at their own paths. The network is the host's, because
the worker reaches the daemon's broker on loopback; so whatever listens on a port or on an abstract socket is reachable.
For a daemon that is root it holds less: inside, too, it is root who owns files, processes are not counted, and no
sandbox can be built within, as the CLI does for its tools; and directories that only another user may enter stay shut.

Directories are opened once, beneath their root, and the descriptor is what is bound: who swaps the path for a symlink
afterwards changes nothing. bubblewrap checks that it mounted what the descriptor is, and closes it before it starts the
program, which matters: with one of them a program could climb out (``openat(fd, "..")``). With ``/proc/self/fd/N`` as a
source it would do neither, so a bubblewrap without ``--bind-fd`` counts as missing.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from claude_daemon.engine.process import WORKER_OOM_SCORE, Process, SpawnFailed

_MIB: Final = 1024 * 1024
# It takes some 10 ms. A machine at its limit may need a while, and what it says holds until the next start.
_TRIAL_TIMEOUT_S: Final = 30.0
_SHM_BYTES: Final = 64 * _MIB  # what containers commonly have as /dev/shm

_SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# Of /etc what programs need to find names, libraries and certificates. Not /etc/ssl as a whole: it holds private keys.
_ETC: Final = (
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/group",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/resolv.conf",
    "/etc/ssl/cert.pem",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
)
_PRLIMIT: Final = "/usr/bin/prlimit"  # util-linux; inside the sandbox
# All inside has its score from bwrap, which has it before it starts anything: afterwards it would be a race. Inside it
# could be too late for another reason: root's /proc is read-only there. Where it cannot be written, it is as it was.
_HUNGRY: Final = ("/bin/sh", "-c", f'echo {WORKER_OOM_SCORE} 2>/dev/null >/proc/self/oom_score_adj; exec "$@"', "sh")

# linux/openat2.h; the number is the same on every architecture that we know of
_SYS_OPENAT2: Final = 437
_RESOLVE_NO_MAGICLINKS: Final = 0x02
_RESOLVE_BENEATH: Final = 0x08
_RACES: Final = 16  # the kernel says EAGAIN when somebody renames meanwhile; who does it so often is told so
_F_GETPATH: Final = 50  # macOS
_PATH_BYTES: Final = 1024  # MAXPATHLEN there, and what F_GETPATH writes at most

_PR_SET_DUMPABLE: Final = 4


class NotBeneath(ValueError):
    """A directory that is not (any more) beneath the root it was asked for under. Says which, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A directory that is held open. ``path`` has no symlinks; ``fd`` is the caller's to close."""

    path: Path
    fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What all that an agent starts may use. With a cgroup (:mod:`~claude_daemon.engine.cgroup`) the first two hold for
    all its processes together, whoever the daemon is; what is said here holds besides, and is all there is without.

    ``max_processes``: processes and threads together, counted for this sandbox alone from Linux 5.14 on. Before, the
    kernel counts all that the user runs on the machine; and it never counts for a daemon that is root.
    ``max_memory_mb``: data of *each* process (RLIMIT_DATA), and the size of HOME and of /tmp. Claude Code 2.1.332 (Bun)
    reserves what fits: 5.6 GB without a limit, 0.85 GB under 1024 MB, and 160 MB of it are resident; under 512 MB it
    does not start. RLIMIT_AS would count 10 GB that it never touches. ``max_file_mb``: the size of a single file.
    Each is no more than the daemon may have itself.
    """

    max_processes: int
    max_memory_mb: int
    max_file_mb: int


def find_bwrap() -> Path | None:
    found = shutil.which("bwrap")
    return None if found is None else Path(found)


def open_beneath(root: Path, path: str) -> Place:
    """Opens the directory ``path``, relative to ``root`` or an absolute one in it. Symlinks may stay beneath the root.

    Raises :class:`NotBeneath`, or OSError where the machine is at fault (no descriptors left).
    """
    relative = _relative(root, path)
    with _translated(root, path):
        beneath = os.open(root, _flags())
    try:
        with _translated(root, path):
            fd = _open(beneath, relative)
        try:
            with _translated(root, path):
                return Place(path=_path_of(fd, beneath), fd=fd)
        except BaseException:
            os.close(fd)
            raise
    finally:
        os.close(beneath)


def open_file_beneath(place: Place, path: str) -> int:
    """Opens the file ``path``, relative to an open directory, for reading. Never waits, whatever it is.

    Raises :class:`NotBeneath`, or OSError.
    """
    relative = _relative(place.path, path)
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    with _translated(place.path, path):
        if sys.platform == "linux":
            with suppress(NotImplementedError):
                return open_by_kernel(place.fd, relative, flags)
        parent = open_by_steps(place.fd, str(Path(relative).parent))
        try:
            return os.open(Path(relative).name, flags | os.O_NOFOLLOW, dir_fd=parent)
        finally:
            os.close(parent)


def _relative(root: Path, path: str) -> str:
    """By its letters alone. ``..`` is refused wherever it stands: what it means depends on what is a symlink."""
    asked = Path(path)
    if "\0" in path or ".." in asked.parts:
        raise NotBeneath(f"{path!r} is not a plain path beneath {root}")
    if not asked.is_absolute():
        return str(asked)
    if not asked.is_relative_to(root):
        raise NotBeneath(f"{path} is not beneath {root}")
    return str(asked.relative_to(root))


@contextmanager
def _translated(root: Path, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.EXDEV, errno.ELOOP}:
            raise NotBeneath(f"{path} leads out of {root}") from error
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENAMETOOLONG, errno.EAGAIN}:
            raise NotBeneath(f"{path} beneath {root} cannot be opened as a directory: {error.strerror}") from error
        raise


def _flags() -> int:
    """Only a handle where the system has such: a directory need not be readable to be bound."""
    return os.O_DIRECTORY | os.O_CLOEXEC | (os.O_PATH if sys.platform == "linux" else os.O_RDONLY)


def _open(beneath: int, relative: str) -> int:
    if sys.platform == "linux":
        with suppress(NotImplementedError):
            return open_by_kernel(beneath, relative)
    return open_by_steps(beneath, relative)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def open_by_kernel(beneath: int, relative: str, flags: int | None = None) -> int:
    """With openat2: the kernel follows symlinks as long as they stay beneath. Raises OSError. ``flags``: another way
    to open it than as a directory.

    Raises NotImplementedError where there is none: Linux before 5.6, or a seccomp filter that does not know it.
    """
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    how = _OpenHow(
        flags=_flags() if flags is None else flags, mode=0, resolve=_RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS
    )
    name = ctypes.c_char_p(os.fsencode(relative))
    size = ctypes.c_size_t(ctypes.sizeof(how))
    for _ in range(_RACES):
        fd = syscall(ctypes.c_long(_SYS_OPENAT2), ctypes.c_long(beneath), name, ctypes.byref(how), size)
        if fd >= 0:
            return int(fd)
        if ctypes.get_errno() not in {errno.EAGAIN, errno.EINTR}:
            break
    number = ctypes.get_errno()
    if number in {errno.ENOSYS, errno.EPERM}:
        raise NotImplementedError("openat2")
    raise OSError(number, os.strerror(number))


def open_by_steps(beneath: int, relative: str) -> int:
    """One component after the other, and no symlink at all: what follows one could leave. Raises OSError."""
    fd = os.open(".", _flags(), dir_fd=beneath)
    for part in Path(relative).parts:
        try:
            deeper = os.open(part, _flags() | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = deeper
    return fd


def _path_of(fd: int, beneath: int) -> Path:
    """The name that an open directory has now. Raises OSError where it has been moved out, or removed."""
    path, root = _name_of(fd), _name_of(beneath)
    if not path.is_relative_to(root):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    if not os.path.samestat(path.stat(), os.fstat(fd)):
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    return path


def _name_of(fd: int) -> Path:
    if sys.platform == "linux":
        return Path(f"/proc/self/fd/{fd}").readlink()
    else:  # noqa: RET505 - a branch that mypy knows to be another system's
        return Path(os.fsdecode(fcntl.fcntl(fd, _F_GETPATH, bytes(_PATH_BYTES)).rstrip(b"\0")))


def bwrap_argv(
    program: Sequence[str],
    *,
    bwrap: Path,
    cli: Path,
    cwd: Place,
    add_dirs: Sequence[Place],
    read_only: Sequence[Path],
    home: Path,
    config_dir: Path,
    limits: Limits,
    uid: int | None = None,
) -> tuple[list[str], tuple[int, ...]]:
    """What is executed, and the descriptors that it must be given. Spawn it from a thread that lives on, e.g. the main
    one: with that thread the sandbox ends.

    ``uid``: who will execute it, if not this process's user. ``cli`` is bound as the one file it resolves to; one that
    needs files beside it needs them in ``read_only``. ``home`` is empty each time, but for ``config_dir``, which is the
    real one. Raises :class:`NotBeneath` for a directory that has ``home`` or ``config_dir`` in it: with it the daemon's
    own would be inside.
    """
    places = (cwd, *add_dirs)
    for place in places:
        if any(own.resolve().is_relative_to(place.path) for own in (home, config_dir)):
            raise NotBeneath(f"no task may work in {place.path}: the daemon's own directories are in it")
    executable = cli.resolve()
    first, *arguments = program
    memory = str(limits.max_memory_mb * _MIB)
    mounts = [
        # what is higher up first, or it would cover what is beneath it; of the same path the later one holds
        *((path, _shown(path)) for path in map(Path, (*_SYSTEM, *_ETC))),
        (Path("/tmp"), ["--size", memory, "--perms", "1777", "--tmpfs", "/tmp"]),  # noqa: S108 - the sandbox's own
        (home, ["--size", memory, "--perms", "0700", "--tmpfs", str(home)]),
        (config_dir, ["--bind", str(config_dir), str(config_dir)]),
        *((place.path, ["--bind-fd", str(place.fd), str(place.path)]) for place in places),
        *((path, ["--ro-bind", str(path), str(path)]) for path in read_only),
        (executable, ["--ro-bind", str(executable), str(executable)]),
    ]
    mounts.sort(key=lambda mount: len(mount[0].parts))
    argv = [
        *_HUNGRY,
        str(bwrap),
        "--unshare-user",
        "--unshare-pid",
        "--unshare-ipc",
        "--die-with-parent",
        "--new-session",
    ]
    argv += ["--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev"]
    argv += [word for _, words in mounts for word in words]
    # the root and /dev are in memory and would be writable; what is mounted in them stays as it is
    argv += ["--size", str(_SHM_BYTES), "--perms", "1777", "--tmpfs", "/dev/shm"]  # noqa: S108
    argv += ["--remount-ro", "/dev", "--remount-ro", "/"]
    if (os.geteuid() if uid is None else uid) == 0:
        # root owns /proc/sys even without any capability, and by kernel.core_pattern alone would be out
        argv += ["--remount-ro", "/proc"]
    argv += ["--chdir", str(cwd.path), "--"]
    # inside, where processes are counted for the sandbox alone; hard limits, which nobody in there can raise
    held = {
        "nproc": _within(resource.RLIMIT_NPROC, limits.max_processes),
        "data": _within(resource.RLIMIT_DATA, limits.max_memory_mb * _MIB),
        "fsize": _within(resource.RLIMIT_FSIZE, limits.max_file_mb * _MIB),
    }
    argv += [_PRLIMIT, *(f"--{name}={limit}" for name, limit in held.items())]
    argv += ["--core=0", "--", str(executable) if first == str(cli) else first, *arguments]
    return argv, tuple(place.fd for place in places)


def _within(kind: int, limit: int) -> int:
    """No more than this process may have itself, which it cannot hand down: it would be refused, and not lowered. The
    kernel's own for processes goes by the memory, some 4,000 for a gigabyte."""
    hard = resource.getrlimit(kind)[1]
    return limit if hard == resource.RLIM_INFINITY else min(limit, hard)


def _shown(path: Path) -> list[str]:
    """A symlink within the system, as /bin is nearly everywhere, costs nothing; each mount a third of a millisecond."""
    if str(path) in _SYSTEM and path.is_symlink():
        return ["--symlink", str(path.readlink()), str(path)]
    return ["--ro-bind-try", str(path), str(path)]


async def sandbox_missing(bwrap: Path | None) -> str | None:
    """Why agents cannot be shut in here, after trying it with a program that does nothing; None if they can."""
    if sys.platform != "linux":
        return "bubblewrap is for Linux"
    if bwrap is None:
        return "bubblewrap is not installed"
    with tempfile.TemporaryDirectory(prefix="claude-daemon-") as name:
        directory = Path(name).resolve()
        for part in ("work", "home", "home/config"):
            (directory / part).mkdir()
        cwd = open_beneath(directory, "work")
        try:
            return await _trial(bwrap, directory, cwd)
        finally:
            os.close(cwd.fd)


async def _trial(bwrap: Path, directory: Path, cwd: Place) -> str | None:
    nothing = Path(shutil.which("true") or "/bin/true")
    argv, fds = bwrap_argv(
        [str(nothing)],
        bwrap=bwrap,
        cli=nothing,
        cwd=cwd,
        add_dirs=(),
        read_only=(),
        home=directory / "home",
        config_dir=directory / "home" / "config",
        # roomy: the number of processes is one for the whole machine on old kernels
        limits=Limits(max_processes=32768, max_memory_mb=256, max_file_mb=16),
    )
    ended = asyncio.Event()
    try:
        process = await Process.spawn(argv, {}, directory, lambda messages, size: None, ended.set, fds)
    except SpawnFailed as error:
        return f"bubblewrap cannot be started: {error}"
    try:
        process.close_stdin()
        if not await process.wait_gone(_TRIAL_TIMEOUT_S):
            return f"{bwrap} did not end within {_TRIAL_TIMEOUT_S:g} s"
    finally:
        process.kill(signal.SIGKILL)
        process.bury()
    if process.returncode == 0:
        return None
    said = " ".join(process.stderr_tail().split()) or f"it ended with {process.returncode} and said nothing"
    return f"{bwrap} does not work here: {said}"


def not_dumpable() -> bool:
    """Keeps others of the same user from reading this process's memory and environment (Linux); whether it did.

    From then on /proc/self belongs to root: what is written there, such as oom_score_adj, must have been written.
    Programs that this process starts are as they always are.
    """
    if sys.platform != "linux":
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)
