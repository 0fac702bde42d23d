"""A machine of a test's own: a real systemd in namespaces of its own, on an overlay of this one's root."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support import PATIENCE

ROOT: Final = Path(__file__).parents[2]
BOOT: Final = Path(__file__).with_name("boot.sh")
SYSTEMD: Final = Path("/lib/systemd/systemd")
PROGRAMS: Final = Path("/opt/claude-daemon/bin")
BOOT_S: Final = 20.0 * PATIENCE
PATIENCE_S: Final = 60.0 * PATIENCE
NAMESPACES: Final = ("--pid", "--mount", "--uts", "--ipc", "--cgroup", "--net")
# systemd tells nobody outside of a bus when a unit changes; half a dozen looks a second cost nothing.
PAUSE_S: Final = 0.15

# A request from inside, where the loopback is the machine's own.
FETCH: Final = """
import http.client, json, sys
port, method, path, body, headers = json.loads(sys.stdin.read())
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
connection.request(method, path, None if body is None else json.dumps(body), headers)
answer = connection.getresponse()
print(json.dumps([answer.status, dict(answer.getheaders()), answer.read().decode()]))
"""


def missing() -> str | None:
    """Why no machine can be had here; None if one can."""
    if sys.platform != "linux" or not SYSTEMD.exists():
        return "systemd is not here: apt-get install -y systemd"
    if os.geteuid() != 0:
        return "only root may boot a systemd: sudo make test-system"
    if _cgroup2() is None:
        return "no cgroup2 is mounted"
    absent = [name for name in ("unshare", "nsenter", "ip", "pivot_root") if shutil.which(name) is None]
    return f"{', '.join(absent)}: apt-get install -y util-linux iproute2" if absent else None


def _cgroup2() -> Path | None:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2" and "ro" not in options.split(","):
            return Path(where)
    return None


class Machine:
    """Booted by ``with``, gone after it."""

    def __init__(self) -> None:
        """Skips the test where there can be none."""
        if (why := missing()) is not None:
            pytest.skip(why)
        mounted = _cgroup2()
        assert mounted is not None
        self.cgroup = mounted / f"claude-daemon-test-{os.getpid()}"
        self._pid = 0

    def __enter__(self) -> Machine:
        self._directory = tempfile.TemporaryDirectory(prefix="machine-")
        self._console = (Path(self._directory.name) / "console").open("wb")
        self.cgroup.mkdir()
        place = Path(self._directory.name) / "place"
        place.mkdir()
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        boot = [str(BOOT), str(place), str(ROOT), sys.prefix, sys.base_prefix, version]
        # the shell enters the cgroup, which is the root of all cgroups in there, and becomes the rest
        into = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.cgroup)]
        self._unshare = subprocess.Popen(
            [*into, "unshare", "--fork", *NAMESPACES, "--kill-child", "bash", *boot],
            stdin=subprocess.PIPE,
            stdout=self._console,
            stderr=self._console,
        )
        try:
            self._empty_the_root()
            self.until(self._up, BOOT_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _empty_the_root(self) -> None:
        """unshare itself stays outside: with a process in it, the root of all cgroups in there could set no limits."""
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        self.until(lambda: self._unshare.poll() is not None or children.read_text().split(), BOOT_S)
        if self._unshare.poll() is None:
            (self.cgroup.parent / "cgroup.procs").write_text(str(self._unshare.pid))
        assert self._unshare.stdin is not None
        self._unshare.stdin.close()  # boot.sh goes on

    def _up(self) -> bool:
        if self._unshare.poll() is not None:
            raise RuntimeError(f"it did not boot: {self.console}")
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        if not children or Path(f"/proc/{children[0]}/comm").read_text() != "systemd\n":
            return False  # boot.sh still, with the root of this machine: systemctl would ask our own systemd
        self._pid = int(children[0])
        return self.run("systemctl", "is-system-running", check=False).strip() in ("running", "degraded")

    def __exit__(self, *exc: object) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)  # systemd, and with it everybody in there; unshare reaps it
        else:
            self._unshare.kill()
        self._unshare.wait()
        self._console.close()
        self.until(lambda: not _members(self.cgroup))
        for directory in sorted(self.cgroup.rglob("*/"), key=lambda path: len(path.parts), reverse=True):
            directory.rmdir()
        self.cgroup.rmdir()
        self._directory.cleanup()

    @property
    def console(self) -> str:
        return (Path(self._directory.name) / "console").read_text()

    # inside

    def command(self, *argv: str) -> list[str]:
        inside = ["nsenter", "-t", str(self._pid), "-m", "-p", "-u", "-i", "-C", "-n"]
        path = f"PATH={PROGRAMS}:/usr/sbin:/usr/bin:/sbin:/bin"
        return [*inside, "env", "-i", "-C", "/opt/checkout", path, "HOME=/root", "LANG=C.UTF-8", *argv]

    def run(self, *argv: str, check: bool = True, input: str | None = None) -> str:
        """What a program says, inside. With ``check`` one that fails raises CalledProcessError, its words printed."""
        done = subprocess.run(
            self.command(*argv), input=input or "", capture_output=True, text=True, check=False, timeout=PATIENCE_S * 2
        )
        if check and done.returncode != 0:
            print(done.stdout, done.stderr)
            done.check_returncode()
        return done.stdout

    def status(self, *argv: str) -> int:
        """A program's exit status."""
        done = subprocess.run(self.command(*argv), capture_output=True, text=True, check=False, timeout=PATIENCE_S * 2)
        print(done.stdout, done.stderr)
        return done.returncode

    def start(self, *argv: str, **streams: Any) -> subprocess.Popen[str]:
        """A program that goes on."""
        return subprocess.Popen(self.command(*argv), text=True, **streams)

    def write(self, path: str, text: str) -> None:
        self.run("mkdir", "-p", str(Path(path).parent))
        self.run("tee", path, input=text)

    def ready(self) -> None:
        """Returns when the daemon is."""
        self.run("claudectl", "ready", "--wait", f"{PATIENCE_S:g}")

    def show(self, name: str, unit: str = "claude-daemon.service") -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", unit, "-P", name).strip()

    def journal(self, event: str, unit: str = "claude-daemon.service") -> list[dict[str, Any]]:
        """The daemon's own lines about an event."""
        lines = self.run("journalctl", "--unit", unit, "--output=cat", "--no-pager").splitlines()
        told = [json.loads(line) for line in lines if line.startswith("{")]
        return [line for line in told if line["event"] == event]

    def until(self, holds: Callable[[], object], seconds: float = PATIENCE_S) -> None:
        """Returns when it holds; raises TimeoutError when it has not after so long."""
        ends = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > ends:
                raise TimeoutError(f"not within {seconds:g} s")
            time.sleep(PAUSE_S)

    # the daemon's port

    def key(self, state: str = "/var/lib/claude-daemon") -> str:
        return self.run("cat", f"{state}/local.key").strip()

    def fetch(self, method: str, path: str, body: object = None, *, port: int = 8006, key: str | None = None) -> Answer:
        return Answer.of(self.run(str(PROGRAMS / "python"), "-c", FETCH, input=_asked(port, method, path, body, key)))

    def fetching(self, method: str, path: str, body: object, *, key: str) -> subprocess.Popen[str]:
        """A request under way; :meth:`Answer.of` its output is what became of it."""
        argv = (str(PROGRAMS / "python"), "-c", FETCH)
        process = self.start(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        process.stdin.write(_asked(8006, method, path, body, key))
        process.stdin.close()
        process.stdin = None  # communicate() is to read alone
        return process


def _asked(port: int, method: str, path: str, body: object, key: str | None) -> str:
    headers = {"Content-Type": "application/json", "Claude-Daemon-Lane": "text"} | ({"x-api-key": key} if key else {})
    return json.dumps([port, method, path, body, headers])


class Answer:
    """What a request from inside was answered."""

    def __init__(self, status: int, headers: Mapping[str, str], body: str) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @classmethod
    def of(cls, output: str) -> Answer:
        return cls(*json.loads(output))

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def _members(cgroup: Path) -> list[str]:
    found = []
    for procs in [cgroup / "cgroup.procs", *cgroup.rglob("cgroup.procs")]:
        with contextlib.suppress(OSError):  # it went meanwhile
            found += procs.read_text().split()
    return found
