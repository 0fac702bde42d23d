"""From an installed service to one that is watched, as docs/operating.md says: a real systemd, a real Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.debian import program
from tests.system.machine import Machine, missing

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(240),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

ROOT = Path(__file__).parents[2]
SECTION = re.search(
    r"^## Watch it with Prometheus$(.*?)^## ", (ROOT / "docs" / "operating.md").read_text(), re.DOTALL | re.MULTILINE
)
RULES = ROOT / "etc" / "prometheus" / "claude-daemon.rules.yml"
PORT = 9090


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """With Prometheus and its user: what is installed after the boot would not be seen in there."""
    program("prometheus", "prometheus")
    with Machine() as booted:
        yield booted


def fence(language: str) -> str:
    assert SECTION is not None
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", SECTION[1], re.DOTALL | re.MULTILINE)
    return str(block)


def asked(machine: Machine, path: str) -> Any:
    return machine.fetch("GET", f"/api/v1/{path}", port=PORT).json["data"]


def value(machine: Machine, query: str) -> str | None:
    found = asked(machine, f"query?query={quote(query)}")["result"]
    return found[0]["value"][1] if found else None


def test_what_operating_says_has_prometheus_watch_the_service(service: Machine) -> None:
    service.write("/etc/claude-daemon/config.toml", fence("toml"))
    for line in fence("console").splitlines():
        assert line.startswith("# "), line
        service.run("sh", "-euc", line.removeprefix("# "))
    service.until(lambda: service.status("curl", "-fsS", f"http://127.0.0.1:{PORT}/-/ready") == 0)
    service.until(lambda: value(service, 'up{job="claude-daemon"}') == "1")
    service.until(lambda: value(service, "claude_daemon_ready") == "1")

    def judged() -> list[dict[str, Any]]:
        return [rule for group in asked(service, "rules")["groups"] for rule in group["rules"]]

    service.until(lambda: all(rule["health"] != "unknown" for rule in judged()))
    assert [rule["name"] for rule in judged()] == re.findall(r"- alert: (\w+)", RULES.read_text())
    assert {rule["health"] for rule in judged()} == {"ok"}, json.dumps(judged())
    states = {rule["name"]: rule["state"] for rule in judged()}
    assert states["ClaudeDaemonDown"] == states["ClaudeDaemonNotReady"] == "inactive"
