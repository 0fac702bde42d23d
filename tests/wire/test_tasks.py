"""Tasks and batches: what a submission may hold, what it asks of the model, and what is told of it."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.core.agent import AgentSpec, Approval, Subagent
from claude_daemon.core.errors import Code, Failure, Fault, Refusal
from claude_daemon.core.task import Kind, Lane, Outcome, State, Task, TaskSpec, Usage
from claude_daemon.wire.anthropic import MessagesRequest
from claude_daemon.wire.parse import MAX_FAULTS, validate
from claude_daemon.wire.tasks import (
    MAX_BATCH,
    MAX_METADATA,
    MAX_METADATA_KEY,
    MAX_METADATA_VALUE,
    MAX_PRIORITY,
    MAX_TIMEOUT_S,
    TaskRequest,
    canonical,
    error_document,
    list_document,
    parse_batch,
    parse_task,
    task_document,
    task_of,
    usage_document,
)
from tests.wire.streams import TEXTS

USER = {"role": "user", "content": "hi"}
CRITIC = {"description": "d", "prompt": "p"}


def task(**fields: Any) -> TaskRequest:
    return parse_task(orjson.dumps({"prompt": "hi"} | fields))


def refused(**fields: Any) -> Failure:
    with pytest.raises(Refusal) as refusal:
        task(**fields)
    return refusal.value.failure


# What is asked


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": None, "messages": [USER]},
        {"messages": None},
        {"model": "m" * 256},
        {"model": None, "system": None, "append_system": None, "max_turns": None, "timeout_s": None},
        {"schema": None, "webhook": None},
        {"system": "s", "append_system": "t"},
        {"system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}]},
        {"max_turns": 1},
        {"timeout_s": 0.001},
        {"timeout_s": 1},
        {"timeout_s": MAX_TIMEOUT_S},
        {"schema": {"type": "object"}},
        {"priority": MAX_PRIORITY},
        {"priority": -MAX_PRIORITY},
        {"webhook": "h" * 2048},
        {"metadata": {}},
        {"metadata": {str(n): "" for n in range(MAX_METADATA)}},
        {"metadata": {"é" * MAX_METADATA_KEY: "😀" * MAX_METADATA_VALUE}},
    ],
)
def test_a_submission_within_its_bounds_is_taken(fields: dict[str, Any]) -> None:
    task(**fields)


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": None, "messages": []}, "messages"),
        ({"prompt": None, "messages": "hi"}, "messages"),
        ({"prompt": None, "messages": [USER, {"role": "robot", "content": "x"}]}, "messages.1.role"),
        ({"prompt": None, "messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages.0.content.0.type"),
        ({"model": ""}, "model"),
        ({"model": "m" * 257}, "model"),
        ({"system": 1}, "system"),
        ({"system": [{"type": "image", "text": "x"}]}, "system.0.type"),
        ({"append_system": []}, "append_system"),
        ({"max_turns": 0}, "max_turns"),
        ({"max_turns": 1.5}, "max_turns"),
        ({"max_turns": True}, "max_turns"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": -1}, "timeout_s"),
        ({"timeout_s": MAX_TIMEOUT_S + 1}, "timeout_s"),
        ({"timeout_s": "5"}, "timeout_s"),
        ({"schema": True}, "schema"),
        ({"priority": MAX_PRIORITY + 1}, "priority"),
        ({"priority": -MAX_PRIORITY - 1}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"webhook": ""}, "webhook"),
        ({"webhook": "h" * 2049}, "webhook"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"n": 1}}, "metadata.n"),
        ({"metadata": {str(n): "" for n in range(MAX_METADATA + 1)}}, "metadata"),
        ({"metadata": {"k" * (MAX_METADATA_KEY + 1): ""}}, "metadata"),
        ({"metadata": {"k": "v" * (MAX_METADATA_VALUE + 1)}}, "metadata"),
    ],
)
def test_a_submission_beyond_its_bounds_is_invalid_and_the_place_is_named(fields: dict[str, Any], path: str) -> None:
    failure = refused(**fields)
    assert (failure.code, failure.param) == (Code.INVALID_REQUEST, path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": " \n"}, "prompt: The prompt is blank."),
        ({"prompt": 7}, "prompt: This must be a string."),
        ({"prompt": None, "messages": []}, "messages: At least 1 item, and not 0."),
        ({"metadata": "x"}, "metadata: This must be an object."),
        ({"prompt": None, "messages": "x"}, "messages: This must be an array."),
    ],
)
def test_what_is_wrong_is_said_in_words_of_ours(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(Refusal) as refused:
        parse_task(orjson.dumps({"prompt": "x"} | fields))
    assert message in refused.value.failure.message


def test_a_timeout_of_no_end_is_refused() -> None:
    with pytest.raises(Refusal):
        parse_task(b'{"prompt": "hi", "timeout_s": 1e999}')


@pytest.mark.parametrize("fields", [{"messages": [USER]}, {"prompt": None}, {"prompt": None, "messages": None}])
def test_a_conversation_is_either_a_prompt_or_messages(fields: dict[str, Any]) -> None:
    failure = refused(**fields)
    assert failure.code is Code.INVALID_REQUEST
    assert "Exactly one of `prompt` and `messages`" in failure.message


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": {}},
        {"mcp_servers": []},
        {"agents": {}},
        {"add_dirs": []},
        {"project_settings": "none"},
        dict.fromkeys(
            ("tools", "mcp_servers", "agents", "cwd", "add_dirs", "project_settings", "session", "max_cost_usd")
        ),
    ],
)
def test_to_ask_for_nothing_of_it_is_no_fault(fields: dict[str, Any]) -> None:
    assert task(**fields).inner() == task().inner()


@pytest.mark.parametrize(
    ("field", "near"),
    [
        ("promt", "prompt"),
        ("meta_data", "metadata"),
        ("timeout", "timeout_s"),
        ("output_schema", "schema"),
    ],
)
def test_an_unknown_field_is_refused_by_name(field: str, near: str) -> None:
    failure = refused(**{field: {}})
    assert (failure.code, failure.param) == (Code.UNSUPPORTED_PARAMETER, field)
    assert field == "output_schema" or f"Did you mean `{near}`?" in failure.message


@pytest.mark.parametrize(
    ("field", "value", "path", "why"),
    [
        ("tools", [], "tools", "must be an object"),
        ("tools", {"allow": ["Curl"]}, "tools.allow.0", "There is no tool Curl"),
        ("tools", {"allow": ["Read", "Bash(a,b)"]}, "tools.allow.1", "without commas"),
        ("tools", {"deny": ["Bash(git *) "]}, "tools.deny.0", "A rule is a tool's name"),
        ("tools", {"allow": ["Read"] * 65}, "tools.allow", "64"),
        ("tools", {"approval": "sometimes"}, "tools.approval", "'never'"),
        ("tools", {"grant": []}, "tools.grant", "not known here"),
        ("cwd", "", "cwd", "1 character"),
        ("cwd", "srv/project", "cwd", "absolute path"),
        ("cwd", "/srv/../etc", "cwd", "absolute path"),
        ("cwd", "/srv\0", "cwd", "absolute path"),
        ("add_dirs", ["/srv", "x"], "add_dirs.1", "absolute path"),
        ("add_dirs", ["/srv"] * 17, "add_dirs", "16"),
        ("max_cost_usd", 0, "max_cost_usd", "greater than 0"),
        ("mcp_servers", ["Tickets!"], "mcp_servers.0", "configured server"),
        ("mcp_servers", ["a"] * 17, "mcp_servers", "16"),
        ("agents", [], "agents", "must be an object"),
        ("agents", {"a": {"description": "d"}}, "agents.a.prompt", "required"),
        ("agents", {"a": CRITIC | {"tools": ["Agent"]}}, "agents.a.tools.0", "the tools Read, "),
        ("agents", {"a": CRITIC | {"hooks": {}}}, "agents.a.hooks", "not known here"),
        ("agents", {"a": CRITIC | {"mcpServers": {}}}, "agents.a.mcpServers", "not known here"),
        ("agents", {"a": CRITIC | {"max_turns": 0}}, "agents.a.max_turns", "greater than or equal to 1"),
        ("agents", {f"a{n}": CRITIC for n in range(17)}, "agents", "16"),
        ("project_settings", "some", "project_settings", "'none'"),
        ("max_turns", 1001, "max_turns", "1000"),
    ],
)
def test_what_an_agent_cannot_be_told_is_refused_with_its_place(field: str, value: object, path: str, why: str) -> None:
    failure = refused(**{field: value})
    assert [fault.path for fault in failure.faults] == [path]
    assert why in failure.message


@pytest.mark.parametrize("name", ["", "a b", "1st", "fork", "a" * 65, "ä", "a\n"])
def test_a_subagent_has_a_name_that_claude_code_takes(name: str) -> None:
    assert refused(agents={name: CRITIC}).code is Code.INVALID_REQUEST


def test_servers_subagents_and_project_settings_are_an_agents() -> None:
    asked = task(
        tools={"allow": ["Read", "mcp__tickets__find"]},
        mcp_servers=["tickets", "tickets"],
        agents={"critic": {**CRITIC, "tools": ["Read"], "model": "haiku", "max_turns": 2}, "other": CRITIC},
        project_settings="all",
        append_system="Be brief.",
    )
    agent = asked.agent()
    assert agent is not None
    assert (agent.mcp_servers, agent.project_settings) == (("tickets",), True)
    critic = Subagent(name="critic", description="d", prompt="p", tools=("Read",), model="haiku", max_turns=2)
    assert agent.agents == (critic, Subagent(name="other", description="d", prompt="p"))
    assert (agent.append_system, asked.inner().get("system")) == ("Be brief.", None)


@pytest.mark.parametrize("fields", [{"mcp_servers": ["x"]}, {"agents": {"a": CRITIC}}, {"project_settings": "all"}])
def test_each_of_them_alone_makes_an_agent(fields: dict[str, Any]) -> None:
    assert task(**fields).agent() is not None


def test_with_a_system_prompt_of_its_own_what_is_appended_follows_that() -> None:
    asked = task(tools={"allow": ["Read"]}, system="a", append_system="b")
    agent = asked.agent()
    assert agent is not None
    assert (agent.append_system, asked.inner()["system"]) == (None, "a\n\nb")


def test_an_agent_is_told_what_it_may() -> None:
    asked = task(
        tools={"allow": ["Read", "Bash(git *)"], "deny": ["Bash(git push)"], "approval": "auto"},
        cwd="/srv/project",
        add_dirs=["/srv/other"],
        max_turns=3,
        max_cost_usd=0.25,
    ).agent()
    assert asked == AgentSpec(
        allow=("Read", "Bash(git *)"),
        deny=("Bash(git push)",),
        approval=Approval.AUTO,
        cwd="/srv/project",
        add_dirs=("/srv/other",),
        max_turns=3,
        max_cost_micro_usd=250_000,
    )


@pytest.mark.parametrize("fields", [{}, {"tools": {}}, {"tools": {"deny": ["Bash"]}}, {"max_turns": 3}])
def test_a_task_without_tools_is_no_agents(fields: dict[str, Any]) -> None:
    assert task(**fields).agent() is None


def test_all_faults_are_told_at_once() -> None:
    failure = refused(prompt="", priority=99, cwd="srv", extra=1)
    assert failure.code is Code.INVALID_REQUEST
    assert {fault.path for fault in failure.faults} == {"prompt", "priority", "cwd", "extra"}


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {f"k{n}": 0 for n in range(300_000)}},
        {f"k{n}": 0 for n in range(300_000)},
        {"prompt": None, "messages": [0] * 100_000, "system": [0] * 300_000},
        {"prompt": None, "messages": [{"role": "user", "content": [{}] * 300_000}]},
    ],
)
def test_a_submission_made_of_faults_costs_no_more_than_one_made_of_text(fields: dict[str, Any]) -> None:
    """All collected, such a body takes seconds."""
    raw = orjson.dumps({"prompt": "hi"} | fields)
    before = time.process_time()
    with pytest.raises(Refusal) as refusal:
        parse_task(raw)
    assert time.process_time() - before < 0.5
    assert len(refusal.value.failure.faults) <= MAX_FAULTS


# The request it becomes


def test_a_prompt_is_one_message_and_the_model_is_left_as_it_was_asked() -> None:
    assert task().inner() == {"model": None, "messages": [USER]}
    assert task(model="sonnet").inner()["model"] == "sonnet"


def test_messages_pass_as_they_were_written_fields_that_we_do_not_know_included() -> None:
    messages = [
        {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "u"}, "x": None}]},
        {"role": "assistant", "content": "yes", "y": 1},
        {"role": "user", "content": [{"type": "text", "text": "go on"}]},
    ]
    assert task(prompt=None, messages=messages).inner()["messages"] == messages


BLOCK = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize(
    ("system", "append", "expected"),
    [
        (None, None, None),
        ("", None, None),
        ([], None, None),
        (None, "", None),
        ("a", None, "a"),
        ("a", "", "a"),
        (None, "b", "b"),
        ("", "b", "b"),
        ("a", "b", "a\n\nb"),
        ([BLOCK], None, [BLOCK]),
        ([BLOCK], "b", [BLOCK, {"type": "text", "text": "b"}]),
        ([], "b", "b"),
    ],
)
def test_what_is_appended_follows_the_system_prompt_in_its_form(system: object, append: object, expected: Any) -> None:
    assert task(system=system, append_system=append).inner().get("system") == expected


def test_what_an_agent_is_told_besides_does_not_take_the_place_of_claude_codes_own_prompt() -> None:
    tools = {"allow": ["Read"]}
    asked = task(append_system="b", tools=tools)
    told, told_both = asked.agent(), task(system="a", append_system="b", tools=tools).agent()
    assert told is not None and told_both is not None
    assert ("system" in asked.inner(), told.append_system) == (False, "b")
    both = task(system="a", append_system="b", tools=tools)
    assert (both.inner()["system"], told_both.append_system) == ("a\n\nb", None)


def test_a_schema_is_asked_of_the_model() -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    asked = task(schema=schema)
    assert asked.output_schema == schema
    assert asked.inner()["output_config"] == {"format": {"type": "json_schema", "schema": schema}}


@pytest.mark.parametrize("fields", [{}, {"system": "a", "append_system": "b"}, {"schema": {}}, {"timeout_s": 3.0}])
def test_the_inner_request_is_one_of_the_messages_api(fields: dict[str, Any]) -> None:
    validate(MessagesRequest, task(model="m", **fields).inner() | {"max_tokens": 1})


# Batches


@pytest.mark.parametrize("count", [1, MAX_BATCH])
def test_a_batch_gives_its_submissions_unseen(count: int) -> None:
    assert parse_batch(orjson.dumps({"tasks": [{"cwd": 1}] * count})) == [{"cwd": 1}] * count


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({}, "tasks"),
        ({"tasks": []}, "tasks"),
        ({"tasks": [{}] * (MAX_BATCH + 1)}, "tasks"),
        ({"tasks": {}}, "tasks"),
        ({"tasks": [{}, "x"]}, "tasks.1"),
        ({"tasks": [{}], "priority": 1}, "priority"),
    ],
)
def test_a_batch_that_is_none_is_refused_whole(body: dict[str, Any], path: str) -> None:
    with pytest.raises(Refusal) as refusal:
        parse_batch(orjson.dumps(body))
    assert refusal.value.failure.param == path


def test_one_submission_of_a_batch_is_held_to_the_same_rules() -> None:
    assert task_of({"prompt": "hi"}) == task()
    with pytest.raises(Refusal, match="absolute path"):
        task_of({"prompt": "hi", "cwd": "srv"})


# What an idempotency key is compared by


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), TEXTS
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)
DOCUMENTS = st.dictionaries(TEXTS, VALUES, max_size=5)


def shuffled(value: Any, order: random.Random) -> Any:
    if isinstance(value, dict):
        items = [(name, shuffled(inner, order)) for name, inner in value.items()]
        order.shuffle(items)
        return dict(items)
    return [shuffled(inner, order) for inner in value] if isinstance(value, list) else value


@given(DOCUMENTS, st.randoms())
def test_the_same_submission_is_the_same_bytes_in_whatever_order_and_spacing(
    document: dict[str, Any], order: random.Random
) -> None:
    again = orjson.loads(orjson.dumps(shuffled(document, order), option=orjson.OPT_INDENT_2))
    assert canonical(again) == canonical(document)
    assert orjson.loads(canonical(document)) == document


@given(DOCUMENTS, DOCUMENTS)
def test_another_submission_is_other_bytes(one: dict[str, Any], other: dict[str, Any]) -> None:
    if canonical(one) == canonical(other):
        assert one == other


def test_the_order_of_a_list_is_part_of_a_submission() -> None:
    assert canonical({"a": [1, 2]}) != canonical({"a": [2, 1]})


# What is told of a task


SPEC = TaskSpec(
    kind=Kind.TASK,
    lane=Lane.TEXT,
    request={"model": "claude-x", "messages": [USER]},
    key_id="key_1",
    trust_domain="key_1",
    request_id="req_1",
    priority=3,
    webhook="https://example.com/secret-path",
    metadata={"for": "a test"},
)
QUEUED = Task(id="task_1", spec=SPEC, created_at=100.0, last_seq=1)
RUNNING = replace(QUEUED, state=State.RUNNING, attempt=1, fence=1, started_at=101.0, cancel_requested_at=101.5)
USAGE = Usage(input_tokens=1, output_tokens=2, cache_creation_input_tokens=3, cache_read_input_tokens=4, model_calls=5)
FAILURE = Failure(code=Code.STALLED, message="nothing came")


def ended(state: State, **fields: Any) -> Task:
    return replace(RUNNING, state=state, finished_at=102.0, outcome=Outcome(state=state, **fields))


SUCCEEDED = ended(
    State.SUCCEEDED, usage=USAGE, text='{"n":1}', structured={"n": 1}, stop_reason="end_turn", cost_micro_usd=1_500_001
)
FAILED = ended(State.FAILED, usage=USAGE, failure=FAILURE, cost_micro_usd=0)
CANCELLED = ended(State.CANCELLED, failure=Failure(code=Code.CANCELLED, message="cancelled"))
TASKS: Mapping[State, Task] = {t.state: t for t in (QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED)}


def test_a_queued_task_is_told_whole_and_neither_its_words_nor_its_webhook() -> None:
    told = task_document(QUEUED)
    assert told == {
        "id": "task_1",
        "object": "task",
        "kind": "task",
        "state": "queued",
        "created_at": 100.0,
        "started_at": None,
        "finished_at": None,
        "cancel_requested_at": None,
        "model": "claude-x",
        "lane": "text",
        "session_id": None,
        "attempt": 0,
        "result": None,
        "usage": None,
        "cost_usd": None,
        "error": None,
        "last_seq": 1,
        "batch_id": None,
        "priority": 3,
        "metadata": {"for": "a test"},
    }
    assert b"secret-path" not in orjson.dumps(told)


@pytest.mark.parametrize("state", list(State))
def test_a_task_has_the_same_fields_in_every_state(state: State) -> None:
    told = task_document(TASKS[state])
    assert list(told) == list(task_document(QUEUED))
    assert (told["state"], told["started_at"]) == (state.value, None if state is State.QUEUED else 101.0)
    assert (told["finished_at"], told["usage"] is None) == ((102.0, False) if state.terminal else (None, True))
    assert orjson.loads(orjson.dumps(told)) == told


def test_a_task_that_succeeded_has_its_result_and_no_error() -> None:
    told = task_document(SUCCEEDED)
    assert told["result"] == {
        "text": '{"n":1}',
        "structured": {"n": 1},
        "stop_reason": "end_turn",
        "diff": None,
        "files": [],
    }
    assert (told["cost_usd"], told["error"]) == (1.500001, None)
    assert told["usage"] == {
        "input_tokens": 1,
        "output_tokens": 2,
        "cache_creation_input_tokens": 3,
        "cache_read_input_tokens": 4,
        "model_calls": 5,
    }
    assert told["usage"] == usage_document(USAGE)


def test_a_task_that_failed_has_its_error_what_it_used_and_no_result() -> None:
    told = task_document(FAILED)
    assert (told["result"], told["cost_usd"]) == (None, 0.0)
    assert told["error"] == {"code": "stalled", "message": "nothing came"}
    assert task_document(CANCELLED)["error"]["code"] == "cancelled"
    assert task_document(CANCELLED)["cost_usd"] is None


def test_what_a_failed_attempt_had_said_is_kept() -> None:
    told = task_document(ended(State.FAILED, failure=FAILURE, text="half"))
    assert told["result"] == {"text": "half", "structured": None, "stop_reason": None, "diff": None, "files": []}


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING])
def test_a_task_that_is_tried_again_does_not_tell_how_it_ended_before(state: State) -> None:
    again = replace(FAILED, state=state, finished_at=None)
    told = task_document(again)
    assert (told["error"], told["usage"], told["result"]) == (None, None, None)


@pytest.mark.parametrize("state", [state for state in State if state.terminal])
def test_an_end_of_which_no_more_is_known_can_be_told(state: State) -> None:
    told = task_document(replace(TASKS[state], outcome=None))
    assert (told["state"], told["result"], told["usage"], told["error"]) == (state.value, None, None, None)


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (None, None),
        (FAILURE, {"code": "stalled", "message": "nothing came"}),
        (
            replace(FAILURE, faults=(Fault(path="a.0", message="no."), Fault(path="", message="nor this."))),
            {
                "code": "stalled",
                "message": "nothing came",
                "errors": [{"path": "a.0", "message": "no."}, {"path": "", "message": "nor this."}],
            },
        ),
        (
            replace(FAILURE, param="cwd"),
            {"code": "stalled", "message": "nothing came", "errors": [{"path": "cwd", "message": "nothing came"}]},
        ),
        (
            replace(FAILURE, retry_after_seconds=2.5),
            {"code": "stalled", "message": "nothing came", "retry_after_s": 2.5},
        ),
    ],
)
def test_an_error_tells_its_faults_and_when_to_come_back(failure: Failure | None, told: dict[str, Any] | None) -> None:
    assert error_document(failure) == told


def test_a_list_tells_where_it_goes_on() -> None:
    assert list_document([{"id": "a"}], "c") == {"object": "list", "data": [{"id": "a"}], "next": "c"}


@pytest.mark.parametrize("session", [{}, {"id": "sess_1"}, {"id": "sess_1", "fork": True}])
def test_a_turn_of_a_session_is_an_agents(session: dict[str, Any]) -> None:
    asked = parse_task(orjson.dumps({"prompt": "hi", "session": session}))
    assert asked.session is not None
    assert (asked.session.id, asked.session.fork) == (session.get("id"), session.get("fork", False))
    assert asked.agent() is not None


@pytest.mark.parametrize(("session", "param"), [({"fork": True}, "session"), ({"name": "x"}, "session.name")])
def test_a_session_is_named_by_its_id_alone(session: dict[str, Any], param: str) -> None:
    failure = refused(session=session)
    assert failure.param == param
