"""What a Messages API request may ask of the text lane."""

from __future__ import annotations

from typing import Any

import pytest

from claude_daemon.core.errors import Code
from claude_daemon.wire.anthropic import text_lane_unsupported

USER = {"role": "user", "content": "hi"}
BASE: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": [USER]}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
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


def test_a_request_is_not_changed_by_the_question() -> None:
    request = BASE | {"system": [{"type": "text", "text": "a"}]}
    before = repr(request)
    text_lane_unsupported(request)
    assert repr(request) == before
