"""Roles: what a key may ask for.

``readonly``, ``standard`` and ``full`` are built in (INTERFACE.md, "Roles"); ``[roles.<name>]`` adds one's own.
:func:`refuses` is the one judge: it names the rule that forbids a wish.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import PurePath
from types import MappingProxyType
from typing import Final, Protocol

from claude_daemon.core.price import undated
from claude_daemon.core.task import Lane

APPROVALS: Final = ("never", "ask", "auto")
"""What becomes of a call that no rule allows; the strongest last."""
EVERY_TOOL: Final = "*"
"""Among the ``tools`` of a configured role."""
MCP: Final = "mcp"
AGENTS: Final = "agents"
PROJECT_SETTINGS: Final = "project_settings"
SESSIONS: Final = "sessions"
WEBHOOKS: Final = "webhooks"
METRICS: Final = "metrics"
APPROVE: Final = "approvals"
SCOPES: Final = frozenset({MCP, AGENTS, PROJECT_SETTINGS, SESSIONS, WEBHOOKS, METRICS, APPROVE})
"""All that a configured role may name."""
DEFAULT_ROLE: Final = "standard"
"""Of a key that is made without one."""
ROUTES: Final = (
    "/v1/chat/completions",
    "/v1/messages",
    "/v1/models",
    "/v1/tasks",
    "/v1/batches",
    "/v1/stream",
    "/v1/sessions",
    "/v1/usage",
    "/metrics",
)
"""What a configured role may name; each means all that is beneath it."""
LANES: Final = tuple(lane.value for lane in Lane)

_MICRO: Final = 1_000_000
_MCP_PREFIX: Final = "mcp__"
# A tool's name, a star where several are meant, and after it at most one pattern in brackets. Nothing may follow it:
# the CLI takes a list in one string too, and would read a second tool that nobody has judged.
_TOOL: Final = re.compile(r"(?P<name>[A-Za-z*][A-Za-z0-9_*-]{0,127})(?:\([^(),\x00-\x1f\x7f]*\))?", re.ASCII)
_MAX_TOLD: Final = 60
"""Characters of a client's own word that are repeated to it."""


class Configured(Protocol):
    """A ``[roles.<name>]`` table; ``approval`` is the strongest it may ask for. Of all after ``scopes`` None is no
    rule."""

    @property
    def tools(self) -> Sequence[str]: ...
    @property
    def approval(self) -> str: ...
    @property
    def scopes(self) -> Sequence[str]: ...
    @property
    def routes(self) -> Sequence[str] | None: ...
    @property
    def lanes(self) -> Sequence[str] | None: ...
    @property
    def models(self) -> Sequence[str] | None: ...
    @property
    def roots(self) -> Sequence[PurePath] | None: ...
    @property
    def mcp(self) -> Sequence[str] | None: ...
    @property
    def max_turns(self) -> int | None: ...
    @property
    def max_cost_usd(self) -> float | None: ...
    @property
    def max_timeout_s(self) -> float | None: ...
    @property
    def max_priority(self) -> int | None: ...
    @property
    def concurrent(self) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """``tools``: names of Claude Code's own tools, None for every one. ``mcp``: servers that the operator has
    configured, and their tools; ``agents``: sub-agents of one's own; ``project_settings``: those of a trusted root.
    ``known``: somebody has said what it may.

    Of the rest None is no rule. ``routes``: among :data:`ROUTES`; ``models``: aliases and ids; ``roots``: beneath which
    a task's directories are; ``servers``: those of ``mcp`` that may be named. ``max_turns``, ``max_cost_micro_usd`` and
    ``max_timeout_seconds`` are of a task, which has them too if it names none. ``concurrent``: chats and tasks of one
    key that run at once.
    """

    name: str
    tools: frozenset[str] | None
    approvals: frozenset[str] = frozenset({"never"})
    scopes: frozenset[str] = frozenset()
    mcp: bool = False
    agents: bool = False
    project_settings: bool = False
    routes: frozenset[str] | None = None
    lanes: frozenset[str] | None = None
    models: frozenset[str] | None = None
    roots: tuple[PurePath, ...] | None = None
    servers: frozenset[str] | None = None
    max_turns: int | None = None
    max_cost_micro_usd: int | None = None
    max_timeout_seconds: float | None = None
    max_priority: int | None = None
    concurrent: int | None = None
    known: bool = True


_READING: Final = frozenset({"Read", "Grep", "Glob"})

BUILT_IN: Final[Mapping[str, Role]] = MappingProxyType(
    {
        role.name: role
        for role in (
            Role(name="readonly", tools=_READING),
            Role(
                name="standard",
                tools=_READING | {"Edit", "Write", "Bash"},
                approvals=frozenset({"never", "ask"}),
                scopes=frozenset({SESSIONS, WEBHOOKS}),
            ),
            Role(
                name="full",
                tools=None,
                approvals=frozenset(APPROVALS),
                scopes=SCOPES,
                mcp=True,
                agents=True,
                project_settings=True,
            ),
        )
    }
)


def roles(configured: Mapping[str, Configured]) -> Mapping[str, Role]:
    """The built-in ones and those of the configuration, by name.

    Raises ValueError, naming the dotted key, for a role that cannot be what it says.
    """
    return MappingProxyType({**BUILT_IN, **{name: _own(name, table) for name, table in configured.items()}})


def _own(name: str, table: Configured) -> Role:
    where = f"roles.{name}"
    if name in BUILT_IN:
        raise ValueError(f"{where}: this role is built in, and stays as it is: choose another name")
    for kind, given, known in (
        ("scope", table.scopes, sorted(SCOPES)),
        ("route", table.routes, ROUTES),
        ("lane", table.lanes, LANES),
    ):
        if unknown := sorted(set(given or ()) - set(known)):
            raise ValueError(f"{where}.{kind}s: no {kind} is named {unknown[0]!r}; known are {_listed(known, known)}")
    for tool in table.tools:
        _check_tool(where, tool)
    scopes = frozenset(table.scopes)
    if table.mcp is not None and MCP not in scopes:
        raise ValueError(f'{where}.mcp: names servers, and the role has not the scope "{MCP}"')
    lanes = _set_of(table.lanes)
    if table.max_cost_usd is not None and lanes is not None and lanes.isdisjoint((Lane.AGENT, Lane.SESSION)):
        why = "is kept on the lanes agent and session, and the role has neither"
        raise ValueError(f"{where}.max_cost_usd: {why}")
    return Role(
        name=name,
        tools=None if EVERY_TOOL in table.tools else frozenset(table.tools),
        approvals=frozenset(APPROVALS[: APPROVALS.index(table.approval) + 1]),
        scopes=scopes,
        mcp=MCP in scopes,
        agents=AGENTS in scopes,
        project_settings=PROJECT_SETTINGS in scopes,
        routes=_set_of(table.routes),
        lanes=lanes,
        models=_set_of(table.models),
        roots=None if table.roots is None else tuple(table.roots),
        servers=_set_of(table.mcp),
        max_turns=table.max_turns,
        max_cost_micro_usd=None if table.max_cost_usd is None else max(1, round(table.max_cost_usd * _MICRO)),
        max_timeout_seconds=table.max_timeout_s,
        max_priority=table.max_priority,
        concurrent=table.concurrent,
    )


def _set_of(words: Sequence[str] | None) -> frozenset[str] | None:
    return None if words is None else frozenset(words)


def _check_tool(where: str, tool: str) -> None:
    """Raises ValueError for what would promise more, or less, than it does."""
    if "(" in tool:
        why = "a pattern tidies up, it confines nothing; a role names whole tools"
        raise ValueError(f"{where}.tools: {tool!r}: {why}")
    if tool.startswith(_MCP_PREFIX):
        raise ValueError(f'{where}.tools: {tool!r}: tools of MCP servers come with the scope "{MCP}"')
    if tool != EVERY_TOOL and ("*" in tool or _TOOL.fullmatch(tool) is None):
        raise ValueError(f'{where}.tools: {tool!r} is no name of a tool; "*" alone means every one')


def no_tools(role: Role) -> Role:
    """The same without anything that acts: no tool, no server, no sub-agent, no settings of a project."""
    name = f"{role.name} without tools"
    return replace(role, name=name, tools=frozenset(), mcp=False, agents=False, project_settings=False)


def powerless(name: str) -> Role:
    """What is left of a role that nobody knows any more."""
    return Role(name=name, tools=frozenset(), known=False)


def toolless(role: Role) -> str:
    """What one is told whose role has no tools."""
    return f"The role `{role.name}` may use no tools." if role.known else _unknown(role)


def _unknown(role: Role) -> str:
    return f"The role `{role.name}` of this key is not configured (any more): without it there are no tools, no scopes."


@lru_cache(maxsize=256)  # of the routes that there are, for each request
def route_of(path: str) -> str | None:
    """Which of :data:`ROUTES` a path belongs to.

    >>> route_of("/v1/messages/count_tokens"), route_of("/v1/messagesx")
    ('/v1/messages', None)
    """
    return next((route for route in ROUTES if path == route or path.startswith(f"{route}/")), None)


def names_of(model: str, aliases: Mapping[str, str]) -> tuple[str, ...]:
    """All names of a model's id; ``aliases``: alias → id."""
    return model, *sorted(alias for alias, meant in aliases.items() if meant == model)


def names_told(told: str, aliases: Mapping[str, str]) -> tuple[str, ...]:
    """All names of a model as an upstream names it, often with the date of its release: that name, and those of the
    model without its date.

    >>> names_told("claude-x-20260401", {"x": "claude-x"})
    ('claude-x-20260401', 'claude-x', 'x')
    """
    return tuple(dict.fromkeys((*names_of(told, aliases), *names_of(undated(told), aliases))))


def refuses(
    role: Role,
    *,
    route: str | None = None,
    lane: str | None = None,
    models: Iterable[Sequence[str]] = (),
    tools: Sequence[str] = (),
    approval: str = "never",
    mcp_servers: Collection[str] = (),
    agents: Collection[object] = (),
    project_settings: str = "none",
    directories: Iterable[str] = (),
    scopes: Iterable[str] = (),
    limits: Mapping[str, float | None] = MappingProxyType({}),
) -> str | None:
    """The rule that forbids this, as a sentence; None if none does.

    ``tools``: every name or pattern that the task, or one of its ``agents``, would be allowed. A pattern such as
    ``Bash(git *)`` is judged by the name before its bracket. ``models``: each by all its names, the one to tell first.
    ``directories``: absolute paths, judged by their names: that they lead nowhere else is the sandbox's to see to.
    ``scopes``: what else it takes, such as ``webhooks``. ``limits``: what is asked of ``max_turns``, ``max_cost_usd``
    (dollars), ``timeout_s`` and ``priority``; None asks for nothing.
    """
    why = (
        _way_refused(role, route, lane, models)
        or next((why for tool in tools if (why := _tool_refused(role, tool)) is not None), None)
        or _approval_refused(role, approval)
        or _server_refused(role, mcp_servers)
        or _surroundings_refused(role, agents, project_settings, directories)
        or next((_no_scope(role, scope) for scope in scopes if scope not in role.scopes), None)
        or _limit_refused(role, limits)
    )
    return why if why is None or role.known else _unknown(role)


def refuses_way(
    role: Role, *, route: str | None = None, lane: str | None = None, models: Iterable[Sequence[str]] = ()
) -> str | None:
    """As :func:`refuses`, for what is asked by every chat: there is no more to it than the way that it takes."""
    why = _way_refused(role, route, lane, models)
    return why if why is None or role.known else _unknown(role)


def _way_refused(role: Role, route: str | None, lane: str | None, models: Iterable[Sequence[str]]) -> str | None:
    if role.routes is not None and route is not None and route not in role.routes:
        return f"The role `{role.name}` may not use `{_told(route)}`; its routes are {_listed(role.routes)}."
    if role.lanes is not None and lane is not None and lane not in role.lanes:
        return f"The role `{role.name}` may not use the lane `{_told(lane)}`; its lanes are {_listed(role.lanes)}."
    for names in models:
        if role.models is not None and role.models.isdisjoint(names):
            known = _listed(role.models)
            return f"The role `{role.name}` may not use the model `{_told(names[0])}`; its models are {known}."
    return None


def _approval_refused(role: Role, approval: str) -> str | None:
    if approval in role.approvals:
        return None
    allowed = _listed(role.approvals, APPROVALS)
    return f"The role `{role.name}` may not ask for `approval: {_told(approval)}`, only for {allowed}."


def _surroundings_refused(
    role: Role, agents: Collection[object], project_settings: str, directories: Iterable[str]
) -> str | None:
    if agents and not role.agents:
        return f"The role `{role.name}` may define no agents."
    if project_settings != "none" and not role.project_settings:
        return f"The role `{role.name}` may not ask for `project_settings: {_told(project_settings)}`."
    for path in directories:
        if role.roots is not None and not any(_beneath(path, root) for root in role.roots):
            return f"The role `{role.name}` may not work in `{_told(path)}`: it is under none of its roots."
    return None


def _no_scope(role: Role, scope: str) -> str:
    return f"The role `{role.name}` has no scope `{_told(scope)}`."


def _server_refused(role: Role, servers: Collection[str]) -> str | None:
    if servers and not role.mcp:
        return f"The role `{role.name}` may name no MCP server."
    for name in servers:
        if role.servers is not None and name not in role.servers:
            known = _listed(role.servers) or "none"
            return f"The role `{role.name}` may not name the MCP server `{_told(name)}`; its servers are {known}."
    return None


def _beneath(path: str, root: PurePath) -> bool:
    return PurePath(os.path.normpath(path)).is_relative_to(root)


def _limit_refused(role: Role, asked: Mapping[str, float | None]) -> str | None:
    cost = role.max_cost_micro_usd
    bounds = {
        "max_turns": role.max_turns,
        "max_cost_usd": None if cost is None else cost / _MICRO,
        "timeout_s": role.max_timeout_seconds,
        "priority": role.max_priority,
    }
    for name, wanted in asked.items():
        bound = bounds[name]
        if wanted is not None and bound is not None and wanted > bound:
            return f"The role `{role.name}` may ask for at most `{name}: {bound:g}`."
    return None


def permitted(role: Role, tools: Iterable[str]) -> tuple[str, ...]:
    """Those of these tools that the role may use at all, whatever is asked or approved."""
    return tuple(tool for tool in tools if _tool_refused(role, tool) is None)


def _tool_refused(role: Role, tool: str) -> str | None:
    match = _TOOL.fullmatch(tool)
    if match is None:
        return f"`{_told(tool)}` is neither the name of one tool nor a pattern such as `Bash(git *)`."
    name = match["name"]
    if _may_be_mcp(name) and not role.mcp:
        return f"The role `{role.name}` may use no tool of an MCP server, such as `{_told(name)}`."
    if role.tools is None or name in role.tools or (name.startswith(_MCP_PREFIX) and role.mcp):
        return None
    if not role.tools:
        return toolless(role)
    return f"The role `{role.name}` may not use `{_told(name)}`; its tools are {_listed(role.tools)}."


def _may_be_mcp(name: str) -> bool:
    """Whether it names a tool of a server, or could with its star."""
    stem, star, _ = name.partition("*")
    return stem.startswith(_MCP_PREFIX) or (bool(star) and _MCP_PREFIX.startswith(stem))


def _told(word: str) -> str:
    return word if len(word) <= _MAX_TOLD else f"{word[:_MAX_TOLD]}…"


def _listed(words: Collection[str], order: Sequence[str] | None = None) -> str:
    known = sorted(words) if order is None else [word for word in order if word in words]
    return ", ".join(f"`{word}`" for word in known)
