"""claudectl stop, and drain --stop: the daemon's end, waited for."""

from __future__ import annotations

import json
import signal
import threading

import pytest

from claudectl import departure
from claudectl.client import Client
from claudectl.departure import Departure
from claudectl.sockets import Deadline
from tests.ctl.conftest import PATIENCE_SECONDS, Daemon, Invoke, Process, Reply, Spawn
from tests.ctl.test_drain import RUNNING

STOPPING = {"state": "stopping", "saved": True}


def leaving(daemon: Daemon, *, ends: str = "properly") -> threading.Thread:
    """Lets the stand-in go away after ``POST stop`` and ``POST drain``; the thread in which it does, for a join."""
    asked = threading.Event()

    def leave() -> None:
        if asked.wait(PATIENCE_SECONDS):
            daemon.leave()

    def answer(reply: Reply) -> None:
        if ends != "unanswered":
            reply.begin_stream()
            reply.line(RUNNING)
        if ends == "properly":
            reply.line(STOPPING)
            reply.end_stream()
        reply.close_connection = True
        asked.set()

    for verb in ("stop", "drain"):
        daemon.on("POST", verb, answer)
    thread = threading.Thread(target=leave)
    thread.start()
    return thread


@pytest.mark.parametrize("ends", ["properly", "cut", "unanswered"])
@pytest.mark.parametrize("command", [["stop"], ["drain", "--stop"]], ids=" ".join)
def test_a_stop_waits_until_the_socket_is_gone(daemon: Daemon, invoke: Invoke, command: list[str], ends: str) -> None:
    daemon.says("GET", "status", {})
    thread = leaving(daemon, ends=ends)
    result = invoke(*command)
    gone = not daemon.path.exists()
    thread.join(PATIENCE_SECONDS)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "stopped\n", "")
    assert gone


@pytest.mark.parametrize(
    ("flags", "mode"), [([], "smart"), (["--fast"], "fast"), (["--immediate"], "immediate")], ids=str
)
def test_the_mode_of_a_stop_is_sent(daemon: Daemon, invoke: Invoke, flags: list[str], mode: str) -> None:
    daemon.says("GET", "status", {})
    thread = leaving(daemon)
    assert invoke("stop", *flags).exit_code == 0
    thread.join(PATIENCE_SECONDS)
    assert daemon.last.body == {"mode": mode, "wait": True}


def test_a_stop_without_waiting_returns_at_once(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("POST", "stop", RUNNING)
    assert invoke("stop", "--no-wait").stdout == "draining\n"
    assert [(request.path, request.body) for request in daemon.requests] == [("stop", {"mode": "smart", "wait": False})]


def test_the_json_of_a_stop_is_the_stream_of_the_daemon(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "status", {})
    thread = leaving(daemon)
    result = invoke("stop", "--json")
    thread.join(PATIENCE_SECONDS)
    assert [json.loads(line) for line in result.stdout.splitlines()] == [RUNNING, STOPPING]


def test_a_stop_with_unsaved_state_fails(daemon: Daemon, invoke: Invoke, process: Process) -> None:
    def stop(reply: Reply) -> None:
        reply.lines(STOPPING | {"saved": False})
        process.end()

    daemon.says("GET", "status", {"pid": process.pid})
    daemon.on("POST", "stop", stop)
    result = invoke("stop")
    assert (result.exit_code, result.stderr) == (1, "error: not all state could be saved\n")


def test_a_stop_that_takes_too_long_times_out(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "status", {})
    daemon.tells("POST", "stop", STOPPING)
    assert invoke("stop", "--timeout", "0.2").exit_code == 124


@pytest.mark.parametrize(("supervisor", "noted"), [("systemd", True), ("none", False)])
def test_a_socket_that_outlives_its_daemon_is_never_connected_to(
    daemon: Daemon, invoke: Invoke, process: Process, supervisor: str, noted: bool
) -> None:
    """Where systemd holds it, that would start the next daemon: whose answers are not the stopped one's."""

    def stop(reply: Reply) -> None:
        reply.lines(RUNNING, STOPPING)
        process.end()

    daemon.says("GET", "status", {"pid": process.pid, "supervisor": supervisor})
    daemon.on("POST", "stop", stop)
    result = invoke("stop")
    assert (result.exit_code, result.stdout) == (0, "stopped\n")
    assert ("whoever connects starts the daemon again" in result.stderr) is noted
    assert [request.path for request in daemon.requests] == ["status", "stop"]


def test_ctrl_c_stops_waiting_for_a_stop(daemon: Daemon, spawn: Spawn) -> None:
    def stop(reply: Reply) -> None:
        reply.begin_stream()
        reply.line(RUNNING)
        reply.wait_for_hangup()

    daemon.says("GET", "status", {})
    daemon.on("POST", "stop", stop)
    running = spawn("--socket", str(daemon.path), "stop", "--json")
    assert running.stdout is not None
    assert json.loads(running.stdout.readline()) == RUNNING
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=PATIENCE_SECONDS)
    assert (running.returncode, err.decode()) == (130, "error: detached; the drain goes on (see: claudectl status)\n")


# the departure itself


def departing(daemon: Daemon, **status: object) -> Departure:
    daemon.says("GET", "status", status)
    return Departure(Client([str(daemon.path)]))


def test_a_socket_that_another_daemon_took_over_counts_as_gone(daemon: Daemon) -> None:
    seen = departing(daemon)
    assert not seen.is_over()
    daemon.leave()
    with_another = Daemon(daemon.path)
    assert seen.is_over()
    with_another.leave()


def test_a_daemon_is_gone_when_its_process_is_though_its_socket_stays(daemon: Daemon, process: Process) -> None:
    seen = departing(daemon, pid=process.pid)
    assert not seen.is_over()
    process.end()
    seen.wait(Deadline(PATIENCE_SECONDS))
    assert daemon.path.exists()


def test_a_process_that_has_closed_its_socket_is_not_gone_yet(daemon: Daemon, process: Process) -> None:
    """It holds the lock still: a start right now would be refused."""
    seen = departing(daemon, pid=process.pid)
    daemon.leave()
    assert not seen.is_over()
    process.end()
    assert seen.is_over()


def test_a_number_that_stands_for_another_process_here_holds_nobody_up(
    daemon: Daemon, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departure, "LEAVING_SECONDS", 0.0)
    seen = departing(daemon, pid=process.pid)
    assert not seen.is_over()
    daemon.leave()
    assert seen.is_over()
