"""A Chat Completions request as a Messages API request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from claude_daemon.core.errors import Fault
from claude_daemon.wire.openai_history import translate_history
from claude_daemon.wire.openai_request import (
    ChatCompletionRequest,
    FunctionDefinition,
    JsonSchemaFormat,
    NamedToolChoice,
    SchemaFormat,
)
from claude_daemon.wire.parse import refusal

DEFAULT_MAX_TOKENS: Final = 32_000
"""Where the client sets no limit. OpenAI's default is the model's maximum; the Messages API wants a number.
This is what Claude Code itself asks for, so both lanes answer alike, and models since Claude 4 allow it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Translated:
    """A Messages API body, and what of the client's wishes concerns the answer's form."""

    request: dict[str, Any]
    output_schema: Mapping[str, Any] | None
    include_usage: bool
    stream: bool


def to_messages(request: ChatCompletionRequest) -> Translated:
    """The same question to the Messages API. Raises Refusal ``invalid_request`` with all faults it meets."""
    history = translate_history(request.messages)
    faults = [*history.faults, *_tool_faults(request)]
    if faults:
        raise refusal(faults)
    schema = _output_schema(request)
    body: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_completion_tokens or request.max_tokens or DEFAULT_MAX_TOKENS,
        "messages": history.messages,
    }
    if history.system:
        body["system"] = history.system
    body |= _sampling(request) | _tools(request) | _thinking(request, schema) | _who(request)
    if request.stream:
        body["stream"] = True
    usage = bool(request.stream and request.stream_options and request.stream_options.include_usage)
    return Translated(request=body, output_schema=schema, include_usage=usage, stream=bool(request.stream))


def _sampling(request: ChatCompletionRequest) -> dict[str, Any]:
    tiers = {"auto": "auto", "default": "standard_only"}
    given = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "stop_sequences": request.stop or None,
        "service_tier": tiers.get(request.service_tier),
    }
    return {name: value for name, value in given.items() if value is not None}


def _thinking(request: ChatCompletionRequest, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    out: dict[str, Any] = {}
    output: dict[str, Any] = {}
    if request.reasoning_effort == "none":
        out["thinking"] = {"type": "disabled"}
    elif request.reasoning_effort is not None:
        out["thinking"] = {"type": "adaptive"}
        output["effort"] = request.reasoning_effort
    if schema is not None:
        output["format"] = {"type": "json_schema", "schema": schema}
    return out | ({"output_config": output} if output else {})


def _who(request: ChatCompletionRequest) -> dict[str, Any]:
    user = request.safety_identifier or request.user
    return {"metadata": {"user_id": user}} if user else {}


def _output_schema(request: ChatCompletionRequest) -> Mapping[str, Any] | None:
    wanted = request.response_format
    return _described(wanted.json_schema) if isinstance(wanted, SchemaFormat) else None


def _described(wanted: JsonSchemaFormat) -> Mapping[str, Any]:
    """The schema; the format's description has no other place in the Messages API than the schema's own."""
    if wanted.description and "description" not in wanted.schema_:
        return {"description": wanted.description, **wanted.schema_}
    return wanted.schema_


def _tool_faults(request: ChatCompletionRequest) -> list[Fault]:
    choice, names = request.tool_choice, [tool.function.name for tool in request.tools or ()]
    if isinstance(choice, NamedToolChoice) and choice.function.name not in names:
        return [Fault(path="tool_choice.function.name", message="No tool of this name is in `tools`.")]
    if choice == "required" and not names:
        return [Fault(path="tool_choice", message="A tool call is required, and there are no `tools`.")]
    return []


def _tools(request: ChatCompletionRequest) -> dict[str, Any]:
    """``tools`` and ``tool_choice``; neither where there are no tools: a choice is then none at all."""
    if not request.tools:
        return {}
    out: dict[str, Any] = {"tools": [_tool(tool.function) for tool in request.tools]}
    choice = _tool_choice(request)
    return out | ({"tool_choice": choice} if choice else {})


def _tool(function: FunctionDefinition) -> dict[str, Any]:
    tool: dict[str, Any] = {"name": function.name}
    if function.description:
        tool["description"] = function.description
    tool["input_schema"] = function.parameters or {"type": "object", "properties": {}}
    if function.strict:
        tool["strict"] = True
    return tool


def _tool_choice(request: ChatCompletionRequest) -> dict[str, Any]:
    choice = request.tool_choice
    if isinstance(choice, NamedToolChoice):
        out: dict[str, Any] = {"type": "tool", "name": choice.function.name}
    else:
        kinds = {"none": "none", "auto": "auto", "required": "any"}
        out = {"type": kinds[choice]} if isinstance(choice, str) else {}
    if request.parallel_tool_calls is False and out.get("type") != "none":
        out = {"type": "auto"} | out | {"disable_parallel_tool_use": True}
    return out
