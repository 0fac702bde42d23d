"""What an agent task may do: its tools, its directories, its limits; pure.

Patterns such as ``Bash(git *)`` keep an agent tidy. They confine nothing: only the sandbox does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

from claude_daemon.core.command import commands, matches

READ_ONLY: Final = frozenset({"Read", "Grep", "Glob"})
"""Tools that change nothing outside: an attempt that has used no other may be made again."""
TOOLS: Final = ("Read", "Grep", "Glob", "Edit", "Write", "NotebookEdit", "Bash", "TodoWrite")
"""Claude Code's own tools that a task can be given. Not those that reach the network or ask a person."""
MAX_RULES: Final = 64
"""Rules of one task; each stands in the worker's command line."""
MAX_RULE: Final = 322
"""Characters of a rule: the longest name, the longest pattern and its brackets."""

# No comma and no bracket within: the CLI's list is separated by commas, and a rule ends with its bracket.
PATTERN: Final = r"\([^(),\x00-\x1f\x7f]{1,256}\)"
_RULE: Final = re.compile(f"([A-Za-z]{{1,64}})({PATTERN})?", re.ASCII)


class Approval(StrEnum):
    """What becomes of a call that no rule allows."""

    NEVER = "never"
    ASK = "ask"
    AUTO = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """The part of a task that only agents have; immutable.

    ``allow`` and ``deny`` are rules: a tool's name, or a name with a pattern. ``cwd`` and ``add_dirs`` are absolute
    paths under configured roots; ``cwd`` None is an empty directory that ends with the attempt. ``max_turns`` counts
    model calls of the main conversation. ``append_system`` is added to Claude Code's own system prompt; with a
    ``system`` of the request's own it stands there.
    """

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    approval: Approval = Approval.NEVER
    cwd: str | None = None
    add_dirs: tuple[str, ...] = ()
    max_turns: int | None = None
    max_cost_micro_usd: int | None = None
    append_system: str | None = field(default=None, repr=False)

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

    @property
    def touches_directories(self) -> bool:
        return self.cwd is not None or bool(self.add_dirs)

    @property
    def read_only(self) -> bool:
        return READ_ONLY.issuperset(self.tools)


def tool_of(rule: str) -> str:
    """The tool that a rule is about."""
    return rule.partition("(")[0]


def wrong_rule(rule: str) -> str | None:
    """Why this is no rule, as a sentence; None if it is one."""
    found = _RULE.fullmatch(rule)
    if found is None:
        return "A rule is a tool's name, or a name with one pattern in brackets, without commas: Bash(git *)."
    if found[1] not in TOOLS:
        return f"There is no tool {found[1]}; there are {', '.join(TOOLS)}."
    return None
