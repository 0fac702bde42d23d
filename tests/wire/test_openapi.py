"""The OpenAPI document: valid, complete, and true of the models that parse."""

from __future__ import annotations

import math
from typing import Any

import jsonschema
import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from openapi_spec_validator import OpenAPIV31SpecValidator

from claude_daemon.api import submission
from claude_daemon.api import tasks as api
from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.event import TASK_STARTED, Emission
from claude_daemon.core.task import State
from claude_daemon.ports import Batch, BatchState
from claude_daemon.wire import openapi_tasks
from claude_daemon.wire import tasks as wire
from claude_daemon.wire.anthropic import error_body, parse_messages
from claude_daemon.wire.events import encoded
from claude_daemon.wire.openai import completion, models_list, parse_request
from claude_daemon.wire.openai import error_body as openai_error_body
from claude_daemon.wire.openapi import document
from claude_daemon.wire.openapi_answers import SCHEMAS
from claude_daemon.wire.problem import problem
from tests.wire.test_errors_and_models import FAILURE
from tests.wire.test_tasks import FAILED, TASKS

DOCUMENT = document("1.2.3")
USER = {"role": "user", "content": "hi"}


def schema(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}


def fits(name: str, value: object) -> bool:
    return jsonschema.Draft202012Validator(schema(name)).is_valid(value)


def test_the_document_is_openapi_3_1_and_can_be_written() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert DOCUMENT["info"]["version"] == "1.2.3"
    assert orjson.dumps(DOCUMENT) == orjson.dumps(document("1.2.3"))


def test_every_route_of_this_version_is_there() -> None:
    assert set(DOCUMENT["paths"]) == {
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{id}",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/tasks",
        "/v1/tasks/{id}",
        "/v1/tasks/{id}/events",
        "/v1/tasks/{id}/cancel",
        "/v1/tasks/{id}/approvals/{approval}",
        "/v1/batches",
        "/v1/batches/{id}",
        "/v1/sessions",
        "/v1/sessions/{id}",
        "/v1/stream",
        "/v1/usage",
        "/live",
        "/ready",
        "/startup",
        "/health",
        "/metrics",
        "/openapi.json",
    }


def test_no_model_has_the_name_of_an_answer() -> None:
    requests = {name for name in DOCUMENT["components"]["schemas"] if name not in SCHEMAS}
    assert {"InputMessage", "ChatCompletionRequest", "MessagesRequest", "CountTokensRequest"} <= requests
    assert {"TaskRequest", "BatchRequest"} <= requests
    assert DOCUMENT["components"]["schemas"]["Message"] == SCHEMAS["Message"]


def test_no_shape_is_left_that_only_catches_what_is_refused() -> None:
    assert not [name for name in DOCUMENT["components"]["schemas"] if name.startswith("Other")]


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m", "messages": [USER]},
        {
            "model": "m",
            "messages": [USER],
            "stop": "x",
            "n": 1,
            "temperature": 0.5,
            "response_format": {"type": "text"},
        },
        {
            "model": "m",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
            "tool_choice": "auto",
        },
    ],
)
def test_what_parses_fits_the_openai_schema(body: dict[str, Any]) -> None:
    parse_request(orjson.dumps(body))
    assert fits("ChatCompletionRequest", body)


@pytest.mark.parametrize(
    "extra", [{"n": 2}, {"x": 1}, {"seed": 1}, {"temperature": 1.5}, {"messages": []}, {"model": 1}]
)
def test_what_is_refused_does_not_fit_the_openai_schema(extra: dict[str, Any]) -> None:
    assert not fits("ChatCompletionRequest", {"model": "m", "messages": [USER]} | extra)


def test_messages_requests_fit_with_fields_that_we_do_not_know() -> None:
    body = {"model": "m", "max_tokens": 1, "messages": [USER], "zeta": 1}
    parse_messages(orjson.dumps(body))
    assert fits("MessagesRequest", body)
    assert not fits("MessagesRequest", {"model": "m", "messages": [USER]})


def test_what_we_answer_fits() -> None:
    message = {"content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn", "usage": {}}
    assert fits("ChatCompletion", completion(message, id="chatcmpl-1", created=1, model="m"))
    assert fits("ModelList", models_list({"a": "b"}, created=1))
    assert fits("OpenAIError", openai_error_body(FAILURE, 400))
    assert fits("AnthropicError", error_body(FAILURE, 400, "r"))
    assert fits("Problem", problem(FAILURE, 400, "r"))


# Tasks


def operation(path: str, method: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["paths"][path][method]
    return found


def parameter(path: str, method: str, name: str) -> dict[str, Any]:
    (found,) = (one for one in operation(path, method)["parameters"] if one["name"] == name)
    found_schema: dict[str, Any] = found["schema"]
    return found_schema


TASK_ROUTES = [
    ("/v1/tasks", "post"),
    ("/v1/tasks", "get"),
    ("/v1/tasks/{id}", "get"),
    ("/v1/tasks/{id}/events", "get"),
    ("/v1/tasks/{id}/cancel", "post"),
    ("/v1/batches", "post"),
    ("/v1/batches/{id}", "get"),
    ("/v1/stream", "get"),
]


@pytest.mark.parametrize(("path", "method"), TASK_ROUTES)
def test_errors_of_tasks_are_problems(path: str, method: str) -> None:
    errors = {status: told for status, told in operation(path, method)["responses"].items() if status >= "400"}
    assert {"401", "403", "421"} <= set(errors)
    for told in errors.values():
        assert told["content"] == {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


def test_a_submission_is_answered_as_a_task_new_or_known_or_with_events() -> None:
    answers = operation("/v1/tasks", "post")["responses"]
    assert set(answers["202"]["content"]) == {"application/json"}
    assert set(answers["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "idempotency_conflict" in answers["409"]["description"]
    assert "queue_full" in answers["429"]["description"]


def test_the_stream_is_told_in_words() -> None:
    stream = operation("/v1/stream", "get")
    assert "101" in stream["responses"]
    for word in ("submit", "subscribe", "unsubscribe", "cancel", "ping", "ack", "event", "error", "pong", "drain"):
        assert f'"op":"{word}"' in stream["description"]
    assert "bearer.<key>" in stream["description"]


def test_what_is_told_of_parameters_is_what_routes_hold_them_to() -> None:
    limit = parameter("/v1/tasks", "get", "limit")
    assert (limit["minimum"], limit["maximum"], limit["default"]) == (1, api.MAX_LIMIT, api.DEFAULT_LIMIT)
    assert api.limit_of(str(limit["maximum"])) == limit["maximum"]
    assert parameter("/v1/tasks", "get", "state")["items"]["enum"] == [state.value for state in State]
    key = parameter("/v1/tasks", "post", submission.IDEMPOTENCY_KEY)
    assert (key["minLength"], key["maxLength"], key["pattern"]) == (1, 255, "^[!-~]+$")
    for name, method in (("Last-Event-ID", "get"), ("after", "get")):
        assert parameter("/v1/tasks/{id}/events", method, name)["maximum"] == openapi_tasks.MAX_CURSOR


ACCEPTED: list[dict[str, Any]] = [
    {"prompt": "x"},
    {"prompt": "x", "messages": None},
    {"messages": [USER]},
    {"prompt": None, "messages": [USER]},
    {"prompt": "x", "schema": {"type": "object"}, "timeout_s": 1, "priority": -10, "metadata": {"k" * 64: "v" * 512}},
    {"prompt": "x", "tools": {}, "mcp_servers": [], "agents": {}, "add_dirs": [], "project_settings": "none"},
    {"prompt": "x", "tools": {"allow": ["Read", "Bash(git *)"], "deny": ["Edit"], "approval": "auto"}},
    {"prompt": "x", "cwd": "/srv", "add_dirs": ["/srv/a..b"], "max_cost_usd": 1, "max_turns": 7},
    {"prompt": "x", "cwd": None, "session": None, "max_cost_usd": None},
    {"prompt": "x", "tools": {"allow": ["mcp__tickets", "mcp__tickets__find"]}, "mcp_servers": ["tickets"]},
    {"prompt": "x", "agents": {"critic": {"description": "d", "prompt": "p", "tools": ["Read"], "model": "haiku"}}},
    {"prompt": "x", "project_settings": "all", "append_system": "y"},
    {"prompt": "x", "session": {}},
    {"prompt": "x", "session": {"id": "sess_1", "fork": True}},
]
REFUSED: list[dict[str, Any]] = [
    {},
    {"prompt": None},
    {"prompt": "x", "messages": [USER]},
    {"prompt": ""},
    {"messages": []},
    {"prompt": "x", "output_schema": {}},
    {"prompt": "x", "timeout_s": 0},
    {"prompt": "x", "priority": 11},
    {"prompt": "x", "metadata": {"k" * 65: ""}},
    {"prompt": "x", "metadata": {"k": "v" * 513}},
    {"prompt": "x", "metadata": {str(n): "" for n in range(17)}},
    {"prompt": "x", "metadata": {"k": 1}},
    {"prompt": "x", "tools": {"allow": ["Curl"]}},
    {"prompt": "x", "tools": {"allow": ["Bash(git, rm)"]}},
    {"prompt": "x", "tools": {"approval": "sometimes"}},
    {"prompt": "x", "cwd": "srv"},
    {"prompt": "x", "cwd": "/srv/.."},
    {"prompt": "x", "add_dirs": ["/srv"] * 17},
    {"prompt": "x", "session": {"name": "x"}},
    {"prompt": "x", "session": {"fork": True}},
    {"prompt": "x", "mcp_servers": ["A"]},
    {"prompt": "x", "agents": {"fork": {"description": "d", "prompt": "p"}}},
    {"prompt": "x", "agents": {"a": {"description": "d", "prompt": "p", "hooks": {}}}},
    {"prompt": "x", "project_settings": "some"},
    {"prompt": "x", "max_cost_usd": 0},
    {"prompt": "x", "unknown": 1},
]


@pytest.mark.parametrize("body", ACCEPTED)
def test_what_is_taken_fits_the_schema_of_a_submission(body: dict[str, Any]) -> None:
    wire.task_of(body)
    assert fits("TaskRequest", body)


@pytest.mark.parametrize("body", REFUSED)
def test_what_is_refused_does_not_fit_the_schema_of_a_submission(body: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        wire.task_of(body)
    assert not fits("TaskRequest", body)


def as_javascript_writes_it(value: Any) -> Any:
    """JSON Schema and JavaScript have no 2.0; neither has our parser where it wants a whole number."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    return {n: as_javascript_writes_it(v) for n, v in value.items()} if isinstance(value, dict) else value


SUBMISSIONS = schemathesis.openapi.from_dict(DOCUMENT)["/v1/tasks"]["POST"].as_strategy()


@hypothesis_settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
@given(SUBMISSIONS)
def test_whatever_the_document_allows_is_taken(case: schemathesis.Case) -> None:
    wire.task_of(as_javascript_writes_it(case.body))


@pytest.mark.parametrize("tasks", [[{"prompt": "x"}], [{"prompt": "x"}, {"cwd": 5}], [{}] * wire.MAX_BATCH])
def test_a_batch_takes_faulty_tasks_too(tasks: list[dict[str, Any]]) -> None:
    wire.parse_batch(orjson.dumps({"tasks": tasks}))
    assert fits("BatchRequest", {"tasks": tasks})
    items = DOCUMENT["components"]["schemas"]["BatchRequest"]["properties"]["tasks"]["items"]
    assert items["anyOf"][0] == {"$ref": "#/components/schemas/TaskRequest"}


@pytest.mark.parametrize(
    "body",
    [{}, {"tasks": []}, {"tasks": ["x"]}, {"tasks": [{}], "x": 1}, {"tasks": [{}] * (wire.MAX_BATCH + 1)}],
)
def test_what_is_no_batch_does_not_fit(body: dict[str, Any]) -> None:
    with pytest.raises(Refusal):
        wire.parse_batch(orjson.dumps(body))
    assert not fits("BatchRequest", body)


@pytest.mark.parametrize("state", list(State))
def test_a_task_fits_in_every_state_and_no_field_of_it_is_left_out(state: State) -> None:
    told = wire.task_document(TASKS[state])
    assert fits("Task", told)
    assert set(SCHEMAS["Task"]["properties"]) == set(told)
    for name, part in (("TaskResult", told["result"]), ("TaskUsage", told["usage"])):
        assert part is None or set(SCHEMAS[name]["properties"]) == set(part)
    assert fits("TaskList", wire.list_document([told], None))
    assert not fits("Task", told | {"state": "paused"})


def test_a_batch_fits_with_what_was_refused_and_what_is_purged() -> None:
    batch = Batch(id="batch_1", key_id="key_1", created_at=1.0, size=len(TASKS) + 2, refused={0: FAILURE})
    tasks = dict(enumerate(TASKS.values(), start=1))
    told = api.batch_document(BatchState(batch=batch, tasks=tasks))
    assert [row["state"] for row in told["tasks"]] == ["refused", *(t.state.value for t in TASKS.values()), "purged"]
    assert fits("Batch", told)
    assert set(SCHEMAS["Batch"]["properties"]) == set(told)


def test_an_error_of_a_task_fits_with_all_that_it_may_tell() -> None:
    full = Failure(code=Code.QUEUE_FULL, message="Full.", param="x", retry_after_seconds=2.5)
    told = wire.error_document(full)
    assert told is not None
    assert fits("TaskError", told)
    assert set(told) == set(SCHEMAS["TaskError"]["properties"])
    assert fits("TaskError", wire.error_document(FAILED.outcome.failure if FAILED.outcome else None))


def test_an_event_fits() -> None:
    public = encoded("task_1", 1 << 24 | 1, 12.5, Emission(TASK_STARTED, {"lane": "text"}))
    assert public is not None
    told = orjson.loads(public[1])
    assert fits("TaskEvent", told)
    assert set(told) == set(SCHEMAS["TaskEvent"]["properties"])
