"""claudectl drain."""

from __future__ import annotations

import json
import signal
import threading

import pytest

from tests.ctl.conftest import PATIENCE_SECONDS, Daemon, Invoke, Reply, Spawn

RUNNING = {"state": "draining", "running": 1, "queued": 0, "connections": 2, "remaining_s": 9.5}


def test_drain_waits_for_the_end(daemon: Daemon, invoke: Invoke) -> None:
    daemon.tells("POST", "drain", RUNNING, {"state": "drained", "saved": True})
    result = invoke("drain", "--deadline", "30")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "drained\n", "")
    assert daemon.last.body == {"stop": False, "wait": True, "deadline_s": 30.0}


def test_drain_json_is_the_stream_of_the_daemon(daemon: Daemon, invoke: Invoke) -> None:
    last = {"state": "drained", "saved": True}
    daemon.tells("POST", "drain", RUNNING, last)
    result = invoke("drain", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [RUNNING, last]


def test_no_wait_returns_at_once(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("POST", "drain", {"state": "draining"})
    assert invoke("drain", "--no-wait").stdout == "draining\n"
    assert daemon.last.body == {"stop": False, "wait": False}


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ({"state": "drained", "saved": False}, "not all state could be saved"),
        ({"state": "ready"}, "the drain ended early: the daemon is ready"),
    ],
)
def test_a_drain_that_did_not_end_well_fails(
    daemon: Daemon, invoke: Invoke, last: dict[str, object], said: str
) -> None:
    daemon.tells("POST", "drain", RUNNING, last)
    result = invoke("drain")
    assert (result.exit_code, result.stderr) == (1, f"error: {said}\n")


def test_a_connection_cut_in_a_drain_fails(daemon: Daemon, invoke: Invoke) -> None:
    daemon.on("POST", "drain", _tell_and_cut)
    assert invoke("drain").exit_code == 1


def _tell_and_cut(reply: Reply) -> None:
    reply.begin_stream()
    reply.line(RUNNING)
    reply.close_connection = True


def test_ctrl_c_detaches_and_says_so(daemon: Daemon, spawn: Spawn) -> None:
    draining, hung_up = threading.Event(), threading.Event()

    def drain(reply: Reply) -> None:
        reply.begin_stream()
        reply.line(RUNNING)
        draining.set()
        if reply.wait_for_hangup():
            hung_up.set()

    daemon.on("POST", "drain", drain)
    process = spawn("--socket", str(daemon.path), "drain", "--json")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == RUNNING
    assert draining.wait(PATIENCE_SECONDS)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130
    assert err.decode() == "error: detached; the drain goes on (see: claudectl status)\n"
    assert hung_up.wait(PATIENCE_SECONDS)
