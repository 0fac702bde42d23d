"""One agent turn: the CLI's messages in, events of a task out, pure.

An agent's turn is many model calls with tool calls between them, and its caller is always a task: so unlike a chat's
(:mod:`~claude_daemon.engine.turn`) what was streamed may be taken back with ``text.reset``. Shapes are those that the
published Python SDK reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
_NO_ANSWER: Final = object()


@dataclass(slots=True)
class _Conversation:
    """The task's own, or a subagent's. ``answer``: the id of its last one, ``whole`` once that is known to be complete.
    ``calls``: made by it, without a result: id -> tool. ``asking``: a model is asked, or is about to be."""

    answer: Any = _NO_ANSWER
    whole: bool = True
    calls: dict[str, str] = field(default_factory=dict)
    asking: bool = True


class AgentReader:
    """Feed it each message of the turn until :attr:`outcome` is set.

    :attr:`interrupt` turns True when the turn should be interrupted; the CLI's ``result`` still ends it. ``max_turns``:
    answers of a model, subagents' included; the turn ends when one more is about to be asked for. Only answers count
    that belong to a conversation: not what the CLI asks for its own ends, nor a try that broke.
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
        self._own = _Conversation()
        self._inner: dict[str, _Conversation] = {}  # subagents' by the call that started each
        self._started_by: dict[str, str] = {}  # subagent -> that call
        self._structured_by_tool = False  # with that the turn ends by itself: no model is asked again
        self._early: dict[str, str] = {}  # subagents' calls that were told before their message came: id -> tool
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

    def called(self, call: str, tool: str, given: Mapping[str, Any], subagent: str | None) -> list[Emission]:
        """A call is about to be made; one of a subagent is told here, for its message may still be on its way."""
        self._out = []
        parent = self._started_by.get(subagent) if subagent is not None else None
        conversation = self._inner.get(parent) if parent is not None else None
        told = call in self._early or (conversation is not None and call in conversation.calls)
        if parent is not None and self._failure is None and not told:
            self._early[call] = tool
            self._emit(TOOL_USE, {"id": call, "name": tool, "input": given, "parent": parent})
        return self._out

    @property
    def tool_runs(self) -> bool:
        """Calls were made that have no result yet."""
        return bool(self._own.calls)

    def _read(self, message: Mapping[str, Any]) -> None:
        kind = message.get("type")
        if kind == "result":
            self._end(message)
        elif kind == "system" and message.get("subtype") == "api_retry":
            self._emit(RETRY, retry_data(message))
        elif self._failure is not None:
            return
        elif kind == "system" and message.get("subtype") == "task_started":
            self._started_by[str(message.get("task_id"))] = str(message.get("tool_use_id"))
        elif (parent := message.get("parent_tool_use_id")) is not None:
            self._subagent(str(parent), message)
        elif kind == "stream_event":
            self._stream_event(message["event"])
        elif kind == "assistant":
            self._assistant(message["message"])
        elif kind == "user":
            self._user(message["message"].get("content"))
        self._keep_turns()

    def _subagent(self, parent: str, message: Mapping[str, Any]) -> None:
        """What it does is told as it does it. What it says is its caller's: told as the result of that call."""
        kind = message.get("type")
        if kind not in ("assistant", "user"):
            return
        conversation = self._inner.setdefault(parent, _Conversation())
        if kind == "user":
            self._results(conversation, message["message"].get("content"), {"parent": parent})
            return
        body = message["message"]
        if body.get("model") == "<synthetic>":
            return
        if body.get("id") != conversation.answer:
            self._take_back(conversation)
        self._answered(conversation, body.get("id"))
        for block in body.get("content") or ():
            if block["type"] == "tool_use":
                conversation.calls[block["id"]] = block["name"]
                if self._early.pop(block["id"], None) is None:
                    data = {"id": block["id"], "name": block["name"], "input": block.get("input") or {}}
                    self._emit(TOOL_USE, {**data, "parent": parent})

    def _stream_event(self, event: Mapping[str, Any]) -> None:
        kind = event["type"]
        if kind == "message_start":
            self._begin(event["message"].get("id"))
        elif kind == "content_block_delta" and event["delta"]["type"] in self._shown:
            name = event["delta"]["type"]
            self._say(str(event["delta"][_SHOWN[name]]), name)
            self._streamed = True
        elif kind == "message_delta":
            self._own.whole = self._own.whole or bool((event.get("delta") or {}).get("stop_reason"))
            if event.get("usage"):
                self._emit(MESSAGE_EVENT, {"type": "message_delta", "delta": {}, "usage": event["usage"]})

    def _begin(self, message_id: Any) -> None:
        """A new model call; or the same again, when the one before was cut: what it had said is taken back."""
        self._take_back(self._own)
        self._own.whole = False
        self._inner, self._started_by = {}, {}  # none is left that runs: their caller has gone on
        if self._saying:
            self._saying = []
            self._emit(TEXT_RESET, {})
            if self._said:
                self._delta("".join(self._said), "text_delta")
        self._message_id, self._streamed = message_id, False

    def _take_back(self, conversation: _Conversation) -> None:
        """Another answer begins. One that was cut counts for nothing, and its calls are not made: no result comes."""
        if conversation.answer is not _NO_ANSWER and (conversation.calls or not conversation.whole):
            self.turns -= 1
        conversation.answer, conversation.asking = _NO_ANSWER, True
        conversation.calls.clear()

    def _answered(self, conversation: _Conversation, answer: Any) -> None:
        """An answer is there, or one more part of it."""
        if conversation.answer is _NO_ANSWER:
            conversation.answer = answer
            self.turns += 1
        conversation.asking = False

    def _keep_turns(self) -> None:
        asking = sum(one.asking for one in (self._own, *self._inner.values()))
        if self._max_turns is not None and self.turns + asking > self._max_turns and self.outcome is None:
            why = f"the task came to no end within its {self._max_turns} turns"
            self.fail(Failure(code=Code.MAX_TURNS, message=why))

    def _assistant(self, body: Mapping[str, Any]) -> None:
        """An answer, or a part of it: the CLI tells each block as it is complete."""
        if body.get("model") == "<synthetic>":
            return
        if body.get("id") != self._message_id:
            self._begin(body.get("id"))
            self._own.whole = True  # a call that was not streamed
        self._answered(self._own, body.get("id"))
        for block in body.get("content") or ():
            if block["type"] == "text" and not self._streamed:
                self._say(block["text"], "text_delta")  # a call that was not streamed
            elif block["type"] == "tool_use":
                self._separate()
                self._own.calls[block["id"]] = block["name"]
                self._emit(TOOL_USE, {"id": block["id"], "name": block["name"], "input": block.get("input") or {}})

    def _user(self, content: Any) -> None:
        """Tool results; after them the model is asked again."""
        if self._results(self._own, content, {}) and not self._own.calls:
            self._separate()
            self._said += self._saying
            self._saying = []

    def _results(self, conversation: _Conversation, content: Any, told: Mapping[str, Any]) -> bool:
        """Whether there are any. ``told``: with each of them."""
        results = [block for block in content if block["type"] == "tool_result"] if isinstance(content, list) else []
        for block in results:
            call, is_error = block["tool_use_id"], bool(block.get("is_error"))
            name = conversation.calls.pop(call, None) or self._early.pop(call, None)
            ended = self._inner.pop(call, None)
            if ended is not None and ended.asking and not is_error:
                self.turns += 1  # a subagent's last answer, which is told as this result alone
            if name == STRUCTURED_OUTPUT and not is_error:
                self._structured_by_tool = True
            data = {"id": call, "name": name, "is_error": is_error, "content": told_content(block.get("content"))}
            self._emit(TOOL_RESULT, {**data, **told})
        if results and not conversation.calls:
            conversation.whole, conversation.asking = True, not self._structured_by_tool
        return bool(results)

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
            structured = result.get("structured_output") if self._structured else None
            # the tool by which it answers is ours, not one whose result anybody waits for
            stop_reason = str(result.get("stop_reason") or "end_turn") if structured is None else "end_turn"
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
