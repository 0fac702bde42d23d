"""A Messages API answer as a ``chat.completion``, and what chunks and completions have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import orjson

FINISH: Final[Mapping[str, str]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def finish_reason(stop_reason: str | None) -> str:
    """OpenAI's word for why the answer ended; a reason that the API adds later is a ``stop``."""
    return FINISH.get(stop_reason or "", "stop")


def usage_object(usage: Mapping[str, Any] | None) -> dict[str, Any]:
    """OpenAI's usage: its prompt tokens include the cache's, which the Messages API counts apart."""
    given = usage or {}
    cached, written = _count(given, "cache_read_input_tokens"), _count(given, "cache_creation_input_tokens")
    prompt, completion = _count(given, "input_tokens") + cached + written, _count(given, "output_tokens")
    out: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    details = given.get("output_tokens_details")
    if isinstance(details, Mapping) and "thinking_tokens" in details:
        out["completion_tokens_details"] = {"reasoning_tokens": _count(details, "thinking_tokens")}
    return out


def arguments_of(tool_input: object) -> str:
    """A tool call's input as OpenAI has it: JSON in a string."""
    return orjson.dumps(tool_input).decode()


def completion(message: Mapping[str, Any], *, id: str, created: int, model: str) -> dict[str, Any]:
    """The whole answer; `id` begins with ``chatcmpl-``, `created` is in seconds since the epoch."""
    blocks = message.get("content") or ()
    answer: dict[str, Any] = {"role": "assistant", "content": _joined(blocks, "text"), "refusal": None}
    thinking = _joined(blocks, "thinking")
    if thinking:
        answer["reasoning_content"] = thinking
    calls = [_call(block) for block in blocks if block["type"] == "tool_use"]
    if calls:
        answer["tool_calls"] = calls
    reason = finish_reason(message.get("stop_reason"))
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [{"index": 0, "message": answer, "logprobs": None, "finish_reason": reason}],
        "usage": usage_object(message.get("usage")),
    }


def _joined(blocks: Iterable[Mapping[str, Any]], kind: str) -> str | None:
    """The text of all blocks of one kind, None where there is no such block."""
    found = [block[kind] for block in blocks if block["type"] == kind]
    return "".join(found) if found else None


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": block["name"], "arguments": arguments_of(block["input"])}
    return {"id": block["id"], "type": "function", "function": function}


def _count(given: Mapping[str, Any], name: str) -> int:
    value = given.get(name)
    return value if type(value) is int and value > 0 else 0
