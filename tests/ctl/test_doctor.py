"""``claudectl doctor``: with no daemon, with one, and where the installation itself is broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from claude_daemon import __version__
from claudectl import diagnosis
from claudectl.supervisors import Unit
from tests.ctl.conftest import Ctl, Daemon, Invoke

STATUS = {
    "version": __version__,
    "pid": 7,
    "state": "degraded",
    "url": "http://127.0.0.1:8006",
    "profile": "prod",
    "config": {"file": "/etc/c.toml", "needs_restart": ["http.port"]},
    "agents": {"sandboxed": True},
    "credential": {"kind": "api_key", "origin": "environment ANTHROPIC_API_KEY"},
    "checks": {
        "engine": {"status": "pass", "reason": ""},
        "disk": {"status": "fail", "reason": "/srv: 3 MiB free, 0%"},
    },
}


class Unsupervised:
    """A machine on which nobody takes care of the daemon."""

    name = "systemd"
    control = "/nowhere/ctl.sock"
    state = "inactive (dead), no unit"
    installed = False

    def unit(self) -> Unit:
        return Unit(installed=self.installed, state=self.state)

    def environment(self) -> Mapping[str, str]:
        return {"CLAUDE_DAEMON_HOME": "/of/the/service"}


@pytest.fixture
def supervisor(monkeypatch: pytest.MonkeyPatch) -> Unsupervised:
    made = Unsupervised()
    monkeypatch.setattr(diagnosis, "choose", lambda scope: made)
    return made


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """The arguments of the program, which finds one thing."""
    calls: list[list[str]] = []

    def program(arguments: list[str], environ: Mapping[str, str]) -> Iterator[dict[str, str]]:
        calls.append(list(arguments))
        yield {"name": "Python 3.11", "status": "pass", "reason": "/bin/python", "todo": ""}

    monkeypatch.setattr(diagnosis, "_program", program)
    yield calls


def test_a_daemon_that_runs_is_asked_and_tells_where_to_look(
    daemon: Daemon, invoke: Invoke, supervisor: Unsupervised, asked: list[list[str]], tmp_path: Path
) -> None:
    daemon.says("GET", "status", {**STATUS, "home": str(tmp_path)})
    result = invoke("doctor")
    assert (result.exit_code, result.stdout.splitlines()) == (
        1,
        [
            "pass  daemon · degraded, pid 7, at http://127.0.0.1:8006",
            "warn  configuration in force · in force after a restart: http.port",
            "      → claudectl service restart",
            "fail  health: disk · /srv: 3 MiB free, 0%",
            "      → docs/health.md",
            "pass  sandbox · agents are confined",
            "pass  credential · api_key from environment ANTHROPIC_API_KEY",
            "pass  service · not installed",
            "      → claudectl service install, to have it supervised",
            "pass  Python 3.11 · /bin/python",
            "",
            "5 pass · 1 warn · 1 fail",
        ],
    )
    assert asked == [["--running", f"--home={tmp_path}", "--config=/etc/c.toml", "--profile=prod"]]


def test_json_is_one_document(daemon: Daemon, invoke: Invoke, supervisor: Unsupervised, asked: Any) -> None:
    daemon.says("GET", "status", {**STATUS, "version": "0.0.1", "checks": {}, "config": {}, "home": "/h"})
    document = json.loads(invoke("doctor", "--json").stdout)
    assert document["status"] == "warn"
    assert (document["findings"][0]["name"], document["findings"][0]["status"]) == ("daemon", "warn")  # two versions
    assert invoke("doctor", "--json").exit_code == 0


def test_a_daemon_that_does_not_answer_and_a_service_that_has_failed_fail(
    daemon: Daemon, invoke: Invoke, supervisor: Unsupervised, asked: list[list[str]]
) -> None:
    daemon.refuses("GET", "status", 403, "forbidden", "this user may not control the daemon")
    supervisor.installed, supervisor.state = True, "failed (failed), enabled"
    document = json.loads(invoke("doctor", "--json", "--profile", "dev").stdout)
    assert [(one["name"], one["status"]) for one in document["findings"]] == [
        ("daemon", "fail"),
        ("service", "fail"),
        ("Python 3.11", "pass"),
    ]
    assert asked == [["--profile=dev"]]


def test_with_no_daemon_it_looks_all_the_same(ctl: Ctl, short_dir: Path) -> None:
    ended = ctl("doctor", "--json", env={"CLAUDE_DAEMON_HTTP__PORT": "0"})
    document = json.loads(ended.out)
    names = {finding["name"].split()[0]: finding["status"] for finding in document["findings"]}
    assert (names["daemon"], names["home"], names["port"], names["Claude"]) == ("pass", "pass", "pass", "pass")
    assert ended.code == (1 if document["status"] == "fail" else 0)
    assert list((short_dir / "home").iterdir()) == []


def test_a_broken_installation_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pydantic.py").write_text("raise ImportError('pydantic is broken')\n")
    environ = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    found = list(diagnosis._program([], environ))
    assert found[0]["name"].startswith("Python")
    assert any(one["status"] == "fail" and "pydantic is broken" in one["reason"] for one in found), found
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    (finding,) = diagnosis._program([], {})
    assert (finding["name"], finding["status"]) == ("installation", "fail")


def test_a_program_that_does_not_end_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("python", 120)

    monkeypatch.setattr(subprocess, "run", hangs)
    (finding,) = diagnosis._program([], {})
    assert (finding["status"], "timed out" in finding["reason"]) == ("fail", True)
