"""What a Messages API request may ask of the text lane: a warm Claude Code process without tools of its own.

It takes text, images and documents, a system prompt, thinking, an answer's schema and the client's own tools (the agent
lane does not: its tools are Claude Code's). All else is refused by name; nothing is ignored but ``cache_control``,
because the CLI places its own, and ``metadata`` and a tool's ``strict``, which the CLI has no place for: an answer's
``Claude-Daemon-Approximated`` then names it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from claude_daemon.core.errors import Code, Failure
from claude_daemon.wire import text_tools
from claude_daemon.wire.text_tools import Finding

Check = Callable[[Any], Finding | None]

_DIRECT: Final = "only the direct lane honours it"
_BLANK: Final = "it is blank, and the CLI would ask no model about it"
_PREFILL: Final = "it cannot continue an assistant's message (prefill); the last must be the user's"


def text_lane_unsupported(request: Mapping[str, Any], lane: str = "text") -> Failure | None:
    """The first thing in a valid Messages API request that the text lane cannot honour, or None. Pure. ``lane`` is the
    one that is told, of those that run on Claude Code.

    ``param`` is its dotted path, and the message begins with that path in backquotes.
    """
    tools = lane == "text"
    found = _in_fields(request, {**FIELDS, **CLIENT_TOOLS} if tools else FIELDS)
    found = found or _in_messages(request["messages"], TOOL_ROLE_BLOCKS if tools else ROLE_BLOCKS)
    if tools:
        found = found or _in_tools(request)
    return None if found is None else _failure(*found, lane)


def renamed(failure: Failure, name: str) -> Failure:
    """The same failure under the name that a dialect's client has for the parameter."""
    return replace(failure, param=name, message=failure.message.replace(f"`{failure.param}`", f"`{name}`", 1))


def _failure(path: str, why: str, lane: str) -> Failure:
    message = f"`{path}` is not supported on the {lane} lane: {why}."
    return Failure(code=Code.UNSUPPORTED_PARAMETER, message=message, param=path)


def _in_fields(request: Mapping[str, Any], fields: Mapping[str, Check]) -> Finding | None:
    for name, value in request.items():
        if value is None:
            continue
        check = fields.get(name)
        found = (name, _DIRECT) if check is None else check(value)
        if found is not None:
            return found
    return None


def _in_tools(request: Mapping[str, Any]) -> Finding | None:
    """What concerns tools and something besides."""
    tools = request.get("tools")
    found = text_tools.in_choice(request.get("tool_choice") or {"type": "none" if not tools else "auto"}, tools)
    if found is None and tools and (request.get("output_config") or {}).get("format") is not None:
        found = ("output_config.format", "it has an answer's form or tools, not both")
    return found or text_tools.unpaired(request["messages"])


def _always(value: Any) -> Finding | None:
    return None


def _only_empty(name: str, why: str) -> Check:
    return lambda value: (name, why) if value else None


def _max_tokens(value: Any) -> Finding | None:
    return ("max_tokens", "0 asks for a filled cache and no answer") if value == 0 else None


def _tool_choice(value: Any) -> Finding | None:
    return None if value.get("type") == "none" else ("tool_choice", "it has no tools")


def _service_tier(value: Any) -> Finding | None:
    return None if value in ("auto", "standard_only") else ("service_tier", "it has auto and standard_only")


def _thinking(value: Any) -> Finding | None:
    if value.get("type") not in ("enabled", "disabled", "adaptive"):
        return "thinking.type", "it has enabled, disabled and adaptive"
    return _unknown("thinking", value, {"type", "budget_tokens"})


def _output_config(value: Any) -> Finding | None:
    found = _unknown("output_config", value, {"format"})
    form = value.get("format")
    if found or form is None:
        return found
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        return "output_config.format", "it has json_schema"
    return _unknown("output_config.format", form, {"type", "schema"})


def _system(value: Any) -> Finding | None:
    if isinstance(value, str):
        return None
    blocks = (_unknown(f"system.{n}", block, BLOCK_FIELDS["text"]) for n, block in enumerate(value))
    return next(filter(None, blocks), None)


FIELDS: Final[Mapping[str, Check]] = {
    "model": _always,
    "messages": _always,
    "stream": _always,
    "metadata": _always,
    "cache_control": _always,
    "system": _system,
    "max_tokens": _max_tokens,
    "thinking": _thinking,
    "output_config": _output_config,
    "service_tier": _service_tier,
    "tools": _only_empty("tools", "it has no tools; use the direct lane"),
    "tool_choice": _tool_choice,
    "stop_sequences": _only_empty("stop_sequences", _DIRECT),
    "mcp_servers": _only_empty("mcp_servers", "it has no tools; use the direct lane"),
}
"""Every field that both lanes honour in whole or in part; a field that is not here is refused."""
CLIENT_TOOLS: Final[Mapping[str, Check]] = {"tools": text_tools.in_tools, "tool_choice": _always}
"""What the text lane has instead; a choice is looked at beside the tools."""

BLOCK_FIELDS: Final[Mapping[str, set[str]]] = {
    "text": {"type", "text", "cache_control"},
    "image": {"type", "source", "cache_control"},
    "document": {"type", "source", "title", "context", "citations", "cache_control"},
    "thinking": {"type", "thinking", "signature"},
    "redacted_thinking": {"type", "data"},
    "tool_use": {"type", "id", "name", "input", "cache_control", "caller"},
    "tool_result": {"type", "tool_use_id", "content", "is_error", "cache_control"},
}
ROLE_BLOCKS: Final[Mapping[str, tuple[str, ...]]] = {
    "user": ("text", "image", "document"),
    "assistant": ("text", "thinking", "redacted_thinking"),
}
TOOL_ROLE_BLOCKS: Final[Mapping[str, tuple[str, ...]]] = {
    "user": (*ROLE_BLOCKS["user"], "tool_result"),
    "assistant": (*ROLE_BLOCKS["assistant"], "tool_use"),
}


def _in_messages(messages: list[Mapping[str, Any]], kinds: Mapping[str, tuple[str, ...]]) -> Finding | None:
    for n, message in enumerate(messages):
        found = _in_message(f"messages.{n}", message, kinds)
        if found is not None:
            return found
    last = len(messages) - 1
    if messages[last]["role"] != "user":
        return f"messages.{last}.role", _PREFILL
    return (f"messages.{last}.content", _BLANK) if _is_blank(messages[last]["content"]) else None


def _is_blank(content: Any) -> bool:
    if isinstance(content, str):
        return not content.strip()
    return all(block["type"] == "text" and not block["text"].strip() for block in content)


def _in_message(path: str, message: Mapping[str, Any], kinds: Mapping[str, tuple[str, ...]]) -> Finding | None:
    role, content = message["role"], message["content"]
    if role not in kinds:
        return f"{path}.role", "it takes instructions from `system` only"
    found = _unknown(path, message, {"role", "content"})
    if found or isinstance(content, str):
        return found
    blocks = (_in_block(f"{path}.content.{n}", role, block, kinds[role]) for n, block in enumerate(content))
    return next(filter(None, blocks), None)


def _in_block(path: str, role: str, block: Mapping[str, Any], kinds: tuple[str, ...]) -> Finding | None:
    kind = block["type"]
    if kind not in kinds:
        return f"{path}.type", f"in a message of the {role} it has {', '.join(kinds)}"
    source = block.get("source")
    if isinstance(source, dict) and source.get("type") == "file":
        return f"{path}.source.type", "uploaded files belong to the credential, which it does not show"
    found = _unknown(path, block, BLOCK_FIELDS[kind])
    if kind == "tool_use":
        found = found or _in_call(path, block)
    elif kind == "tool_result":
        found = found or text_tools.in_result(f"{path}.content", block.get("content"))
    return found


def _in_call(path: str, block: Mapping[str, Any]) -> Finding | None:
    caller = block.get("caller")
    if caller is not None and caller != {"type": "direct"}:
        return f"{path}.caller", _DIRECT
    whole = isinstance(block.get("name"), str) and isinstance(block.get("input"), dict)
    return None if whole else (path, "a call has a name and an object as input")


def _unknown(path: str, given: Mapping[str, Any], known: set[str]) -> Finding | None:
    """The first field that is set and not known."""
    name = next((name for name, value in given.items() if value is not None and name not in known), None)
    return None if name is None else (f"{path}.{name}", _DIRECT)
