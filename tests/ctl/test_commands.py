"""The commands that ask once: what they send, print and end with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from claude_daemon import __version__
from claudectl.client import REQUEST_SECONDS
from claudectl.commands.backup import BACKUP_SECONDS
from tests.ctl.conftest import Daemon, Invoke, Reply

PASSES = {"status": "pass", "state": "ready", "uptime_seconds": 5, "checks": {"engine": {"status": "pass"}}}


@pytest.mark.parametrize(
    ("status", "state", "http", "code"),
    [
        ("pass", "ready", 200, 0),
        ("warn", "degraded", 200, 0),
        ("fail", "degraded", 503, 3),
        ("fail", "starting", 503, 3),
        ("fail", "draining", 503, 3),
        ("pass", "draining", 200, 3),
        ("pass", "drained", 200, 3),
    ],
)
def test_health_ends_by_status_and_state(
    daemon: Daemon, invoke: Invoke, status: str, state: str, http: int, code: int
) -> None:
    daemon.says("GET", "health", PASSES | {"status": status, "state": state}, http)
    result = invoke("health")
    assert result.exit_code == code
    assert result.stdout.startswith(f"{status} · {state} · up 5 s\n")
    assert result.stderr == ""


def test_every_request_names_the_protocol(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "health", PASSES)
    invoke("health")
    assert daemon.last.headers["Claude-Daemon-Control"] == "1"
    assert "Origin" not in daemon.last.headers


@pytest.mark.parametrize("command", [["health"], ["status"], ["workers", "list"], ["ready"]])
def test_json_is_the_document_of_the_daemon(daemon: Daemon, invoke: Invoke, command: list[str]) -> None:
    document = {"status": "pass", "state": "ready", "name": "\x9bé", "workers": []}
    daemon.says("GET", command[0], document)
    result = invoke(*command, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (0, document)
    assert result.stdout.isascii()


@pytest.mark.parametrize(
    "args", [["--json", "workers", "list"], ["workers", "--json", "list"], ["workers", "list", "--json"]]
)
def test_global_options_stand_before_or_after_the_command(daemon: Daemon, invoke: Invoke, args: list[str]) -> None:
    daemon.says("GET", "workers", {"workers": []})
    assert json.loads(invoke(*args).stdout) == {"workers": []}


def test_the_later_of_two_sockets_wins(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "health", PASSES)
    result = invoke("health", "--socket", "/nowhere.sock")
    assert result.exit_code == 4
    assert "/nowhere.sock" in result.stderr
    assert str(daemon.path) not in result.stderr


@pytest.mark.parametrize("args", [["--version"], ["health", "--version"], ["workers", "list", "--version"]])
def test_version_needs_no_daemon(invoke: Invoke, args: list[str]) -> None:
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (0, f"claudectl {__version__}\n")


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["health", "extra"],
        ["ready", "--wait", "soon"],
        ["ready", "--wait", "-1"],
        ["drain", "--deadline", "nan"],
        ["health", "--timeout", "inf"],
        ["run", "--lane", "text", "hi"],
        ["run", "--priority", "first", "hi"],
        ["run", "--metadata", "key", "hi"],
        ["run", "--metadata", "=value", "hi"],
        ["run", "--metadata", "a=1", "--metadata", "a=2", "hi"],
        ["tasks"],
        ["tasks", "show"],
        ["tasks", "cancel"],
        ["tasks", "list", "--state", "done"],
        ["tasks", "list", "--kind", "batch"],
        ["tasks", "list", "--limit", "101"],
        ["tasks", "follow", "task_1", "--after", "-1"],
        ["tasks", "purge"],
        ["tasks", "purge", "--before", "soon"],
        ["queue"],
        ["backup"],
        ["stop", "--fast", "--immediate"],
        ["workers"],
        ["workers", "scale"],
        ["workers", "scale", "--workers", "0"],
        ["workers", "scale", "--spares", "-1"],
        ["workers", "recycle", "w_1", "--all-at-once"],
        ["workers", "kill"],
        ["connections", "close"],
        ["log-level", "loud"],
        ["log-level", "--logger", "a"],
        ["log-level", "--reset"],
        ["log-level", "--reset", "--logger", ""],
        ["log-level", "debug", "--reset", "--logger", "a"],
        [],
    ],
)
def test_what_makes_no_sense_is_usage(invoke: Invoke, daemon: Daemon, args: list[str]) -> None:
    assert invoke(*args).exit_code == 2
    assert daemon.requests == []


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (400, "invalid_request", 1),
        (404, "not_found", 1),
        (401, "unauthenticated", 5),
        (403, "forbidden", 5),
        (403, "from_worker", 5),
        (409, "conflict", 7),
        (426, "control_version", 6),
        (500, "internal", 1),
        (503, "draining", 3),
        (503, "not_ready", 3),
        (503, "overloaded", 1),
        (504, "deadline", 124),
    ],
)
def test_a_refusal_ends_with_the_code_of_its_cause(
    daemon: Daemon, invoke: Invoke, status: int, code: str, exit_code: int
) -> None:
    daemon.refuses("POST", "undrain", status, code, "because \x1b[2Jof this")
    result = invoke("undrain")
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert result.stderr.startswith(f"error: {code}: because of this")


def test_a_protocol_mismatch_says_what_to_do(daemon: Daemon, invoke: Invoke) -> None:
    daemon.refuses("GET", "health", 426, "control_version", "this daemon speaks version 2")
    assert "speaks version 1" in invoke("health").stderr


def test_a_refusal_lists_every_fault_and_a_failure_names_its_request(daemon: Daemon, invoke: Invoke) -> None:
    faults = [{"path": "prompt", "message": "too long"}, {"path": "model", "message": "unknown"}, "junk"]
    said_already = {"path": "id", "message": "no"}
    daemon.refuses("POST", "undrain", 400, "invalid_request", "no", errors=[*faults, said_already], request_id="r1")
    assert invoke("undrain").stderr == "error: invalid_request: no\n  prompt: too long\n  model: unknown\n"
    daemon.refuses("POST", "undrain", 500, "internal", "oops", request_id="r2")
    assert invoke("undrain").stderr == "error: internal: oops (request r2)\n"


def test_a_problem_is_an_error_where_a_document_with_503_is_not(daemon: Daemon, invoke: Invoke) -> None:
    daemon.refuses("GET", "health", 503, "overloaded", "too many connections")
    result = invoke("health")
    assert (result.exit_code, result.stdout) == (1, "")


@pytest.mark.parametrize("status", [200, 500])
def test_what_is_no_json_is_another_protocol(daemon: Daemon, invoke: Invoke, status: int) -> None:
    daemon.on("GET", "health", lambda reply: reply.document(["a", "list"], status, "text/html"))
    assert invoke("health").exit_code == 6


def test_what_is_no_http_is_another_protocol(daemon: Daemon, invoke: Invoke) -> None:
    daemon.on("GET", "health", _speak_ssh)
    assert invoke("health").exit_code == 6


def test_a_daemon_that_hangs_up_unanswered_is_not_running(daemon: Daemon, invoke: Invoke) -> None:
    daemon.on("GET", "health", _hang_up)
    result = invoke("health")
    assert (result.exit_code, result.stderr) == (4, "error: the daemon went away before it answered\n")


def _speak_ssh(reply: Reply) -> None:
    reply.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")


def _say_nothing(reply: Reply) -> None:
    reply.wait_for_hangup()


def _hang_up(reply: Reply) -> None:
    reply.close_connection = True


def test_an_answer_cut_in_the_middle_is_a_failure(daemon: Daemon, invoke: Invoke) -> None:
    def cut(reply: Reply) -> None:
        reply.send_response(200)
        reply.send_header("Content-Length", "100")
        reply.end_headers()
        reply.wfile.write(b'{"status"')
        reply.close_connection = True

    daemon.on("GET", "health", cut)
    result = invoke("health")
    assert (result.exit_code, "middle of its answer" in result.stderr) == (1, True)


def test_a_daemon_that_does_not_answer_times_out(daemon: Daemon, invoke: Invoke) -> None:
    daemon.on("GET", "health", _say_nothing)
    result = invoke("health", "--timeout", "0.1")
    assert (result.exit_code, result.stderr) == (124, "error: timed out after 0.1 s\n")


def test_undrain_prints_the_state(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("POST", "undrain", {"state": "ready"})
    assert invoke("undrain").stdout == "ready\n"


def test_ready_says_why_not(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "ready", {"status": "fail", "state": "degraded", "reason": "no credential"}, 503)
    result = invoke("ready")
    assert (result.exit_code, result.stdout) == (3, "not ready · degraded · no credential\n")


def test_ready_wait_asks_the_daemon_to_wait(daemon: Daemon, invoke: Invoke) -> None:
    answers = [({"status": "fail", "state": "starting"}, 503), ({"status": "pass", "state": "ready"}, 200)]
    daemon.on("GET", "ready", lambda reply: reply.document(*answers.pop(0)))
    result = invoke("ready", "--wait", "100")
    assert (result.exit_code, result.stdout) == (0, "ready\n")
    assert [request.query for request in daemon.requests] == ["wait=30.000", "wait=30.000"]


def test_ready_wait_ends_with_the_last_answer(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "ready", {"status": "fail", "state": "draining", "reason": "draining"}, 503)
    result = invoke("ready", "--wait", "0.1")
    assert (result.exit_code, result.stdout) == (3, "not ready · draining · draining\n")


def test_ready_wait_without_a_daemon_ends_as_not_running(invoke: Invoke) -> None:
    assert invoke("ready", "--wait", "0.1", "--socket", "/nowhere.sock").exit_code == 4


def test_the_whole_of_a_wait_is_bounded_by_timeout(invoke: Invoke) -> None:
    assert invoke("ready", "--wait", "60", "--timeout", "0.1", "--socket", "/nowhere.sock").exit_code == 124


@pytest.mark.parametrize(("command", "paused", "said"), [("pause", True, "paused\n"), ("resume", False, "resumed\n")])
def test_the_queue_is_paused_and_resumed(daemon: Daemon, invoke: Invoke, command: str, paused: bool, said: str) -> None:
    daemon.says("POST", f"queue/{command}", {"paused": paused})
    assert invoke("queue", command).stdout == said
    assert json.loads(invoke("queue", command, "--json").stdout) == {"paused": paused}
    assert daemon.last.body == {}


def test_backup_sends_an_absolute_path_and_tells_the_size(
    daemon: Daemon, invoke: Invoke, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short_dir)
    daemon.on("POST", "backup", lambda reply: reply.document(reply.request_seen.body | {"size_bytes": 3_670_016}))
    result = invoke("backup", "copy.db")
    assert (result.exit_code, result.stdout) == (0, f"{Path.cwd()}/copy.db · 3.5 MiB\n")
    assert daemon.last.body == {"path": f"{Path.cwd()}/copy.db"}
    assert json.loads(invoke("backup", "/b.db", "--json").stdout) == {"path": "/b.db", "size_bytes": 3_670_016}


def test_a_backup_over_a_file_is_a_conflict(daemon: Daemon, invoke: Invoke) -> None:
    daemon.refuses("POST", "backup", 409, "conflict", "/b.db is there already")
    result = invoke("backup", "/b.db")
    assert (result.exit_code, result.stderr) == (7, "error: conflict: /b.db is there already\n")


def test_a_backup_may_take_longer_than_other_requests_but_not_than_timeout(daemon: Daemon, invoke: Invoke) -> None:
    daemon.on("POST", "backup", _say_nothing)
    assert BACKUP_SECONDS > 10 * REQUEST_SECONDS
    assert invoke("backup", "/b.db", "--timeout", "0.1").exit_code == 124


@pytest.mark.parametrize("file", ["a\udcffb"])
def test_a_file_name_that_is_no_utf8_is_usage(daemon: Daemon, invoke: Invoke, file: str) -> None:
    assert invoke("backup", file).exit_code == 2
    assert daemon.requests == []
