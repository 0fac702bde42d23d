"""The sockets are systemd's: whoever connects while no daemon accepts waits for the next one."""

from __future__ import annotations

import subprocess

import pytest

from tests.system.conftest import configure
from tests.system.machine import PATIENCE_S, Answer, Machine, missing

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(180),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

SLOW = {
    "model": "sonnet",
    "max_tokens": 1000,
    "messages": [{"role": "user", "content": "[[tokens=60]] [[pace=50ms]]"}],
}


def answer_of(asked: subprocess.Popen[str]) -> Answer:
    output, _ = asked.communicate(timeout=PATIENCE_S)
    return Answer.of(output)


def test_who_connects_in_the_middle_of_a_restart_is_answered_by_the_next_daemon(service: Machine) -> None:
    key, before = service.key(), service.show("MainPID")
    in_flight = service.fetching("POST", "/v1/messages", SLOW, key=key)
    service.until(lambda: "1 running" in service.show("StatusText"))
    service.run("systemctl", "restart", "--no-block", "claude-daemon.service")
    service.until(lambda: service.show("ActiveState") == "deactivating")
    waiting = [service.fetching("GET", "/v1/models", None, key=key) for _ in range(5)]
    assert service.show("MainPID") == before  # it drains still
    assert answer_of(in_flight).status == 200
    assert [answer_of(asked).status for asked in waiting] == [200] * 5
    assert service.show("MainPID") not in ("0", before)


def test_the_control_socket_starts_it_too(service: Machine) -> None:
    service.run("systemctl", "stop", "claude-daemon.service")
    service.run("claudectl", "tasks", "list")  # answered before it is ready
    service.until(lambda: service.show("ActiveState") == "active")


def test_with_its_sockets_stopped_nobody_starts_it(service: Machine) -> None:
    service.run("claudectl", "service", "stop")
    assert service.status("bash", "-c", "</dev/tcp/127.0.0.1/8006") != 0
    assert service.status("claudectl", "tasks", "list") == 4
    assert service.show("ActiveState") == "inactive"


def test_who_connects_to_a_badly_configured_one_does_not_keep_a_mended_one_from_starting(service: Machine) -> None:
    service.run("systemctl", "stop", "claude-daemon.service")
    configure(service, "[Unit]\nStartLimitIntervalSec=60\nStartLimitBurst=8\n")  # as it is installed
    service.write("/etc/claude-daemon/config.toml", "[http]\nprot = 1\n")
    service.status("bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8006; read -u 3")
    service.until(lambda: service.show("ActiveState", "claude-daemon.socket") == "failed")
    service.run("rm", "/etc/claude-daemon/config.toml")
    service.run("claudectl", "service", "start")
    assert service.show("ActiveState") == "active"
    assert service.fetch("GET", "/v1/models", key=service.key()).status == 200
