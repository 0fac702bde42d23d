"""The system service under a real systemd: it starts, reloads, drains, is watched, restarted, and leaves nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from functools import partial

import pytest

from tests.system.conftest import DROP_INS, configure
from tests.system.machine import PATIENCE_S, PROGRAMS, Answer, Machine, missing

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(180),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

UNITS = ["claude-daemon.service", "claude-daemon.socket", "claude-daemon-control.socket"]


def chat(prompt: str) -> dict[str, object]:
    return {"model": "sonnet", "max_tokens": 1000, "messages": [{"role": "user", "content": prompt}]}


def text_of(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return "".join(block["text"] for block in answer.json["content"])


def main_pid(machine: Machine) -> str:
    return machine.show("MainPID")


def in_cgroup(machine: Machine) -> list[str]:
    procs = machine.run("cat", "/sys/fs/cgroup/system.slice/claude-daemon.service/cgroup.procs", check=False)
    return procs.split()


def restarted(machine: Machine, before: str) -> None:
    """Waits until systemd has started another one, and it is ready."""
    machine.until(lambda: machine.show("ActiveState") == "active" and main_pid(machine) not in ("0", before))
    machine.run("claudectl", "ready", "--wait", "60")


def test_the_units_are_enabled_and_systemd_has_nothing_to_say_about_them(service: Machine) -> None:
    for unit in UNITS:
        assert service.show("UnitFileState", unit) == "enabled"
    paths = [f"/etc/systemd/system/{unit}" for unit in UNITS]
    done = subprocess.run(
        service.command("systemd-analyze", "verify", *paths), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_it_is_started_when_it_says_that_it_is_ready(service: Machine) -> None:
    service.run("systemctl", "restart", "claude-daemon")
    assert service.show("ActiveState") == "active"
    assert len(service.journal("daemon.ready")) > 0
    assert service.show("StatusText").startswith(("ready: 0 running", "degraded: 0 running"))
    told = service.run("claudectl", "service", "status")
    assert f"pid {main_pid(service)}, started by systemd" in told


def test_a_chat_is_answered_by_claude_code_under_all_the_hardening(service: Machine) -> None:
    answer = service.fetch("POST", "/v1/messages", chat("[[text=Hello from in there]]"), key=service.key())
    assert text_of(answer) == "Hello from in there"
    assert answer.headers["Claude-Daemon-Lane"] == "text"
    status = service.run("cat", f"/proc/{main_pid(service)}/status")
    assert "NoNewPrivs:\t1" in status
    assert "CapEff:\t0000000000000000" in status
    assert "Uid:\t0\t" not in status
    assert service.run("claudectl", "run", "[[text=over the socket]]").strip() == "over the socket"


def logged(service: Machine, words: Sequence[str]) -> bool:
    return "http.access" in service.run(*words, check=False)


def test_the_log_is_read_from_its_file_and_without_one_from_the_journal(service: Machine) -> None:
    for setting in ("", "[Service]\nEnvironment=CLAUDE_DAEMON_LOG__FILE=none\n"):
        configure(service, setting)
        service.run("claudectl", "service", "restart")
        service.run("claudectl", "ready", "--wait", "60")
        answer = service.fetch("POST", "/v1/messages", chat("[[text=Hello]]"), key=service.key())
        words = ("claudectl", "logs", "--request", answer.headers["X-Request-ID"])
        service.until(partial(logged, service, words))
        told = service.run(*words, "--json").splitlines()
        events = {json.loads(line)["event"] for line in told}
        assert events >= {"worker.ready", "http.access", "model_call", "task.settled"}
        assert service.run("claudectl", "logs", "--json").splitlines()
    log = json.loads(service.run("claudectl", "status", "--json"))["log"]
    assert log["file"] is None
    service.run("claudectl", "service", "stop")
    assert "daemon.stopped" in service.run("claudectl", "logs", "--file", "/var/log/claude-daemon/daemon.log")


def test_a_reload_brings_a_good_file_into_force_and_fails_for_a_bad_one(service: Machine) -> None:
    service.write("/etc/claude-daemon/config.toml", "[http]\nmax_body_bytes = 100\n")
    pid = main_pid(service)
    service.run("systemctl", "reload", "claude-daemon")
    assert service.fetch("POST", "/v1/messages", chat("x" * 200), key=service.key()).status == 413
    service.write("/etc/claude-daemon/config.toml", "[http]\nmax_body_bites = 100\n")
    assert service.status("systemctl", "reload", "claude-daemon") != 0
    assert (service.show("ActiveState"), main_pid(service)) == ("active", pid)
    assert service.fetch("POST", "/v1/messages", chat("x" * 200), key=service.key()).status == 413
    said = service.run("journalctl", "--unit=claude-daemon", "--output=cat", "--no-pager")
    assert "max_body_bites" in said


def test_sighup_reloads_too_and_systemd_sees_it(service: Machine) -> None:
    service.write("/etc/claude-daemon/config.toml", "[queue]\nmax_queued = 77\n")
    service.run("systemctl", "kill", "--kill-whom=main", "--signal=HUP", "claude-daemon")
    service.until(lambda: any("max_queued" in str(line["changed"]) for line in service.journal("daemon.reloaded")))
    assert service.show("ActiveState") == "active"


def test_a_stop_lets_a_chat_finish_and_leaves_no_process(service: Machine) -> None:
    asked = service.fetching("POST", "/v1/messages", chat("[[tokens=40]] [[pace=50ms]]"), key=service.key())
    service.until(lambda: "1 running" in service.show("StatusText"))
    assert len(in_cgroup(service)) > 1
    service.run("claudectl", "service", "stop")
    output, _ = asked.communicate(timeout=PATIENCE_S)
    assert len(text_of(Answer.of(output)).split()) > 20
    assert (service.show("ActiveState"), service.show("Result"), service.show("ExecMainStatus")) == (
        "inactive",
        "success",
        "0",
    )
    assert in_cgroup(service) == []
    assert service.status("claudectl", "service", "status") == 4


def test_a_drain_may_take_longer_than_a_stop_may_while_it_gets_on(service: Machine) -> None:
    configure(service, "[Service]\nTimeoutStopSec=1\n")
    service.run("systemctl", "restart", "claude-daemon")
    asked = service.fetching("POST", "/v1/messages", chat("[[tokens=60]] [[pace=50ms]]"), key=service.key())
    service.until(lambda: "1 running" in service.show("StatusText"))
    service.run("claudectl", "service", "stop")
    output, _ = asked.communicate(timeout=PATIENCE_S)
    assert text_of(Answer.of(output))
    assert service.show("Result") == "success"


def test_a_loop_that_stands_still_is_aborted_and_started_anew(service: Machine) -> None:
    configure(service, "[Service]\nWatchdogSec=2\nTimeoutAbortSec=2\n")
    service.run("systemctl", "restart", "claude-daemon")
    before = main_pid(service)
    service.run("kill", "-STOP", before)
    restarted(service, before)
    assert service.show("NRestarts") == "1"
    assert text_of(service.fetch("POST", "/v1/messages", chat("[[text=again]]"), key=service.key())) == "again"


def test_after_a_kill_it_runs_again_and_the_workers_of_before_are_gone(service: Machine) -> None:
    service.until(lambda: len(in_cgroup(service)) > 2)
    before, workers = main_pid(service), set(in_cgroup(service))
    service.run("kill", "-KILL", before)
    restarted(service, before)
    assert not workers & set(in_cgroup(service))
    assert text_of(service.fetch("POST", "/v1/messages", chat("[[text=again]]"), key=service.key())) == "again"


def test_what_fails_again_and_again_is_given_up(service: Machine) -> None:
    service.run("claudectl", "service", "stop")
    limits = "[Unit]\nStartLimitIntervalSec=60\nStartLimitBurst=3\n"
    configure(service, f"{limits}[Service]\nRestartSec=0.1\nExecStart=\nExecStart=/bin/false\n")
    service.status("systemctl", "start", "claude-daemon")
    service.until(lambda: service.show("Result") == "start-limit-hit" or service.show("ActiveState") == "failed")
    service.until(lambda: service.show("NRestarts") == "3")
    assert service.show("ActiveState") == "failed"


def test_a_bad_configuration_is_not_tried_again(service: Machine) -> None:
    service.run("claudectl", "service", "stop")
    service.write("/etc/claude-daemon/config.toml", "[http]\nprot = 1\n")
    assert service.status("systemctl", "start", "claude-daemon") != 0
    assert (service.show("ActiveState"), service.show("ExecMainStatus"), service.show("NRestarts")) == (
        "failed",
        "78",
        "0",
    )


def test_the_first_connection_starts_it_and_is_answered(service: Machine) -> None:
    key = service.key()
    service.run("systemctl", "stop", "claude-daemon.service")
    assert service.show("ActiveState") == "inactive"
    assert "its sockets wait" in service.run("claudectl", "service", "status", check=False)
    assert service.show("ActiveState") == "inactive"  # to ask how it is has not woken it
    assert service.fetch("GET", "/v1/models", key=key).status == 200
    assert service.show("ActiveState") == "active"


def test_without_claude_code_it_is_degraded_and_stays(service: Machine) -> None:
    configure(service, "[Service]\nEnvironment=CLAUDE_DAEMON_ENGINE__CLI_PATH=/bin/false\n")
    service.run("systemctl", "restart", "claude-daemon")
    assert service.show("ActiveState") == "active"
    health = service.fetch("GET", "/health").json
    assert (health["status"], health["state"]) == ("warn", "degraded")
    assert service.fetch("GET", "/ready").status == 200  # the direct lane works


def test_without_a_credential_it_is_not_ready_and_stays(service: Machine) -> None:
    configure(service, "[Service]\nEnvironment=CLAUDE_DAEMON_ENGINE__UPSTREAM=anthropic\n")
    service.run("systemctl", "restart", "claude-daemon")
    assert service.show("ActiveState") == "active"
    ready = service.fetch("GET", "/ready")
    assert ready.status == 503
    assert "no credential" in ready.json["reason"]
    assert "not ready: engine: no credential" in service.show("StatusText")
    assert service.status("claudectl", "ready") == 3


def test_a_credential_is_handed_over_in_a_file_and_reaches_no_environment(service: Machine) -> None:
    secret = "sk-ant-api03-" + "s" * 30
    service.write("/etc/keys/anthropic", secret)
    service.run("chmod", "600", "/etc/keys/anthropic")
    configure(service, "[Service]\nEnvironment=CLAUDE_DAEMON_ENGINE__UPSTREAM=anthropic\n")
    service.run("claudectl", "service", "install", "--credential", "ANTHROPIC_API_KEY=/etc/keys/anthropic")
    service.run("systemctl", "restart", "claude-daemon")
    try:
        status = service.run("claudectl", "status")
        assert "api_key" in status
        assert "/run/credentials/claude-daemon.service/ANTHROPIC_API_KEY" in status
        service.until(lambda: len(in_cgroup(service)) > 2)
        for pid in in_cgroup(service):
            assert secret not in service.run("cat", f"/proc/{pid}/environ", check=False)
        assert secret not in service.run("journalctl", "--unit=claude-daemon", "--output=cat", "--no-pager")
    finally:
        service.run("claudectl", "service", "install")
        assert f"{DROP_INS}/30-credentials.conf" not in service.run("ls", DROP_INS)


def test_a_worker_dies_of_hunger_before_the_daemon_does(service: Machine) -> None:
    service.until(lambda: len(in_cgroup(service)) > 2)
    scores = {pid: int(service.run("cat", f"/proc/{pid}/oom_score_adj")) for pid in in_cgroup(service)}
    claude = service.run("pgrep", "--full", "_bundled/claude").split()
    assert claude
    assert all(scores[pid] > scores[main_pid(service)] for pid in claude if pid in scores)


def test_another_daemon_beside_it_has_its_port_for_a_name(service: Machine) -> None:
    service.write(
        "/etc/systemd/system/claude-daemon@.service.d/90-offline.conf",
        "[Service]\nEnvironment=CLAUDE_DAEMON_ENGINE__UPSTREAM=offline CLAUDE_DAEMON_ENGINE__WORKERS=1\n",
    )
    service.run("systemctl", "daemon-reload")
    sockets = ("claude-daemon@8007.socket", "claude-daemon-control@8007.socket")
    service.run("systemctl", "start", *sockets, "claude-daemon@8007.service")
    try:
        key = service.key("/var/lib/claude-daemon-8007")
        assert key != service.key()
        answer = service.fetch("POST", "/v1/messages", chat("[[text=the other]]"), port=8007, key=key)
        assert text_of(answer) == "the other"
        assert service.run("claudectl", "--socket", "/run/claude-daemon-8007/ctl.sock", "ready")
        assert service.fetch("GET", "/v1/models", key=key).status == 401
    finally:
        service.run("systemctl", "stop", *sockets, "claude-daemon@8007.service")


def test_uninstalled_it_is_gone_and_its_state_is_not(service: Machine) -> None:
    said = service.run("claudectl", "service", "uninstall")
    assert "/var/lib/claude-daemon" in said
    assert service.show("LoadState") == "not-found"
    assert service.status("test", "-f", "/var/lib/claude-daemon/daemon.db") == 0
    assert service.run("ls", DROP_INS).split() == ["90-offline.conf"]
    service.run("claudectl", "service", "install", "--start")
    assert service.show("ActiveState") == "active"
    assert str(PROGRAMS) in service.show("ExecStart")
