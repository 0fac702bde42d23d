"""Roles: what each permits, and which rule forbids the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import pytest

from claude_daemon.core.role import (
    BUILT_IN,
    SCOPES,
    Role,
    names_of,
    names_told,
    no_tools,
    permitted,
    powerless,
    refuses,
    roles,
    route_of,
)

READONLY, STANDARD, FULL = (BUILT_IN[name] for name in ("readonly", "standard", "full"))


@dataclass
class Table:
    """A ``[roles.<name>]``."""

    tools: Sequence[str] = ()
    approval: str = "never"
    scopes: Sequence[str] = ()
    routes: Sequence[str] | None = None
    lanes: Sequence[str] | None = None
    models: Sequence[str] | None = None
    roots: Sequence[PurePath] | None = None
    mcp: Sequence[str] | None = None
    max_turns: int | None = None
    max_cost_usd: float | None = None
    max_timeout_s: float | None = None
    max_priority: int | None = None
    concurrent: int | None = None


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


BOUND = own(
    tools=["Read"],
    scopes=["mcp"],
    routes=["/v1/tasks", "/v1/messages"],
    lanes=["text", "agent"],
    models=["haiku", "claude-opus-5-5"],
    roots=[PurePath("/srv/a"), PurePath("/srv/b")],
    mcp=["github"],
    max_turns=20,
    max_cost_usd=0.5,
    max_timeout_s=600.0,
    max_priority=5,
)


@pytest.mark.parametrize(
    ("wish", "rule"),
    [
        ({"route": "/v1/tasks"}, None),
        ({"route": "/v1/stream"}, "`mine` may not use `/v1/stream`; its routes are `/v1/messages`, `/v1/tasks`."),
        ({"lane": "text"}, None),
        ({"lane": "direct"}, "`mine` may not use the lane `direct`; its lanes are `agent`, `text`."),
        ({"models": [("claude-haiku-5-5", "haiku"), ("claude-opus-5-5", "opus")]}, None),
        ({"models": [("claude-haiku-5-5", "haiku"), ("claude-sonnet-5-5", "sonnet")]}, "the model `claude-sonnet-5-5`"),
        ({"mcp_servers": ["github"]}, None),
        ({"mcp_servers": ["github", "jira"]}, "the MCP server `jira`; its servers are `github`."),
        ({"directories": ["/srv/a", "/srv/b/x/y", "/srv/a/../b"]}, None),
        ({"directories": ["/srv/a", "/srv/ab"]}, "may not work in `/srv/ab`: it is under none of its roots."),
        ({"directories": ["/srv/a/../c"]}, "may not work in `/srv/a/../c`"),
        ({"limits": {"max_turns": 20, "max_cost_usd": 0.5, "timeout_s": 600.0, "priority": 5}}, None),
        ({"limits": {"max_turns": None, "max_cost_usd": None, "timeout_s": None, "priority": -10}}, None),
        ({"limits": {"max_turns": 21}}, "`mine` may ask for at most `max_turns: 20`."),
        ({"limits": {"max_cost_usd": 0.500001}}, "at most `max_cost_usd: 0.5`."),
        ({"limits": {"timeout_s": 600.1}}, "at most `timeout_s: 600`."),
        ({"limits": {"priority": 6}}, "at most `priority: 5`."),
    ],
)
def test_the_further_rules_of_an_own_role(wish: dict[str, Any], rule: str | None) -> None:
    why = refuses(BOUND, **wish)
    assert why is None if rule is None else why is not None and rule in why
    assert refuses(FULL, **wish) is None, "where there is no rule nothing is refused"


def test_a_role_may_have_no_directory_and_no_server() -> None:
    none = own(scopes=["mcp"], roots=[], mcp=[])
    assert "under none of its roots" in (refuses(none, directories=["/srv"]) or "")
    assert "its servers are none." in (refuses(none, mcp_servers=["x"]) or "")


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/messages", "/v1/messages"),
        ("/v1/messages/count_tokens", "/v1/messages"),
        ("/v1/tasks/{id}/events", "/v1/tasks"),
        ("/v1/tasksx", None),
        ("/live", None),
    ],
)
def test_the_route_that_a_path_belongs_to(path: str, route: str | None) -> None:
    assert route_of(path) == route


def test_a_model_is_known_by_its_id_and_every_alias() -> None:
    assert names_of("m", {"b": "m", "a": "m", "c": "n"}) == ("m", "a", "b")


@pytest.mark.parametrize("listed", ["claude-x-20260401", "claude-x", "x", "old"])
def test_a_model_as_an_upstream_names_it_is_one_that_the_role_lists_by_any_of_its_names(listed: str) -> None:
    told = names_told("claude-x-20260401", {"x": "claude-x", "old": "claude-x-20260401", "y": "claude-y"})
    role = roles({"mine": Table(models=[listed])})["mine"]
    assert refuses(role, models=[told]) is None
    assert refuses(role, models=[names_told("claude-y-20260401", {"y": "claude-y"})]) is not None


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
        ("mine", Table(routes=["/v1/task"]), "roles.mine.routes: no route is named '/v1/task'; known are `/v1/chat/"),
        ("mine", Table(routes=["/health"]), "roles.mine.routes: no route is named '/health'"),
        ("mine", Table(lanes=["fast"]), "roles.mine.lanes: no lane is named 'fast'; known are `direct`, `text`"),
        ("mine", Table(mcp=["x"]), 'roles.mine.mcp: names servers, and the role has not the scope "mcp"'),
        ("mine", Table(max_cost_usd=1, lanes=["text"]), "roles.mine.max_cost_usd: is kept on the lanes agent and"),
    ],
)
def test_a_role_that_cannot_be_what_it_says_is_an_error(name: str, table: Table, told: str) -> None:
    with pytest.raises(ValueError) as error:
        roles({name: table})
    assert told in str(error.value)
