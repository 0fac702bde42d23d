"""Answers that must satisfy a schema: the end of one is told only when the whole has been judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from claude_daemon.core.depth import deeper_than
from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.event import MESSAGE, MESSAGE_EVENT, Emission
from claude_daemon.core.task import Outcome, State
from claude_daemon.ports import Schemas

MAX_STRUCTURED_DEPTH: Final = 100
"""Whoever tells it again wraps it in some levels more, and JSON is written down to 254 levels."""
# An answer that ended otherwise was cut short or refused: it is told as it is, its stop reason says so.
_WHOLE: Final = frozenset({"end_turn", "stop_sequence"})


def _too_deep(text: str) -> Failure | None:
    """Of an answer that is JSON, and satisfies its schema."""
    if text.count("{") + text.count("[") <= MAX_STRUCTURED_DEPTH or structured(text) is not None:
        return None
    why = f"the answer is nested more than {MAX_STRUCTURED_DEPTH} levels deep"
    return Failure(code=Code.SCHEMA_MISMATCH, message=why)


def structured(text: str) -> Any:
    """The JSON that an answer is; None for one that was cut short, as its stop reason says, or is nested too deep."""
    try:
        value = orjson.loads(text)
    except ValueError:
        return None
    return None if deeper_than(value, MAX_STRUCTURED_DEPTH) else value


class Judge:
    """Collects an answer's text and holds back its end."""

    def __init__(self, schemas: Schemas, schema: Mapping[str, Any]) -> None:
        self._schemas = schemas
        self._schema = schema
        self._pieces: list[str] = []
        self._held: list[Emission] = []

    def hold(self, emissions: Sequence[Emission]) -> list[Emission]:
        """What may be told now."""
        told: list[Emission] = []
        for emission in emissions:
            self._read(emission)
            last = emission.type == MESSAGE or emission.data.get("type") in ("message_delta", "message_stop")
            (self._held if last or self._held else told).append(emission)
        return told

    async def judge(self, outcome: Outcome) -> tuple[Outcome, Sequence[Emission]]:
        """How the task ended with its answer judged, and what was held back if it may be told now."""
        if outcome.state is not State.SUCCEEDED:
            return outcome, ()
        if outcome.stop_reason in _WHOLE:
            text = "".join(self._pieces)
            failure = await self._schemas.validate(self._schema, text) or _too_deep(text)
            if failure is not None:
                return Outcome(state=State.FAILED, usage=outcome.usage, failure=failure), ()
        return outcome, self._held

    def _read(self, emission: Emission) -> None:
        data = emission.data
        if emission.type == MESSAGE:
            self._pieces += [block["text"] for block in data.get("content", ()) if block.get("type") == "text"]
        elif emission.type == MESSAGE_EVENT and data.get("type") == "content_block_delta":
            self._pieces.append(data["delta"].get("text", ""))
