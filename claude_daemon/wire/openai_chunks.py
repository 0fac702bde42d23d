"""A Messages API stream as ``chat.completion.chunk`` objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from claude_daemon.wire.openai_answer import arguments_of, finish_reason, usage_object

DONE: Final = b"data: [DONE]\n\n"
"""What the caller writes after the last chunk."""

_HOLE: Final = "\ue000"
"""Stands for the text in the template of a content chunk: a character for private use."""


class ChunkStream:
    """Translates one stream, event by event, in the order of their arrival.

    With `include_usage` every chunk has ``usage: null``, and one more without choices tells it at
    ``message_stop``. Unknown events, blocks and deltas give nothing, nor does ``error``: it is the caller's.
    """

    def __init__(self, *, id: str, created: int, model: str, include_usage: bool = False) -> None:
        self._head = {"id": id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._tail: dict[str, Any] = {"usage": None} if include_usage else {}
        self._include_usage = include_usage
        self._usage: dict[str, Any] = {}
        self._tools: dict[int, _Tool] = {}
        """Open and closed tool calls by the index of their block."""
        self._before, self._after = self._around_content()

    def feed(self, event: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The chunks that `event` means: none, one, or rarely two."""
        kind = event.get("type")
        if kind == "content_block_delta":
            return self._delta(event["index"], event["delta"])
        if kind == "content_block_start":
            return self._block(event["index"], event["content_block"])
        if kind == "content_block_stop":
            return self._block_end(event["index"])
        if kind == "message_start":
            self._count(event["message"].get("usage"))
            return [self._chunk({"role": "assistant", "content": ""})]
        if kind == "message_delta":
            return self._message_delta(event)
        if kind == "message_stop" and self._include_usage:
            return [self._head | {"choices": [], "usage": usage_object(self._usage)}]
        return []

    def feed_encoded(self, event: Mapping[str, Any]) -> bytes:
        """The same as finished server-sent events; empty where `event` means no chunk."""
        if event.get("type") == "content_block_delta" and event["delta"]["type"] == "text_delta":
            return self._before + orjson.dumps(event["delta"]["text"]) + self._after
        return b"".join([encode(chunk) for chunk in self.feed(event)])

    def _around_content(self) -> tuple[bytes, bytes]:
        before, _, after = encode(self._chunk({"content": _HOLE})).rpartition(orjson.dumps(_HOLE))
        return before, after

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return {**self._head, "choices": [choice], **self._tail}

    def _delta(self, index: int, delta: Mapping[str, Any]) -> list[dict[str, Any]]:
        kind = delta["type"]
        if kind == "text_delta":
            return [self._chunk({"content": delta["text"]})]
        if kind == "thinking_delta":
            return [self._chunk({"reasoning_content": delta["thinking"]})]
        if kind == "input_json_delta" and delta["partial_json"] and index in self._tools:
            return [self._arguments(self._tools[index], delta["partial_json"])]
        return []

    def _block(self, index: int, block: Mapping[str, Any]) -> list[dict[str, Any]]:
        kind = block["type"]
        if kind == "tool_use":
            return [self._call(index, block)]
        if kind == "text" and block.get("text"):
            return [self._chunk({"content": block["text"]})]
        if kind == "thinking" and block.get("thinking"):
            return [self._chunk({"reasoning_content": block["thinking"]})]
        return []

    def _call(self, index: int, block: Mapping[str, Any]) -> dict[str, Any]:
        tool = self._tools[index] = _Tool(len(self._tools), block.get("input") or {})
        function = {"name": block["name"], "arguments": ""}
        return self._chunk(
            {"tool_calls": [{"index": tool.index, "id": block["id"], "type": "function", "function": function}]}
        )

    def _arguments(self, tool: _Tool, piece: str) -> dict[str, Any]:
        tool.told = True
        return self._chunk({"tool_calls": [{"index": tool.index, "function": {"arguments": piece}}]})

    def _block_end(self, index: int) -> list[dict[str, Any]]:
        """A tool call without input has no deltas, and its arguments must be JSON all the same."""
        tool = self._tools.get(index)
        return [] if tool is None or tool.told else [self._arguments(tool, arguments_of(tool.input))]

    def _message_delta(self, event: Mapping[str, Any]) -> list[dict[str, Any]]:
        self._count(event.get("usage"))
        reason = (event.get("delta") or {}).get("stop_reason")
        return [self._chunk({}, finish_reason(reason))] if reason else []

    def _count(self, usage: Mapping[str, Any] | None) -> None:
        """Counts are cumulative: what a later event tells replaces what an earlier one told."""
        self._usage.update({name: value for name, value in (usage or {}).items() if value is not None})


class _Tool:
    __slots__ = ("index", "input", "told")

    def __init__(self, index: int, given: Mapping[str, Any]) -> None:
        self.index = index
        self.input = given
        self.told = False


def encode(chunk: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(chunk) + b"\n\n"
