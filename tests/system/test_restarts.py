"""Restarts of the service under a constant load: systemd holds the sockets, and nobody's request fails."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from tests.system.machine import PATIENCE_S, PROGRAMS, Machine, missing

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(600),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

RESTARTS = int(os.environ.get("RESTARTS", "50"))


def test_fifty_restarts_behind_the_socket_unit_drop_no_request_and_lose_no_task(service: Machine) -> None:
    load = service.start(
        *(str(PROGRAMS / "python"), "-m", "tests.load"),
        *("--url", "http://127.0.0.1:8006", "--key-file", "/var/lib/claude-daemon/local.key"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    pids = {service.show("MainPID")}
    for _ in range(RESTARTS):
        service.run("systemctl", "restart", "claude-daemon")
        pids.add(service.show("MainPID"))
    output, _ = load.communicate(timeout=PATIENCE_S)
    report = json.loads(output)
    for mode, counts in report["modes"].items():
        told = {name: value for name, value in counts.items() if name != "tasks"}
        print(mode, told, len(counts["tasks"]), "tasks")
    print(report["verdict"])
    assert len(pids) == RESTARTS + 1
    assert load.returncode == 0
    assert all(counts["sent"] > RESTARTS for counts in report["modes"].values())
