"""A worker's request with another system prompt in the place of its own, pure.

A Claude Code process keeps the system prompt it was bound to. Where no other process is at hand, the broker puts the
asked one where the worker's own stands, so that the upstream sees what a process bound to it would have sent.
"""

from __future__ import annotations

from typing import Any

import orjson

from claude_daemon.ports import SystemSwap


class NoSystemBlock(Exception):
    """The request does not hold the worker's own system prompt as a block of its own: nothing may be sent."""


def with_system(body: bytes, swap: SystemSwap) -> bytes:
    """The request's body with ``swap.asked`` as its system prompt. Raises :class:`NoSystemBlock`, ValueError."""
    request: dict[str, Any] = orjson.loads(body)
    given = request.get("system") or []
    blocks: list[dict[str, Any]] = [{"type": "text", "text": given}] if isinstance(given, str) else list(given)
    if swap.own:
        places = [n for n, block in enumerate(blocks) if block.get("text") == swap.own]
        if len(places) != 1:
            raise NoSystemBlock
        (place,) = places
        mark = {key: value for key, value in blocks.pop(place).items() if key != "text"}
    else:
        place, mark = len(blocks), {"type": "text", "cache_control": {"type": "ephemeral"}}
    if swap.asked:
        blocks.insert(place, {**mark, "text": swap.asked})
    request["system"] = blocks
    return orjson.dumps(request)
