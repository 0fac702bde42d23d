"""The checks the real API makes before it answers. Pure; each fault is a 400 that names the field."""

import re
from collections.abc import Iterable
from typing import Any, Final

from claude_daemon.offline.errors import ApiError

_TOOL_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_ROLES: Final = ("user", "assistant", "system")
_THINKING: Final = ("enabled", "disabled", "adaptive", "between_tools")
_CHOICES: Final = ("auto", "any", "tool", "none")
MIN_THINKING_TOKENS: Final = 1024
"""The API's own lower bound."""


def check(body: object, *, needs_max_tokens: bool = True) -> dict[str, Any]:
    """The body, known to be a request. Raises ApiError: 400 for its first fault, 404 for no such model."""
    if not isinstance(body, dict):
        raise _bad("body", "Input should be a valid dictionary")
    _check_model(body)
    _check_sampling(body, needs_max_tokens)
    _check_system(body.get("system"))
    _check_messages(body)
    _check_tools(body)
    _check_thinking(body, needs_max_tokens)
    return body


def _check_model(body: dict[str, Any]) -> None:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise _bad("model", "Field required" if model is None else "Input should be a valid string")
    if "does-not-exist" in model:
        raise ApiError(404, f"model: {model[:200]}")


def _check_sampling(body: dict[str, Any], needs_max_tokens: bool) -> None:
    if needs_max_tokens:
        limit = body.get("max_tokens")
        if limit is None:
            raise _bad("max_tokens", "Field required")
        if not _is_int(limit):
            raise _bad("max_tokens", "Input should be a valid integer")
        if limit < 1:
            raise _bad("max_tokens", "Input should be greater than or equal to 1")
    if not isinstance(body.get("stream", False), bool | None):
        raise _bad("stream", "Input should be a valid boolean")
    for name in ("temperature", "top_p"):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise _bad(name, "Input should be a number from 0 to 1")
    stops = body.get("stop_sequences")
    if stops is not None and not (isinstance(stops, list) and all(isinstance(s, str) and s.strip() for s in stops)):
        raise _bad("stop_sequences", "each stop sequence must contain non-whitespace")


def _check_system(system: object) -> None:
    if system is None or isinstance(system, str):
        return
    if not isinstance(system, list):
        raise _bad("system", "Input should be a valid string or list")
    for index, block in enumerate(system):
        if not isinstance(block, dict) or block.get("type") != "text":
            raise _bad(f"system.{index}.type", "Input should be 'text'")
        _check_text(f"system.{index}", block, "system")


def _check_messages(body: dict[str, Any]) -> None:
    messages = body.get("messages")
    if messages is None:
        raise _bad("messages", "Field required")
    if not isinstance(messages, list):
        raise _bad("messages", "Input should be a valid list")
    if not messages:
        raise _bad("messages", "at least one message is required")
    for index, message in enumerate(messages):
        _check_message(f"messages.{index}", message, last=index == len(messages) - 1)
    spoken = [message for message in messages if message["role"] != "system"]
    if not spoken or spoken[0]["role"] != "user":
        raise _bad("messages.0.role", 'first message must use the "user" role')
    _check_tool_results(spoken)


def _check_message(path: str, message: object, *, last: bool) -> None:
    if not isinstance(message, dict):
        raise _bad(path, "Input should be a valid dictionary")
    if message.get("role") not in _ROLES:
        raise _bad(f"{path}.role", "Input should be 'user' or 'assistant'")
    content = message.get("content")
    if content is None:
        raise _bad(f"{path}.content", "Field required")
    if not isinstance(content, str | list):
        raise _bad(f"{path}.content", "Input should be a valid string or list")
    may_be_empty = message["role"] == "system" or (last and message["role"] == "assistant")
    if not content and not may_be_empty:
        raise _bad(f"{path}.content", "messages must have non-empty content")
    for index, block in enumerate(content if isinstance(content, list) else ()):
        _check_block(f"{path}.content.{index}", block)


def _check_block(path: str, block: object) -> None:
    if not isinstance(block, dict):
        raise _bad(path, "Input should be a valid dictionary")
    kind = block.get("type")
    if not isinstance(kind, str) or not kind:
        raise _bad(f"{path}.type", "Field required")
    if kind == "text":
        _check_text(path, block, "messages")
    elif kind in ("image", "document"):
        if not isinstance(block.get("source"), dict):
            raise _bad(f"{path}.{kind}.source", "Field required")
    elif kind == "tool_use":
        _check_strings(path, block, "id", "name")
        if not isinstance(block.get("input"), dict):
            raise _bad(f"{path}.tool_use.input", "Input should be a valid dictionary")
    elif kind == "tool_result":
        _check_strings(path, block, "tool_use_id")


def _check_text(path: str, block: dict[str, Any], noun: str) -> None:
    text = block.get("text")
    if not isinstance(text, str):
        raise _bad(f"{path}.text", "Field required" if text is None else "Input should be a valid string")
    if not text:
        raise _bad(f"{path}.text", f"{noun}: text content blocks must be non-empty")


def _check_strings(path: str, block: dict[str, Any], *names: str) -> None:
    for name in names:
        if not isinstance(block.get(name), str) or not block[name]:
            raise _bad(f"{path}.{block['type']}.{name}", "Field required")


def _check_tool_results(messages: list[dict[str, Any]]) -> None:
    """Every tool_use is answered before the assistant speaks again, and nothing else is answered."""
    open_ids: set[str] = set()
    for message in messages:
        blocks = message["content"] if isinstance(message["content"], list) else []
        if message["role"] == "assistant":
            _check_none_open(open_ids)
            open_ids = {block["id"] for block in blocks if block["type"] == "tool_use"}
            continue
        answered = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
        if unknown := answered - open_ids:
            raise _bad("messages", f"unexpected `tool_use_id` found in `tool_result` blocks: {min(unknown)}")
        open_ids -= answered
    if messages[-1]["role"] == "user":
        _check_none_open(open_ids)


def _check_none_open(open_ids: Iterable[str]) -> None:
    if ids := sorted(open_ids):
        raise _bad("messages", f"`tool_use` ids were found without `tool_result` blocks after them: {', '.join(ids)}")


def _check_tools(body: dict[str, Any]) -> None:
    tools = body.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise _bad("tools", "Input should be a valid list")
    names: set[str] = set()
    for index, tool in enumerate(tools or ()):
        name = _tool_name(f"tools.{index}", tool)
        if name in names:
            raise _bad("tools", "Tool names must be unique.")
        names.add(name)
    choice = body.get("tool_choice")
    if choice is None:
        return
    if not isinstance(choice, dict) or choice.get("type") not in _CHOICES:
        raise _bad("tool_choice.type", "Input should be 'auto', 'any', 'tool' or 'none'")
    if choice["type"] == "any" and not names:
        raise _bad("tool_choice", "may only be specified while providing tools")
    if choice["type"] == "tool" and choice.get("name") not in names:
        raise _bad("tool_choice.name", f"Tool '{choice.get('name')}' not found in provided tools")


def _tool_name(path: str, tool: object) -> str:
    if not isinstance(tool, dict):
        raise _bad(path, "Input should be a valid dictionary")
    name = tool.get("name")
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise _bad(f"{path}.name", "String should match pattern '^[a-zA-Z0-9_-]{1,128}$'")
    if tool.get("type", "custom") == "custom":
        schema = tool.get("input_schema")
        if not isinstance(schema, dict):
            raise _bad(f"{path}.input_schema", "Field required")
        if schema.get("type") != "object":
            raise _bad(f"{path}.input_schema.type", "Input should be 'object'")
    return name


def _check_thinking(body: dict[str, Any], needs_max_tokens: bool) -> None:
    thinking = body.get("thinking")
    if thinking is None:
        return
    if not isinstance(thinking, dict) or thinking.get("type") not in _THINKING:
        raise _bad("thinking.type", f"Input should be one of {', '.join(_THINKING)}")
    if thinking["type"] != "enabled":
        return
    budget: Any = thinking.get("budget_tokens")
    if not _is_int(budget) or budget < MIN_THINKING_TOKENS:
        raise _bad("thinking.enabled.budget_tokens", f"Input should be an integer from {MIN_THINKING_TOKENS} up")
    if needs_max_tokens and budget >= body["max_tokens"]:
        raise _bad("max_tokens", "must be greater than `thinking.budget_tokens`")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _bad(field: str, message: str) -> ApiError:
    return ApiError(400, f"{field}: {message}")
