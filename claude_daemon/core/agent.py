"""What an agent task may do: its tools, its directories, its limits; pure.

Patterns such as ``Bash(git *)`` keep an agent tidy. They confine nothing: only the sandbox does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from claude_daemon.core.command import commands, matches

READ_ONLY: Final = frozenset({"Read", "Grep", "Glob"})
"""Tools that change nothing outside: an attempt that has used no other may be made again."""
TOOLS: Final = ("Read", "Grep", "Glob", "Edit", "Write", "NotebookEdit", "Bash", "TodoWrite")
"""Claude Code's own tools that a task can be given. Not those that reach the network or ask a person."""
CHANGES_FILES: Final = frozenset({"Edit", "Write", "NotebookEdit"})
"""Those of them that change a file which their input names."""
STARTS_AGENTS: Final = "Agent"
"""Claude Code's tool that starts a subagent; there where a task defines some, and for those alone."""
MAX_RULES: Final = 64
"""Rules of one task; each stands in the worker's command line."""
MAX_RULE: Final = 322
"""Characters of a rule: the longest name, the longest pattern and its brackets."""

# No comma and no bracket within: the CLI's list is separated by commas, and a rule ends with its bracket.
PATTERN: Final = r"\([^(),\x00-\x1f\x7f]{1,256}\)"
_RULE: Final = re.compile(f"([A-Za-z]{{1,64}})({PATTERN})?", re.ASCII)
# The name of a server is as the configuration has it, that of a tool as Claude Code shows it.
SERVER: Final = r"[a-z0-9][a-z0-9_-]{0,63}"
SERVER_RULE: Final = f"mcp__{SERVER}(__[A-Za-z0-9_-]{{1,128}})?"
_SERVER_RULE: Final = re.compile(SERVER_RULE, re.ASCII)
_NOT_SHOWN: Final = re.compile(r"[^A-Za-z0-9_-]", re.ASCII)


class Approval(StrEnum):
    """What becomes of a call that no rule allows."""

    NEVER = "never"
    ASK = "ask"
    AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subagent:
    """An agent that the task's own may start for a part of the work.

    ``tools`` None: all that the task has, those of its servers among them; else some of the task's own. ``model`` None:
    that of the task. ``max_turns`` counts model calls.
    """

    name: str
    description: str
    prompt: str
    tools: tuple[str, ...] | None = None
    model: str | None = None
    max_turns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """The part of a task that only agents have; immutable.

    ``allow`` and ``deny`` are rules: a tool's name, or a name with a pattern; or a server's tools, or one of them.
    ``cwd`` and ``add_dirs`` are absolute paths under configured roots; ``cwd`` None is an empty directory that ends
    with the attempt. ``max_turns`` counts answers of models, subagents' included. ``append_system`` is added to Claude
    Code's own system prompt; with a ``system`` of the request's own it stands there. ``mcp_servers`` are names of
    configured ones. ``project_settings``: those of its directories are read, hooks and all.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    approval: Approval = Approval.NEVER
    cwd: str | None = None
    add_dirs: tuple[str, ...] = ()
    max_turns: int | None = None
    max_cost_micro_usd: int | None = None
    append_system: str | None = field(default=None, repr=False)
    mcp_servers: tuple[str, ...] = ()
    agents: tuple[Subagent, ...] = ()
    project_settings: bool = False

    @property
    def tools(self) -> tuple[str, ...]:
        """The tools that the task has at all, in the order of :data:`TOOLS`. What is denied whole is not there."""
        denied = {rule for rule in self.deny if "(" not in rule}
        named = {tool_of(rule) for rule in self.allow}
        every = self.approval is not Approval.NEVER
        return tuple(tool for tool in TOOLS if (every or tool in named) and tool not in denied)

    @property
    def outline(self) -> AgentSpec:
        """What is fixed when its process is spawned; the limits are the daemon's to keep, the rest is told later."""
        return replace(self, max_turns=None, max_cost_micro_usd=None, append_system=None)

    def ruled(self, tool: str, given: Mapping[str, Any]) -> bool:
        """Whether ``allow`` may have a rule about this call. Of a shell's line each command needs one: Claude Code runs
        some that only read, such as ``git status``, without any, and what a repository's configuration names with it.
        """
        rules = [rule for rule in self.allow if tool_of(rule) == tool]
        if tool != "Bash" or "Bash" in rules:
            return True
        patterns = [rule[len("Bash(") : -1] for rule in rules]
        line = str(given.get("command") or "")
        return all(any(matches(command, pattern) for pattern in patterns) for command in commands(line))

    def asks(self, tool: str, given: Mapping[str, Any]) -> bool:
        """Whether this call is made only after somebody has allowed it, if at all; of a file tool, in the task's own
        directories. False where nobody can tell: a rule for one file tool may count for all of them, and a project's
        settings may allow anything."""
        if self.approval is Approval.AUTO or self.project_settings:
            return False
        if tool == "Bash":
            return not self.ruled(tool, given)
        if tool in CHANGES_FILES:
            return not any(tool_of(rule) in CHANGES_FILES for rule in self.allow)
        return tool.startswith("mcp__") and not any(_covers(rule, tool) for rule in self.allow)

    @property
    def directories(self) -> tuple[str, ...]:
        """Those of somebody's that it works in."""
        return self.add_dirs if self.cwd is None else (self.cwd, *self.add_dirs)

    @property
    def touches_directories(self) -> bool:
        return bool(self.directories)

    @property
    def read_only(self) -> bool:
        """Nothing of it could change anything. What a server's tool does nobody knows, nor what a project's hook."""
        return READ_ONLY.issuperset(self.tools) and not self.mcp_servers and not self.project_settings

    def may_call(self, server: str, tool: str) -> bool:
        """Whether it has this tool of one of its servers at all; ``tool`` is the server's own name for it."""
        name = shown_name(server, tool)
        if server not in self.mcp_servers or _covered(name, server, self.deny):
            return False
        return self.approval is not Approval.NEVER or _covered(name, server, self.allow)


def tool_of(rule: str) -> str:
    """The tool that a rule is about."""
    return rule.partition("(")[0]


def shown_name(server: str, tool: str) -> str:
    """The name under which Claude Code shows a server's tool to the model, and by which rules mean it."""
    return f"mcp__{server}__{_NOT_SHOWN.sub('_', tool)}"


def _covered(name: str, server: str, rules: tuple[str, ...]) -> bool:
    return name in rules or f"mcp__{server}" in rules


def _covers(rule: str, shown: str) -> bool:
    """Whether a rule may be about this tool of a server; names of servers may begin alike."""
    return shown == rule or shown.startswith(f"{rule}__")


def _servers_meant(rule: str, servers: Iterable[str]) -> list[str]:
    return [name for name in servers if rule == f"mcp__{name}" or rule.startswith(f"mcp__{name}__")]


def contradiction(agent: AgentSpec) -> tuple[str, str] | None:
    """The parameter that asks for what the task itself has not, and why as a sentence; None if none does."""
    for rule in (*agent.allow, *agent.deny):
        if rule.startswith("mcp__") and not _servers_meant(rule, agent.mcp_servers):
            return "tools", f"`tools`: `{rule}` is about no server that `mcp_servers` names."
    for one in agent.agents:
        if beyond := [tool for tool in one.tools or () if tool not in agent.tools]:
            where = f"agents.{one.name}.tools"
            return where, f"`{where}`: the task itself has no {beyond[0]}."
    return None


def wrong_rule(rule: str) -> str | None:
    """Why this is no rule, as a sentence; None if it is one."""
    if _SERVER_RULE.fullmatch(rule) is not None:
        return None
    found = _RULE.fullmatch(rule)
    if found is None:
        return "A rule is a tool's name, or a name with one pattern in brackets, without commas: Bash(git *)."
    if found[1] not in TOOLS:
        return f"There is no tool {found[1]}; there are {', '.join(TOOLS)}."
    return None
