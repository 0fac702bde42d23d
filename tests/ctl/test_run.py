"""claudectl run."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.ctl.conftest import Daemon, Invoke, Reply


def event(type: str, **data: Any) -> dict[str, Any]:
    return {"task": "task_1", "seq": 1, "type": type, "at": "2026-01-01T00:00:00Z", "data": data}


STARTED = event("task.started", lane="text", start="warm", worker="w_1", attempt=1)
SUCCEEDED = event("task.succeeded", stop_reason="end_turn", usage={})


def text(piece: str) -> dict[str, Any]:
    return event("text.delta", text=piece)


def test_run_prints_the_answer_and_ends_its_line(daemon: Daemon, invoke: Invoke) -> None:
    daemon.tells("POST", "tasks", STARTED, event("thinking.delta", text="hm"), text("Hel"), text("lo"), SUCCEEDED)
    result = invoke("run", "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello\n", "")
    assert daemon.last.body == {"prompt": "hi"}
    assert daemon.last.headers["Accept"] == "application/x-ndjson"


@pytest.mark.parametrize(("answer", "printed"), [("a\n", "a\n"), ("a\n\n", "a\n\n"), ("", "")])
def test_a_line_that_is_ended_is_not_ended_again(daemon: Daemon, invoke: Invoke, answer: str, printed: str) -> None:
    daemon.tells("POST", "tasks", text(answer), SUCCEEDED)
    assert invoke("run", "hi").stdout == printed


def test_options_are_sent_when_they_are_given(daemon: Daemon, invoke: Invoke) -> None:
    daemon.tells("POST", "tasks", SUCCEEDED)
    options = ["--model", "opus", "--system", "Be brief.", "--append-system", "In French.", "--priority", "-3"]
    options += ["--timeout-s", "90", "--metadata", "team=a=b", "--metadata", "empty="]
    invoke("run", *options, "--", "--help")
    assert daemon.last.body == {
        "prompt": "--help",
        "model": "opus",
        "system": "Be brief.",
        "append_system": "In French.",
        "priority": -3,
        "timeout_s": 90.0,
        "metadata": {"team": "a=b", "empty": ""},
    }


def test_json_streams_the_events_as_they_are(daemon: Daemon, invoke: Invoke) -> None:
    def stream(reply: Reply) -> None:
        reply.begin_stream()
        reply.chunk(b'{"type":  "text.delta","data":{"text":"\xc3\xa9\x7f"}}\n{"type"')
        reply.chunk(b':"later.type"}\n\n{"type":"task.succeeded","data":{}}\n')
        reply.end_stream()

    daemon.on("POST", "tasks", stream)
    result = invoke("run", "--json", "hi")
    assert result.exit_code == 0
    assert result.stdout_bytes == (
        b'{"type":  "text.delta","data":{"text":"\xc3\xa9\x7f"}}\n'
        b'{"type":"later.type"}\n'
        b'{"type":"task.succeeded","data":{}}\n'
    )


def test_control_characters_are_taken_out_even_when_split(daemon: Daemon, invoke: Invoke) -> None:
    daemon.tells("POST", "tasks", text("a\x1b]0;ti"), text("tle\x07b\x9b3"), text("1mc\r\n\td\x1b["), SUCCEEDED)
    assert invoke("run", "hi").stdout == "abc\n\td[\n".replace("[", "")


def test_a_task_that_fails_ends_with_its_code(daemon: Daemon, invoke: Invoke) -> None:
    failed = event("task.failed", error={"code": "upstream_overloaded", "message": "Over\x1b[2Jloaded"})
    daemon.tells("POST", "tasks", STARTED, text("par"), failed)
    result = invoke("run", "hi")
    assert (result.exit_code, result.stdout) == (1, "par\n")
    assert result.stderr == "error: upstream_overloaded: Overloaded\n"


def test_a_task_cancelled_elsewhere_fails(daemon: Daemon, invoke: Invoke) -> None:
    daemon.tells("POST", "tasks", STARTED, event("task.cancelled"))
    result = invoke("run", "hi")
    assert (result.exit_code, result.stderr) == (1, "error: cancelled: the task was cancelled\n")


def test_json_ends_with_the_code_of_the_task_too(daemon: Daemon, invoke: Invoke) -> None:
    daemon.tells("POST", "tasks", event("task.failed", error={"code": "stalled", "message": "no"}))
    assert invoke("run", "--json", "hi").exit_code == 1


def test_a_reset_says_that_the_answer_starts_over(daemon: Daemon, invoke: Invoke) -> None:
    again = event("retry", attempt=2)
    daemon.tells("POST", "tasks", text("old\x1b["), event("text.reset"), again, text("new"), SUCCEEDED)
    result = invoke("run", "hi")
    assert result.stdout == "old\nnew\n"
    assert result.stderr == "note: the answer starts over; what stands above is superseded\n"


def test_a_reset_before_any_text_says_nothing(daemon: Daemon, invoke: Invoke) -> None:
    daemon.tells("POST", "tasks", event("text.reset"), text("new"), SUCCEEDED)
    result = invoke("run", "hi")
    assert (result.stdout, result.stderr) == ("new\n", "")


def test_an_answer_that_is_not_whole_is_noted(daemon: Daemon, invoke: Invoke) -> None:
    daemon.tells("POST", "tasks", text("par"), event("task.succeeded", stop_reason="max_tokens"))
    result = invoke("run", "hi")
    assert (result.exit_code, result.stderr) == (
        0,
        "note: the answer is not whole: it stopped with max_tokens\n",
    )


def test_a_piece_that_the_daemon_cut_is_noted(daemon: Daemon, invoke: Invoke) -> None:
    cut = event("text.delta", text="par", truncated=True, size_bytes=100_000)
    daemon.tells("POST", "tasks", cut, SUCCEEDED)
    result = invoke("run", "hi")
    assert (result.exit_code, result.stdout) == (0, "par\n")
    assert result.stderr == "note: the daemon cut a piece of this answer that was too large\n"


@pytest.mark.parametrize("complete", [True, False])
def test_a_stream_that_ends_before_the_task_fails(daemon: Daemon, invoke: Invoke, complete: bool) -> None:
    def cut(reply: Reply) -> None:
        reply.begin_stream()
        reply.line(text("par"))
        if complete:
            reply.end_stream()
        reply.close_connection = True

    daemon.on("POST", "tasks", cut)
    result = invoke("run", "hi")
    assert (result.exit_code, result.stdout) == (1, "par\n")
    assert result.stderr.startswith("error: the daemon ")


@pytest.mark.parametrize("line", [b"not json\n", b"[1]\n", b"\xff\n", b'"' + b"x" * 1024 * 1024 + b'"\n'])
def test_a_line_that_is_no_event_is_another_protocol(daemon: Daemon, invoke: Invoke, line: bytes) -> None:
    def stream(reply: Reply) -> None:
        reply.begin_stream()
        reply.chunk(line)
        reply.end_stream()

    daemon.on("POST", "tasks", stream)
    assert invoke("run", "hi").exit_code == 6


@pytest.mark.parametrize("data", [None, [], {"text": None}, {"text": 7}, {"error": "x"}, {"start": {}}])
@pytest.mark.parametrize("type", ["task.started", "text.delta", "retry", "usage", "unheard.of"])
def test_an_event_of_another_shape_is_survived(daemon: Daemon, invoke: Invoke, type: str, data: object) -> None:
    daemon.tells("POST", "tasks", event(type) | {"data": data}, SUCCEEDED)
    assert invoke("run", "hi").exit_code == 0


@pytest.mark.parametrize("args", [["run", "-"], ["run"]])
def test_the_prompt_is_read_from_stdin(daemon: Daemon, invoke: Invoke, args: list[str]) -> None:
    daemon.tells("POST", "tasks", SUCCEEDED)
    assert invoke(*args, input="héllo\nworld\n".encode()).exit_code == 0
    assert daemon.last.body == {"prompt": "héllo\nworld\n"}


def test_a_large_prompt_arrives_whole(daemon: Daemon, invoke: Invoke) -> None:
    daemon.tells("POST", "tasks", SUCCEEDED)
    prompt = "é" * 1_000_000
    assert invoke("run", input=prompt).exit_code == 0
    assert daemon.last.body == {"prompt": prompt}


def test_a_daemon_that_refuses_a_large_prompt_early_is_heard(daemon: Daemon, invoke: Invoke) -> None:
    daemon.refuses("POST", "tasks", 413, "body_too_large", "at most 16 MiB")
    assert invoke("run", input="x" * 1_000_000).stderr == "error: body_too_large: at most 16 MiB\n"


@pytest.mark.parametrize(
    ("input", "said"),
    [(b"ab\xffc", "stdin is not UTF-8: byte 0xff at offset 2"), (b"", "the prompt is empty")],
)
def test_a_prompt_that_cannot_be_sent_is_usage(daemon: Daemon, invoke: Invoke, input: bytes, said: str) -> None:
    result = invoke("run", "-", input=input)
    assert (result.exit_code, said in result.stderr) == (2, True)
    assert daemon.requests == []


def test_an_argument_that_is_no_utf8_is_usage(daemon: Daemon, invoke: Invoke) -> None:
    result = invoke("run", "a\udcff")
    assert (result.exit_code, result.stderr) == (2, "error: prompt is not UTF-8\n")


def test_a_draining_daemon_takes_no_task(daemon: Daemon, invoke: Invoke) -> None:
    daemon.refuses("POST", "tasks", 503, "draining", "the daemon is draining")
    result = invoke("run", "hi")
    assert (result.exit_code, result.stderr) == (3, "error: draining: the daemon is draining\n")


def test_timeout_bounds_a_stream_that_drips_and_hangs_up(daemon: Daemon, invoke: Invoke) -> None:
    hung_up = threading.Event()

    def drip(reply: Reply) -> None:
        reply.begin_stream()
        reply.line(text("slow"))
        if reply.wait_for_hangup():
            hung_up.set()

    daemon.on("POST", "tasks", drip)
    result = invoke("run", "hi", "--timeout", "0.2")
    assert (result.exit_code, result.stdout) == (124, "slow\n")
    assert hung_up.wait(5)


def test_events_are_json_objects_in_order(daemon: Daemon, invoke: Invoke) -> None:
    events = [STARTED, *(text(str(number)) for number in range(500)), SUCCEEDED]
    daemon.tells("POST", "tasks", *events)
    assert [json.loads(line) for line in invoke("run", "--json", "hi").stdout.splitlines()] == events


def test_detach_prints_the_id_of_the_task(daemon: Daemon, invoke: Invoke) -> None:
    document = {"id": "task_1", "state": "queued"}
    daemon.says("POST", "tasks", document, 202)
    result = invoke("run", "--detach", "hi")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "task_1\n", "")
    assert (daemon.last.query, daemon.last.body) == ("detach=true", {"prompt": "hi"})
    assert json.loads(invoke("run", "--detach", "--json", "hi").stdout) == document


def test_a_task_without_an_id_is_another_protocol(daemon: Daemon, invoke: Invoke) -> None:
    daemon.says("POST", "tasks", {"state": "queued"}, 202)
    assert invoke("run", "--detach", "hi").exit_code == 6


def test_a_cut_says_how_to_go_on(daemon: Daemon, invoke: Invoke) -> None:
    def cut(reply: Reply) -> None:
        reply.begin_stream()
        reply.line(event("task.queued") | {"seq": 1})
        reply.line(text("par") | {"seq": 16777219})
        reply.close_connection = True

    daemon.on("POST", "tasks", cut)
    result = invoke("run", "hi")
    assert (result.exit_code, result.stdout) == (1, "par\n")
    assert result.stderr.endswith("\nGo on with: claudectl tasks follow task_1 --after 16777219\n")


def test_the_answer_starts_over_when_the_task_is_queued_again(daemon: Daemon, invoke: Invoke) -> None:
    again = event("task.requeued", reason="engine_crashed")
    daemon.tells("POST", "tasks", event("task.queued"), text("old"), again, event("text.reset"), text("new"), SUCCEEDED)
    result = invoke("run", "hi")
    assert result.stdout == "old\nnew\n"
    assert result.stderr == "note: the answer starts over; what stands above is superseded\n"


def test_a_schema_is_read_from_its_file(daemon: Daemon, invoke: Invoke, short_dir: Path) -> None:
    daemon.tells("POST", "tasks", SUCCEEDED)
    file = short_dir / "schema.json"
    file.write_text('{"type": "object", "title": "é"}', encoding="utf-8")
    assert invoke("run", "--schema", str(file), "hi").exit_code == 0
    assert daemon.last.body == {"prompt": "hi", "schema": {"type": "object", "title": "é"}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory"),
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[1]", "is no schema"),
        (b'{"title": "\\ud800"}', "schema is not UTF-8"),
    ],
)
def test_a_schema_that_is_none_is_usage(
    daemon: Daemon, invoke: Invoke, short_dir: Path, content: bytes | None, said: str
) -> None:
    file = short_dir / "schema.json"
    if content is not None:
        file.write_bytes(content)
    result = invoke("run", "--schema", str(file), "hi")
    assert (result.exit_code, said in result.stderr) == (2, True)
    assert daemon.requests == []


def test_what_an_agent_may_is_sent_as_a_submission_has_it(
    daemon: Daemon, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.tells("POST", "tasks", SUCCEEDED)
    monkeypatch.chdir(tmp_path)
    options = ["--allow-tools", "Read, Bash(git *),", "--deny-tools", "Bash(git push)", "--approval", "never"]
    options += ["--cwd", ".", "--add-dir", "/srv/other", "--max-turns", "5", "--max-cost-usd", "0.5"]
    invoke("run", "hi", *options)
    assert daemon.last.body == {
        "prompt": "hi",
        "tools": {"allow": ["Read", "Bash(git *)"], "deny": ["Bash(git push)"], "approval": "never"},
        "cwd": str(tmp_path.resolve()),
        "add_dirs": ["/srv/other"],
        "max_turns": 5,
        "max_cost_usd": 0.5,
    }


def test_what_an_agent_does_is_told_beside_the_answer(daemon: Daemon, invoke: Invoke) -> None:
    call = {"id": "toolu_1", "name": "Bash"}
    daemon.tells(
        "POST",
        "tasks",
        event("tool.use", **call, input={"command": "make\x1b[2J test"}),
        event("tool.result", **call, is_error=False, content="ok"),
        event("tool.use", id="toolu_2", name="Edit", input={"file_path": "/srv/a.py", "old_string": "x"}),
        event("tool.result", id="toolu_2", name="Edit", is_error=True, content="no such file\nmore"),
        event("tool.denied", **call, message="no rule allows it"),
        event("file.changed", id="toolu_2", name="Edit", path="/srv/a.py"),
        text("Done."),
        SUCCEEDED,
    )
    result = invoke("run", "hi")
    assert (result.exit_code, result.stdout) == (0, "Done.\n")
    told = [line.removeprefix("note: ") for line in result.stderr.splitlines()]
    assert told == [
        "Bash: make test",
        "Edit: /srv/a.py",
        "Edit failed: no such file",
        "Bash denied: no rule allows it",
        "changed /srv/a.py",
    ]


def test_what_is_asked_is_told_with_how_to_answer_it_where_there_is_no_terminal(daemon: Daemon, invoke: Invoke) -> None:
    asked = event("approval.requested", approval="appr_1", tool="Edit", cwd="/srv", input={"file_path": "/srv/a.py"})
    asked["data"]["input"] |= {"old_string": "one", "new_string": "two\nthree"}
    answered = event("approval.resolved", approval="appr_1", allow=False, by="timeout", message="")
    daemon.tells("POST", "tasks", asked, answered, SUCCEEDED)
    result = invoke("run", "hi", "--approval", "ask")
    assert result.exit_code == 0
    for line in ("may it run Edit: /srv/a.py", "  in /srv", "  - one", "  + two", "  + three", "denied by timeout"):
        assert line in result.stderr
    assert "claudectl tasks approve task_1 appr_1 [--deny]" in result.stderr
    assert len(daemon.requests) == 1  # nobody was asked, and nothing answered


def test_a_question_shows_the_diff_rather_than_the_input(daemon: Daemon, invoke: Invoke) -> None:
    asked = event("approval.requested", approval="appr_1", tool="Edit", input={"file_path": "/srv/a.py"})
    asked["data"]["input"] |= {"old_string": "one", "new_string": "two"}
    asked["data"] |= {"diff": "--- a/a.py\n+++ b/a.py\n@@ -7 +7 @@\n-\x1b]0;x\x07one\n+two\n", "truncated": True}
    daemon.tells("POST", "tasks", asked, SUCCEEDED)
    lines = invoke("run", "hi", "--approval", "ask").stderr.splitlines()
    at = lines.index("  --- a/a.py")
    assert lines[at : at + 5] == ["  --- a/a.py", "  +++ b/a.py", "  @@ -7 +7 @@", "  -one", "  +two"]
    assert "not all of it" in lines[at + 5]


def test_what_a_subagent_does_stands_below_the_call_that_started_it(daemon: Daemon, invoke: Invoke) -> None:
    inner = {"id": "toolu_2", "name": "Bash", "parent": "toolu_1"}
    daemon.tells(
        "POST",
        "tasks",
        event("tool.use", id="toolu_1", name="Agent", input={"description": "look"}),
        event("tool.use", **inner, input={"command": "ls"}),
        event("tool.result", **inner, is_error=True, content="no"),
        SUCCEEDED,
    )
    told = [line.removeprefix("note: ") for line in invoke("run", "hi").stderr.splitlines()]
    assert told == ["Agent: look", "  Bash: ls", "  Bash failed: no"]


@pytest.mark.parametrize("options", [["--session", "new"], ["--session", "sess_0", "--fork"]])
def test_the_id_of_a_new_session_is_told(daemon: Daemon, invoke: Invoke, options: list[str]) -> None:
    daemon.tells("POST", "tasks", STARTED, text("Hello"), SUCCEEDED)
    daemon.says("GET", "tasks/task_1", {"id": "task_1", "session_id": "sess_1"})
    result = invoke("run", "hi", *options)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Hello\n", "note: session sess_1\n")
    daemon.says("POST", "tasks", {"id": "task_1", "session_id": "sess_1"})
    result = invoke("run", "hi", "--detach", *options)
    assert (result.stdout, result.stderr) == ("task_1\n", "note: session sess_1\n")


def test_a_session_that_is_gone_on_with_is_known(daemon: Daemon, invoke: Invoke) -> None:
    daemon.tells("POST", "tasks", STARTED, SUCCEEDED)
    assert invoke("run", "hi", "--session", "sess_1").stderr == ""
    assert len(daemon.requests) == 1


def test_a_session_whose_id_cannot_be_had_costs_no_answer(daemon: Daemon, invoke: Invoke) -> None:
    daemon.tells("POST", "tasks", STARTED, text("Hello"), SUCCEEDED)
    daemon.refuses("GET", "tasks/task_1", 503, "store_unavailable", "Nothing can be read now.")
    result = invoke("run", "hi", "--session", "new")
    assert (result.exit_code, result.stdout) == (0, "Hello\n")
