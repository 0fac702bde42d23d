"""One machine for each file of tests, with the service as claudectl installs it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debian import program
from tests.support import PATIENCE
from tests.system.machine import PROGRAMS, Machine

STATE = "/var/lib/claude-daemon"
DROP_INS = "/etc/systemd/system/claude-daemon.service.d"
OFFLINE = "[Service]\nEnvironment=CLAUDE_DAEMON_ENGINE__UPSTREAM=offline CLAUDE_DAEMON_ENGINE__WORKERS=2\n"
# Tests start it more often than anybody else does.
OFTEN = "[Unit]\nStartLimitIntervalSec=0\n"
SLOWLY = (
    f"[Service]\nTimeoutStartSec={90 * PATIENCE:g}\nTimeoutStopSec={90 * PATIENCE:g}\nWatchdogSec={30 * PATIENCE:g}\n"
)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as booted:
        yield booted


def probed_inside(probed: Path) -> str:
    """What a probe of this environment's CLI has found, as if it had been at the place that it has in there."""
    kept = json.loads(probed.read_text())
    kept["cli"][0] = kept["cli"][0].replace(sys.prefix, str(PROGRAMS.parent))
    return json.dumps(kept)


@pytest.fixture(scope="module")
def installed(machine: Machine) -> Machine:
    """The system service, on the offline model, started."""
    machine.write(f"{DROP_INS}/90-offline.conf", OFFLINE + OFTEN + (SLOWLY if PATIENCE != 1 else ""))
    if "PROBED" in os.environ:
        machine.write(f"{STATE}/engine/capabilities.json", probed_inside(Path(os.environ["PROBED"])))
    machine.run("claudectl", "service", "install", "--start")
    return machine


@pytest.fixture
def service(installed: Machine) -> Iterator[Machine]:
    """The same, running and ready, whatever the test before has done to it."""
    installed.run("rm", "-f", "/etc/claude-daemon/config.toml", f"{DROP_INS}/95-test.conf")
    installed.run("systemctl", "daemon-reload")
    installed.run("systemctl", "reset-failed", "claude-daemon*", check=False)
    installed.run("claudectl", "service", "stop")
    installed.run("claudectl", "service", "start")
    installed.ready()
    yield installed


@pytest.fixture
def bubblewrapped(service: Machine) -> Iterator[Machine]:
    """With bubblewrap, and with no part of /proc covered: where one is, the kernel grants nobody a fresh one."""
    program("bwrap", "bubblewrap")
    uncover_proc(service)
    yield service
    service.run("mount", "--bind", "/proc/sys", "/proc/sys")
    service.run("mount", "-o", "remount,bind,ro", "/proc/sys")


def uncover_proc(machine: Machine) -> None:
    machine.run("umount", "--lazy", "/proc/sys")


def configure(machine: Machine, text: str) -> None:
    """A drop-in of the test's own, in force from the next start."""
    machine.write(f"{DROP_INS}/95-test.conf", text)
    machine.run("systemctl", "daemon-reload")
