"""claudectl tasks follow: to the task's end, whatever becomes of the daemon meanwhile."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from claudectl import follow
from tests.ctl.conftest import Daemon, Invoke, Reply
from tests.ctl.test_run import STARTED, SUCCEEDED, event, text
from tests.ctl.test_tasks import DONE, FAILED, QUEUED

PATH = "tasks/task_1/events"
GONE_NOTE = f"note: {follow.GONE}\n"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "PAUSE_SECONDS", 0.01)


def numbered(*events: dict[str, Any], first: int = 1) -> list[dict[str, Any]]:
    return [one | {"seq": seq} for seq, one in enumerate(events, first)]


class Streams:
    """Answers one question for events after another; each answer but those of whole tasks is cut at its end."""

    def __init__(self, daemon: Daemon, *answers: list[dict[str, Any]], properly: bool = False) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)
        self._properly = properly
        daemon.on("GET", PATH, self._answer)
        daemon.says("GET", "tasks/task_1", QUEUED | {"state": "running", "last_seq": 99})

    def _answer(self, reply: Reply) -> None:
        self.asked.append(reply.request_seen.query)
        reply.begin_stream()
        for line in self._answers.pop(0):
            reply.line(line)
        if self._properly or not self._answers:
            reply.end_stream()
        reply.close_connection = True


def test_follow_prints_the_answer_from_its_beginning(daemon: Daemon, invoke: Invoke) -> None:
    daemon.tells("GET", PATH, event("task.queued"), STARTED, text("Hel"), text("lo\x1b[2J"), SUCCEEDED)
    result = invoke("tasks", "follow", "task_1")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello\n", "")
    assert (daemon.last.query, daemon.last.body) == ("after=0", None)
    assert daemon.last.headers["Accept"] == "application/x-ndjson"


def test_follow_json_is_the_stream_of_the_daemon(daemon: Daemon, invoke: Invoke) -> None:
    events = numbered(text("a"), SUCCEEDED, first=8)
    daemon.tells("GET", PATH, *events)
    result = invoke("tasks", "follow", "task_1", "--after", "7", "--json")
    assert [json.loads(line) for line in result.stdout.splitlines()] == events
    assert daemon.last.query == "after=7"


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_follow_of_a_task_that_did_not_succeed_fails(daemon: Daemon, invoke: Invoke, end: str) -> None:
    daemon.tells("GET", PATH, event(f"task.{end}", error={"code": "stalled", "message": "no"}))
    result = invoke("tasks", "follow", "task_1")
    assert result.exit_code == 1
    assert (
        result.stderr
        == {
            "failed": "error: stalled: no\n",
            "cancelled": "error: cancelled: the task was cancelled\n",
        }[end]
    )


def test_a_chat_keeps_no_events(daemon: Daemon, invoke: Invoke) -> None:
    daemon.refuses("GET", PATH, 409, "conflict", "A chat keeps no events.")
    assert invoke("tasks", "follow", "task_1").exit_code == 7


def test_only_the_last_life_of_a_task_decides(daemon: Daemon, invoke: Invoke) -> None:
    failed = event("task.failed", error={"code": "stalled", "message": "no"})
    daemon.tells("GET", PATH, text("old"), failed, event("task.queued"), STARTED, text("new"), SUCCEEDED)
    result = invoke("tasks", "follow", "task_1")
    assert (result.exit_code, result.stdout) == (0, "old\nnew\n")
    assert result.stderr == "note: the answer starts over; what stands above is superseded\n"


@pytest.mark.parametrize("properly", [True, False])
def test_after_a_cut_it_goes_on_where_it_was(daemon: Daemon, invoke: Invoke, properly: bool) -> None:
    streams = Streams(
        daemon,
        numbered(text("one ")),
        [],
        numbered(text("two "), first=5),
        numbered(SUCCEEDED, first=9),
        properly=properly,
    )
    result = invoke("tasks", "follow", "task_1")
    assert (result.exit_code, result.stdout) == (0, "one two \n")
    assert streams.asked == ["after=0", "after=1", "after=1", "after=5"]


def test_a_cut_after_the_end_is_none(daemon: Daemon, invoke: Invoke) -> None:
    Streams(daemon, [text("a"), SUCCEEDED], [])
    assert invoke("tasks", "follow", "task_1").exit_code == 0
    assert len(daemon.requests) == 1


def test_a_daemon_that_restarts_is_waited_for(daemon: Daemon, invoke: Invoke) -> None:
    successors: list[Daemon] = []

    def succeed() -> None:
        successor = Daemon(daemon.path)
        Streams(successor, numbered(event("task.requeued"), text("new"), SUCCEEDED, first=20))
        successors.append(successor)
        successor.begin()  # with all its answers: who asks before would be told that there is no such task

    def cut(reply: Reply) -> None:
        reply.begin_stream()
        reply.line(text("old") | {"seq": 10})
        daemon.leave()  # and only then is the connection closed
        reply.close_connection = True
        threading.Timer(0.2, succeed).start()

    daemon.on("GET", PATH, cut)
    result = invoke("tasks", "follow", "task_1")
    assert (result.exit_code, result.stdout) == (0, "old\nnew\n")
    assert result.stderr == GONE_NOTE + "note: the answer starts over; what stands above is superseded\n"
    assert [(request.path, request.query) for request in successors[0].requests] == [
        ("tasks/task_1", ""),
        (PATH, "after=10"),
    ]
    successors[0].leave()


def test_a_daemon_that_is_not_ready_yet_is_waited_for(daemon: Daemon, invoke: Invoke) -> None:
    Streams(daemon, numbered(text("a")), numbered(SUCCEEDED, first=2))
    answers = [({"code": "not_ready"}, 503), (QUEUED, 200)]
    daemon.on("GET", "tasks/task_1", lambda reply: reply.document(*answers.pop(0)))
    result = invoke("tasks", "follow", "task_1")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "a\n", GONE_NOTE)


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_daemon_that_stays_away_is_waited_for_no_longer_than_patience(
    daemon: Daemon, invoke: Invoke, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 0.1)

    def leave(reply: Reply) -> None:
        reply.begin_stream()
        reply.line(text("a") | {"seq": 10})
        daemon.leave()
        reply.close_connection = True

    daemon.on("GET", PATH, leave)
    result = invoke("tasks", "follow", "task_1", *flags)
    assert result.exit_code == 124
    assert result.stderr == (
        f"{GONE_NOTE}error: timed out after 0.1 s\nGo on with: claudectl tasks follow task_1 --after 10\n"
    )


def test_timeout_takes_the_place_of_patience(daemon: Daemon, invoke: Invoke) -> None:
    def drip(reply: Reply) -> None:
        reply.begin_stream()
        reply.line(text("slow") | {"seq": 10})
        reply.wait_for_hangup()

    daemon.on("GET", PATH, drip)
    result = invoke("tasks", "follow", "task_1", "--timeout", "0.2")
    assert (result.exit_code, result.stdout) == (124, "slow\n")
    assert result.stderr == ("error: timed out after 0.2 s\nGo on with: claudectl tasks follow task_1 --after 10\n")


def test_without_a_daemon_there_is_nothing_to_wait_for(invoke: Invoke) -> None:
    assert invoke("tasks", "follow", "task_1", "--socket", "/nowhere.sock").exit_code == 4


def test_a_task_that_is_gone_after_a_cut_fails(daemon: Daemon, invoke: Invoke) -> None:
    Streams(daemon, numbered(text("a")), [])
    daemon.refuses("GET", "tasks/task_1", 404, "not_found", "There is no such task.")
    result = invoke("tasks", "follow", "task_1")
    assert (result.exit_code, result.stderr) == (1, "error: not_found: There is no such task.\n")


@pytest.mark.parametrize(("task", "code"), [(DONE, 0), (FAILED, 1)])
def test_a_task_that_ended_before_the_cursor_ends_as_it_did(
    daemon: Daemon, invoke: Invoke, task: dict[str, Any], code: int
) -> None:
    daemon.tells("GET", PATH)
    daemon.says("GET", "tasks/task_1", task | {"last_seq": 10})
    result = invoke("tasks", "follow", "task_1", "--after", "10")
    assert (result.exit_code, result.stdout) == (code, "")
    assert "went away" not in result.stderr


@pytest.mark.parametrize("seq", [None, "7", 1.5, {}])
def test_an_event_without_a_number_does_not_move_the_cursor(daemon: Daemon, invoke: Invoke, seq: object) -> None:
    streams = Streams(daemon, [text("a") | {"seq": 3}, text("b") | {"seq": seq}], [SUCCEEDED])
    assert invoke("tasks", "follow", "task_1").stdout == "ab\n"
    assert streams.asked == ["after=0", "after=3"]
