"""A worker's request with another system prompt or schema than the worker's own, pure.

A Claude Code process keeps what it was bound to. Where no other process is at hand, the broker puts the asked system
prompt where the worker's own stands, so that the upstream sees what a process bound to it would have sent, and asks for
the answer's form in the API's own words (``output_config.format``).
"""

from __future__ import annotations

from typing import Any

import orjson

from claude_daemon.ports import Loan


class NoSystemBlock(Exception):
    """The request does not hold the worker's own system prompt as a block of its own: nothing may be sent."""


def on_loan(body: bytes, loan: Loan) -> bytes:
    """The request's body as the loan asks for it. Raises :class:`NoSystemBlock`, ValueError."""
    request: dict[str, Any] = orjson.loads(body)
    if loan.own != loan.asked:
        request["system"] = _with_system(request.get("system") or [], loan)
    if loan.schema is not None:
        form = {"type": "json_schema", "schema": orjson.loads(loan.schema)}
        request["output_config"] = {**(request.get("output_config") or {}), "format": form}
    if loan.tool_choice is not None and request.get("tools"):
        request["tool_choice"] = orjson.loads(loan.tool_choice)
    return orjson.dumps(request)


def _with_system(given: str | list[dict[str, Any]], loan: Loan) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = [{"type": "text", "text": given}] if isinstance(given, str) else list(given)
    if loan.own:
        places = [n for n, block in enumerate(blocks) if block.get("text") == loan.own]
        if len(places) != 1:
            raise NoSystemBlock
        (place,) = places
        mark = {key: value for key, value in blocks.pop(place).items() if key != "text"}
    else:
        place, mark = len(blocks), {"type": "text", "cache_control": {"type": "ephemeral"}}
    if loan.asked:
        blocks.insert(place, {**mark, "text": loan.asked})
    return blocks
