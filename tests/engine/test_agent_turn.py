"""The reader of an agent's turn: what its followers are told, and when it must end."""

from __future__ import annotations

from typing import Any

from claude_daemon.core.errors import Code, Failure
from claude_daemon.engine.agent_turn import AgentReader


def start(message_id: str) -> dict[str, Any]:
    return {"type": "stream_event", "event": {"type": "message_start", "message": {"id": message_id}}}


def says(text: str) -> dict[str, Any]:
    delta = {"type": "text_delta", "text": text}
    return {"type": "stream_event", "event": {"type": "content_block_delta", "index": 0, "delta": delta}}


def uses(message_id: str, call: str, name: str = "Bash") -> dict[str, Any]:
    block = {"type": "tool_use", "id": call, "name": name, "input": {}}
    return {"type": "assistant", "message": {"id": message_id, "content": [block]}}


def result(call: str) -> dict[str, Any]:
    return {"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": call, "content": "done"}]}}


def streamed(reader: AgentReader, *messages: dict[str, Any]) -> str:
    """The text as a follower has it in the end."""
    text = ""
    for message in messages:
        for told in reader.feed(message):
            if told.type == "text.reset":
                text = ""
            elif told.data.get("type") == "content_block_delta":
                text += told.data["delta"].get("text", "")
    return text


def test_a_call_that_was_cut_with_its_stream_is_waited_for_no_longer() -> None:
    """The model call is made again, with calls of other names; those of the first never get a result."""
    reader = AgentReader(max_turns=1)
    runs = []
    for message in (start("m1"), uses("m1", "cut"), start("m2"), uses("m2", "made"), result("made")):
        reader.feed(message)
        runs.append(reader.tool_runs)
    assert runs == [False, True, False, True, False]
    assert (reader.turns, reader.interrupt) == (1, True)
    outcome = reader.give_up(Failure(code=Code.INTERNAL, message="another reason"))
    assert outcome.failure is not None and outcome.failure.code is Code.MAX_TURNS


def test_what_was_said_before_a_call_that_was_cut_is_taken_back() -> None:
    first = [start("m1"), says("Looking."), uses("m1", "t1"), result("t1")]
    cut = [start("m2"), says("Chang"), uses("m2", "cut")]
    again = [start("m3"), says("Changing."), uses("m3", "t2"), result("t2"), start("m4"), says("Done.")]
    assert streamed(AgentReader(), *first, *cut, *again) == "Looking.\n\nChanging.\n\nDone."


def test_several_calls_of_one_message_are_one_turn() -> None:
    reader = AgentReader(max_turns=2)
    messages = [start("m1"), says("Both."), uses("m1", "a"), uses("m1", "b"), result("a"), result("b")]
    assert streamed(reader, *messages) == "Both.\n\n"
    assert (reader.turns, reader.interrupt) == (1, False)
