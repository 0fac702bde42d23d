"""What we rely on in the CLI beyond its existence: one row each, with its probe and its fallback.

Everything here is shown by the published SDKs, ``--help`` or the documentation. The probe runs the CLI against the
gateway's canned answers: no upstream is asked, no credential is there to be used. Its result is kept beside the
engine's files and used again for as long as the executable is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

# name -> (what we rely on, what we do without it)
ROWS: Mapping[str, tuple[str, str]] = {
    "bare": ("--bare: a leaner start and turn with a key", "start without it: about 20 ms more a turn"),
    "restricted": ("--restricted: no settings, file tools confined", "--setting-sources= and --tools= alone"),
    "permission_prompts": ("--permission-prompts none", "left out: without tools nothing asks"),
    "late_bind": ("initialize may come long after the spawn", "a process spawned for each new system prompt"),
    "clear": ("/clear empties a conversation", "a process serves one turn"),
    "set_model": ("set_model changes the model of a live process", "a process spawned for each model"),
    "history": ("shouldQuery: false adds to the conversation", "earlier turns are told in the prompt"),
    "interrupt": ("interrupt ends a turn, the process stays", "the process is stopped and replaced"),
    "system_block": (
        "the system prompt is a block of its own in the request",
        "a process is lent to nobody else: with no spare at hand a new system prompt or schema waits for a spawn",
    ),
    "composed": (
        "client_composed: commands in a prompt mean nothing",
        "a prompt is never sent with its first column",
    ),
    "hooks": (
        "a PreToolUse hook asks before each tool call of an agent",
        "an agent's task counts as one that may have changed something from its first model call on",
    ),
    "todo_list": (
        "CLAUDE_CODE_ENABLE_TASKS=0: who is allowed TodoWrite is offered it",
        "left out: an agent that is allowed TodoWrite works without",
    ),
    "client_tools": (
        "tools of an MCP server in the SDK, whose calls wait for the interrupt",
        "tools are refused by name on the text lane",
    ),
    "sessions": (
        "--session-id names a conversation, and --resume goes on with it in another process",
        "sessions are refused by name",
    ),
    "fork": (
        "--fork-session begins a conversation as a copy of another, which stays as it is",
        "a fork of a session is refused by name",
    ),
    "message_ids": (
        "a transcript has user messages under the ids that they were sent with",
        "a session's turn that is cut short is never made again",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Which rows of :data:`ROWS` hold. ``aliases``: model id → the CLI's own name for it (``initialize`` tells)."""

    bare: bool = True
    restricted: bool = True
    permission_prompts: bool = True
    late_bind: bool = True
    clear: bool = True
    set_model: bool = True
    history: bool = True
    interrupt: bool = True
    composed: bool = True
    system_block: bool = True
    hooks: bool = True
    todo_list: bool = True
    client_tools: bool = True
    sessions: bool = True
    fork: bool = True
    message_ids: bool = True
    version: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)

    def without(self, names: Sequence[str]) -> Capabilities:
        """The same with some rows forced off. Raises ValueError for a name that is no row."""
        unknown = set(names) - set(ROWS)
        if unknown:
            raise ValueError(f"no such capability: {', '.join(sorted(unknown))} (there are {', '.join(ROWS)})")
        off: dict[str, Any] = dict.fromkeys(names, False)
        return replace(self, **off)

    @property
    def takes_tools(self) -> bool:
        """A client's tools need their own row, and three more: their list comes late, their results are history, and
        the interrupt ends the turn."""
        return self.client_tools and self.late_bind and self.history and self.interrupt

    def missing(self) -> list[str]:
        return [row.name for row in fields(self) if row.name in ROWS and not getattr(self, row.name)]
