"""What a Messages API request may ask of the text lane."""

from __future__ import annotations

from typing import Any

import pytest

from claude_daemon.core.errors import Code
from claude_daemon.wire.anthropic import text_lane_unsupported

USER = {"role": "user", "content": "hi"}
BASE: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [USER]}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "look", "input": {}}]}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "x"}
TOOL: dict[str, Any] = {"name": "look", "description": "d", "input_schema": {"type": "object", "properties": {"a": {}}}}
PDF = {"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}, "title": "t"}


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"system": "be brief", "stream": True, "metadata": {"user_id": "u"}},
        {"system": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
        {"thinking": {"type": "enabled", "budget_tokens": 2048}},
        {"thinking": {"type": "disabled"}},
        {"thinking": {"type": "adaptive"}},
        {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
        {"output_config": {"format": None}},
        {"tools": [], "tool_choice": {"type": "none"}, "stop_sequences": [], "mcp_servers": []},
        {"temperature": None, "some_future_field": None},
        {"tools": [TOOL | {"type": "custom", "strict": True, "cache_control": {"type": "ephemeral"}}]},
        {"tools": [TOOL | {"description": "x" * 4096}], "tool_choice": {"type": "tool", "name": "look"}},
        {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        {"messages": [USER, CALL, {"role": "user", "content": [RESULT, {"type": "text", "text": "y"}]}]},
        {"messages": [USER, CALL, {"role": "user", "content": [RESULT | {"content": [IMAGE], "is_error": True}]}]},
        {"messages": [USER, CALL, {"role": "user", "content": [RESULT]}, USER]},
        {"service_tier": "auto"},
        {"service_tier": "standard_only"},
        {"cache_control": {"type": "ephemeral"}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE, PDF]}]},
        {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "y"}]}, USER]},
        {
            "messages": [
                USER,
                {"role": "assistant", "content": [{"type": "thinking", "thinking": "", "signature": "s"}]},
                USER,
            ]
        },
    ],
)
def test_the_text_lane_takes(extra: dict[str, Any]) -> None:
    assert text_lane_unsupported(BASE | extra) is None


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [{"name": "t", "input_schema": {}}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "auto"}}, "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "tools.1.name"),
        ({"tools": [TOOL | {"name": "a b"}]}, "tools.0.name"),
        ({"tools": [TOOL | {"name": "a" * 65}]}, "tools.0.name"),
        ({"tools": [TOOL | {"description": "\N{GRINNING FACE}" * 2049}]}, "tools.0.description"),
        ({"tools": [TOOL | {"type": "bash_20250124"}]}, "tools.0.type"),
        ({"tools": [TOOL | {"defer_loading": True}]}, "tools.0.defer_loading"),
        ({"tools": [TOOL | {"input_schema": {"type": "object", "oneOf": []}}]}, "tools.0.input_schema.oneOf"),
        (
            {"tools": [TOOL | {"input_schema": {"type": "object", "properties": {"a": 5}}}]},
            "tools.0.input_schema.properties",
        ),
        ({"tools": [TOOL | {"input_schema": {"type": "object", "required": "a"}}]}, "tools.0.input_schema.required"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "best"}}, "tool_choice.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "any", "of": 2}}, "tool_choice.of"),
        (
            {"tools": [TOOL], "output_config": {"format": {"type": "json_schema", "schema": {}}}},
            "output_config.format",
        ),
        ({"messages": [USER, CALL, USER]}, "messages.1.content.0"),
        ({"messages": [USER, CALL, {"role": "user", "content": [RESULT, RESULT]}]}, "messages.2.content.1.tool_use_id"),
        (
            {"messages": [USER, CALL, {"role": "user", "content": [{"type": "text", "text": "y"}, RESULT]}]},
            "messages.2.content.1",
        ),
        (
            {"messages": [USER, CALL, {"role": "user", "content": [RESULT | {"content": [{"type": "x"}]}]}]},
            "messages.2.content.0.content.0.type",
        ),
        ({"temperature": 0}, "temperature"),
        ({"temperature": 1.0}, "temperature"),
        ({"top_p": 0.5}, "top_p"),
        ({"top_k": 5}, "top_k"),
        ({"stop_sequences": ["x"]}, "stop_sequences"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"some_future_field": False}, "some_future_field"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"thinking": {"type": "adaptive", "display": "omitted"}}, "thinking.display"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "grammar"}}}, "output_config.format"),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {}, "lax": 1}}},
            "output_config.format.lax",
        ),
        ({"system": [{"type": "text", "text": "x", "citations": []}]}, "system.0.citations"),
        ({"messages": [USER, {"role": "assistant", "content": "The answer is ("}]}, "messages.1.role"),
        ({"messages": [USER, {"role": "system", "content": "x"}, USER]}, "messages.1.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}]},
            "messages.0.content.0.tool_use_id",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "messages.0.content.0.type"),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "tool_use", "id": "t"}]}, USER]},
            "messages.1.content.0",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}],
                    }
                ]
            },
            "messages.0.content.0.source.type",
        ),
        ({"messages": [USER | {"name": "bob"}]}, "messages.0.name"),
        ({"messages": [{"role": "user", "content": " \n\t"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": " "}]}]}, "messages.0.content"),
    ],
)
def test_the_text_lane_refuses_by_name(extra: dict[str, Any], param: str) -> None:
    failure = text_lane_unsupported(BASE | extra)
    assert failure is not None
    assert failure.code is Code.UNSUPPORTED_PARAMETER
    assert failure.param == param
    assert failure.message.startswith(f"`{param}` is not supported on the text lane: ")


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"tools": [TOOL]}, "tools"),
        ({"messages": [USER, CALL, {"role": "user", "content": [RESULT]}]}, "messages.1.content.0.type"),
    ],
)
def test_the_agent_lane_takes_no_tools_of_the_clients(extra: dict[str, Any], param: str) -> None:
    failure = text_lane_unsupported(BASE | extra, lane="agent")
    assert failure is not None
    assert failure.param == param


def test_a_request_is_not_changed_by_the_question() -> None:
    request = BASE | {"system": [{"type": "text", "text": "a"}]}
    before = repr(request)
    text_lane_unsupported(request)
    assert repr(request) == before
