"""Roles: what each permits, and which rule forbids the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from claude_daemon.core.role import BUILT_IN, SCOPES, Role, no_tools, permitted, powerless, refuses, roles

READONLY, STANDARD, FULL = (BUILT_IN[name] for name in ("readonly", "standard", "full"))


@dataclass
class Table:
    """A ``[roles.<name>]``."""

    tools: Sequence[str] = ()
    approval: str = "never"
    scopes: Sequence[str] = ()


def own(**table: Any) -> Role:
    return roles({"mine": Table(**table)})["mine"]


@pytest.mark.parametrize(
    ("role", "tools", "approvals"),
    [
        (READONLY, {"Read", "Grep", "Glob"}, {"never"}),
        (STANDARD, {"Read", "Grep", "Glob", "Edit", "Write", "Bash"}, {"never", "ask"}),
        (FULL, None, {"never", "ask", "auto"}),
    ],
    ids=["readonly", "standard", "full"],
)
def test_the_built_in_roles_are_those_of_the_interface(role: Role, tools: set[str] | None, approvals: set[str]) -> None:
    assert role.tools == (None if tools is None else frozenset(tools))
    assert role.approvals == frozenset(approvals)
    assert (role.mcp, role.agents, role.project_settings) == (role is FULL,) * 3
    assert {"metrics", "approvals"} <= role.scopes if role is FULL else not {"metrics", "approvals"} & role.scopes
    assert ("sessions" in role.scopes, "webhooks" in role.scopes) == (role is not READONLY,) * 2


@pytest.mark.parametrize(
    ("role", "wish"),
    [
        (READONLY, {}),
        (READONLY, {"tools": ["Read", "Grep(*.py)", "Glob"]}),
        (STANDARD, {"tools": ["Bash(git *)", "Edit", "Write(/src/**)"], "approval": "ask"}),
        (STANDARD, {"scopes": ["sessions", "webhooks"]}),
        (FULL, {"tools": ["WebFetch", "mcp__x__y", "mcp__x__*", "*"], "approval": "auto", "mcp_servers": ["x"]}),
        (FULL, {"agents": {"a": {}}, "project_settings": "all", "scopes": SCOPES}),
    ],
)
def test_what_a_role_permits_is_not_refused(role: Role, wish: dict[str, Any]) -> None:
    assert refuses(role, **wish) is None


@pytest.mark.parametrize(
    ("role", "wish", "rule"),
    [
        (READONLY, {"tools": ["Read", "Bash"]}, "`readonly` may not use `Bash`; its tools are `Glob`, `Grep`, `Read`."),
        (READONLY, {"tools": ["Bash(git *)"]}, "`readonly` may not use `Bash`"),
        (READONLY, {"approval": "ask"}, "`approval: ask`, only for `never`"),
        (READONLY, {"scopes": ["webhooks"]}, "no scope `webhooks`"),
        (STANDARD, {"tools": ["WebFetch"]}, "`standard` may not use `WebFetch`"),
        (STANDARD, {"tools": ["bash"]}, "`standard` may not use `bash`"),
        (STANDARD, {"tools": ["*"]}, "tool of an MCP server, such as `*`"),
        (STANDARD, {"tools": ["mcp__x__y"]}, "no tool of an MCP server, such as `mcp__x__y`"),
        (STANDARD, {"approval": "auto"}, "only for `never`, `ask`"),
        (STANDARD, {"approval": "yes"}, "`approval: yes`"),
        (STANDARD, {"mcp_servers": ["x"]}, "may name no MCP server"),
        (STANDARD, {"agents": {"a": {}}}, "may define no agents"),
        (STANDARD, {"project_settings": "all"}, "`project_settings: all`"),
        (STANDARD, {"scopes": ["metrics"]}, "no scope `metrics`"),
        (powerless("gone"), {"tools": ["Read"]}, "The role `gone` of this key is not configured"),
        (powerless("gone"), {"scopes": ["sessions"]}, "The role `gone` of this key is not configured"),
        (Role(name="bare", tools=frozenset()), {"tools": ["Read"]}, "The role `bare` may use no tools."),
    ],
)
def test_what_it_does_not_permit_is_refused_by_the_rules_name(role: Role, wish: dict[str, Any], rule: str) -> None:
    why = refuses(role, **wish)
    assert why is not None and rule in why and why.endswith(".")


@pytest.mark.parametrize(
    "smuggled",
    [
        "Read,Bash",
        "Read Bash",
        "Read(x),Bash",
        "Read(x),Bash(y)",
        "Read(x) Bash",
        "Read(a,b)",
        "Read(a)(b)",
        "Read(",
        "Read\n",
        "",
        "(x)",
        " Read",
        "Read(\x00)",
        "R\u00e9ad",
        "Read" * 40,
    ],
)
@pytest.mark.parametrize("role", [READONLY, FULL], ids=["readonly", "full"])
def test_a_second_tool_is_not_smuggled_in_behind_the_first(role: Role, smuggled: str) -> None:
    assert refuses(role, tools=[smuggled]) is not None
    assert permitted(role, ["Read", smuggled]) == ("Read",)


def test_a_star_that_could_mean_a_servers_tool_needs_mcp() -> None:
    every = own(tools=["*"])
    assert every.tools is None and refuses(every, tools=["WebFetch", "Web*"]) is None
    for tool in ("*", "m*", "mcp*", "mcp_*", "mcp__*", "mcp__x__*"):
        assert "MCP" in (refuses(every, tools=[tool]) or ""), tool
    assert refuses(own(tools=["*"], scopes=["mcp"]), tools=["*", "mcp__x__*"]) is None


def test_without_tools_a_role_acts_no_more_and_keeps_the_rest() -> None:
    quiet = no_tools(FULL)
    for wish in ({"tools": ["Read"]}, {"tools": ["mcp__x__y"]}, {"mcp_servers": ["x"]}, {"agents": ["a"]}):
        assert refuses(quiet, **wish) is not None  # type: ignore[arg-type]
    assert refuses(quiet, project_settings="all") is not None
    assert refuses(quiet, approval="auto", scopes=["metrics", "webhooks"]) is None


def test_an_own_role_has_what_its_table_says_and_weaker_approvals() -> None:
    mine = own(tools=["Read", "Bash"], approval="ask", scopes=["mcp", "metrics"])
    assert (mine.tools, mine.approvals) == (frozenset({"Read", "Bash"}), frozenset({"never", "ask"}))
    assert (mine.mcp, mine.agents, mine.project_settings) == (True, False, False)
    assert refuses(mine, tools=["mcp__x__y", "Bash"], scopes=["metrics"]) is None
    assert refuses(mine, tools=["Edit"]) is not None
    assert own(approval="auto").approvals == {"never", "ask", "auto"}
    assert own().tools == frozenset()


def test_own_roles_stand_beside_the_built_in_ones() -> None:
    known = roles({"mine": Table()})
    assert set(known) == {"readonly", "standard", "full", "mine"} and known["full"] is FULL


@pytest.mark.parametrize(
    ("name", "table", "told"),
    [
        ("full", Table(), "roles.full: this role is built in"),
        ("mine", Table(scopes=["metric"]), "roles.mine.scopes: no scope is named 'metric'"),
        ("mine", Table(tools=["Bash(git *)"]), "a pattern tidies up, it confines nothing"),
        ("mine", Table(tools=["mcp__x__y"]), 'come with the scope "mcp"'),
        ("mine", Table(tools=["Web*"]), "is no name of a tool"),
        ("mine", Table(tools=["Read,Bash"]), "is no name of a tool"),
    ],
)
def test_a_role_that_cannot_be_what_it_says_is_an_error(name: str, table: Table, told: str) -> None:
    with pytest.raises(ValueError) as error:
        roles({name: table})
    assert told in str(error.value)
