"""Roles: what a key may ask for.

``readonly``, ``standard`` and ``full`` are built in (INTERFACE.md, "Roles"); ``[roles.<name>]`` adds one's own.
:func:`refuses` is the one judge: it names the rule that forbids a wish.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Protocol

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

_MCP_PREFIX: Final = "mcp__"
# A tool's name, a star where several are meant, and after it at most one pattern in brackets. Nothing may follow it:
# the CLI takes a list in one string too, and would read a second tool that nobody has judged.
_TOOL: Final = re.compile(r"(?P<name>[A-Za-z*][A-Za-z0-9_*-]{0,127})(?:\([^(),\x00-\x1f\x7f]*\))?", re.ASCII)
_MAX_TOLD: Final = 60
"""Characters of a client's own word that are repeated to it."""


class Configured(Protocol):
    """A ``[roles.<name>]`` table; ``approval`` is the strongest it may ask for."""

    @property
    def tools(self) -> Sequence[str]: ...
    @property
    def approval(self) -> str: ...
    @property
    def scopes(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """``tools``: names of Claude Code's own tools, None for every one. ``mcp``: servers that the operator has
    configured, and their tools; ``agents``: sub-agents of one's own; ``project_settings``: those of a trusted root.
    ``known``: somebody has said what it may.
    """

    name: str
    tools: frozenset[str] | None
    approvals: frozenset[str] = frozenset({"never"})
    scopes: frozenset[str] = frozenset()
    mcp: bool = False
    agents: bool = False
    project_settings: bool = False
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
    if unknown := sorted(set(table.scopes) - SCOPES):
        raise ValueError(f"{where}.scopes: no scope is named {unknown[0]!r}; known are {_listed(SCOPES)}")
    for tool in table.tools:
        _check_tool(where, tool)
    scopes = frozenset(table.scopes)
    return Role(
        name=name,
        tools=None if EVERY_TOOL in table.tools else frozenset(table.tools),
        approvals=frozenset(APPROVALS[: APPROVALS.index(table.approval) + 1]),
        scopes=scopes,
        mcp=MCP in scopes,
        agents=AGENTS in scopes,
        project_settings=PROJECT_SETTINGS in scopes,
    )


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


def refuses(
    role: Role,
    *,
    tools: Sequence[str] = (),
    approval: str = "never",
    mcp_servers: Collection[object] = (),
    agents: Collection[object] = (),
    project_settings: str = "none",
    scopes: Iterable[str] = (),
) -> str | None:
    """The rule that forbids this, as a sentence; None if none does.

    ``tools``: every name or pattern that the task, or one of its ``agents``, would be allowed. A pattern such as
    ``Bash(git *)`` is judged by the name before its bracket. ``scopes``: what else it takes, such as ``webhooks``.
    """
    why = _rule(role, tools, approval, mcp_servers, agents, project_settings, scopes)
    return why if why is None or role.known else _unknown(role)


def _rule(
    role: Role,
    tools: Sequence[str],
    approval: str,
    mcp_servers: Collection[object],
    agents: Collection[object],
    project_settings: str,
    scopes: Iterable[str],
) -> str | None:
    for tool in tools:
        if (why := _tool_refused(role, tool)) is not None:
            return why
    if approval not in role.approvals:
        allowed = _listed(role.approvals, APPROVALS)
        return f"The role `{role.name}` may not ask for `approval: {_told(approval)}`, only for {allowed}."
    if mcp_servers and not role.mcp:
        return f"The role `{role.name}` may name no MCP server."
    if agents and not role.agents:
        return f"The role `{role.name}` may define no agents."
    if project_settings != "none" and not role.project_settings:
        return f"The role `{role.name}` may not ask for `project_settings: {_told(project_settings)}`."
    for scope in scopes:
        if scope not in role.scopes:
            return f"The role `{role.name}` has no scope `{_told(scope)}`."
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
