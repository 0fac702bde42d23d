"""One agent turn: the CLI's messages in, events of a task out, pure.

An agent's turn is many model calls with tool calls between them, and its caller is always a task: so unlike a chat's
(:mod:`~claude_daemon.engine.turn`) what was streamed may be taken back with ``text.reset``. Shapes are those that the
published Python SDK reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.event import MESSAGE_EVENT, RETRY, TEXT_RESET, TOOL_RESULT, TOOL_USE, Emission
from claude_daemon.core.message import usage_of
from claude_daemon.core.task import Outcome, State, Usage
from claude_daemon.engine.turn import UNREADABLE, failure_of_result, retry_data

_SHOWN: Final = {"text_delta": "text", "thinking_delta": "thinking"}
STRUCTURED_OUTPUT: Final = "StructuredOutput"
"""Claude Code's own tool, by which a model answers in the asked form: with that the turn ends by itself."""
_SEPARATOR: Final = "\n\n"
"""Between what is said before a tool call and after it."""


class AgentReader:
    """Feed it each message of the turn until :attr:`outcome` is set.

    :attr:`interrupt` turns True when the turn should be interrupted; the CLI's ``result`` still ends it. ``max_turns``:
    model calls of the main conversation; the one that would ask for more tools after the last ends the turn.
    """

    def __init__(self, *, show_thinking: bool = False, structured: bool = False, max_turns: int | None = None) -> None:
        self.outcome: Outcome | None = None
        self.interrupt = False
        self.turns = 0
        self._shown = {"text_delta"} | ({"thinking_delta"} if show_thinking else set())
        self._structured = structured
        self._max_turns = max_turns
        self._failure: Failure | None = None
        self._said: list[str] = []  # up to the last tool results: it stands
        self._saying: list[str] = []  # since then
        self._streamed = False  # of the message under way, deltas were told
        self._message_id: Any = None
        self._tools: dict[str, str] = {}  # calls without a result: id -> tool
        self._out: list[Emission] = []

    def feed(self, message: Mapping[str, Any]) -> list[Emission]:
        """What the message means for the task, often nothing. A message that cannot be read fails the turn."""
        self._out = []
        try:
            self._read(message)
        except UNREADABLE:
            self.fail(Failure(code=Code.UPSTREAM_MALFORMED, message="Claude Code sent a message that cannot be read"))
            if message.get("type") == "result":
                self._end_failed(Usage())
        return self._out

    def fail(self, failure: Failure) -> None:
        """The turn has failed for a reason the CLI does not know; the first one stands. Asks for an interrupt."""
        if self._failure is None:
            self._failure = failure
            self.interrupt = True

    def give_up(self, failure: Failure) -> Outcome:
        """The end of a turn whose ``result`` will not be waited for."""
        self._failure = self._failure or failure
        self._end_failed(Usage())
        assert self.outcome is not None
        return self.outcome

    @property
    def tool_runs(self) -> bool:
        """Calls were made that have no result yet."""
        return bool(self._tools)

    def _read(self, message: Mapping[str, Any]) -> None:
        kind = message.get("type")
        if kind == "result":
            self._end(message)
        elif kind == "system" and message.get("subtype") == "api_retry":
            self._emit(RETRY, retry_data(message))
        elif self._failure is not None or message.get("parent_tool_use_id") is not None:
            return  # what a subagent says is its caller's: told as that tool's result
        elif kind == "stream_event":
            self._stream_event(message["event"])
        elif kind == "assistant":
            self._assistant(message["message"])
        elif kind == "user":
            self._user(message["message"].get("content"))

    def _stream_event(self, event: Mapping[str, Any]) -> None:
        kind = event["type"]
        if kind == "message_start":
            self._begin(event["message"].get("id"))
        elif kind == "content_block_delta" and event["delta"]["type"] in self._shown:
            name = event["delta"]["type"]
            self._say(str(event["delta"][_SHOWN[name]]), name)
            self._streamed = True
        elif kind == "message_delta" and event.get("usage"):
            self._emit(MESSAGE_EVENT, {"type": "message_delta", "delta": {}, "usage": event["usage"]})

    def _begin(self, message_id: Any) -> None:
        """A new model call; or the same again, when the one before was cut: what it had said is taken back."""
        self._tools.clear()  # calls of the one that was cut are not made: no result of theirs comes
        if self._saying:
            self._saying = []
            self._emit(TEXT_RESET, {})
            if self._said:
                self._delta("".join(self._said), "text_delta")
        self._message_id, self._streamed = message_id, False

    def _assistant(self, body: Mapping[str, Any]) -> None:
        """An answer, or a part of it: the CLI tells each block as it is complete."""
        if body.get("model") == "<synthetic>":
            return
        if body.get("id") != self._message_id:
            self._begin(body.get("id"))
        for block in body.get("content") or ():
            if block["type"] == "text" and not self._streamed:
                self._say(block["text"], "text_delta")  # a call that was not streamed
            elif block["type"] == "tool_use":
                self._separate()
                self._tools[block["id"]] = block["name"]
                self._emit(TOOL_USE, {"id": block["id"], "name": block["name"], "input": block.get("input") or {}})

    def _user(self, content: Any) -> None:
        """Tool results; after them the model is asked again."""
        results = [block for block in content if block["type"] == "tool_result"] if isinstance(content, list) else []
        answered = False
        for block in results:
            name = self._tools.pop(block["tool_use_id"], None)
            answered = answered or (name == STRUCTURED_OUTPUT and not block.get("is_error"))
            data = {"id": block["tool_use_id"], "name": name, "is_error": bool(block.get("is_error"))}
            self._emit(TOOL_RESULT, {**data, "content": told_content(block.get("content"))})
        if results and not self._tools:
            self._separate()
            self._said += self._saying
            self._saying = []
            self.turns += 1
            if self._max_turns is not None and self.turns >= self._max_turns and not answered:
                why = f"the task came to no end within its {self._max_turns} turns"
                self.fail(Failure(code=Code.MAX_TURNS, message=why))

    def _separate(self) -> None:
        if self._saying and self._saying[-1] is not _SEPARATOR:
            self._saying.append(_SEPARATOR)
            self._delta(_SEPARATOR, "text_delta")

    def _say(self, text: str, name: str) -> None:
        if text and name == "text_delta":
            self._saying.append(text)
        if text:
            self._delta(text, name)

    def _delta(self, text: str, name: str) -> None:
        delta = {"type": name, _SHOWN[name]: text}
        self._emit(MESSAGE_EVENT, {"type": "content_block_delta", "index": 0, "delta": delta})

    def _end(self, result: Mapping[str, Any]) -> None:
        usage = usage_of(result.get("usage"), calls=int(result.get("num_turns") or 1))
        if self._failure is not None:
            self._end_failed(usage)
        elif result.get("is_error") or result.get("subtype") != "success":
            self._failure = failure_of_result(result)
            self._end_failed(usage)
        elif self._structured and result.get("structured_output") is None:
            why = "the model ended its turn without an answer in the asked form"
            self._failure = Failure(code=Code.SCHEMA_MISMATCH, message=why)
            self._end_failed(usage)
        else:
            text = str(result.get("result") or "")
            stop_reason = str(result.get("stop_reason") or "end_turn")
            structured = result.get("structured_output") if self._structured else None
            self.outcome = Outcome(
                state=State.SUCCEEDED, usage=usage, stop_reason=stop_reason, text=text, structured=structured
            )

    def _end_failed(self, usage: Usage) -> None:
        self.outcome = Outcome(state=State.FAILED, usage=usage, failure=self._failure)

    def _emit(self, kind: str, data: Mapping[str, Any]) -> None:
        self._out.append(Emission(kind, data))


def told_content(content: Any) -> str:
    """A tool result as text; an image by its kind alone."""
    if content is None or isinstance(content, str):
        return content or ""
    blocks: Sequence[Mapping[str, Any]] = content
    return "\n".join(
        str(block["text"]) if block.get("type") == "text" else f"[{block.get('type')}]" for block in blocks
    )
