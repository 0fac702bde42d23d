"""The sandbox of agents, under the real bubblewrap and as a user who is not root: what a command in it cannot reach.

Whatever is attacked here, a test has made for it; and where an attack could fail for another reason, it is seen to
succeed outside first.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import claude_agent_sdk
import pytest

from claude_daemon.engine import sandbox
from claude_daemon.engine.process import WORKER_OOM_SCORE
from claude_daemon.engine.sandbox import (
    Limits,
    NotBeneath,
    Place,
    bwrap_argv,
    find_bwrap,
    open_beneath,
    sandbox_missing,
)
from tests.debian import program
from tests.support import alive

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="bubblewrap is for Linux")

NOBODY = 65534
LIMITS = Limits(max_processes=256, max_memory_mb=4096, max_file_mb=64)
BASH = Path("/bin/bash")  # for where the CLI does not matter
CLI = Path(claude_agent_sdk.__file__).parent / "_bundled" / "claude"
PYTHON = Path(sys.executable).resolve()
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}
WAIT_S = 20.0

CONNECT = """
import os, socket, sys
def attempt(how):
    try:
        socket.socket(socket.AF_UNIX).connect(sys.argv[1])
        print(how, "reached", flush=True)
    except OSError as error:
        print(how, error.errno, flush=True)
attempt("plain")
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        attempt("daemonised")
"""
STRAY = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        code = "import time; print('ready', flush=True); time.sleep(300)"
        os.execve(sys.executable, [sys.executable, "-c", code], {})
    os._exit(0)
sys.stdin.read()
"""
SYSCTLS = ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname", "/proc/self/oom_score_adj")
KEEPER = """
import json, os, subprocess, sys
argv, fds = json.loads(sys.argv[1])
subprocess.Popen(argv, pass_fds=fds).wait()
"""
FORKS = """
import os, signal
made = []
try:
    for _ in range(200):
        if (pid := os.fork()) == 0:
            signal.pause()
        made.append(pid)
except BlockingIOError:
    pass
print(len(made), flush=True)
os._exit(0)
"""


@functools.cache
def attacker() -> tuple[tuple[str, ...], Path]:
    """What to put before a command for a user who is not root, and a Python that this user can run.

    Ours may live in a home that is its owner's alone. Where root finds none for others, all is tried as root.
    """
    if os.geteuid() != 0:
        return (), PYTHON
    drop = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    for python in (PYTHON, Path("/usr/local/bin/python3"), Path("/usr/bin/python3")):
        # by way of a shell: setpriv itself still may what root may when it executes
        if subprocess.run([*drop, "sh", "-c", f"{python} -c 1"], capture_output=True).returncode == 0:
            return drop, python
    return (), PYTHON


def as_somebody() -> tuple[str, ...]:
    return attacker()[0]


def python(code: str, *arguments: str) -> list[str]:
    return [str(attacker()[1]), "-c", code, *arguments]


def read_only() -> list[Path]:
    """Where the attacker's Python lives, if that is not in there anyway."""
    prefix = attacker()[1].parent.parent
    return [] if prefix.is_relative_to("/usr") else [prefix]


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A daemon's home with two workers, a root with a project in it, and a directory that is nobody's business."""

    top: Path
    bwrap: Path

    @property
    def root(self) -> Path:
        return self.top / "root"

    @property
    def project(self) -> Path:
        return self.root / "project"

    @property
    def elsewhere(self) -> Path:
        return self.top / "elsewhere"

    @property
    def daemon(self) -> Path:
        return self.top / "daemon"

    @property
    def home(self) -> Path:
        return self.daemon / "homes" / "wrk_mine"

    def argv(
        self,
        command: Sequence[str],
        *,
        cwd: Place | None = None,
        add_dirs: Sequence[Path] = (),
        limits: Limits = LIMITS,
        cli: Path = BASH,
        as_root: bool = False,
    ) -> tuple[list[str], tuple[int, ...]]:
        """The caller closes the descriptors."""
        argv, fds = bwrap_argv(
            command,
            bwrap=self.bwrap,
            cli=cli,
            cwd=cwd or open_beneath(self.root, "project"),
            add_dirs=[open_beneath(path.parent, path.name) for path in add_dirs],
            read_only=read_only(),
            home=self.home,
            config_dir=self.home / "config",
            limits=limits,
            uid=NOBODY if as_somebody() and not as_root else None,
        )
        return [*(() if as_root else as_somebody()), *argv], fds

    def env(self) -> dict[str, str]:
        return {**ENV, "HOME": str(self.home), "TMPDIR": "/tmp", "CLAUDE_CONFIG_DIR": str(self.home / "config")}

    def run(
        self,
        command: Sequence[str],
        *,
        cwd: Place | None = None,
        add_dirs: Sequence[Path] = (),
        limits: Limits = LIMITS,
        cli: Path = BASH,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command inside, to its end."""
        argv, fds = self.argv(command, cwd=cwd, add_dirs=add_dirs, limits=limits, cli=cli)
        try:
            return subprocess.run(
                argv,
                env=self.env(),
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=WAIT_S,
            )
        finally:
            for fd in fds:
                os.close(fd)

    def bash(self, script: str, *, add_dirs: Sequence[Path] = (), limits: Limits = LIMITS) -> str:
        """What a script says inside, on stdout and stderr."""
        done = self.run(["bash", "-c", f"exec 2>&1; {script}"], add_dirs=add_dirs, limits=limits)
        assert done.stderr == "", done.stderr
        return done.stdout

    def open(self, command: Sequence[str], *, kept: bool = False) -> subprocess.Popen[str]:
        """Starts a command inside, with pipes. ``kept``: by a process in between, which is what is returned."""
        argv, fds = self.argv(command)
        if kept:
            argv = [sys.executable, "-c", KEEPER, json.dumps([argv, fds])]
        try:
            return subprocess.Popen(
                argv, env=self.env(), pass_fds=fds, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        finally:
            for fd in fds:
                os.close(fd)


def outside(*command: str) -> subprocess.CompletedProcess[str]:
    """The same user without a sandbox."""
    return subprocess.run(
        [*as_somebody(), *command], env=ENV, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT_S
    )


@pytest.fixture(scope="module")
def bwrap() -> Path:
    found = program("bwrap", "bubblewrap")
    why = asyncio.run(sandbox_missing(found))
    if why is not None:
        pytest.skip(why)
    return found


@pytest.fixture
def scene(bwrap: Path) -> Iterator[Scene]:
    # not below pytest's own directory, which is its user's alone; nor below /tmp, which inside is another
    scene = Scene(top=Path(tempfile.mkdtemp(prefix="sandbox-", dir="/var/tmp")).resolve(), bwrap=bwrap)
    for path in (scene.project, scene.elsewhere, scene.home / "config", scene.daemon / "homes" / "wrk_other"):
        path.mkdir(parents=True)
    (scene.daemon / "secret").write_text("a secret of the daemon")
    (scene.daemon / "homes" / "wrk_other" / "secret").write_text("a secret of another worker")
    (scene.elsewhere / "secret").write_text("a secret of the user")
    scene.top.chmod(0o755)
    if as_somebody():
        for path in (scene.top, *scene.top.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    yield scene
    shutil.rmtree(scene.top)


def test_the_control_socket_cannot_be_reached_not_even_by_a_process_that_left_its_session(scene: Scene) -> None:
    path = scene.daemon / "ctl.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        path.chmod(0o666)
        listening.listen()
        attack = python(CONNECT, str(path))
        assert sorted(outside(*attack).stdout.split()) == ["daemonised", "plain", "reached", "reached"]
        # the shell reads on until the attacker that left has closed its end as well
        both = scene.run(["bash", "-c", 'said=$("$@"); echo "$said"', "-", *attack]).stdout.split()
        assert sorted(both) == [str(errno.ENOENT), str(errno.ENOENT), "daemonised", "plain"]


def test_the_home_of_the_daemon_and_those_of_other_workers_are_absent(scene: Scene) -> None:
    secrets = [scene.daemon / "secret", scene.daemon / "homes" / "wrk_other" / "secret", scene.elsewhere / "secret"]
    assert all("secret of" in outside("cat", str(path)).stdout for path in secrets)
    said = scene.bash("; ".join(f"cat {path}" for path in secrets))
    assert said.count("No such file or directory") == len(secrets)
    assert "secret of" not in said
    assert scene.bash(f"ls -A {scene.daemon} {scene.daemon}/homes").split() == [
        f"{scene.daemon}:",
        "homes",
        f"{scene.daemon}/homes:",
        "wrk_mine",
    ]


def test_processes_outside_are_not_seen_and_cannot_be_signalled(scene: Scene) -> None:
    sleeps = [*as_somebody(), "sh", "-c", "echo ready; exec sleep 300"]
    environment = {**ENV, "TOKEN": "told-to-nobody"}
    with subprocess.Popen(sleeps, env=environment, stdout=subprocess.PIPE, text=True) as sleeper:
        try:
            assert sleeper.stdout is not None
            assert sleeper.stdout.readline() == "ready\n"
            environ = f"/proc/{sleeper.pid}/environ"
            assert "told-to-nobody" in outside("cat", environ).stdout
            said = scene.bash(
                f"cat {environ}; cat /proc/[0-9]*/environ | grep -c told-to-nobody; kill -9 {sleeper.pid}; kill -9 -1"
            )
            assert f"{environ}: No such file or directory" in said
            assert f"({sleeper.pid}) - No such process" in said
            assert "\n0\n" in said
            assert alive(sleeper.pid)
        finally:
            sleeper.kill()


def test_all_inside_are_the_first_to_go_when_memory_is_short(scene: Scene) -> None:
    assert scene.bash("cat /proc/1/oom_score_adj /proc/self/oom_score_adj; sh -c 'cat /proc/$$/oom_score_adj'") == (
        f"{WORKER_OOM_SCORE}\n" * 3
    )


def test_only_its_own_directories_can_be_written(scene: Scene) -> None:
    more = scene.top / "more"
    more.mkdir()
    if as_somebody():
        os.chown(more, NOBODY, NOBODY)
    mine = [scene.project / "new", more / "new", scene.home / "config" / "new"]
    others = [
        scene.elsewhere,
        scene.daemon,
        scene.root,
        *read_only(),
        *map(Path, ("/", "/usr", "/etc", "/dev")),
    ]
    for path in mine:
        assert scene.bash(f"echo written > {path}", add_dirs=[more]) == ""
        assert path.read_text() == "written\n"
    for path in others:
        said = scene.bash(f"echo written > {path}/new", add_dirs=[more])
        assert "Read-only file system" in said or "No such file" in said, said
        assert not (path / "new").exists()
    said = scene.bash(
        f"echo mine > /tmp/{scene.top.name}-new && cat /tmp/{scene.top.name}-new; echo shm > /dev/shm/new"
    )
    assert said == "mine\n"
    assert not Path(f"/tmp/{scene.top.name}-new").exists()


def test_a_command_holds_no_descriptor_of_a_directory(scene: Scene) -> None:
    """With one, it could open what is above."""
    said = scene.run(["ls", "-l", "/proc/self/fd", "/proc/1/fd"], add_dirs=[scene.elsewhere]).stdout
    assert said.count(" 0 -> ") == 2
    assert str(scene.top) not in said


@pytest.mark.parametrize("how", ["ends", "bwrap is killed", "the daemon is killed"])
def test_nothing_that_it_started_outlives_it(scene: Scene, how: str) -> None:
    process = scene.open(python(STRAY), kept=how == "the daemon is killed")
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            if how == "ends":
                process.stdin.close()
            else:
                process.kill()
            # the stray holds the other end: it is closed when the stray is dead, and not before
            assert select.select([process.stdout], [], [], WAIT_S)[0] == [process.stdout]
            assert process.stdout.read() == ""
        finally:
            process.kill()


def test_what_one_leaves_in_home_is_gone_for_the_next(scene: Scene) -> None:
    left = "echo 'touch ~/ran' > ~/.bashrc; git config --global core.fsmonitor evil || echo > ~/.gitconfig"
    assert scene.bash(f"{left}; touch ~/config/kept; ls -A ~").split() == [".bashrc", ".gitconfig", "config"]
    assert scene.bash("bash -ic true 2> /dev/null; ls -A ~ ~/config").split() == [
        f"{scene.home}:",
        "config",
        f"{scene.home}/config:",
        "kept",
    ]
    assert names(scene.home) == ["config"]


def test_a_directory_swapped_for_a_symlink_after_it_was_opened_is_still_the_old_one(scene: Scene) -> None:
    place = open_beneath(scene.root, "project")
    scene.project.rename(scene.root / "moved")
    scene.project.symlink_to(scene.elsewhere)
    done = scene.run(["bash", "-c", "pwd; echo written > new; ls"], cwd=place)
    assert done.stdout.split() == [str(scene.project), "new"], done.stderr
    assert (scene.root / "moved" / "new").read_text() == "written\n"
    assert names(scene.elsewhere) == ["secret"]


def test_a_file_may_be_as_large_as_allowed_and_no_larger(scene: Scene) -> None:
    limits = Limits(max_processes=256, max_memory_mb=4096, max_file_mb=1)
    assert scene.bash("head -c 1048576 /dev/zero > fits", limits=limits) == ""
    said = scene.bash("head -c 1048577 /dev/zero > large; echo $?; ulimit -f unlimited", limits=limits)
    assert "\n0\n" not in f"\n{said}"
    assert "Operation not permitted" in said
    assert (scene.project / "large").stat().st_size == (scene.project / "fits").stat().st_size == 1048576


def test_memory_and_processes_are_bounded(scene: Scene) -> None:
    limits = Limits(max_processes=16, max_memory_mb=128, max_file_mb=64)
    much = "bytearray(192 * 1024 * 1024)"
    assert "MemoryError" in scene.run(python(much), limits=limits).stderr
    said = scene.bash(
        "head -c 192M /dev/zero > /tmp/x", limits=Limits(max_processes=16, max_memory_mb=128, max_file_mb=999)
    )
    assert "No space left on device" in said
    made = int(scene.run(python(FORKS), limits=limits).stdout)
    kernel = tuple(int(word) for word in os.uname().release.split("-")[0].split(".")[:2])
    if (as_somebody() or os.geteuid() != 0) and kernel >= (5, 14):
        assert 8 <= made < 16


def test_the_real_cli_runs_inside_though_it_lives_elsewhere_and_is_named_by_a_symlink(scene: Scene) -> None:
    if outside("sh", "-c", f"{CLI} --version").returncode != 0:
        pytest.skip("whoever is not root cannot run the CLI of this checkout")
    link = scene.elsewhere / "claude"
    link.symlink_to(CLI)
    done = scene.run([str(link), "--version"], cli=link)
    assert "(Claude Code)" in done.stdout, done.stderr
    # reading what lies beside it is another matter
    assert scene.run(["ls", "-A", str(CLI.parent)], cli=link).stdout.split() == [CLI.name]


def test_a_directory_that_holds_the_daemons_own_is_refused(scene: Scene) -> None:
    above = open_beneath(scene.top.parent, scene.top.name)
    try:
        with pytest.raises(NotBeneath, match="the daemon's own directories are in it"):
            scene.argv(["true"], cwd=above)
    finally:
        os.close(above.fd)


def test_directories_may_lie_in_each_other_and_what_is_only_to_be_read_stays_so(scene: Scene) -> None:
    inner = scene.project / "inner"
    inner.mkdir()
    if as_somebody():
        os.chown(inner, NOBODY, NOBODY)
    write = "touch new inner/new"
    assert scene.bash(write, add_dirs=[inner, scene.project]) == ""
    assert names(inner) == ["new"]
    cwd = open_beneath(scene.root, "project")
    try:
        argv, fds = bwrap_argv(
            ["touch", "more", "inner/more"],
            bwrap=scene.bwrap,
            cli=BASH,
            cwd=cwd,
            add_dirs=(),
            read_only=[inner],
            home=scene.home,
            config_dir=scene.home / "config",
            limits=LIMITS,
            uid=NOBODY if as_somebody() else None,
        )
        done = subprocess.run([*as_somebody(), *argv], env=ENV, pass_fds=fds, capture_output=True, text=True)
    finally:
        os.close(cwd.fd)
    assert "'inner/more': Read-only file system" in done.stderr
    assert (names(scene.project), names(inner)) == (["inner", "more", "new"], ["new"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root could")
def test_not_even_root_writes_what_the_kernel_reads_from_proc(scene: Scene) -> None:
    """It has no capability, but the files are its own; they are looked at, not written."""
    argv, fds = scene.argv(
        ["sh", "-c", 'for file; do test -r "$file" && ! test -w "$file" && echo kept; done', "-", *SYSCTLS],
        as_root=True,
    )
    try:
        done = subprocess.run(argv, env=ENV, pass_fds=fds, capture_output=True, text=True)
    finally:
        for fd in fds:
            os.close(fd)
    assert done.stdout.split() == ["kept"] * len(SYSCTLS), done.stderr


def test_a_sandbox_may_be_built_in_the_sandbox(scene: Scene) -> None:
    """The CLI builds one for its tools, to keep its environment from them."""
    if os.geteuid() == 0 and not as_somebody():
        pytest.skip("not for root")
    said = scene.bash(
        f"{scene.bwrap} --ro-bind / / --proc /proc --dev /dev --unshare-user --unshare-pid -- echo nested"
    )
    assert said == "nested\n"


async def test_why_there_is_no_sandbox_is_said(tmp_path: Path, bwrap: Path) -> None:
    assert await sandbox_missing(bwrap) is None
    assert await sandbox_missing(None) == "bubblewrap is not installed"
    old = tmp_path / "bwrap"
    said = await sandbox_missing(old)
    assert said is not None and said.startswith(f"{old} does not work here: ") and "not found" in said
    old.write_text("#!/bin/sh\necho 'bwrap: Unknown option --bind-fd' >&2\nexit 1\n")
    old.chmod(0o755)
    assert await sandbox_missing(old) == f"{old} does not work here: bwrap: Unknown option --bind-fd"


LOWERED = """
import asyncio, resource, sys
from claude_daemon.engine.sandbox import find_bwrap, sandbox_missing
for kind, limit in {"NPROC": 16_000, "DATA": 200 << 20, "FSIZE": 8 << 20}.items():
    resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (limit, limit))
print(asyncio.run(sandbox_missing(find_bwrap())))
"""


def test_a_daemon_that_has_less_itself_can_shut_agents_in_all_the_same(bwrap: Path) -> None:
    """As on each machine with up to 8 GB of memory: the kernel allows fewer processes than the trial asks for."""
    argv = [sys.executable, "-c", LOWERED]
    done = subprocess.run(argv, env=ENV, capture_output=True, text=True, check=False, timeout=WAIT_S)
    assert (done.returncode, done.stdout.strip()) == (0, "None"), done.stderr


def test_bwrap_is_found_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_bwrap() is None
    (tmp_path / "bwrap").touch(0o755)
    assert find_bwrap() == tmp_path / "bwrap"


@pytest.fixture(params=["by the kernel", "by steps"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to open beneath: a kernel without openat2 has only the second."""
    if request.param == "by steps":

        def unknown(beneath: int, relative: str) -> int:
            raise NotImplementedError

        monkeypatch.setattr(sandbox, "open_by_kernel", unknown)
    return str(request.param)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A root with directories, and with symlinks that lead about in it and out of it."""
    root = tmp_path.resolve() / "root"
    (root / "a" / "b").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (root / "file").touch()
    (root / "stays").symlink_to("a/b")
    (root / "leaves").symlink_to("../out")
    (root / "leaves-by-its-name").symlink_to(tmp_path / "out")
    (root / "magic").symlink_to("/proc/self/cwd")
    (root / "loop").symlink_to("loop")
    return root


@pytest.mark.parametrize("path", [".", "", "a", "a/b", "a//b/", "./a", "/{root}/a/b", "/{root}"])
def test_a_directory_beneath_its_root_is_opened(tree: Path, way: str, path: str) -> None:
    asked = path.replace("/{root}", str(tree))
    place = open_beneath(tree, asked)
    try:
        assert place.path == tree / asked
        assert os.path.samestat(os.fstat(place.fd), place.path.stat())
        assert not os.get_inheritable(place.fd)
    finally:
        os.close(place.fd)


REFUSED = [
    "..",
    "../out",
    "a/../../out",
    "a/..",
    "/",
    "/etc",
    "leaves",
    "leaves/x",
    "leaves-by-its-name",
    "magic",
    "loop",
]


@pytest.mark.parametrize("path", [*REFUSED, "missing", "file", "a\0b", "a" * 300, "/{root}/../out", "/{root}more"])
def test_what_is_not_beneath_its_root_is_refused_by_a_sentence_with_both(tree: Path, way: str, path: str) -> None:
    asked = path.replace("/{root}", str(tree))
    before = names(Path("/proc/self/fd"))
    with pytest.raises(NotBeneath) as refused:
        open_beneath(tree, asked)
    assert str(tree) in str(refused.value)
    assert asked in str(refused.value) or repr(asked) in str(refused.value)
    assert len(names(Path("/proc/self/fd"))) == len(before)


def test_a_symlink_that_stays_beneath_is_followed_and_its_target_named(tree: Path) -> None:
    place = open_beneath(tree, "stays")
    os.close(place.fd)
    assert place.path == tree / "a" / "b"


def test_without_openat2_no_symlink_is_followed(tree: Path) -> None:
    beneath = os.open(tree, os.O_PATH)
    try:
        with pytest.raises(OSError, match="Not a directory"):
            sandbox.open_by_steps(beneath, "stays")
    finally:
        os.close(beneath)


def test_a_process_that_is_not_dumpable_is_not_read_by_its_own_user_and_still_opens_directories(scene: Scene) -> None:
    code = (
        "import sys; from pathlib import Path; from claude_daemon.engine.sandbox import not_dumpable, open_beneath\n"
        "print('ready', flush=True); sys.stdin.readline(); print(not_dumpable(), flush=True)\n"
        f"print(open_beneath(Path({str(scene.root)!r}), 'project').path, flush=True); sys.stdin.read()"
    )
    argv = [*as_somebody(), sys.executable, "-c", code]
    with subprocess.Popen(argv, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            pytest.skip("whoever is not root cannot import this checkout")
        attacks = (("cat", f"/proc/{process.pid}/environ"), ("ls", f"/proc/{process.pid}/fd"))
        assert [outside(*attack).returncode for attack in attacks] == [0, 0]
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "True\n"
        assert process.stdout.readline() == f"{scene.project}\n"
        if as_somebody() or os.geteuid() != 0:
            assert all("Permission denied" in outside(*attack).stderr for attack in attacks)
