"""doctor, engine check and debug-bundle beside a service of a real systemd, hardened as it is, asked by root."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.system.conftest import configure
from tests.system.machine import Machine, missing

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(180),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]


def findings(machine: Machine) -> dict[str, dict[str, Any]]:
    document = json.loads(machine.run("claudectl", "doctor", "--json", check=False))
    return {found["name"].split(" /")[0]: found for found in document["findings"]}


def test_root_is_told_of_the_service_and_of_its_home_not_of_its_own(service: Machine) -> None:
    found = findings(service)
    assert found["daemon"]["status"] == found["service"]["status"] == "pass"
    assert found["service"]["reason"].startswith("active (running)")
    assert found["home"]["name"] == "home /var/lib/claude-daemon"
    assert found["home"]["status"] == found["private files"]["status"] == "pass", found
    assert found["store"]["status"] == "pass"
    assert found["log"]["name"] == "log /var/log/claude-daemon/daemon.log"
    assert not [one for one in found.values() if one["status"] == "fail"], found


def test_a_service_that_is_stopped_waits_and_is_not_woken(service: Machine) -> None:
    service.write("/etc/keys/anthropic", "sk-ant-api03-" + "s" * 30)
    service.run("chmod", "600", "/etc/keys/anthropic")
    configure(
        service,
        "[Service]\nEnvironment=CLAUDE_DAEMON_ENGINE__UPSTREAM=anthropic\n"
        "LoadCredential=ANTHROPIC_API_KEY:/etc/keys/anthropic\n",
    )
    service.run("systemctl", "stop", "claude-daemon.service")
    found = findings(service)
    assert "its sockets wait" in found["daemon"]["reason"]
    assert not [name for name in found if name.startswith("port")], "systemd has it"
    assert found["credential"]["status"] == "pass" and "/etc/keys/anthropic" in found["credential"]["reason"], found
    assert service.show("ActiveState") == "inactive"


def test_a_service_that_has_failed_is_a_failure_and_the_bundle_has_its_journal(service: Machine) -> None:
    configure(service, "[Service]\nEnvironment=CLAUDE_DAEMON_HTTP__PROT=1\n")
    service.run("claudectl", "service", "stop")
    service.run("systemctl", "start", "claude-daemon.service", check=False)
    found = findings(service)
    assert found["service"]["status"] == found["configuration"]["status"] == "fail"
    assert "CLAUDE_DAEMON_HTTP__PORT" in found["configuration"]["reason"]  # of the unit's environment, not of root's
    service.run("claudectl", "debug-bundle", "/tmp/bundle.tar.gz")
    journal = service.run("tar", "xOzf", "/tmp/bundle.tar.gz", "claude-daemon-debug/journal.txt")
    assert "CLAUDE_DAEMON_HTTP__PORT" in journal
    assert service.run("stat", "-c", "%a", "/tmp/bundle.tar.gz").strip() == "600"


def test_the_engine_can_be_checked_within_the_hardened_unit(service: Machine) -> None:
    lines = service.run("claudectl", "engine", "check", "--json").splitlines()
    end = json.loads(lines[-1])
    assert end["done"] and end["status"] in ("pass", "warn")
    rows = [row for row in map(json.loads, lines) if row.get("group") == "launch"]
    assert len(rows) == 7 and {row["status"] for row in rows} == {"pass"}, rows
