"""A client's tools as the CLI hears of them, and a turn that ends in their calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from claude_daemon.core.errors import Code
from claude_daemon.core.task import State
from claude_daemon.engine import client_tools
from claude_daemon.engine.capabilities import Capabilities
from tests.engine.test_turn import Caller, assistant, block, end, event, start

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
LISTED = client_tools.listing(
    [{"name": "b", "input_schema": SCHEMA, "description": "B."}, {"name": "a", "input_schema": SCHEMA}]
)
TOOLS = frozenset({"a", "b"})
INTERRUPTED = {"type": "result", "subtype": "error_during_execution", "is_error": True, "usage": {"output_tokens": 2}}


def said(method: str, server: str = "c", **fields: Any) -> dict[str, Any]:
    message = {"jsonrpc": "2.0", "method": method, **fields}
    request = {"subtype": "mcp_message", "server_name": server, "message": message}
    return {"type": "control_request", "request_id": "r1", "request": request}


def answer(message: dict[str, Any], listed: bytes | None = LISTED) -> Any:
    line = client_tools.server_answer(message, listed)
    assert line is not None
    response = orjson.loads(line)["response"]
    assert response["request_id"] == "r1"
    return response["response"]["mcp_response"] if response["subtype"] == "success" else response["error"]


def call(index: int, name: str = "mcp__c__a", pieces: Sequence[str] = ('{"city":', '"x"}')) -> list[dict[str, Any]]:
    told = {"type": "tool_use", "id": f"toolu_{index}", "name": name, "input": {}}
    deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return [
        event("content_block_start", index=index, content_block=told),
        *(event("content_block_delta", index=index, delta=delta) for delta in deltas),
        event("content_block_stop", index=index),
    ]


# the server


def test_the_server_introduces_itself_and_lists_the_tools_by_name() -> None:
    hello = answer(said("initialize", id=0, params={"protocolVersion": "2025-11-25"}))
    assert (hello["id"], hello["result"]["protocolVersion"]) == (0, "2025-11-25")
    tools = answer(said("tools/list", id=1))["result"]["tools"]
    assert [(tool["name"], tool["description"], tool["inputSchema"]) for tool in tools] == [
        ("a", "", SCHEMA),
        ("b", "B.", SCHEMA),
    ]
    assert answer(said("notifications/initialized")) == {"jsonrpc": "2.0", "result": {}}
    assert answer(said("ping", id="p"))["result"] == {}
    assert answer(said("resources/list", id=2))["error"]["code"] == -32601


def test_a_call_gets_no_answer_and_a_process_without_tools_has_no_server() -> None:
    assert client_tools.server_answer(said("tools/call", id=3, params={"name": "a"}), LISTED) is None
    assert answer(said("tools/list", id=1), None) == answer(said("tools/list", "other", id=1)) == "no such MCP server"


@pytest.mark.parametrize("message", [{"type": "control_request"}, {"type": "control_request", "request": 5}, {}])
def test_what_is_not_said_to_the_server_is_not_taken_for_it(message: dict[str, Any]) -> None:
    assert not client_tools.is_server_request(message)


def test_a_server_request_that_says_nothing_is_refused() -> None:
    assert answer(said("x") | {"request": {"subtype": "mcp_message", "server_name": "c", "message": 5}})


def test_the_order_of_tools_makes_no_other_list() -> None:
    one, two = {"name": "a", "input_schema": SCHEMA}, {"name": "b", "input_schema": SCHEMA}
    assert client_tools.listing([one, two]) == client_tools.listing([two, one])
    assert client_tools.listing([]) is None
    assert client_tools.names(LISTED) == TOOLS


@pytest.mark.parametrize(
    ("choice", "upstream"),
    [
        (None, None),
        ({"type": "auto"}, None),
        ({"type": "auto", "disable_parallel_tool_use": False}, None),
        ({"type": "auto", "disable_parallel_tool_use": True}, {"type": "auto", "disable_parallel_tool_use": True}),
        ({"type": "any"}, {"type": "any"}),
        ({"type": "tool", "name": "a"}, {"type": "tool", "name": "mcp__c__a"}),
    ],
)
def test_a_choice_names_tools_as_the_upstream_knows_them(choice: Any, upstream: Any) -> None:
    told = client_tools.upstream_choice(choice)
    assert (told and orjson.loads(told)) == upstream


def test_a_tool_that_the_cli_dropped_is_missed() -> None:
    init = {"type": "system", "subtype": "init", "tools": ["mcp__c__a"]}
    assert client_tools.missing(init, TOOLS) == ["b"]
    assert client_tools.missing(init | {"tools": None}, TOOLS) == ["a", "b"]
    assert not client_tools.missing(init, frozenset())
    assert not client_tools.missing({"type": "assistant"}, TOOLS)


@pytest.mark.parametrize("row", ["client_tools", "late_bind", "history", "interrupt"])
def test_tools_need_more_than_their_own_capability(row: str) -> None:
    assert Capabilities().takes_tools
    assert not Capabilities().without([row]).takes_tools


# the turn


def test_calls_end_the_turn_under_the_clients_own_names() -> None:
    caller = Caller(tools=TOOLS)
    told = [start(), *block(0, "text", ["Let me see."]), *call(1), *call(2, "mcp__c__b")]
    assert [caller.hear(messages).reader.interrupt for messages in (told, end("tool_use"))] == [False, True]
    caller.hear([INTERRUPTED])
    outcome, content = caller.reader.outcome, caller.builder.message["content"]
    assert outcome is not None
    assert (outcome.state, outcome.stop_reason) == (State.SUCCEEDED, "tool_use")
    assert [(b.get("name"), b.get("input")) for b in content] == [
        (None, None),
        ("a", {"city": "x"}),
        ("b", {"city": "x"}),
    ]


def test_a_tool_that_was_not_offered_ends_the_turn_before_the_cli_answers_the_model() -> None:
    caller = Caller(tools=TOOLS).hear([start(), *call(0, "nonsense")[:1]])
    assert caller.reader.interrupt
    outcome = caller.hear([INTERRUPTED]).reader.outcome
    assert outcome is not None
    assert outcome.failure is not None
    assert outcome.failure.code is Code.UPSTREAM_ERROR


def test_a_stream_that_breaks_after_a_call_fails_at_once() -> None:
    caller = Caller(tools=TOOLS).hear([start(), *call(0), event("message_stop")])
    assert caller.reader.interrupt
    outcome = caller.hear([INTERRUPTED]).reader.outcome
    assert outcome is not None
    assert outcome.failure is not None
    assert outcome.failure.code is Code.UPSTREAM_CUT


def test_a_stream_that_breaks_before_any_call_may_be_repeated() -> None:
    cut = [start(), *block(0, "text", ["Let me"]), event("message_stop")]
    caller = Caller(tools=TOOLS).hear([*cut, start(2), *block(0, "text", ["Let me see."]), *call(1), *end("tool_use")])
    outcome = caller.hear([INTERRUPTED]).reader.outcome
    assert outcome is not None
    assert outcome.stop_reason == "tool_use"


def test_calls_that_were_not_streamed_are_complete_when_the_first_is_carried_out() -> None:
    messages = [
        assistant([{"type": "tool_use", "id": f"t{n}", "name": "mcp__c__a", "input": {"city": "x"}}]) for n in range(2)
    ]
    for message in messages:
        message["message"]["stop_reason"] = "tool_use"
    caller = Caller(tools=TOOLS)
    parts = (messages, [said("tools/call", id=1)])
    assert [caller.hear(part).reader.interrupt for part in parts] == [False, True]
    caller.hear([INTERRUPTED])
    assert [b["input"] for b in caller.builder.message["content"]] == [{"city": "x"}] * 2
    assert caller.builder.message["stop_reason"] == "tool_use"


def test_without_tools_a_call_is_the_clis_own_affair() -> None:
    caller = Caller().hear([start(), *call(0, "StructuredOutput"), *end("tool_use")])
    assert not caller.reader.interrupt
