"""A script as the Messages API puts it on the wire: its exact SSE events, or one message. Pure."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Final

import orjson

from claude_daemon.offline.errors import error_body
from claude_daemon.offline.script import Block, Script, Text, Thinking, ToolUse
from claude_daemon.offline.settings import Fault, FaultKind, UsageKind

Ids = Callable[[str], str]
"""A new id with the given prefix, such as `msg` or `toolu`."""

ABSURD_TOKENS: Final = 10**15
MALFORMED: Final = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"ty\n\n'


class Ending(Enum):
    """What follows the last chunk: the end of the body, silence, or a dropped connection."""

    END = auto()
    SILENCE = auto()
    DROP = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """The body of a streamed answer: each chunk ends with one delta, the last with all that follows it."""

    chunks: tuple[bytes, ...]
    ending: Ending


def stream(script: Script, ids: Ids, request_id: str) -> Stream:
    """The events of the script, up to its fault if it has one."""
    chunks: list[bytes] = []
    pending = b""
    stop = _after(script.fault)
    for event, is_delta in _events(script, ids):
        if is_delta and stop is not None and len(chunks) == stop:
            break
        pending += encode(event)
        if is_delta:
            chunks.append(pending)
            pending = b""
    else:
        if stop is not None:
            pending = b""
    return _end(script.fault, chunks, pending, request_id)


def message(script: Script, ids: Ids) -> dict[str, Any]:
    """The answer as one message."""
    whole = _head(script, ids)
    whole["content"] = [_content(block, ids) for block in script.blocks]
    whole |= _stop(script)
    _put_usage(whole, script, _usage(script, script.output_tokens))
    return whole


def encode(event: dict[str, Any]) -> bytes:
    """One event as SSE."""
    return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))


def _after(fault: Fault | None) -> int | None:
    """The deltas that arrive before a fault in mid-stream."""
    return None if fault is None or fault.kind in (FaultKind.ERROR, FaultKind.HANG) else fault.after


def _end(fault: Fault | None, chunks: list[bytes], pending: bytes, request_id: str) -> Stream:
    ending = Ending.END
    if fault is not None and fault.kind is FaultKind.STALL:
        ending = Ending.SILENCE
    elif fault is not None and fault.kind is FaultKind.CUT:
        ending = Ending.DROP
    elif fault is not None and fault.kind is FaultKind.MALFORMED:
        pending += MALFORMED
    elif fault is not None and fault.kind is FaultKind.ERROR_EVENT:
        pending += encode(error_body("overloaded_error", "Overloaded", request_id))
    if chunks and pending:
        chunks[-1] += pending
    elif pending:
        chunks.append(pending)
    return Stream(chunks=tuple(chunks), ending=ending)


def _events(script: Script, ids: Ids) -> Iterator[tuple[dict[str, Any], bool]]:
    """Every event in order, and whether it is a delta that carries a token."""
    start = _head(script, ids)
    _put_usage(start, script, _usage(script, 1))
    yield {"type": "message_start", "message": start}, False
    for index, block in enumerate(script.blocks):
        yield {"type": "content_block_start", "index": index, "content_block": _empty(block, ids)}, False
        if index == 0:
            yield {"type": "ping"}, False
        yield from _block_events(index, block)
        yield {"type": "content_block_stop", "index": index}, False
    if not script.blocks:
        yield {"type": "ping"}, False
    delta: dict[str, Any] = {"type": "message_delta", "delta": _stop(script)}
    _put_usage(delta, script, _cumulative(script))
    yield delta, False
    yield {"type": "message_stop"}, False


def _block_events(index: int, block: Block) -> Iterator[tuple[dict[str, Any], bool]]:
    def delta(kind: str, field: str, value: str) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": index, "delta": {"type": kind, field: value}}

    if isinstance(block, ToolUse):
        yield delta("input_json_delta", "partial_json", ""), False
    kind, field = {
        Text: ("text_delta", "text"),
        Thinking: ("thinking_delta", "thinking"),
        ToolUse: ("input_json_delta", "partial_json"),
    }[type(block)]
    for piece in block.pieces:
        yield delta(kind, field, piece), True
    if isinstance(block, Thinking):
        yield delta("signature_delta", "signature", block.signature), False


def _head(script: Script, ids: Ids) -> dict[str, Any]:
    return {
        "id": ids("msg"),
        "type": "message",
        "role": "assistant",
        "model": script.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _stop(script: Script) -> dict[str, Any]:
    stop: dict[str, Any] = {"stop_reason": script.stop_reason, "stop_sequence": script.stop_sequence}
    if script.stop_reason == "refusal":
        explanation = "Refused on demand by the offline model."
        stop["stop_details"] = {"type": "refusal", "category": None, "explanation": explanation}
    return stop


def _empty(block: Block, ids: Ids) -> dict[str, Any]:
    if isinstance(block, ToolUse):
        return {"type": "tool_use", "id": ids("toolu"), "name": block.name, "input": {}}
    if isinstance(block, Thinking):
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _content(block: Block, ids: Ids) -> dict[str, Any]:
    whole = _empty(block, ids)
    if isinstance(block, ToolUse):
        whole["input"] = orjson.loads("".join(block.pieces)) if block.complete else {}
    elif isinstance(block, Thinking):
        whole |= {"thinking": "".join(block.pieces), "signature": block.signature}
    else:
        whole["text"] = "".join(block.pieces)
    return whole


def _usage(script: Script, output_tokens: int) -> dict[str, Any]:
    """Usage as a message carries it."""
    usage = _cumulative(script) | {"output_tokens": _distorted(script, output_tokens)}
    written = usage["cache_creation_input_tokens"]
    usage["cache_creation"] = {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0}
    return usage | {"service_tier": "standard"}


def _cumulative(script: Script) -> dict[str, Any]:
    """Usage as `message_delta` carries it."""
    spent = script.input_usage
    return {
        "input_tokens": _distorted(script, spent.fresh),
        "cache_creation_input_tokens": _distorted(script, spent.cache_creation),
        "cache_read_input_tokens": _distorted(script, spent.cache_read),
        "output_tokens": _distorted(script, script.output_tokens),
    }


def _distorted(script: Script, tokens: int) -> int:
    if script.usage_kind is UsageKind.NEGATIVE:
        return -tokens
    return ABSURD_TOKENS if script.usage_kind is UsageKind.ABSURD and tokens else tokens


def _put_usage(target: dict[str, Any], script: Script, usage: dict[str, Any]) -> None:
    if script.usage_kind is not UsageKind.ABSENT:
        target["usage"] = usage
