"""Another system prompt and another form of answer than a worker's own."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from claude_daemon.ports import Loan
from claude_daemon.upstream.rewrite import NoSystemBlock, on_loan

FIRST: list[dict[str, Any]] = [
    {"type": "text", "text": "billing"},
    {"type": "text", "text": "You are a Claude agent.", "cache_control": {"type": "ephemeral"}},
]
OWN = {"type": "text", "text": "Own.", "cache_control": {"type": "ephemeral"}}


def rewritten(system: object, own: str, asked: str) -> Any:
    body = orjson.dumps({"model": "m", "system": system, "messages": [{"role": "user", "content": "Own."}]})
    request = orjson.loads(on_loan(body, Loan(own=own, asked=asked)))
    assert request["messages"] == [{"role": "user", "content": "Own."}]
    return request["system"]


def test_the_own_prompt_is_replaced_and_its_cache_mark_stays() -> None:
    assert rewritten([*FIRST, OWN], "Own.", "Asked.") == [*FIRST, {**OWN, "text": "Asked."}]


def test_a_worker_without_a_prompt_gets_one_at_the_end() -> None:
    assert rewritten(FIRST, "", "Asked.") == [*FIRST, {**OWN, "text": "Asked."}]


def test_a_request_without_a_prompt_loses_the_workers_own() -> None:
    assert rewritten([*FIRST, OWN], "Own.", "") == FIRST


@pytest.mark.parametrize("system", [FIRST, [OWN, OWN], [], None, "Something else."])
def test_nothing_is_sent_where_the_own_prompt_is_not_found_exactly_once(system: object) -> None:
    with pytest.raises(NoSystemBlock):
        rewritten(system, "Own.", "Asked.")


def test_a_choice_of_tools_stands_only_beside_tools() -> None:
    loan = Loan(own="", asked="", tool_choice=b'{"type":"any"}')
    for tools, choice in (([{"name": "t"}], {"type": "any"}), ([], None)):
        request = orjson.loads(on_loan(orjson.dumps({"messages": [], "tools": tools}), loan))
        assert request.get("tool_choice") == choice


@pytest.mark.parametrize(("given", "kept"), [({}, {}), ({"output_config": {"effort": "low"}}, {"effort": "low"})])
def test_a_schema_is_asked_for_in_the_apis_own_words(given: dict[str, Any], kept: dict[str, Any]) -> None:
    schema = {"type": "object"}
    body = orjson.dumps({"system": [*FIRST, OWN], "messages": [], **given})
    request = orjson.loads(on_loan(body, Loan(own="Own.", asked="Own.", schema=orjson.dumps(schema))))
    assert request["system"] == [*FIRST, OWN]
    assert request["output_config"] == {**kept, "format": {"type": "json_schema", "schema": schema}}
