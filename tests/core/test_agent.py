"""What an agent task may do, as rules say it."""

from __future__ import annotations

from typing import Any

import pytest

from claude_daemon.core.agent import AgentSpec, Approval, Subagent, contradiction, shown_name, wrong_rule

CRITIC = Subagent(name="a", description="d", prompt="p", tools=("Bash",))


@pytest.mark.parametrize(
    ("agent", "param", "why"),
    [
        (AgentSpec(allow=("mcp__tickets",)), "tools", "`mcp__tickets` is about no server"),
        (AgentSpec(deny=("mcp__other__x",), mcp_servers=("tickets",)), "tools", "`mcp__other__x` is"),
        (AgentSpec(allow=("mcp__ticketsx",), mcp_servers=("tickets",)), "tools", "`mcp__ticketsx` is"),
        (AgentSpec(allow=("Read",), agents=(CRITIC,)), "agents.a.tools", "has no Bash"),
        (AgentSpec(approval=Approval.AUTO, deny=("Bash",), agents=(CRITIC,)), "agents.a.tools", "has no Bash"),
    ],
)
def test_rules_and_subagents_are_about_what_the_task_has(agent: AgentSpec, param: str, why: str) -> None:
    found = contradiction(agent)
    assert found is not None
    assert found[0] == param
    assert why in found[1]


def test_what_the_task_has_contradicts_nothing() -> None:
    allow, deny = ("Bash(git *)", "mcp__tickets__find"), ("mcp__tickets__close",)
    agent = AgentSpec(allow=allow, deny=deny, mcp_servers=("tickets",), agents=(CRITIC,))
    assert contradiction(agent) is None


@pytest.mark.parametrize(
    ("fields", "may"),
    [
        ({}, ""),
        ({"approval": Approval.AUTO}, "find close"),
        ({"approval": Approval.ASK, "deny": ("mcp__tickets__close",)}, "find"),
        ({"approval": Approval.AUTO, "deny": ("mcp__tickets",)}, ""),
        ({"allow": ("mcp__tickets",)}, "find close"),
        ({"allow": ("mcp__tickets__find",)}, "find"),
        ({"allow": ("mcp__tickets",), "deny": ("mcp__tickets__find",)}, "close"),
    ],
)
def test_of_a_servers_tools_it_has_those_that_a_rule_allows(fields: dict[str, Any], may: str) -> None:
    agent = AgentSpec(mcp_servers=("tickets",), **fields)
    assert " ".join(tool for tool in ("find", "close") if agent.may_call("tickets", tool)) == may
    assert not agent.may_call("another", "find")


def test_a_tools_name_is_shown_as_claude_code_shows_it() -> None:
    assert shown_name("tickets", "find.all/ö") == "mcp__tickets__find_all__"


@pytest.mark.parametrize("rule", ["mcp__tickets", "mcp__a-b_c", "mcp__tickets__Find_all-1"])
def test_a_server_or_one_of_its_tools_is_a_rule(rule: str) -> None:
    assert wrong_rule(rule) is None


@pytest.mark.parametrize(
    "rule", ["mcp__", "mcp__*", "mcp__A", "mcp__a__b*", "mcp__a(x)", "mcp__a,Bash", "Agent", "Task"]
)
def test_no_star_no_pattern_and_no_tool_that_starts_agents_is_a_rule(rule: str) -> None:
    assert wrong_rule(rule) is not None


def test_nothing_that_a_server_or_a_project_brings_only_reads() -> None:
    assert AgentSpec(allow=("Read",)).read_only
    assert not AgentSpec(allow=("Read",), mcp_servers=("tickets",)).read_only
    assert not AgentSpec(allow=("Read",), project_settings=True).read_only


@pytest.mark.parametrize(
    ("agent", "tool", "asks"),
    [
        (AgentSpec(approval=Approval.ASK), "Write", True),
        (AgentSpec(approval=Approval.ASK), "Bash", True),
        (AgentSpec(approval=Approval.ASK), "Read", False),
        (AgentSpec(approval=Approval.ASK), "TodoWrite", False),
        (AgentSpec(approval=Approval.ASK, allow=("Edit(src/**)",)), "Write", False),  # a rule for one counts for all
        (AgentSpec(approval=Approval.ASK, allow=("Bash(git *)",)), "Bash", True),
        (AgentSpec(approval=Approval.ASK, allow=("Bash(make)",)), "Bash", False),
        (AgentSpec(approval=Approval.ASK, project_settings=True), "Write", False),  # the project may allow it
        (AgentSpec(approval=Approval.AUTO), "Write", False),
        (AgentSpec(approval=Approval.NEVER, allow=("Bash(git *)",)), "Bash", True),  # of nobody: it is denied
        (AgentSpec(approval=Approval.NEVER, allow=("Write",)), "Write", False),
        (AgentSpec(approval=Approval.ASK, mcp_servers=("a",)), "mcp__a__t", True),
        (AgentSpec(approval=Approval.ASK, mcp_servers=("a",), allow=("mcp__a",)), "mcp__a__t", False),
        (AgentSpec(approval=Approval.ASK, mcp_servers=("a",), allow=("mcp__a__t",)), "mcp__a__t", False),
        (AgentSpec(approval=Approval.ASK, mcp_servers=("a", "ab"), allow=("mcp__a",)), "mcp__ab__t", True),
    ],
)
def test_what_is_certain_to_be_asked_for(agent: AgentSpec, tool: str, asks: bool) -> None:
    assert agent.asks(tool, {"command": "make"}) is asks
