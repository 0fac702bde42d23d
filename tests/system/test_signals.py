"""Signals that systemd, or root through it, sends to the service."""

from __future__ import annotations

import pytest

from tests.system.machine import Machine, missing

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(120),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

UNIT = "claude-daemon.service"
LOG = "/var/log/claude-daemon/daemon.log"


def signal(machine: Machine, name: str) -> None:
    machine.run("systemctl", "kill", "--kill-whom=main", f"--signal={name}", UNIT)


def ended_well(machine: Machine) -> bool:
    """And nothing of it is left. In its first moments a process has no handlers, and ends of the signal itself."""
    procs = machine.run("cat", f"/sys/fs/cgroup/system.slice/{UNIT}/cgroup.procs", check=False)
    return (machine.show("ActiveState"), machine.show("Result"), procs) == ("inactive", "success", "")


@pytest.mark.parametrize("after", ["process", "listening"])
def test_stopped_while_it_starts_it_leaves_nothing(service: Machine, after: str) -> None:
    service.run("systemctl", "stop", UNIT)
    ready = len(service.journal("daemon.ready"))
    service.run("systemctl", "start", "--no-block", UNIT)
    service.until(lambda: service.show("MainPID") != "0")
    if after == "listening":
        service.run("claudectl", "tasks", "list")  # the control socket answers before the service is ready
    service.run("systemctl", "stop", UNIT)
    assert len(service.journal("daemon.ready")) == ready
    assert ended_well(service)


def test_sigquit_ends_it_at_once_though_a_chat_runs(service: Machine) -> None:
    endless = {"model": "sonnet", "max_tokens": 10, "messages": [{"role": "user", "content": "[[hang]]"}]}
    asked = service.fetching("POST", "/v1/messages", endless, key=service.key())
    service.until(lambda: "1 running" in service.show("StatusText"))
    signal(service, "QUIT")
    service.until(lambda: service.show("ActiveState") == "inactive", seconds=10)
    assert ended_well(service)
    asked.communicate(timeout=10)


def test_sigusr1_opens_the_log_that_was_moved_away_anew(service: Machine) -> None:
    service.run("mv", LOG, f"{LOG}.1")
    signal(service, "USR1")
    service.until(lambda: service.status("test", "-s", LOG) == 0)
    assert "log.reopened" in service.run("cat", LOG)
    assert "log.reopened" not in service.run("cat", f"{LOG}.1")
    assert service.run("stat", "-c", "%U %a", LOG) == "claude-daemon 600\n"
