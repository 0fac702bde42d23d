"""One machine for each file of tests, with the service as claudectl installs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.debian import program
from tests.system.machine import Machine

DROP_INS = "/etc/systemd/system/claude-daemon.service.d"
OFFLINE = "[Service]\nEnvironment=CLAUDE_DAEMON_ENGINE__UPSTREAM=offline CLAUDE_DAEMON_ENGINE__WORKERS=2\n"
# Tests start it more often than anybody else does.
OFTEN = "[Unit]\nStartLimitIntervalSec=0\n"


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    with Machine() as booted:
        yield booted


@pytest.fixture(scope="module")
def installed(machine: Machine) -> Machine:
    """The system service, on the offline model, started."""
    machine.write(f"{DROP_INS}/90-offline.conf", OFFLINE + OFTEN)
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
    installed.run("claudectl", "ready", "--wait", "60")
    yield installed


@pytest.fixture
def bubblewrapped(service: Machine) -> Iterator[Machine]:
    """With bubblewrap, and with no part of /proc covered: where one is, the kernel grants nobody a fresh one."""
    program("bwrap", "bubblewrap")
    service.run("umount", "--lazy", "/proc/sys")
    yield service
    service.run("mount", "--bind", "/proc/sys", "/proc/sys")
    service.run("mount", "-o", "remount,bind,ro", "/proc/sys")


def configure(machine: Machine, text: str) -> None:
    """A drop-in of the test's own, in force from the next start."""
    machine.write(f"{DROP_INS}/95-test.conf", text)
    machine.run("systemctl", "daemon-reload")
