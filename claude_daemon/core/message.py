"""Folding a Messages API stream into the message it describes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from claude_daemon.core.task import Usage

_PIECES = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}
"""Deltas that come in pieces of a text, and the field that holds the piece."""


class MessageBuilder:
    """Consumes Messages API stream events in order; :attr:`message` is then the whole message.

    Unknown event and delta types are ignored, as the API's versioning policy asks of clients.
    """

    def __init__(self) -> None:
        self.message: dict[str, Any] = {}
        self.complete = False
        self._pieces: dict[tuple[int, str], list[str]] = {}

    def add(self, event: Mapping[str, Any]) -> None:
        kind = event.get("type")
        if kind == "content_block_delta":
            self._delta(int(event["index"]), event["delta"])
        elif kind == "message_start":
            self.message = {**event["message"], "content": []}
        elif kind == "content_block_start":
            self._blocks_up_to(int(event["index"]))[int(event["index"])] = dict(event["content_block"])
        elif kind == "content_block_stop":
            self._close(int(event["index"]))
        elif kind == "message_delta":
            self.message.update(event.get("delta") or {})
            usage = dict(self.message.get("usage") or {})
            usage.update({k: v for k, v in (event.get("usage") or {}).items() if v is not None})
            self.message["usage"] = usage
        elif kind == "message_stop":
            self.complete = True

    def text(self) -> str:
        """The text of all text blocks so far, closed or not."""
        parts: list[str] = []
        for index, block in enumerate(self.message.get("content", ())):
            if block.get("type") == "text":
                parts += [block.get("text", ""), *self._pieces.get((index, "text"), ())]
        return "".join(parts)

    def _blocks_up_to(self, index: int) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = self.message.setdefault("content", [])
        while len(blocks) <= index:
            blocks.append({})
        return blocks

    def _delta(self, index: int, delta: Mapping[str, Any]) -> None:
        field = _PIECES.get(delta["type"])
        if field is not None:
            self._pieces.setdefault((index, field), []).append(delta[field])
        elif delta["type"] == "signature_delta":
            self._blocks_up_to(index)[index]["signature"] = delta["signature"]
        elif delta["type"] == "citations_delta":
            block = self._blocks_up_to(index)[index]
            # the API starts such a block with null
            block["citations"] = [*(block.get("citations") or ()), delta["citation"]]

    def _close(self, index: int) -> None:
        block = self._blocks_up_to(index)[index]
        for field in ("text", "thinking"):
            pieces = self._pieces.pop((index, field), None)
            if pieces:
                block[field] = block.get(field, "") + "".join(pieces)
        partial = self._pieces.pop((index, "partial_json"), None)
        if partial is not None:
            text = "".join(partial)
            block["input"] = json.loads(text) if text.strip() else {}


MAX_TOKENS_OF_A_CALL = 100_000_000
"""Of one kind, in one turn: a hundred times the largest window there is. More is nobody's count."""


def usage_of(message_usage: Mapping[str, Any] | None, *, calls: int = 1) -> Usage:
    """A Messages API ``usage`` object as ours; what is absent counts as 0, and so does what is negative, absurd or no
    number, which makes the usage doubtful besides."""
    given = message_usage or {}
    counts = {name: 0 if given.get(name) is None else given[name] for name in _COUNTS}
    doubted = [name for name, count in counts.items() if not _is_count(count)]
    return Usage(**{**counts, **dict.fromkeys(doubted, 0)}, model_calls=calls, doubtful=int(bool(doubted)))


_COUNTS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS_OF_A_CALL
