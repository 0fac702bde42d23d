"""``claudectl sessions``, and ``claudectl run --session``."""

from __future__ import annotations

from typing import Any

import pytest

from tests.ctl.conftest import Daemon, Invoke

SESSION: dict[str, Any] = {
    "id": "sess_1",
    "object": "session",
    "state": "warm",
    "key_id": "key_1",
    "created_at": 1_700_000_000.0,
    "used_at": 1_700_000_100.0,
    "cwd": "/srv/repository",
    "add_dirs": ["/srv/more"],
}


def test_sessions_are_listed_with_how_they_are(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "sessions", {"object": "list", "data": [SESSION], "next": "c2"})
    result = invoke("sessions", "list")
    assert result.exit_code == 0
    head, row = result.stdout.splitlines()
    assert head.split() == ["ID", "STATE", "KEY", "CREATED", "USED", "CWD"]
    assert [word for word in row.split() if word in ("sess_1", "warm", "key_1", "/srv/repository")] == [
        "sess_1",
        "warm",
        "key_1",
        "/srv/repository",
    ]
    assert "--cursor c2" in result.stderr


def test_where_there_are_none_it_says_so(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "sessions", {"object": "list", "data": [], "next": None})
    assert invoke("sessions", "list").stdout == "no sessions\n"


def test_a_session_is_shown(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "sessions/sess_1", SESSION)
    shown = invoke("sessions", "show", "sess_1").stdout
    assert shown.startswith("sess_1 · warm\n")
    assert "/srv/more" in shown


def test_a_session_is_deleted(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("DELETE", "sessions/sess_1", {"id": "sess_1", "object": "session", "deleted": True})
    assert invoke("sessions", "delete", "sess_1", "--yes").stdout == "sess_1 deleted\n"


@pytest.mark.parametrize(
    ("flags", "session"),
    [
        (["--session", "new"], {}),
        (["--session", "sess_1"], {"id": "sess_1"}),
        (["--session", "sess_1", "--fork"], {"id": "sess_1", "fork": True}),
    ],
)
def test_a_task_is_run_in_a_session(daemon: Daemon, invoke: Invoke, flags: list[str], session: Any) -> None:
    daemon.says("POST", "tasks", {"id": "task_1"}, 202)
    assert invoke("run", "--detach", *flags, "hello").stdout == "task_1\n"
    assert daemon.last.body == {"prompt": "hello", "session": session}


@pytest.mark.parametrize("flags", [["--fork"], ["--fork", "--session", "new"]])
def test_a_fork_needs_a_session(invoke: Invoke, flags: list[str]) -> None:
    assert invoke("run", *flags, "hello").exit_code == 2
