"""A client's own tools (function calling) on Claude Code, pure.

The CLI is told of them as an MCP server that lives in the daemon (``initialize.sdkMcpServers``, ``mcp_message``; shapes
as in ``claude_agent_sdk``: ``query``, ``sdk_mcp_bridge``). It may call them unasked, and its calls are left without an
answer: so it cannot ask the model again before the turn, whose calls the stream has told, is interrupted. (A PreToolUse
hook that answers ``defer`` would end the turn too, but there are no hooks under ``--bare``.) Upstream a tool is called
:data:`PREFIX` and its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from claude_daemon.engine.stream import control_refusal, control_reply

SERVER: Final = "c"
"""Short: it is part of every tool's name upstream, which the API limits."""
PREFIX: Final = f"mcp__{SERVER}__"
ALLOWED: Final = f"mcp__{SERVER}"
"""The rule by which the CLI calls every tool of the server unasked."""
_METHOD_NOT_FOUND: Final = -32601  # JSON-RPC's own


def listing(tools: Sequence[Mapping[str, Any]]) -> bytes | None:
    """Tools of a Messages API request as MCP lists them, as JSON; None where there are none.

    By name, as the CLI puts them before the model whatever their order was: the same tools are the same binding.
    """
    if not tools:
        return None
    return orjson.dumps(
        [
            {
                "name": tool["name"],
                "description": tool.get("description") or "",
                "inputSchema": tool["input_schema"],
            }
            for tool in sorted(tools, key=lambda tool: str(tool["name"]))
        ]
    )


def names(listed: bytes | None) -> frozenset[str]:
    """The client's names for what :func:`listing` lists."""
    return frozenset(tool["name"] for tool in orjson.loads(listed)) if listed is not None else frozenset()


def upstream_name(name: str) -> str:
    return PREFIX + name


def client_name(name: str) -> str:
    return name.removeprefix(PREFIX)


def upstream_choice(choice: Mapping[str, Any] | None) -> bytes | None:
    """A ``tool_choice`` as the upstream must see it, as JSON; None for what is so anyway."""
    if not choice or (choice["type"] == "auto" and not choice.get("disable_parallel_tool_use")):
        return None
    named = {"name": upstream_name(choice["name"])} if choice["type"] == "tool" else {}
    return orjson.dumps({**choice, **named})


def is_server_request(message: Mapping[str, Any]) -> bool:
    """Whether the CLI says something to the MCP server."""
    request = message.get("request")
    return (
        message.get("type") == "control_request"
        and isinstance(request, dict)
        and request.get("subtype") == "mcp_message"
    )


def method(message: Mapping[str, Any]) -> str:
    """What a :func:`is_server_request` asks for."""
    said = message["request"].get("message")
    return str(said.get("method")) if isinstance(said, dict) else ""


def server_answer(message: Mapping[str, Any], listed: bytes | None) -> bytes | None:
    """The line that answers a :func:`is_server_request`; None for a call, which is left without one."""
    request_id, request = str(message.get("request_id")), message["request"]
    said = request.get("message")
    if listed is None or request.get("server_name") != SERVER or not isinstance(said, dict):
        return control_refusal(request_id, "no such MCP server")
    asked = method(message)
    if asked == "tools/call":
        return None
    answer: dict[str, Any] = {"jsonrpc": "2.0", "result": {}}
    if "id" in said:
        answer["id"] = said["id"]
    if asked == "initialize":
        answer["result"] = _introduction(said)
    elif asked == "tools/list":
        answer["result"] = {"tools": orjson.loads(listed)}
    elif "id" in said and asked != "ping":
        del answer["result"]
        answer["error"] = {"code": _METHOD_NOT_FOUND, "message": f"no method {asked}"}
    return control_reply(request_id, {"mcp_response": answer})


def _introduction(said: Mapping[str, Any]) -> dict[str, Any]:
    params = said.get("params")
    version = params.get("protocolVersion") if isinstance(params, dict) else None
    return {
        "protocolVersion": version or "2025-06-18",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": SERVER, "version": "1"},
    }


def missing(message: Mapping[str, Any], offered: frozenset[str]) -> Sequence[str]:
    """Which of the offered tools a ``system/init`` does not list; nothing for any other message."""
    if not offered or message.get("type") != "system" or message.get("subtype") != "init":
        return ()
    there = message.get("tools")
    listed = {client_name(str(name)) for name in there} if isinstance(there, list) else set()
    return sorted(offered - listed)
