"""MCP servers that the operator has configured, and the way to one.

The daemon speaks to them itself, so that nothing of what they are told is within reach of an agent. ``engine`` speaks
the protocol; ``engine.mcp_stdio`` starts servers, ``upstream.mcp`` reaches those that have a URL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class McpServer:
    """A program to start, or a URL. ``env`` and ``headers`` are secrets; a part of ``args`` or ``url`` may be one."""

    name: str
    command: str | None = None
    args: Sequence[str] = field(default=(), repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    url: str | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class McpFailed(Exception):
    """A server cannot be reached, or does not speak as it should; ``str()`` is for callers, and holds no secret."""


Heard = Callable[[Mapping[str, Any]], None]
"""Told each JSON-RPC message that comes from the server."""
Lost = Callable[[str], None]
"""Told once that nothing comes any more, and why."""


class McpTransport(Protocol):
    """One way to one server. After :meth:`close` nothing is told any more."""

    async def open(self) -> None:
        """Raises McpFailed."""

    def send(self, message: Mapping[str, Any]) -> None:
        """A JSON-RPC message. What becomes of it is told later; nothing is raised."""

    def speak(self, version: str) -> None:
        """The protocol version that was agreed on."""

    async def close(self) -> None:
        """Ends it, and a process with all that it has left."""


ConnectMcp = Callable[[McpServer, Heard, Lost], McpTransport]
