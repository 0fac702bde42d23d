"""claudectl tasks: list, show, cancel, retry, purge."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import parse_qs

import pytest

from claude_daemon.core.task import State
from claudectl import tasktext
from claudectl.clean import clean
from claudectl.follow import ENDED
from claudectl.render import coloured, colourless
from tests.ctl.conftest import Daemon, Invoke, Reply

QUEUED: dict[str, Any] = {
    "id": "task_1",
    "object": "task",
    "kind": "task",
    "state": "queued",
    "created_at": 1_800_000_000.0,
    "started_at": None,
    "finished_at": None,
    "cancel_requested_at": None,
    "model": "claude-sonnet",
    "lane": "text",
    "session_id": None,
    "attempt": 0,
    "result": None,
    "usage": None,
    "cost_usd": None,
    "error": None,
    "last_seq": 1,
    "batch_id": None,
    "priority": 0,
    "metadata": {},
}
DONE = QUEUED | {
    "state": "succeeded",
    "started_at": 1_800_000_001.0,
    "finished_at": 1_800_000_063.5,
    "attempt": 1,
    "result": {"text": "Blue\x1b]0;owned\x07.\n\nReally.\n", "structured": None, "stop_reason": "end_turn"},
    "usage": {
        "input_tokens": 12,
        "output_tokens": 30,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 5,
        "model_calls": 1,
    },
    "cost_usd": 0.00123,
    "metadata": {"team": "a\nb"},
}
FAILED = QUEUED | {"state": "failed", "attempt": 3, "error": {"code": "stalled", "message": "No word for 60 s."}}


def page(*tasks: object, following: str | None = None) -> dict[str, Any]:
    return {"object": "list", "data": list(tasks), "next": following}


# list


def test_list_is_a_line_a_task(daemon: Daemon, invoke: Invoke) -> None:
    now = time.time()
    young, old = QUEUED | {"created_at": now - 5.5}, FAILED | {"id": "task_2", "created_at": now - 7200.5}
    daemon.says("GET", "tasks", page(young, old))
    result = invoke("tasks", "list")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == (
        "ID      STATE   MODEL          AGE  ATTEMPT  ERROR\n"
        "task_1  queued  claude-sonnet  5 s        0  -\n"
        "task_2  failed  claude-sonnet  2 h        3  stalled: No word for 60 s.\n"
    )
    assert daemon.last.query == ""


def test_an_empty_list_says_so(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "tasks", page())
    assert invoke("tasks", "list").stdout == "no tasks\n"


def test_list_asks_for_what_is_wanted(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "tasks", page())
    wanted = ["--state", "failed", "--state", "cancelled", "--kind", "chat", "--limit", "7", "--cursor", "a b&c"]
    invoke("tasks", "list", *wanted)
    assert parse_qs(daemon.last.query) == {
        "state": ["failed", "cancelled"],
        "kind": ["chat"],
        "limit": ["7"],
        "cursor": ["a b&c"],
    }


def test_list_says_when_there_are_more(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "tasks", page(QUEUED, following="c_1"))
    assert invoke("tasks", "list").stderr == "note: there are more: --all, or --cursor c_1\n"
    result = invoke("tasks", "list", "--json")
    assert (json.loads(result.stdout)["next"], result.stderr) == ("c_1", "")


def three_pages(reply: Reply) -> None:
    cursor = parse_qs(reply.request_seen.query).get("cursor", ["0"])[0]
    number = int(cursor)
    reply.document(page(QUEUED | {"id": f"task_{number}"}, following=str(number + 1) if number < 2 else None))


def test_all_follows_the_pages_with_the_same_question(daemon: Daemon, invoke: Invoke) -> None:
    daemon.on("GET", "tasks", three_pages)
    result = invoke("tasks", "list", "--all", "--state", "queued")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ID", "task_0", "task_1", "task_2"]
    assert result.stderr == ""
    assert [request.query for request in daemon.requests] == [
        "state=queued&limit=100",
        "state=queued&limit=100&cursor=1",
        "state=queued&limit=100&cursor=2",
    ]


def test_json_of_all_pages_is_one_document(daemon: Daemon, invoke: Invoke) -> None:
    daemon.on("GET", "tasks", three_pages)
    document = json.loads(invoke("tasks", "list", "--all", "--json").stdout)
    assert document == page(*(QUEUED | {"id": f"task_{number}"} for number in range(3)))


@pytest.mark.parametrize("following", ["c_1", 7, {}])
def test_a_list_without_an_end_is_another_protocol(daemon: Daemon, invoke: Invoke, following: object) -> None:
    daemon.says("GET", "tasks", page(QUEUED) | {"next": following})
    assert invoke("tasks", "list", "--all").exit_code == 6
    assert len(daemon.requests) <= 2


@pytest.mark.parametrize("data", [None, {}, "x", [None, 7, [QUEUED]]])
def test_a_list_of_another_shape_is_survived(daemon: Daemon, invoke: Invoke, data: object) -> None:
    daemon.says("GET", "tasks", page() | {"data": data})
    assert invoke("tasks", "list").stdout == "no tasks\n"


def test_a_long_error_is_cut_in_the_list() -> None:
    told = tasktext.row(FAILED | {"error": {"code": "internal", "message": "x" * 200}}, 0)[-1]
    assert (len(told), told[-1]) == (tasktext.MAX_ERROR_CHARACTERS, "…")


# show


def test_show_tells_the_facts_and_then_the_answer(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "tasks/task_1", DONE)
    result = invoke("tasks", "show", "task_1")
    lines = result.stdout.splitlines()
    assert lines[0] == "task_1 · succeeded · took 1 min 2 s"
    facts = {line[2:12].strip(): line[14:] for line in lines[1 : lines.index("")]}
    assert {name: facts[name] for name in ("model", "attempt", "tokens", "cost", "metadata")} == {
        "model": "claude-sonnet",
        "attempt": "1",
        "tokens": "12 in · 30 out · 5 from cache",
        "cost": "$0.001230",
        "metadata": "team=a b",
    }
    assert not {"error", "cancel", "batch"} & set(facts)
    assert lines[lines.index("") + 1 :] == ["Blue.", "", "Really."]


def test_show_tells_why_a_task_failed() -> None:
    asked = FAILED | {"cancel_requested_at": 1_800_000_002.0}
    shown = tasktext.task(asked, colourless)
    assert "  error     stalled: No word for 60 s." in shown
    assert "  cancel    asked for 2027-01-1" in shown
    assert "\n\n" not in shown


def test_show_json_is_the_document_of_the_daemon(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("GET", "tasks/task_1", DONE)
    result = invoke("tasks", "show", "task_1", "--json")
    assert json.loads(result.stdout) == DONE
    assert result.stdout.isascii()


@pytest.mark.parametrize("junk", [None, 7, -1e300, float("inf"), True, "text", [], {}, [1], {"x": {"y": None}}])
def test_nothing_unexpected_breaks_a_rendering(junk: object) -> None:
    for key in DONE:
        strange = DONE | {key: junk}
        tasktext.task(strange, coloured)
        tasktext.tasks([tasktext.row(strange, 0.0)], coloured)
    for key in ("result", "usage", "error", "metadata"):
        tasktext.task(DONE | {key: {"text": junk, "input_tokens": junk, "code": junk, "message": junk}}, coloured)


def test_nothing_in_a_task_can_steer_the_terminal() -> None:
    evil = "\x1b[2Jall\nis well"
    document: dict[str, Any] = dict.fromkeys(("id", "state", "model", "kind", "lane", "attempt"), evil)
    document |= {"metadata": {evil: evil}, "error": {"code": evil, "message": evil}, "result": {"text": evil}}
    shown = tasktext.task(document, colourless) + tasktext.tasks([tasktext.row(document, 0)], colourless)
    assert shown == clean(shown)
    assert shown.count("\nis well") == 1


# cancel, retry


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("cancelled", "task_1 cancelled\n"),
        ("running", "task_1 running, about to be cancelled\n"),
        ("succeeded", "task_1 succeeded already\n"),
    ],
)
def test_cancel_says_what_became_of_the_task(daemon: Daemon, invoke: Invoke, state: str, said: str) -> None:
    daemon.says("POST", "tasks/task_1/cancel", QUEUED | {"state": state})
    result = invoke("tasks", "cancel", "task_1")
    assert (result.exit_code, result.stdout) == (0, said)
    assert daemon.last.body == {}


def test_cancel_goes_on_after_an_unknown_task_and_fails(daemon: Daemon, invoke: Invoke) -> None:
    daemon.refuses("POST", "tasks/task_0/cancel", 404, "not_found", "There is no such task.")
    daemon.says("POST", "tasks/task_1/cancel", QUEUED | {"state": "cancelled"})
    result = invoke("tasks", "cancel", "task_0", "task_1")
    assert (result.exit_code, result.stdout) == (1, "task_1 cancelled\n")
    assert result.stderr == "error: task_0: not_found: There is no such task.\n"


def test_cancel_stops_at_a_refusal_that_concerns_all(daemon: Daemon, invoke: Invoke) -> None:
    daemon.refuses("POST", "tasks/task_1/cancel", 503, "store_unavailable", "Nothing can be stored now.")
    assert invoke("tasks", "cancel", "task_1", "task_2").exit_code == 1
    assert len(daemon.requests) == 1


@pytest.mark.parametrize("count", [1, 2])
def test_json_of_cancel_is_one_list_however_many(daemon: Daemon, invoke: Invoke, count: int) -> None:
    for number in range(count):
        daemon.says("POST", f"tasks/task_{number}/cancel", QUEUED | {"id": f"task_{number}"})
    result = invoke("tasks", "cancel", *(f"task_{number}" for number in range(count)), "--json")
    assert json.loads(result.stdout) == page(*(QUEUED | {"id": f"task_{number}"} for number in range(count)))


def test_retry_says_that_the_task_is_queued(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("POST", "tasks/task_1/retry", QUEUED, 202)
    assert invoke("tasks", "retry", "task_1").stdout == "task_1 queued\n"
    assert json.loads(invoke("tasks", "retry", "task_1", "--json").stdout) == QUEUED


def test_retry_of_a_task_that_runs_is_a_conflict(daemon: Daemon, invoke: Invoke) -> None:
    daemon.refuses("POST", "tasks/task_1/retry", 409, "conflict", "a task that is running cannot be tried again")
    assert invoke("tasks", "retry", "task_1").exit_code == 7


@pytest.mark.parametrize("command", ["show", "follow", "retry"])
def test_an_unknown_task_fails_with_the_daemons_sentence(daemon: Daemon, invoke: Invoke, command: str) -> None:
    for method, path in (("GET", "tasks/x"), ("GET", "tasks/x/events"), ("POST", "tasks/x/retry")):
        daemon.refuses(method, path, 404, "not_found", "There is no such task.")
    result = invoke("tasks", command, "x")
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "error: not_found: There is no such task.\n")


@pytest.mark.parametrize("task_id", ["../status", "a b?c#d", "a\r\nb", "\udcff"])
def test_an_id_is_a_name_and_never_a_path(daemon: Daemon, invoke: Invoke, task_id: str) -> None:
    assert invoke("tasks", "show", task_id).exit_code == 1
    path, query = daemon.last.path, daemon.last.query
    assert path.startswith("tasks/")
    assert path.count("/") == 1
    assert query == ""


# purge


@pytest.mark.parametrize("flags", [[], ["--yes"]])
def test_purge_sends_the_moment_without_asking_where_nobody_is(
    daemon: Daemon, invoke: Invoke, flags: list[str]
) -> None:
    daemon.says("POST", "tasks/purge", {"purged": 12})
    result = invoke("tasks", "purge", "--before", "30d", *flags)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "12 tasks deleted\n", "")
    assert daemon.last.body == {"before": pytest.approx(time.time() - 30 * 86_400, abs=60)}


def test_purge_takes_a_date(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("POST", "tasks/purge", {"purged": 0})
    assert json.loads(invoke("tasks", "purge", "--before", "1970-01-02T00:00Z", "--json").stdout) == {"purged": 0}
    assert daemon.last.body == {"before": 86_400.0}


def test_states_that_have_ended_are_those_of_the_core() -> None:
    assert {state for state in State if state.terminal} == ENDED


@pytest.mark.parametrize(
    ("options", "body", "said"),
    [
        ([], {"allow": True, "message": ""}, "appr_1 allowed\n"),
        (["--deny", "--message", "no"], {"allow": False, "message": "no"}, "appr_1 denied\n"),
    ],
)
def test_a_call_that_waits_is_answered(
    daemon: Daemon, invoke: Invoke, options: list[str], body: dict[str, Any], said: str
) -> None:
    daemon.says("POST", "tasks/task_1/approvals/appr_1", {"object": "approval", "allow": body["allow"]})
    result = invoke("tasks", "approve", "task_1", "appr_1", *options)
    assert (result.exit_code, result.stdout) == (0, said)
    assert daemon.last.body == body


def test_a_call_that_was_answered_otherwise_is_a_conflict(daemon: Daemon, invoke: Invoke) -> None:
    daemon.refuses("POST", "tasks/task_1/approvals/appr_1", 409, "conflict", "The call was denied already.")
    assert invoke("tasks", "approve", "task_1", "appr_1").exit_code == 7


def test_the_calls_that_wait_are_listed(daemon: Daemon, invoke: Invoke) -> None:
    call = {"task": "task_1", "approval": "appr_1", "tool": "Bash", "input": {"command": "make"}}
    daemon.says("GET", "approvals", page(call))
    assert invoke("tasks", "approvals").stdout == "task_1 appr_1  Bash: make\n"
    daemon.says("GET", "approvals", page())
    assert invoke("tasks", "approvals").stdout == "nothing waits\n"


def waiting(**fields: Any) -> dict[str, Any]:
    return {"task": "task_1", "approval": "appr_1", **fields}


def test_what_a_call_that_waits_would_do_is_shown(daemon: Daemon, invoke: Invoke) -> None:
    diff = "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-\told\x1b[2J\n+\tnew\n"
    daemon.says(
        "GET",
        "approvals",
        page(
            waiting(tool="Write", input={"file_path": "/srv/x", "content": "\tnew\n"}, diff=diff),
            waiting(tool="Bash", input={"command": "cd /srv\nmake\n"}),
            waiting(tool="mcp__db__run", input={"query": "drop table x", "path": "main"}),
        ),
    )
    assert invoke("tasks", "approvals").stdout.splitlines() == [
        "task_1 appr_1  Write: /srv/x",
        *(f"    {line}" for line in ("--- a/x", "+++ b/x", "@@ -1 +1 @@", "-\told", "+\tnew")),
        "task_1 appr_1  Bash: cd /srv make",
        *(f"    {line}" for line in ("cd /srv", "make")),
        "task_1 appr_1  mcp__db__run: main",
        *(f"    {line}" for line in ("{", '  "query": "drop table x",', '  "path": "main"', "}")),
    ]


def test_what_is_left_out_of_a_call_is_said() -> None:
    long = "true; " + " " * tasktext.MAX_LINE + "rm -rf ~"
    (line,) = tasktext.proposal({"command": long}, None)
    assert line.endswith("… (14 more characters)")
    told = list(tasktext.proposal({"command": "x\n" * (tasktext.MAX_ASKED_LINES + 3)}, None))
    assert (len(told), told[-1]) == (tasktext.MAX_ASKED_LINES + 1, "… (3 more lines)")


@pytest.mark.parametrize("junk", [None, 7, True, "text", [], {}, {"command": 7}, {"content": None, "x": [1]}])
def test_no_call_breaks_what_is_told_of_it(junk: object) -> None:
    assert all(isinstance(line, str) for line in tasktext.proposal(junk, junk))


def test_an_approval_whose_attempt_is_over_fails(daemon: Daemon, invoke: Invoke) -> None:
    daemon.refuses("POST", "tasks/task_1/approvals/appr_1", 404, "not_found", "There is no such approval.")
    assert invoke("tasks", "approve", "task_1", "appr_1").exit_code == 1


def test_show_ends_with_what_was_changed() -> None:
    diff = "--- a/x\n+++ b/x\n" + "+\x9b2Jnew\n" * tasktext.MAX_DIFF_LINES
    result = {"text": "Done.\n", "files": ["/srv/x", *map(str, range(tasktext.MAX_FILES))], "diff": diff}
    shown = tasktext.task(DONE | {"result": result}, colourless).split("\n")
    assert next(line for line in shown if line.startswith("  files")).endswith(", 18 and 1 more")
    at = shown.index("Done.")
    assert shown[at : at + 5] == ["Done.", "", "--- a/x", "+++ b/x", "+new"]
    assert shown[-1] == "… (2 more lines)"
