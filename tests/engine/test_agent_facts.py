"""What followers of an agent are told beside its calls: denials, and files that changed."""

from __future__ import annotations

from typing import Any

from claude_daemon.core.event import FILE_CHANGED, TOOL_DENIED, TOOL_RESULT, TOOL_USE, Emission
from claude_daemon.engine.agent_facts import Facts


def use(call: str, tool: str, **given: Any) -> Emission:
    return Emission(TOOL_USE, {"id": call, "name": tool, "input": given})


def result(call: str, *, is_error: bool = False) -> Emission:
    return Emission(TOOL_RESULT, {"id": call, "name": "x", "is_error": is_error, "content": ""})


def told(facts: Facts, message: dict[str, Any], *emissions: Emission) -> list[tuple[str, str]]:
    return [(emission.type, emission.data["id"]) for emission in facts.add(message, emissions)]


def test_a_file_tool_that_succeeds_has_changed_its_file() -> None:
    facts = Facts()
    uses = [use("1", "Edit", file_path="/a"), use("2", "Write", file_path="/b"), use("3", "Bash", command="rm /c")]
    uses += [
        use("4", "Read", file_path="/d"),
        use("5", "NotebookEdit", notebook_path="/e"),
        use("6", "Edit", file_path="/a"),
    ]
    facts.add({}, uses)
    results = [result("1"), result("2", is_error=True), *(result(call) for call in "3456")]
    changed = [(event.data["id"], event.data["path"]) for event in facts.add({}, results) if event.type == FILE_CHANGED]
    assert changed == [("1", "/a"), ("5", "/e"), ("6", "/a")]
    assert facts.files == ["/a", "/e"]


def test_a_denial_is_told_once_whoever_tells_of_it() -> None:
    facts = Facts()
    denied = {
        "type": "system",
        "subtype": "permission_denied",
        "tool_use_id": "1",
        "tool_name": "Bash",
        "message": "no",
    }
    assert told(facts, denied) == [(TOOL_DENIED, "1")]
    assert [event.data for event in facts.denied("2", "Write", "why")] == [
        {"id": "2", "name": "Write", "message": "why"}
    ]
    names = [{"tool_use_id": call, "tool_name": "Edit", "tool_input": {}} for call in "123"]
    assert told(facts, {"type": "result", "permission_denials": names}) == [(TOOL_DENIED, "3")]
    assert told(facts, {"type": "result", "permission_denials": None}) == []
