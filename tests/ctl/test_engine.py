"""``claudectl engine check`` against a stand-in."""

from __future__ import annotations

import json

import pytest

from tests.ctl.conftest import Daemon, Invoke, Reply

STEP = {"step": "capabilities"}
GOOD = {"group": "cli", "name": "Claude Code 2.1 starts", "status": "pass", "reason": ""}
DOUBTFUL = {
    "group": "capability",
    "name": "bare: a leaner start",
    "status": "warn",
    "reason": "it does not; 20 ms more",
}
BAD = {"group": "launch", "name": "agent: nothing runs", "status": "fail", "reason": "hook\x1b[2J ran"}


def done(status: str) -> dict[str, object]:
    return {"done": True, "status": status, "cli": "/bin/claude", "version": "2.1", "seconds": 3.0}


def test_rows_are_told_and_a_warning_is_no_failure(daemon: Daemon, invoke: Invoke) -> None:
    daemon.tells("POST", "engine/check", STEP, GOOD, DOUBTFUL, done("warn"))
    result = invoke("engine", "check")
    assert (result.exit_code, result.stdout.splitlines()) == (
        0,
        [
            "pass  Claude Code 2.1 starts",
            "warn  bare: a leaner start · it does not; 20 ms more",
            "Claude Code 2.1 at /bin/claude",
        ],
    )


def test_a_failure_is_exit_1_and_its_reason_cannot_steer_the_terminal(daemon: Daemon, invoke: Invoke) -> None:
    daemon.tells("POST", "engine/check", STEP, BAD, done("fail"))
    result = invoke("engine", "check")
    assert result.exit_code == 1
    assert "fail  agent: nothing runs · hook ran\n" in result.stdout
    assert "does not hold" in result.stderr


def test_json_is_a_line_for_each_and_the_exit_code_the_same(daemon: Daemon, invoke: Invoke) -> None:
    told = [STEP, GOOD, BAD, done("fail")]
    daemon.tells("POST", "engine/check", *told)
    result = invoke("engine", "check", "--json")
    assert (result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]) == (1, told)


@pytest.mark.parametrize("whole", [True, False])
def test_a_daemon_that_goes_away_in_the_middle_is_a_failure(daemon: Daemon, invoke: Invoke, whole: bool) -> None:
    def leave(reply: Reply) -> None:
        reply.begin_stream()
        reply.line(GOOD)
        if whole:
            reply.end_stream()
        else:
            reply.close_connection = True

    daemon.on("POST", "engine/check", leave)
    assert invoke("engine", "check").exit_code == 1


def test_another_check_that_is_under_way_is_a_conflict(daemon: Daemon, invoke: Invoke) -> None:
    daemon.refuses("POST", "engine/check", 409, "conflict", "a check of the engine is under way")
    assert invoke("engine", "check").exit_code == 7
