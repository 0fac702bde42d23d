"""What followers of an agent are told beside its calls and their results: what was denied, which files changed; pure.

A file counts as changed by a file tool that succeeded. What a command changes is not known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from claude_daemon.core.event import FILE_CHANGED, TOOL_DENIED, TOOL_RESULT, TOOL_USE, Emission
from claude_daemon.engine.agent_changes import MAX_FILES, PATHS

_NO_RULE: Final = "no rule allows it"


class Facts:
    """Of one turn. ``files``: what has changed so far, each once, at most :data:`~.agent_changes.MAX_FILES`."""

    def __init__(self) -> None:
        self.files: list[str] = []
        self._calls: dict[str, tuple[str, str | None]] = {}  # without a result: id -> tool, and the file it names
        self._denied: set[str] = set()
        self._reasons: dict[str, str] = {}

    def expect(self, call: str, why: str) -> None:
        """Somebody has denied the call: that is why, whatever Claude Code says of it."""
        self._reasons[call] = why

    def denied(self, call: str, tool: str, why: str) -> list[Emission]:
        """A call that is not made; nothing where that has been told already."""
        if call in self._denied:
            return []
        self._denied.add(call)
        why = self._reasons.pop(call, why)
        return [Emission(TOOL_DENIED, {"id": call, "name": tool, "message": why})]

    def add(self, message: Mapping[str, Any], emissions: Sequence[Emission]) -> list[Emission]:
        """``emissions``, which the message has led to, and what they mean."""
        told: list[Emission] = []
        if message.get("type") == "system" and message.get("subtype") == "permission_denied":
            call, why = str(message.get("tool_use_id")), str(message.get("message") or _NO_RULE)
            told += self.denied(call, str(message.get("tool_name")), why)
        if message.get("type") == "result":
            told += self._left_over(message.get("permission_denials"))
        for emission in emissions:
            told.append(emission)
            if emission.type == TOOL_USE:
                path = emission.data["input"].get(PATHS.get(emission.data["name"], ""))
                self._calls[emission.data["id"]] = emission.data["name"], path if isinstance(path, str) else None
            elif emission.type == TOOL_RESULT:
                told += self._changed(emission.data)
        return told

    def _changed(self, result: Mapping[str, Any]) -> list[Emission]:
        tool, path = self._calls.pop(result["id"], (None, None))
        if path is None or result["is_error"]:
            return []
        if path not in self.files and len(self.files) < MAX_FILES:
            self.files.append(path)
        return [Emission(FILE_CHANGED, {"id": result["id"], "name": tool, "path": path})]

    def _left_over(self, denials: Any) -> list[Emission]:
        """What the end of the turn names, and nothing before it did."""
        told: list[Emission] = []
        for denial in denials if isinstance(denials, list) else ():
            if isinstance(denial, Mapping):
                call, tool = str(denial.get("tool_use_id")), str(denial.get("tool_name"))
                told += self.denied(call, tool, _NO_RULE)
        return told
