"""What the service sees of the machine: its own directories, and the roots that it was installed with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.debian import program
from tests.system.conftest import configure
from tests.system.machine import Machine, missing

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(120),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

ROOTS = ("/home/someone/project", "/srv/project")
ELSEWHERE = ("/home/someone/secret", "/root/secret")
OWN = ("/var/lib/claude-daemon", "/var/log/claude-daemon", "/var/cache/claude-daemon")
ITS_USER = ("setpriv", "--reuid=claude-daemon", "--regid=claude-daemon", "--clear-groups")

# What Claude Code asks for an agent's commands, in the service's place and under all that the service is under.
SANDBOXED = """[Service]
Type=oneshot
WatchdogSec=0
Restart=no
ExecStart=
ExecStart=bwrap --ro-bind / / --proc /proc --dev /dev --unshare-user --unshare-pid --unshare-net -- true
"""


def where_it_lives(machine: Machine, test: str, *paths: str, user: tuple[str, ...] = ITS_USER) -> list[bool]:
    """What ``test`` says of each path there: -d, is it there; -w, can it be written."""
    enter = ("nsenter", f"--target={machine.show('MainPID')}", "--mount", *user)
    return [machine.status(*enter, "test", test, path) == 0 for path in paths]


@pytest.fixture
def rooted(service: Machine) -> Machine:
    """The service with roots below a home and elsewhere. Modes keep its user from nothing here."""
    service.run("mkdir", "-p", *ROOTS, *ELSEWHERE)
    service.run("chmod", "0777", "/root", "/home/someone", *ROOTS, *ELSEWHERE)
    service.run("claudectl", "service", "install", *(word for root in ROOTS for word in ("--root", root)))
    service.run("claudectl", "service", "restart")
    return service


@pytest.fixture
def bubblewrapped(service: Machine) -> Iterator[Machine]:
    """With bubblewrap, and with no part of /proc covered: where one is, the kernel grants nobody a fresh one."""
    program("bwrap", "bubblewrap")
    service.run("umount", "--lazy", "/proc/sys")
    yield service
    service.run("mount", "--bind", "/proc/sys", "/proc/sys")
    service.run("mount", "-o", "remount,bind,ro", "/proc/sys")


def test_roots_are_there_and_can_be_written_and_nothing_else_of_a_home_is(rooted: Machine) -> None:
    assert where_it_lives(rooted, "-w", *ROOTS) == [True, True]
    assert where_it_lives(rooted, "-d", *ELSEWHERE) == [False, False]
    rooted.run("claudectl", "service", "install")
    rooted.run("claudectl", "service", "restart")
    assert where_it_lives(rooted, "-d", *ROOTS) == [False, True]
    assert where_it_lives(rooted, "-w", *ROOTS) == [False, False]


def test_not_even_root_could_write_the_machine_from_there(service: Machine) -> None:
    paths = ("/etc", "/usr", "/opt/claude-daemon", "/srv", "/sys/fs/cgroup")
    assert where_it_lives(service, "-d", *paths) == [True] * len(paths)
    assert where_it_lives(service, "-w", *paths, user=()) == [False] * len(paths)


def test_its_directories_are_its_users_alone(service: Machine) -> None:
    assert where_it_lives(service, "-w", *OWN) == [True] * len(OWN)
    assert service.run("stat", "-c", "%U %a", *OWN) == "claude-daemon 700\n" * len(OWN)


def test_bubblewrap_runs_with_the_drop_in_for_agents_and_not_without(bubblewrapped: Machine) -> None:
    machine = bubblewrapped
    machine.run("claudectl", "service", "stop")
    configure(machine, SANDBOXED)
    assert machine.status("systemctl", "start", "claude-daemon.service") != 0
    machine.run("claudectl", "service", "install", "--agents-bash")
    machine.run("systemctl", "reset-failed", "claude-daemon.service")
    machine.run("systemctl", "start", "claude-daemon.service")
    assert machine.show("Result") == "success"
    machine.run("claudectl", "service", "install")
