"""Random messages, and the Messages API streams that tell them."""

from __future__ import annotations

from typing import Any

import orjson
from hypothesis import strategies as st

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
INPUTS = st.dictionaries(TEXTS, st.one_of(st.integers(-(2**53), 2**53), TEXTS, st.booleans(), st.none()), max_size=4)
STOPS = (
    "end_turn",
    "max_tokens",
    "stop_sequence",
    "tool_use",
    "pause_turn",
    "refusal",
    "model_context_window_exceeded",
)
COUNTS = st.integers(0, 10**6)

BLOCKS = st.one_of(
    st.builds(lambda text: {"type": "text", "text": text, "citations": None}, TEXTS),
    st.builds(lambda text: {"type": "thinking", "thinking": text, "signature": "sig"}, TEXTS),
    st.builds(lambda n, given: {"type": "tool_use", "id": f"toolu_{n}", "name": "f", "input": given}, COUNTS, INPUTS),
)
MESSAGES = st.builds(
    lambda blocks, stop, counts: {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": blocks,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": dict(
            zip(
                ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"),
                counts,
                strict=True,
            )
        ),
    },
    st.lists(BLOCKS, max_size=5),
    st.sampled_from(STOPS),
    st.tuples(COUNTS, COUNTS, COUNTS, COUNTS),
)

_DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "partial_json": "input_json_delta"}


def pieces(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def stream_of(message: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """The events that tell `message`, in deltas of `size` characters."""
    usage = message["usage"] | {"output_tokens": 1}
    start = message | {"content": [], "stop_reason": None, "usage": usage}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(message["content"]):
        events += _block_events(index, block, size)
    delta = {"stop_reason": message["stop_reason"], "stop_sequence": None}
    output = {"output_tokens": message["usage"]["output_tokens"], "input_tokens": None}
    return [*events, {"type": "message_delta", "delta": delta, "usage": output}, {"type": "message_stop"}]


def _block_events(index: int, block: dict[str, Any], size: int) -> list[dict[str, Any]]:
    kind = block["type"]
    if kind == "tool_use":
        empty, field = block | {"input": {}}, "partial_json"
        text = orjson.dumps(block["input"]).decode() if block["input"] else ""
    else:
        empty, field, text = block | {kind: ""}, kind, block[kind]
    deltas = [{"type": _DELTAS[field], field: piece} for piece in pieces(text, size)]
    if kind == "thinking":
        empty["signature"] = ""
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    return [
        {"type": "content_block_start", "index": index, "content_block": empty},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]
