"""What followers of a task are told, made from what its engine said (INTERFACE.md, "Event types")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson

from claude_daemon.core.event import MESSAGE_EVENT, Emission

MAX_DATA_BYTES: Final = 64 * 1024
"""One event's data as JSON; INTERFACE.md names it."""

_CUTS: Final = (32 * 1024, 8 * 1024, 2 * 1024, 512, 128)
"""Characters left of each text in data that is too large, tried in turn until the whole fits."""
_SAFE_CHARACTERS: Final = MAX_DATA_BYTES // 8
"""A text of this length fits however JSON writes it: at most 6 bytes a character, and the field's name."""

_FIELDS: Final[Mapping[str, tuple[str, str]]] = {
    "text_delta": ("text.delta", "text"),
    "thinking_delta": ("thinking.delta", "thinking"),
}


def encoded(task_id: str, seq: int, at: float, emission: Emission) -> tuple[str, bytes] | None:
    """The public event's type and its whole JSON; None for what followers are not told. Pure.

    Of the Messages API's stream, text, thinking and usage are told. All else passes under its own type. ``at`` is its
    time in seconds since the epoch.
    """
    told = _told(emission.data) if emission.type == MESSAGE_EVENT else (emission.type, bounded(emission.data))
    if told is None:
        return None
    kind, data = told
    return kind, orjson.dumps({"task": task_id, "seq": seq, "type": kind, "at": round(at, 3), "data": data})


def parts(emission: Emission) -> list[Emission]:
    """The same in pieces small enough to be told whole: a delta of an answer is never cut."""
    if emission.type != MESSAGE_EVENT or emission.data.get("type") != "content_block_delta":
        return [emission]
    delta = emission.data["delta"]
    field = _FIELDS.get(delta.get("type", ""), ("", ""))[1]
    if not field or len(delta[field]) <= _SAFE_CHARACTERS:
        return [emission]
    text = delta[field]
    pieces = (text[at : at + _SAFE_CHARACTERS] for at in range(0, len(text), _SAFE_CHARACTERS))
    return [Emission(MESSAGE_EVENT, {**emission.data, "delta": {**delta, field: piece}}) for piece in pieces]


def _told(event: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    kind = event.get("type")
    if kind == "content_block_delta":
        delta = event["delta"]
        name, field = _FIELDS.get(delta["type"], ("", ""))
        return _text(name, delta[field]) if name else None
    if kind == "content_block_start":
        block = event["content_block"]
        name, field = _FIELDS.get(f"{block['type']}_delta", ("", ""))
        return _text(name, block[field]) if block.get(field) else None
    if kind == "message_delta" and event.get("usage"):
        return "usage", bounded(event["usage"])
    return None


def _text(name: str, text: str) -> tuple[str, Mapping[str, Any]]:
    data = {"text": text}
    return name, data if len(text) <= _SAFE_CHARACTERS else bounded(data)


def bounded(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """`data`, cut where its JSON is larger than :data:`MAX_DATA_BYTES`.

    What is cut has ``truncated: true`` and its ``size_bytes``; of its texts is left what fits, or nothing.
    """
    size = len(orjson.dumps(data))
    if size <= MAX_DATA_BYTES:
        return data
    mark = {"truncated": True, "size_bytes": size}
    for length in _CUTS:
        cut = {name: _shortened(value, length) for name, value in data.items()} | mark
        if len(orjson.dumps(cut)) <= MAX_DATA_BYTES:
            return cut
    return mark


def _shortened(value: Any, length: int) -> Any:
    if isinstance(value, str):
        return value[:length]
    if isinstance(value, Mapping):
        return {name: _shortened(inner, length) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(inner, length) for inner in value]
    return value
