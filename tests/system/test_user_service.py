"""The service of one user, under the manager of that user."""

from __future__ import annotations

import pytest

from tests.system.machine import PROGRAMS, Machine, missing

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(120),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

USER = "alice"


class Alice:
    """One who is not root, and lingers."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        machine.run("useradd", "--create-home", USER)
        self.uid = machine.run("id", "-u", USER).strip()
        machine.run("loginctl", "enable-linger", USER)
        machine.until(lambda: machine.show("ActiveState", f"user@{self.uid}.service") == "active")

    def words(self, *argv: str) -> tuple[str, ...]:
        runtime = f"XDG_RUNTIME_DIR=/run/user/{self.uid}"
        path = f"PATH={PROGRAMS}:/usr/bin:/bin"
        return ("runuser", "-u", USER, "--", "env", f"HOME=/home/{USER}", runtime, path, *argv)

    def run(self, *argv: str) -> str:
        return self.machine.run(*self.words(*argv))

    def show(self, name: str) -> str:
        return self.run("systemctl", "--user", "show", "claude-daemon", "-P", name).strip()


@pytest.fixture(scope="module")
def alice(machine: Machine) -> Alice:
    return Alice(machine)


def test_a_users_daemon_is_installed_answers_restarts_and_goes(alice: Alice) -> None:
    drop_in = f"/home/{USER}/.config/systemd/user/claude-daemon.service.d/90-offline.conf"
    setting = "[Service]\\nEnvironment=CLAUDE_DAEMON_ENGINE__UPSTREAM=offline CLAUDE_DAEMON_ENGINE__WORKERS=1\\n"
    alice.run("sh", "-c", f"mkdir -p $(dirname {drop_in}) && printf '{setting}' > {drop_in}")
    said = alice.run("claudectl", "service", "install", "--start", "--listen", "127.0.0.1:8010")
    assert said.endswith("started\n")
    alice.run("claudectl", "ready", "--wait", "60")
    told = alice.run("claudectl", "service", "status")
    assert "systemd: active (running), enabled" in told
    assert "started by systemd, at http://127.0.0.1:8010" in told
    assert alice.run("claudectl", "run", "[[text=from the home]]").strip() == "from the home"
    home = f"/home/{USER}/.claude-daemon"
    assert alice.run("stat", "-c", "%a", home, f"{home}/run") == "700\n700\n"
    alice.run("claudectl", "service", "restart")
    assert alice.run("claudectl", "run", "[[text=again]]").strip() == "again"
    alice.run("systemctl", "--user", "reload", "claude-daemon")
    assert alice.show("ActiveState") == "active"
    # who starts one by hand meets the lock, or the socket, of the one that is there
    assert alice.machine.status(*alice.words("claude-daemon", "run", "--offline")) == 73
    assert "ready" in alice.run("claudectl", "service", "status")
    cgroup = alice.show("ControlGroup")
    assert alice.machine.run("cat", f"/sys/fs/cgroup{cgroup}/cgroup.procs") != ""
    alice.run("claudectl", "service", "uninstall")
    assert alice.machine.run("cat", f"/sys/fs/cgroup{cgroup}/cgroup.procs", check=False) == ""
    assert alice.machine.status(*alice.words("claudectl", "service", "status")) == 4
    assert alice.run("ls", f"/home/{USER}/.claude-daemon").split() != []
