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
from claude_daemon.engine.client_tools import client_name, is_server_request, method
from claude_daemon.engine.plan import BYTES_PER_TOKEN

_TEXT_FIELDS = {"text_delta": "text", "thinking_delta": "thinking"}
# Stop reasons after which the CLI would go on by itself, or call the answer an error; for our caller they are final.
_FINAL_STOP_REASONS = frozenset({"max_tokens", "refusal", "model_context_window_exceeded"})


# What reading a message of an unknown shape raises: the CLI's JSON is not ours to trust.
UNREADABLE = (KeyError, TypeError, AttributeError, IndexError, ValueError)


@dataclass(slots=True)
class _Block:
    """A content block as given to the caller; ``again`` and ``extras_again`` count what this try has repeated of it.

    ``extras`` are deltas without text of their own: a signature, a citation. They are not compared, only counted.
    """

    type: str
    call: str | None = None
    """The id of a tool call."""
    pieces: list[str] = field(default_factory=list)
    given: str | None = None  # the joined pieces, while they are being repeated
    again: int = 0
    extras: int = 0
    extras_again: int = 0

    def begin_again(self) -> None:
        self.given, self.again, self.extras_again = "".join(self.pieces), 0, 0

    @property
    def repeated(self) -> bool:
        """Whether the current try has said all of what the caller was given."""
        return self.given is None or self.again >= len(self.given)


class TurnReader:
    """Feed it each message of a turn until :attr:`outcome` is set.

    :attr:`interrupt` turns True when the turn should be interrupted; the CLI's ``result`` still ends it.
    ``usage`` is the daemon's own metering where there is one; otherwise the CLI's word is taken. ``tools`` are the
    names of the client's own tools: a message that calls some is the turn's last, and their answers are the client's.
    """

    def __init__(
        self,
        *,
        show_thinking: bool = False,
        structured: bool = False,
        max_tokens: int | None = None,
        tools: frozenset[str] = frozenset(),
    ) -> None:
        self.outcome: Outcome | None = None
        self.interrupt = False
        self._show_thinking = show_thinking
        self._structured = structured
        self._tools = tools
        self._final = _FINAL_STOP_REASONS | {"tool_use"} if tools else _FINAL_STOP_REASONS
        self._budget_bytes = max_tokens * BYTES_PER_TOKEN if max_tokens is not None else None
        self._stop_reason: str | None = None
        self._stop_sequence: str | None = None
        self._usage: dict[str, Any] = {}
        self._failure: Failure | None = None
        self._message: Mapping[str, Any] = {}  # of the current try, as its start told it
        self._started = False
        self._blocks: list[_Block] = []
        self._open: int | None = None
        self._called_unstreamed: Mapping[str, Any] | None = None  # the end of a message that was not streamed
        self._places: dict[int, int | None] = {}  # the current try's block index -> ours; None: not shown
        self._next_place = 0
        self._out: list[Emission] = []

    def feed(self, message: Mapping[str, Any]) -> list[Emission]:
        """What the message means for the caller, often nothing. A message that cannot be read fails the turn."""
        self._out = []
        try:
            self._read(message)
        except UNREADABLE:
            unreadable = Failure(code=Code.UPSTREAM_MALFORMED, message="Claude Code sent a message that cannot be read")
            self.fail(unreadable)
            if message.get("type") == "result":
                self._end_failed(self._failure or unreadable, Usage())
        return self._out

    def _read(self, message: Mapping[str, Any]) -> None:
        kind = message.get("type")
        if kind == "result":
            self._end(message)
        elif kind == "system" and message.get("subtype") == "api_retry":
            self._retry(message)
        elif self._over or message.get("parent_tool_use_id") is not None:
            return
        elif kind == "stream_event":
            self._stream_event(message["event"])
        elif kind == "assistant":
            self._assistant(message)
        elif self._called_unstreamed is not None and is_server_request(message) and method(message) == "tools/call":
            self._message_delta(self._called_unstreamed)

    @property
    def _over(self) -> bool:
        """Nothing more is told but the end."""
        return self._failure is not None or self._stop_reason in self._final

    def fail(self, failure: Failure) -> None:
        """The turn has failed for a reason the CLI does not know; the first one stands. Asks for an interrupt."""
        if not self._over:
            self._failure = failure
            self.interrupt = True

    def give_up(self) -> list[Emission]:
        """The end of a turn that is over for the caller, without the ``result`` that did not come; see ``outcome``."""
        self._out = []
        if self._over:
            self._end({})
        return self._out

    def _stream_event(self, event: Mapping[str, Any]) -> None:
        kind = event["type"]
        if kind == "content_block_delta":
            self._delta(event["index"], event["delta"])
        elif kind == "message_start":
            self._new_try(event["message"])
        elif kind == "content_block_start":
            self._block_start(event["index"], event["content_block"])
        elif kind == "message_delta":
            self._message_delta(event)
        elif kind == "message_stop":
            self._message_stop()

    def _new_try(self, message: Mapping[str, Any]) -> None:
        self._message = message
        self._places, self._next_place = {}, 0
        self._stop_reason = self._called_unstreamed = None
        self._usage = {**(message.get("usage") or {})}
        for block in self._blocks:
            block.begin_again()
        if not self._structured:
            self._start()

    def _start(self) -> None:
        """The caller's one ``message_start``, complete whatever the CLI told of it."""
        if not self._started:
            self._started = True
            message = {**_EMPTY_MESSAGE, **self._message, "content": [], "stop_reason": None, "stop_sequence": None}
            self._emit({"type": "message_start", "message": message})

    def _block_start(self, index: int, block: Mapping[str, Any]) -> None:
        kind = str(block.get("type"))
        shown = (
            kind == "text"
            or (self._show_thinking and kind in ("thinking", "redacted_thinking"))
            or (bool(self._tools) and kind == "tool_use")
        )
        if self._structured or not shown:
            self._places[index] = None
            return
        if kind == "tool_use":
            block = {**block, "name": client_name(str(block["name"]))}
            if block["name"] not in self._tools:
                # the CLI would tell the model so, with a call that nobody asked for
                self.fail(Failure(code=Code.UPSTREAM_ERROR, message="the model called a tool that was not offered"))
                return
        place = self._places[index] = self._next_place
        self._next_place += 1
        if not all(earlier.repeated for earlier in self._blocks[:place]):
            self._diverged()
        elif place < len(self._blocks):
            if (self._blocks[place].type, self._blocks[place].call) != (kind, block.get("id")):
                self._diverged()
        else:
            self._close_open_block()
            self._blocks.append(_Block(kind, block.get("id")))
            self._open = place
            self._start()
            self._emit({"type": "content_block_start", "index": place, "content_block": dict(block)})

    def _delta(self, index: int, delta: Mapping[str, Any]) -> None:
        place = self._places.get(index)
        if place is None:
            return
        name = _TEXT_FIELDS.get(delta["type"])
        if name is not None:
            self._text(place, str(delta[name]), name)
            return
        block = self._blocks[place]
        block.extras_again += 1
        if block.extras_again > block.extras and place == self._open:
            block.extras += 1
            self._emit({"type": "content_block_delta", "index": place, "delta": dict(delta)})

    def _text(self, place: int, piece: str, name: str) -> None:
        block = self._blocks[place]
        if block.given is not None:
            expected = block.given[block.again : block.again + len(piece)]
            if not piece.startswith(expected):
                self._diverged()
                return
            block.again += len(expected)
            piece = piece[len(expected) :]
        if not piece:
            return
        if place != self._open:  # more than the caller was given of a block that is closed
            self._diverged()
            return
        block.pieces.append(piece)
        self._emit({"type": "content_block_delta", "index": place, "delta": {"type": f"{name}_delta", name: piece}})
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
        if self._stop_reason in self._final:
            self.interrupt = True

    def _message_stop(self) -> None:
        """A stream that broke after a whole tool call is ended by the CLI, which then waits for that call's answer."""
        called = any(place is not None and self._blocks[place].type == "tool_use" for place in self._places.values())
        if called and self._stop_reason is None:
            self.fail(Failure(code=Code.UPSTREAM_CUT, message="the upstream's answer broke off"))

    def _assistant(self, message: Mapping[str, Any]) -> None:
        """An answer told whole. Its deltas came already, unless the CLI fell back to a call without streaming."""
        body = message.get("message") or {}
        if message.get("error") or body.get("model") == "<synthetic>" or self._structured:
            return
        if body.get("id") != self._message.get("id") or not self._started:
            self._new_try({**body, "content": []})
        elif self._places:
            return
        for block in body.get("content") or ():
            if not self._over:
                self._whole_block(block)
        if not body.get("stop_reason") or self._over:
            return
        end = {"delta": body, "usage": body.get("usage")}
        if self._tools and body["stop_reason"] == "tool_use":
            # each of its blocks comes as a message that says so: all have come when the first is carried out
            self._called_unstreamed = end
        else:
            self._message_delta(end)

    def _whole_block(self, block: Mapping[str, Any]) -> None:
        """A block that was not streamed, as its start and its deltas."""
        index = _BEYOND_ANY_STREAM
        name = {"text": "text", "thinking": "thinking"}.get(str(block.get("type")))
        if block.get("type") == "tool_use":
            self._block_start(index, {**block, "input": {}})
            if not self._over:
                told = orjson.dumps(block.get("input") or {}).decode()
                self._delta(index, {"type": "input_json_delta", "partial_json": told})
        elif name is None:
            self._block_start(index, block)
        else:
            self._block_start(index, {k: v for k, v in block.items() if k != "signature"} | {name: ""})
            if not self._over:
                self._delta(index, {"type": f"{name}_delta", name: block[name]})
            if "signature" in block and not self._over:
                self._delta(index, {"type": "signature_delta", "signature": block["signature"]})
        self._places.pop(index, None)

    def _retry(self, message: Mapping[str, Any]) -> None:
        self._out.append(Emission(RETRY, retry_data(message)))

    def _end(self, result: Mapping[str, Any]) -> None:
        """The turn's ``result``, or what stands for it: from here on :attr:`outcome` is set."""
        usage = usage_of(result.get("usage"), calls=int(result.get("num_turns") or 1))
        if self._failure is None and not all(block.repeated for block in self._blocks) and not result.get("is_error"):
            self._diverged()
        if self._failure is not None:
            self._end_failed(self._failure, usage)
        elif self._stop_reason in self._final:
            self._end_well(str(self._stop_reason), usage)
        elif result.get("is_error") or result.get("subtype") != "success":
            self._end_failed(failure_of_result(result), usage)
        elif self._structured:
            self._structured_result(result, usage)
        else:
            self._unstreamed_result(result)
            self._end_well(str(self._stop_reason or result.get("stop_reason") or "end_turn"), usage)

    def _unstreamed_result(self, result: Mapping[str, Any]) -> None:
        """An answer of which nothing was given is told from the result itself."""
        if not self._started:
            self._new_try({"id": result.get("uuid"), "usage": result.get("usage")})
            if result.get("result"):
                self._whole_block({"type": "text", "text": result["result"]})

    def _structured_result(self, result: Mapping[str, Any], usage: Usage) -> None:
        if result.get("structured_output") is None:
            why = "the model ended its turn without an answer in the asked form"
            self._end_failed(Failure(code=Code.SCHEMA_MISMATCH, message=why), usage)
            return
        self._structured = False
        self._budget_bytes = None  # the form is whole or nothing
        self._new_try({**self._message, "usage": result.get("usage")})
        self._whole_block({"type": "text", "text": orjson.dumps(result["structured_output"]).decode()})
        self._end_well("end_turn", usage)

    def _end_well(self, stop_reason: str, usage: Usage) -> None:
        self._start()
        self._close_open_block()
        delta = {"stop_reason": stop_reason, "stop_sequence": self._stop_sequence}
        told = {k: v for k, v in self._usage.items() if k in _TOLD_USAGE}
        self._emit({"type": "message_delta", "delta": delta, "usage": told})
        self._emit({"type": "message_stop"})
        self.outcome = Outcome(state=State.SUCCEEDED, usage=usage, stop_reason=stop_reason)

    def _end_failed(self, failure: Failure, usage: Usage) -> None:
        self.outcome = Outcome(state=State.FAILED, usage=usage, failure=failure)

    def _diverged(self) -> None:
        why = "the stream broke, and the model's second answer differs from what was already sent"
        self._failure = self._failure or Failure(code=Code.ANSWER_DIVERGED, message=why)
        self.interrupt = True

    def _close_open_block(self) -> None:
        if self._open is not None:
            self._emit({"type": "content_block_stop", "index": self._open})
            self._open = None

    def _emit(self, event: Mapping[str, Any]) -> None:
        self._out.append(Emission(MESSAGE_EVENT, event))


_EMPTY_MESSAGE: Mapping[str, Any] = {
    "id": None,
    "type": "message",
    "role": "assistant",
    "model": None,
    "usage": {"input_tokens": 0, "output_tokens": 0},
}
_BEYOND_ANY_STREAM = 1_000_000  # the index of a block that no stream told
_TOLD_USAGE = frozenset(
    {
        "input_tokens",
        "output_tokens",
        "cache_creation_input_tokens",
        "cache_read_input_tokens",
        "output_tokens_details",
    }
)


def retry_data(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """What followers are told of a model call that the CLI will try again."""
    return {
        "attempt": message.get("attempt"),
        "max_retries": message.get("max_retries"),
        "delay_seconds": (message.get("retry_delay_ms") or 0) / 1000,
        "status": message.get("error_status"),
    }


def failure_of_result(message: Mapping[str, Any]) -> Failure:
    """What an error result says, as far as the CLI tells it."""
    if message.get("subtype") == "error_max_structured_output_retries":
        why = "the model did not come to an answer in the asked form"
        return Failure(code=Code.SCHEMA_MISMATCH, message=why)
    said = message.get("result") or "; ".join(map(str, message.get("errors") or ())) or "the turn ended in an error"
    status = message.get("api_error_status")
    if isinstance(status, int):
        return failure_of_upstream_status(status, str(said))
    if message.get("terminal_reason") == "api_error":
        return Failure(code=Code.UPSTREAM_UNREACHABLE, message=str(said))
    return Failure(code=Code.UPSTREAM_ERROR, message=str(said))
