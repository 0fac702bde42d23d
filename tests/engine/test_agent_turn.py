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


# subagents


def within(parent: str, message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "parent_tool_use_id": parent}


def starts(call: str, agent: str) -> dict[str, Any]:
    return {"type": "system", "subtype": "task_started", "task_id": agent, "tool_use_id": call}


def prompted(parent: str) -> dict[str, Any]:
    return within(parent, {"type": "user", "message": {"content": [{"type": "text", "text": "Do it."}]}})


def said(message_id: str, text: str) -> dict[str, Any]:
    return {"type": "assistant", "message": {"id": message_id, "content": [{"type": "text", "text": text}]}}


def fed(reader: AgentReader, *messages: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Of what is told of tools: type, id and parent."""
    told = [emission for message in messages for emission in reader.feed(message)]
    return [(one.type, one.data["id"], one.data.get("parent")) for one in told if one.type.startswith("tool.")]


HELPER = (start("m1"), uses("m1", "a", "Agent"), starts("a", "helper-1"), prompted("a"))


def test_a_subagents_calls_and_results_are_told_with_the_call_that_started_it() -> None:
    reader = AgentReader()
    inner = [within("a", message) for message in (uses("s1", "b"), result("b"), said("s2", "Done."))]
    assert fed(reader, *HELPER, *inner, result("a")) == [
        ("tool.use", "a", None),
        ("tool.use", "b", "a"),
        ("tool.result", "b", "a"),
        ("tool.result", "a", None),
    ]


def test_what_a_subagent_says_is_no_part_of_the_answer() -> None:
    inner = [within("a", message) for message in (says("no"), said("s1", "no"), uses("s1", "b"), result("b"))]
    end = [result("a"), start("m2"), says("Done.")]
    assert streamed(AgentReader(), start("m1"), says("Yes."), *HELPER[1:], *inner, *end) == "Yes.\n\nDone."


def test_a_subagents_call_is_told_once_though_the_hook_comes_before_its_message() -> None:
    reader = AgentReader()
    fed(reader, *HELPER)
    (early,) = reader.called("b", "Bash", {"command": "ls"}, "helper-1")
    assert (early.type, early.data) == (
        "tool.use",
        {"id": "b", "name": "Bash", "input": {"command": "ls"}, "parent": "a"},
    )
    assert reader.called("b", "Bash", {}, "helper-1") == []
    assert fed(reader, within("a", uses("s1", "b")), within("a", uses("s1", "c"))) == [("tool.use", "c", "a")]
    assert reader.called("c", "Bash", {}, "helper-1") == []
    assert reader.called("d", "Bash", {}, "who") == reader.called("d", "Bash", {}, None) == []


def test_a_result_that_overtakes_its_call_has_the_tools_name() -> None:
    reader = AgentReader()
    fed(reader, *HELPER)
    reader.called("b", "Bash", {}, "helper-1")
    (told,) = reader.feed(within("a", result("b")))
    assert (told.data["name"], told.data["parent"]) == ("Bash", "a")


def test_a_subagents_answers_are_turns_whether_its_last_one_is_told_or_not() -> None:
    for last in ([], [within("a", said("s2", "Done."))]):
        reader = AgentReader(max_turns=4)
        fed(reader, *HELPER, within("a", uses("s1", "b")), within("a", result("b")), *last, result("a"))
        assert (reader.turns, reader.interrupt) == (3, False)
        fed(reader, start("m2"), said("m2", "Done."))
        assert (reader.turns, reader.interrupt) == (4, False)


def test_the_turn_ends_when_a_subagent_would_ask_for_one_answer_too_many() -> None:
    for most, messages in (
        (1, HELPER),
        (2, (*HELPER, within("a", uses("s1", "b")), within("a", result("b")))),
        (3, (*HELPER, within("a", uses("s1", "b")), within("a", result("b")), result("a"))),
    ):
        reader = AgentReader(max_turns=most)
        fed(reader, *messages[:-1])
        assert not reader.interrupt, most
        fed(reader, messages[-1])
        assert reader.interrupt, most


def test_two_that_ask_at_once_need_two_turns() -> None:
    both = (start("m1"), uses("m1", "a", "Agent"), uses("m1", "b", "Agent"), prompted("a"), prompted("b"))
    for most in (2, 3):
        reader = AgentReader(max_turns=most)
        fed(reader, *both)
        assert reader.interrupt is (most == 2)


def test_a_subagents_answer_that_was_cut_is_no_turn() -> None:
    reader = AgentReader(max_turns=9)
    fed(reader, *HELPER, within("a", uses("s1", "cut")), within("a", uses("s2", "b")), within("a", result("b")))
    assert reader.turns == 2


def test_a_subagent_whose_upstream_fails_ends_nothing() -> None:
    reader = AgentReader(max_turns=2)
    failed = {"type": "assistant", "message": {"id": "x", "model": "<synthetic>", "content": []}}
    refused = {"type": "tool_result", "tool_use_id": "a", "is_error": True, "content": "API Error"}
    fed(reader, *HELPER, within("a", failed), {"type": "user", "message": {"content": [refused]}})
    assert (reader.turns, reader.interrupt) == (1, False)


def test_an_answer_by_the_structured_tool_is_the_last_turn() -> None:
    reader = AgentReader(structured=True, max_turns=1)
    end = {"type": "result", "subtype": "success", "structured_output": {"n": 1}, "stop_reason": "tool_use"}
    for message in (start("m1"), uses("m1", "a", "StructuredOutput"), result("a"), end):
        reader.feed(message)
    assert reader.outcome is not None and not reader.interrupt
    assert (reader.outcome.stop_reason, reader.outcome.structured) == ("end_turn", {"n": 1})
