"""One turn: the CLI's messages in, Messages API events out, pure.

The CLI retries by itself, and what it streamed before a retry is repeated: deltas are not final. :class:`TurnReader`
gives the caller *one* message: after a retry, text that was already given is skipped as long as it is repeated, and
the turn fails with ``answer_diverged`` when it is not. So block ends are held back until the block's successor or the
end of the message proves them (a cut stream also ends its blocks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from claude_daemon.core.errors import Code, Failure, failure_of_upstream_status
from claude_daemon.core.event import MESSAGE_EVENT, RETRY, Emission
from claude_daemon.core.message import usage_of
from claude_daemon.core.task import Outcome, State, Usage
from claude_daemon.engine.plan import BYTES_PER_TOKEN

_TEXT_FIELDS = {"text_delta": "text", "thinking_delta": "thinking"}
# Stop reasons after which the CLI would go on by itself, or call the answer an error; for our caller they are final.
_FINAL_STOP_REASONS = frozenset({"max_tokens", "refusal", "model_context_window_exceeded"})


@dataclass(slots=True)
class _Block:
    """A content block as given to the caller; ``again`` counts what the current try has repeated of it."""

    type: str
    pieces: list[str] = field(default_factory=list)
    length: int = 0
    given: str | None = None  # the joined pieces, while they are being repeated
    again: int = 0


class TurnReader:
    """Feed it each message of a turn until :attr:`outcome` is set.

    :attr:`interrupt` turns True when the turn should be interrupted; the CLI's ``result`` still ends it.
    ``usage`` is the daemon's own metering where there is one; otherwise the CLI's word is taken.
    """

    def __init__(self, *, show_thinking: bool = False, structured: bool = False, max_tokens: int | None = None) -> None:
        self.outcome: Outcome | None = None
        self.interrupt = False
        self._show_thinking = show_thinking
        self._structured = structured
        self._budget_bytes = max_tokens * BYTES_PER_TOKEN if max_tokens is not None else None
        self._stop_reason: str | None = None
        self._stop_sequence: str | None = None
        self._usage: dict[str, Any] = {}
        self._failure: Failure | None = None
        self._message_id: str | None = None
        self._started = False
        self._blocks: list[_Block] = []
        self._open: int | None = None
        self._places: dict[int, int | None] = {}  # the current try's block index -> ours; None: not shown
        self._next_place = 0
        self._out: list[Emission] = []

    def feed(self, message: Mapping[str, Any]) -> list[Emission]:
        """What the message means for the caller, often nothing."""
        self._out = []
        kind = message.get("type")
        if kind == "stream_event" and message.get("parent_tool_use_id") is None:
            self._stream_event(message["event"])
        elif kind == "assistant" and message.get("parent_tool_use_id") is None:
            self._assistant(message)
        elif kind == "system" and message.get("subtype") == "api_retry":
            self._retry(message)
        elif kind == "result":
            self._result(message)
        return self._out

    def fail(self, failure: Failure) -> None:
        """The turn has failed for a reason the CLI does not know; the first one stands. Asks for an interrupt."""
        if self._failure is None and self._stop_reason not in _FINAL_STOP_REASONS:
            self._failure = failure
            self.interrupt = True

    @property
    def anything_given(self) -> bool:
        """Whether the caller has seen a part of the answer: then a rerun elsewhere is no longer invisible."""
        return self._started

    def _stream_event(self, event: Mapping[str, Any]) -> None:
        if self._failure is not None or self._stop_reason in _FINAL_STOP_REASONS:
            return
        kind = event["type"]
        if kind == "content_block_delta":
            self._delta(event)
        elif kind == "message_start":
            self._new_try(event["message"])
        elif kind == "content_block_start":
            self._block_start(event["index"], event["content_block"])
        elif kind == "message_delta":
            self._message_delta(event)

    def _new_try(self, message: Mapping[str, Any]) -> None:
        self._message_id = message.get("id")
        self._places, self._next_place = {}, 0
        self._stop_reason = None
        self._usage = {**(message.get("usage") or {})}
        for block in self._blocks:
            block.given, block.again = "".join(block.pieces), 0
        if not self._started and not self._structured:
            self._started = True
            self._emit({"type": "message_start", "message": {**message, "content": []}})

    def _block_start(self, index: int, block: Mapping[str, Any]) -> None:
        kind = str(block.get("type"))
        if self._structured or (
            kind != "text" and not (self._show_thinking and kind in ("thinking", "redacted_thinking"))
        ):
            self._places[index] = None
            return
        place = self._places[index] = self._next_place
        self._next_place += 1
        if place < len(self._blocks):
            if self._blocks[place].type != kind:
                self._diverged()
            return
        self._close_open_block()
        self._blocks.append(_Block(kind))
        self._open = place
        self._emit({"type": "content_block_start", "index": place, "content_block": dict(block)})

    def _delta(self, event: Mapping[str, Any]) -> None:
        delta = event["delta"]
        place = self._places.get(event["index"])
        if place is None:
            return
        name = _TEXT_FIELDS.get(delta["type"])
        block = self._blocks[place]
        if name is None:
            if block.given is None:  # a signature belongs to the try that the caller saw
                self._emit({"type": "content_block_delta", "index": place, "delta": dict(delta)})
            return
        self._text(place, block, str(delta[name]), name)

    def _text(self, place: int, block: _Block, piece: str, name: str) -> None:
        if block.given is not None:
            repeated = block.given[block.again : block.again + len(piece)]
            if not piece.startswith(repeated):
                self._diverged()
                return
            block.again += len(repeated)
            piece = piece[len(repeated) :]
        if not piece:
            return
        block.pieces.append(piece)
        block.length += len(piece)
        if block.given is not None:
            block.given += piece
            block.again += len(piece)
        delta = {"type": f"{name}_delta", name: piece}
        self._emit({"type": "content_block_delta", "index": place, "delta": delta})
        if self._budget_bytes is not None and name == "text":
            self._budget_bytes -= len(piece.encode())
            if self._budget_bytes < 0:
                self._stop_reason = "max_tokens"
                self.interrupt = True

    def _message_delta(self, event: Mapping[str, Any]) -> None:
        delta = event.get("delta") or {}
        self._usage.update({k: v for k, v in (event.get("usage") or {}).items() if v is not None})
        self._stop_reason = delta.get("stop_reason")
        self._stop_sequence = delta.get("stop_sequence")
        if self._stop_reason in _FINAL_STOP_REASONS:
            self.interrupt = True

    def _assistant(self, message: Mapping[str, Any]) -> None:
        """An answer told whole. Its deltas came already, unless the CLI fell back to a call without streaming."""
        body = message.get("message") or {}
        if self._failure or message.get("error") or body.get("model") == "<synthetic>" or self._structured:
            return
        if body.get("id") != self._message_id or not self._started:
            self._new_try({**body, "content": []})
        elif self._places:
            return
        for block in body.get("content") or ():
            index = 1_000_000 + self._next_place  # beyond any index of the stream
            self._block_start(index, {**block, "text": ""} if block.get("type") == "text" else block)
            if block.get("type") == "text":
                self._delta({"index": index, "delta": {"type": "text_delta", "text": block["text"]}})
            self._places.pop(index, None)
        if body.get("stop_reason"):
            self._message_delta({"delta": body, "usage": body.get("usage")})

    def _retry(self, message: Mapping[str, Any]) -> None:
        data = {
            "attempt": message.get("attempt"),
            "max_retries": message.get("max_retries"),
            "delay_seconds": (message.get("retry_delay_ms") or 0) / 1000,
            "status": message.get("error_status"),
        }
        self._out.append(Emission(RETRY, data))

    def _result(self, message: Mapping[str, Any]) -> None:
        usage = usage_of(message.get("usage"), calls=int(message.get("num_turns") or 1))
        if self._failure is not None:
            self._end_failed(self._failure, usage)
        elif self._stop_reason in _FINAL_STOP_REASONS:
            self._end_well(str(self._stop_reason), usage)
        elif message.get("is_error") or message.get("subtype") != "success":
            self._end_failed(_failure_of_result(message), usage)
        elif self._structured:
            self._structured_result(message, usage)
        elif any(block.given is not None and block.again < len(block.given) for block in self._blocks):
            self._end_failed(self._diverged(), usage)
        else:
            self._whole_result(message)
            self._end_well(str(self._stop_reason or message.get("stop_reason") or "end_turn"), usage)

    def _whole_result(self, message: Mapping[str, Any]) -> None:
        """An answer that never was streamed (nothing of it was given) is told from the result itself."""
        if self._started:
            return
        self._new_try(
            {"id": message.get("uuid"), "type": "message", "role": "assistant", "usage": message.get("usage")}
        )
        if message.get("result"):
            self._block_start(0, {"type": "text", "text": ""})
            self._delta({"index": 0, "delta": {"type": "text_delta", "text": message["result"]}})

    def _structured_result(self, message: Mapping[str, Any], usage: Usage) -> None:
        if "structured_output" not in message or message["structured_output"] is None:
            why = "the model ended its turn without an answer in the asked form"
            self._end_failed(Failure(code=Code.SCHEMA_MISMATCH, message=why), usage)
            return
        self._structured = False
        self._new_try(
            {"id": message.get("uuid"), "type": "message", "role": "assistant", "usage": message.get("usage")}
        )
        self._usage = dict(message.get("usage") or {})
        self._block_start(0, {"type": "text", "text": ""})
        text = orjson.dumps(message["structured_output"]).decode()
        self._budget_bytes = None  # the form is whole or nothing
        self._delta({"index": 0, "delta": {"type": "text_delta", "text": text}})
        self._end_well("end_turn", usage)

    def _end_well(self, stop_reason: str, usage: Usage) -> None:
        self._close_open_block()
        if self._started:
            delta = {"stop_reason": stop_reason, "stop_sequence": self._stop_sequence}
            told = {k: v for k, v in self._usage.items() if k in _TOLD_USAGE}
            self._emit({"type": "message_delta", "delta": delta, "usage": told})
            self._emit({"type": "message_stop"})
        self.outcome = Outcome(state=State.SUCCEEDED, usage=usage, stop_reason=stop_reason)

    def _end_failed(self, failure: Failure, usage: Usage) -> None:
        self.outcome = Outcome(state=State.FAILED, usage=usage, failure=failure)

    def _diverged(self) -> Failure:
        why = "the stream broke, and the model's second answer differs from what was already sent"
        failure = Failure(code=Code.ANSWER_DIVERGED, message=why)
        self.fail(failure)
        return failure

    def _close_open_block(self) -> None:
        if self._open is not None:
            self._emit({"type": "content_block_stop", "index": self._open})
            self._open = None

    def _emit(self, event: Mapping[str, Any]) -> None:
        self._out.append(Emission(MESSAGE_EVENT, event))


_TOLD_USAGE = frozenset(
    {
        "input_tokens",
        "output_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "output_tokens_details",
    }
)


def _failure_of_result(message: Mapping[str, Any]) -> Failure:
    """What an error result says, as far as the CLI tells it."""
    said = message.get("result") or "; ".join(map(str, message.get("errors") or ())) or "the turn ended in an error"
    status = message.get("api_error_status")
    if isinstance(status, int):
        return failure_of_upstream_status(status, str(said))
    if message.get("terminal_reason") == "api_error":
        return Failure(code=Code.UPSTREAM_UNREACHABLE, message=str(said))
    return Failure(code=Code.UPSTREAM_ERROR, message=str(said))
