"""Runs a command in a guest: a kernel of its own, the host's root to read, nothing that is written left, no network."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.guest.initramfs import initramfs
from tests.guest.packages import Parts, modules_for, read_module

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
KVM: Final = Path("/dev/kvm")
MODULES: Final = ("virtio_pci", "9p", "9pnet_virtio", "overlay")
MEMORY_MB: Final = 4096  # an agent's 1024 and what it overruns them with, a daemon, and all that is written
MAX_CPUS: Final = 4  # one test runs at a time
TERMINATE_S: Final = 5.0

# Without erms the kernel clears pages eight bytes at a time instead of one (a page fault: 24 us instead of 90), and the
# clock is a register instead of a device. Mitigations are for guests whose secrets somebody could be after.
_EMULATED: Final = ("-accel", "tcg,thread=multi", "-cpu", "max,-erms")
_EMULATED_KERNEL: Final = ("mitigations=off", "clocksource=tsc", "tsc=reliable", "no_timer_check")
_VIRTUAL: Final = ("-accel", "kvm", "-cpu", "host")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """``command``: for bash, in the checkout. ``warm``: a file it will need all of, large enough to be worth it."""

    command: str
    warm: Path


class NoGuest(Exception):
    """It ended, or was ended, before it said what became of the command."""


def accelerated() -> bool:
    """Whether the processor runs guests. There are /dev/kvm on others, too: their guests' kernels are made for them."""
    flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    able = flags is not None and {"vmx", "svm"} & set(flags[1].split())
    return bool(able) and os.access(KVM, os.R_OK | os.W_OK)


def run(parts: Parts, job: Job, *, kvm: bool, timeout_s: float) -> int:
    """The command's exit status; what it says goes to stdout while it runs. Raises NoGuest."""
    with tempfile.TemporaryDirectory(prefix="guest-") as name:
        directory = Path(name)
        status = directory / "status"
        (directory / "initramfs").write_bytes(initramfs(_files(parts, job)))
        # with us gone it is, too, whatever the way we went
        argv = ["setpriv", "--pdeathsig", "KILL", *parts.qemu, *_arguments(parts.kernel, directory, kvm=kvm)]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL) as qemu:
            try:
                qemu.wait(timeout_s)
            except subprocess.TimeoutExpired as late:
                raise NoGuest(f"the guest was ended after {timeout_s:g} s") from late
            finally:
                _end(qemu)
        told = status.read_text().strip() if status.exists() else ""
        if not told.isdecimal():
            raise NoGuest(f"the guest ended before its command did (qemu's exit status is {qemu.returncode})")
        return int(told)


def _end(qemu: subprocess.Popen[bytes]) -> None:
    if qemu.poll() is None:
        qemu.terminate()
        with suppress(subprocess.TimeoutExpired):
            qemu.wait(TERMINATE_S)
        qemu.kill()


def _files(parts: Parts, job: Job) -> Mapping[str, tuple[int, bytes]]:
    said = {"CHECKOUT": str(ROOT), "COMMAND": job.command, "WARM": str(job.warm)}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in said.items()]
    modules = modules_for(MODULES, parts.modules)
    return {
        "init": (0o755, (HERE / "init.sh").read_bytes()),
        "job": (0o644, "".join(lines).encode()),
        "bin/busybox": (0o755, parts.busybox.read_bytes()),
        **{
            f"modules/{number:02}-{path.name.removesuffix('.xz')}": (0o644, read_module(path))
            for number, path in enumerate(modules)
        },
    }


def _arguments(kernel: Path, directory: Path, *, kvm: bool) -> Sequence[str]:
    """Two serial ports: what is said, and the exit status. No other device, but the host's root."""
    words = ("console=ttyS0", "loglevel=3", "panic=-1", *(() if kvm else _EMULATED_KERNEL))
    return (
        *(_VIRTUAL if kvm else _EMULATED),
        *("-smp", str(min(os.cpu_count() or 1, MAX_CPUS)), "-m", str(MEMORY_MB)),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-serial", "stdio", "-serial", f"file:{directory / 'status'}"),
        *("-kernel", str(kernel), "-initrd", str(directory / "initramfs"), "-append", " ".join(words)),
        *("-fsdev", "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
    )


def missing() -> list[str]:
    """What the tests need of this machine, whose root is the guest's: Debian packages to be installed."""
    needed = {
        "bubblewrap": Path("/usr/bin/bwrap"),
        "systemd": Path("/lib/systemd/systemd"),
        "iproute2": Path("/sbin/ip"),
        "util-linux": Path("/usr/bin/setpriv"),
    }
    return [package for package, path in needed.items() if not path.exists()]


def supported() -> bool:
    return sys.platform == "linux" and os.uname().machine == "x86_64"
