"""The gateway's own answers for probes: no upstream is asked.

The answer's text is JSON that tells what the upstream would have been sent: ``{"system": [texts], "messages":
[[role, text], …], "model": …}``. A last message that holds :data:`HANG` gets no answer until the caller leaves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import orjson
from aiohttp import web

HANG: Final = "claude-daemon-probe-hang"
_HANG_LIMIT_S: Final = 20.0  # longer than any probe waits


async def answer(request: web.BaseRequest, body: bytes) -> web.StreamResponse:
    """One canned answer, streamed or not, as the request asks."""
    asked = orjson.loads(body)
    seen = what_was_sent(asked)
    if HANG in seen["messages"][-1][1]:
        await asyncio.sleep(_HANG_LIMIT_S)
    text = orjson.dumps(seen).decode()
    message = {
        "id": "msg_probe",
        "type": "message",
        "role": "assistant",
        "model": asked.get("model"),
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }
    if not asked.get("stream"):
        return web.Response(body=orjson.dumps(message), content_type="application/json")
    stream = b"".join(_event(event) for event in _events(message, text))
    return web.Response(body=stream, content_type="text/event-stream")


def what_was_sent(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The request, reduced to what a probe wants to see; the CLI's own notes in angle brackets are left out."""
    system = asked.get("system") or []
    texts = [system] if isinstance(system, str) else [str(block.get("text", "")) for block in system]
    messages = []
    for message in asked["messages"]:
        if message["role"] not in ("user", "assistant"):
            continue
        content = message["content"]
        blocks = [{"text": content}] if isinstance(content, str) else content
        said = [str(block.get("text", "")) for block in blocks]
        messages.append([message["role"], "\n".join(text for text in said if not text.lstrip().startswith("<"))])
    tools = [tool.get("name") for tool in asked.get("tools") or ()]
    return {"system": texts, "messages": messages, "model": asked.get("model"), "tools": tools}


def _events(message: Mapping[str, Any], text: str) -> list[dict[str, Any]]:
    return [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 0},
        },
        {"type": "message_stop"},
    ]


def _event(event: Mapping[str, Any]) -> bytes:
    return b"event: " + str(event["type"]).encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"
