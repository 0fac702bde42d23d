"""What the text lane takes of a client's own tools: their list, the choice among them, their calls and results. Pure.

Claude Code hands the list on as it is within these limits, all measured: beyond them it cuts, rewrites or drops.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

Finding = tuple[str, str]
"""A dotted path, and why the text lane cannot honour what stands there."""

_NAME: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
MAX_DESCRIPTION_UNITS: Final = 4096
"""UTF-16 units, as Claude Code counts; what is longer it cuts."""
_TOOL_FIELDS: Final = frozenset({"type", "name", "description", "input_schema", "strict", "cache_control"})
_CHOICE_FIELDS: Final = frozenset({"type", "name", "disable_parallel_tool_use"})
_COMBINED: Final = ("anyOf", "oneOf", "allOf")
_DIRECT: Final = "only the direct lane honours it"
RESULT_PARTS: Final = ("text", "image", "document")
"""What a tool's result may be made of."""


def in_tools(tools: Any) -> Finding | None:
    """The first fault of a request's ``tools``."""
    seen: set[str] = set()
    for number, tool in enumerate(tools):
        found = next(_in_tool(f"tools.{number}", tool), None)
        if found is not None:
            return found
        if tool["name"] in seen:
            return f"tools.{number}.name", f"there are two tools of the name {tool['name']}"
        seen.add(tool["name"])
    return None


def _in_tool(path: str, tool: Mapping[str, Any]) -> Iterator[Finding]:
    if tool.get("type") not in (None, "custom"):
        yield f"{path}.type", "it has the client's own tools only"
    name, description = tool.get("name"), tool.get("description") or ""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield f"{path}.name", "a name has up to 64 letters, digits, _ and -"
    if not isinstance(description, str) or len(description.encode("utf-16-le", "replace")) > 2 * MAX_DESCRIPTION_UNITS:
        yield f"{path}.description", f"the description of {name} must be a text of {MAX_DESCRIPTION_UNITS} characters"
    for field, value in tool.items():
        if value is not None and field not in _TOOL_FIELDS:
            yield f"{path}.{field}", _DIRECT
    yield from _in_schema(f"{path}.input_schema", tool.get("input_schema"))


def _in_schema(path: str, schema: Any) -> Iterator[Finding]:
    if not isinstance(schema, dict) or schema.get("type") != "object":
        yield path, "a tool's input must be of type object"
        return
    for word in _COMBINED:
        if word in schema:
            yield f"{path}.{word}", "Claude Code rewrites it at the top of a schema"
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not all(isinstance(value, dict | bool) for value in properties.values()):
        yield f"{path}.properties", "each property must be a schema"
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        yield f"{path}.required", "it must be a list of names"


def in_choice(choice: Mapping[str, Any], tools: Any) -> Finding | None:
    """The first fault of a request's ``tool_choice``."""
    kind = choice.get("type")
    if not tools:
        return None if kind == "none" else ("tool_choice", "there are no tools to choose from")
    if kind not in ("auto", "any", "tool", "none"):
        return "tool_choice.type", "it has auto, any, tool and none"
    if kind == "tool" and choice.get("name") not in [tool["name"] for tool in tools]:
        return "tool_choice.name", "no tool of this name is in `tools`"
    unknown = next((name for name, value in choice.items() if value is not None and name not in _CHOICE_FIELDS), None)
    return None if unknown is None else (f"tool_choice.{unknown}", _DIRECT)


def in_result(path: str, content: Any) -> Finding | None:
    """The first fault of a tool result's content."""
    if content is None or isinstance(content, str):
        return None
    for number, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, dict) or part.get("type") not in RESULT_PARTS:
            return f"{path}.{number}.type", f"in a tool's result it has {', '.join(RESULT_PARTS)}"
    return None if isinstance(content, list) else (path, "a tool's result is a text or a list of blocks")


def unpaired(messages: list[Mapping[str, Any]]) -> Finding | None:
    """The first call without a result in the next message, or result without a call: Claude Code would mend those.

    The messages alternate as the Messages API merges them; results come before all else in theirs.
    """
    open_calls: dict[str, str] = {}
    previous = ""
    for n, message in enumerate(messages):
        blocks = [] if isinstance(message["content"], str) else message["content"]
        if message["role"] == "assistant":
            if open_calls and previous != "assistant":
                return _unanswered(open_calls)
            calls = enumerate(blocks)
            open_calls |= {str(b.get("id")): f"messages.{n}.content.{m}" for m, b in calls if b["type"] == "tool_use"}
        else:
            rest = previous == "user"
            for m, block in enumerate(blocks):
                path = f"messages.{n}.content.{m}"
                if block["type"] != "tool_result":
                    rest = True
                elif open_calls.pop(str(block.get("tool_use_id")), None) is None:
                    return f"{path}.tool_use_id", "no call of the message before has this id"
                elif rest and previous != "user":
                    return path, "the results of tools come first in a message"
        previous = message["role"]
    return _unanswered(open_calls) if open_calls else None


def _unanswered(open_calls: Mapping[str, str]) -> Finding:
    return next(iter(open_calls.values())), "the message after it does not hold the result of this call"
