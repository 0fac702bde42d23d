"""The gateway's own answers for probes: no upstream is asked.

The answer's text is JSON that tells what the upstream would have been sent: ``{"system": [texts], "messages":
[[role, text], …], "model": …, "tools": [names], "calls": [[type, id, name], …]}``. A last message that holds
:data:`HANG` gets no answer until the caller leaves; to one that holds :data:`CALL` the answer is two calls of the first
tool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import orjson
from aiohttp import web

HANG: Final = "claude-daemon-probe-hang"
CALL: Final = "claude-daemon-probe-call"
_HANG_LIMIT_S: Final = 20.0  # longer than any probe waits


async def answer(request: web.BaseRequest, body: bytes) -> web.StreamResponse:
    """One canned answer, streamed or not, as the request asks."""
    asked = orjson.loads(body)
    seen = what_was_sent(asked)
    if HANG in seen["messages"][-1][1]:
        await asyncio.sleep(_HANG_LIMIT_S)
    blocks: list[dict[str, Any]] = [{"type": "text", "text": orjson.dumps(seen).decode()}]
    if CALL in seen["messages"][-1][1] and seen["tools"]:
        names = [seen["tools"][0]] * 2
        given = {"file_path": "/dev/null"} if names[0] == "Read" else {}
        blocks = [
            {"type": "tool_use", "id": f"toolu_{n}", "name": name, "input": given} for n, name in enumerate(names)
        ]
    stop_reason = "end_turn" if blocks[0]["type"] == "text" else "tool_use"
    message = {
        "id": "msg_probe",
        "type": "message",
        "role": "assistant",
        "model": asked.get("model"),
        "content": blocks,
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }
    if not asked.get("stream"):
        return web.Response(body=orjson.dumps(message), content_type="application/json")
    stream = b"".join(_event(event) for event in _events(message))
    return web.Response(body=stream, content_type="text/event-stream")


def what_was_sent(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The request, reduced to what a probe wants to see; the CLI's own notes in angle brackets are left out."""
    system = asked.get("system") or []
    texts = [system] if isinstance(system, str) else [str(block.get("text", "")) for block in system]
    messages, calls = [], []
    for message in asked["messages"]:
        if message["role"] not in ("user", "assistant"):
            continue
        content = message["content"]
        blocks = [{"text": content}] if isinstance(content, str) else content
        tools = [block for block in blocks if block.get("type") in ("tool_use", "tool_result")]
        calls += [[b["type"], b.get("id") or b.get("tool_use_id"), b.get("name")] for b in tools]
        said = [str(block.get("text", "")) for block in blocks]
        messages.append([message["role"], "\n".join(text for text in said if not text.lstrip().startswith("<"))])
    offered = [tool.get("name") for tool in asked.get("tools") or ()]
    return {"system": texts, "messages": messages, "model": asked.get("model"), "tools": offered, "calls": calls}


def _events(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    for index, block in enumerate(message["content"]):
        if block["type"] == "text":
            start, delta = {**block, "text": ""}, {"type": "text_delta", "text": block["text"]}
        else:
            given = orjson.dumps(block["input"]).decode()
            start, delta = {**block, "input": {}}, {"type": "input_json_delta", "partial_json": given}
        told += [
            {"type": "content_block_start", "index": index, "content_block": start},
            {"type": "content_block_delta", "index": index, "delta": delta},
            {"type": "content_block_stop", "index": index},
        ]
    return [
        {"type": "message_start", "message": {**message, "content": [], "stop_reason": None}},
        *told,
        {
            "type": "message_delta",
            "delta": {"stop_reason": message["stop_reason"], "stop_sequence": None},
            "usage": {"output_tokens": 0},
        },
        {"type": "message_stop"},
    ]


def _event(event: Mapping[str, Any]) -> bytes:
    return b"event: " + str(event["type"]).encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"
