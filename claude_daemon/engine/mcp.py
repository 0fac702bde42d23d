"""MCP servers of one attempt: the daemon is their client, and shows Claude Code their tools over the control protocol.

An agent's sandbox holds no server, no address of one and nothing that one was configured with: what it can do is call
the tools it may, and each call passes through here. Of the protocol that is ``tools/list`` and ``tools/call``; prompts,
resources, and what a server may ask of its client (sampling, roots, elicitation) are not offered to either side.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from claude_daemon import __version__
from claude_daemon.core.agent import AgentSpec, shown_name
from claude_daemon.ports import ConnectMcp, McpFailed, McpServer

PROTOCOL: Final = "2025-06-18"
"""What we ask for; a server answers with what it speaks, and for the two methods that we use each is as good."""
OPEN_TIMEOUT_S: Final = 30.0
"""To be started, to answer and to tell its tools: one that a package runner has to fetch first takes a while."""
CALL_TIMEOUT_S: Final = 600.0
"""One call of a tool: as long as Claude Code lets a command run at most."""
MAX_TOOLS: Final = 256
"""Of one server: each stands in every model call."""
MAX_PAGES: Final = 64
"""Of one list of tools: a server that never comes to an end is not followed for ever."""
MAX_NAME: Final = 128
"""Characters of a tool's name."""

_METHOD_NOT_FOUND: Final = -32601
_INVALID_PARAMS: Final = -32602
_INTERNAL: Final = -32603
_TOLD: Final = 300
"""Characters of a server's own words that are told to a caller."""

Response = Mapping[str, Any]
Reply = Callable[[Response], None]


class _Call:
    """A request that has no response yet."""

    def __init__(self, reply: Reply, timer: asyncio.TimerHandle, asked_as: Any) -> None:
        self.reply = reply
        self.timer = timer
        self.asked_as = asked_as


class Connection:
    """One server, from :meth:`open` to :meth:`close`. Requests that it cannot answer any more are answered here."""

    def __init__(self, server: McpServer, connect: ConnectMcp) -> None:
        self.name = server.name
        self.tools: Sequence[Mapping[str, Any]] = ()
        self.about: Mapping[str, Any] = {}
        self._transport = connect(server, self._heard, self._lost)
        self._calls: dict[int, _Call] = {}
        self._number = 0
        self._gone: str | None = None

    async def open(self) -> None:
        """Starts or reaches it and learns its tools. Raises McpFailed."""
        try:
            async with asyncio.timeout(OPEN_TIMEOUT_S):
                await self._transport.open()
                await self._greet()
                self.tools = await self._list()
        except TimeoutError:
            raise McpFailed(f"it was not ready within {OPEN_TIMEOUT_S:g} s") from None

    async def _greet(self) -> None:
        client = {"name": "claude-daemon", "version": __version__}
        params = {"protocolVersion": PROTOCOL, "capabilities": {}, "clientInfo": client}
        self.about = await self._ask("initialize", params)
        self._transport.speak(str(self.about.get("protocolVersion") or PROTOCOL))
        self._transport.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    async def _list(self) -> Sequence[Mapping[str, Any]]:
        tools: list[Mapping[str, Any]] = []
        cursor: Any = None
        for _ in range(MAX_PAGES):
            page = await self._ask("tools/list", {} if cursor is None else {"cursor": cursor})
            told = page.get("tools")
            if not isinstance(told, list):
                raise McpFailed("its list of tools is none")
            tools += [tool for tool in told if _is_tool(tool)]  # one that is none would cost Claude Code all of them
            cursor = page.get("nextCursor")
            if cursor is None or len(tools) > MAX_TOOLS:
                break
        if len(tools) > MAX_TOOLS:
            raise McpFailed(f"it has more than {MAX_TOOLS} tools")
        return tools

    async def _ask(self, method: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        """The result. Raises McpFailed."""
        answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

        def reply(response: Response) -> None:
            if not answered.done():
                answered.set_result(response)

        self.request(method, params, reply)
        response = await answered
        if "error" in response:
            said = response["error"].get("message") if isinstance(response["error"], dict) else response["error"]
            raise McpFailed(f"{method}: {str(said)[:_TOLD]}")
        result = response.get("result")
        if not isinstance(result, dict):
            raise McpFailed(f"its answer to {method} is none")
        return result

    def request(self, method: str, params: Mapping[str, Any], reply: Reply, asked_as: Any = None) -> None:
        """``reply`` is called once, with a JSON-RPC response whose id does not matter. ``asked_as``: see
        :meth:`withdraw`."""
        if self._gone is not None:
            reply(error(_INTERNAL, self._gone))
            return
        self._number += 1
        number = self._number
        timer = asyncio.get_running_loop().call_later(CALL_TIMEOUT_S, self._late, number)
        self._calls[number] = _Call(reply, timer, asked_as)
        self._transport.send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})

    def withdraw(self, asked_as: Any, reason: str) -> None:
        """Nobody waits for the answer to this any more."""
        for number, call in list(self._calls.items()):
            if call.asked_as is not None and call.asked_as == asked_as:
                self._cancel(number, reason)

    def _late(self, number: int) -> None:
        call = self._cancel(number, "it took too long")
        if call is not None:
            call.reply(error(_INTERNAL, f"the server {self.name} did not answer within {CALL_TIMEOUT_S:g} s"))

    def _cancel(self, number: int, reason: str) -> _Call | None:
        call = self._calls.pop(number, None)
        if call is not None:
            call.timer.cancel()
            params = {"requestId": number, "reason": reason[:_TOLD]}
            self._transport.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
        return call

    def _heard(self, message: Mapping[str, Any]) -> None:
        if "method" in message:
            if "id" in message:
                self._transport.send({**_asked_back(message), "id": message["id"]})
            return  # notifications: progress, logs and changed lists are nobody's here
        number = message.get("id")
        call = self._calls.pop(number, None) if isinstance(number, int) else None
        if call is not None:
            call.timer.cancel()
            call.reply(message)

    def _lost(self, why: str) -> None:
        self._gone = f"the server {self.name} is gone: {why}"
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.timer.cancel()
            call.reply(error(_INTERNAL, self._gone))

    async def close(self) -> None:
        self._lost("the task is over")
        await self._transport.close()


class Servers:
    """All servers of one attempt, as Claude Code sees them. Made and opened before it is told of them.

    What it asks for is answered at once or later, through ``reply``; nothing here waits for a server but :meth:`open`.
    """

    def __init__(
        self, agent: AgentSpec, configured: Mapping[str, McpServer] | None = None, connect: ConnectMcp | None = None
    ) -> None:
        """Raises McpFailed for a server that is not configured any more."""
        configured = configured or {}
        if gone := [name for name in agent.mcp_servers if name not in configured]:
            raise McpFailed(f"{gone[0]}: it is not configured any more")
        self._agent = agent
        self._connections: dict[str, Connection] = {}
        if connect is not None:
            self._connections = {name: Connection(configured[name], connect) for name in agent.mcp_servers}
        self._granted: Counter[str] = Counter()
        self.unasked = False
        """Claude Code cannot ask before a call: all that the task may call counts as granted."""

    @property
    def names(self) -> list[str]:
        return list(self._connections)

    async def open(self) -> None:
        """All at once. Raises McpFailed, whose message begins with the server's name."""
        if not self._connections:
            return
        opening = [_named(connection) for connection in self._connections.values()]
        for failed in await asyncio.gather(*opening, return_exceptions=True):
            if failed is not None:
                raise failed

    async def close(self) -> None:
        await asyncio.gather(*(connection.close() for connection in self._connections.values()))

    def grant(self, tool: str) -> None:
        """A call of the tool of this name, as Claude Code shows it, was written down and not denied."""
        if tool.startswith("mcp__"):
            self._granted[tool] += 1

    def answer(self, name: str, message: Mapping[str, Any], reply: Reply) -> None:
        """A message of Claude Code's for one server. ``reply`` gets the JSON-RPC response, once."""
        connection, asked_as = self._connections.get(name), message.get("id")

        def answered(response: Response) -> None:
            told = {key: response[key] for key in ("result", "error") if key in response}
            reply({"jsonrpc": "2.0", "id": asked_as, **told})

        method, params = message.get("method"), message.get("params") or {}
        if connection is None:
            answered(error(_INVALID_PARAMS, "there is no such server"))
        elif asked_as is None:
            if method == "notifications/cancelled":
                connection.withdraw(params.get("requestId"), str(params.get("reason") or "it was cancelled"))
            reply({"jsonrpc": "2.0", "result": {}})
        elif method == "tools/call":
            self._call(connection, params, answered, asked_as)
        else:
            answered(self._told(connection, method, params))

    def _told(self, connection: Connection, method: Any, params: Mapping[str, Any]) -> Response:
        """What is known already."""
        if method == "initialize":
            about = {key: connection.about[key] for key in ("serverInfo", "instructions") if key in connection.about}
            version = params.get("protocolVersion") or PROTOCOL
            return {"result": {**about, "protocolVersion": version, "capabilities": {"tools": {}}}}
        if method == "tools/list":
            may = [tool for tool in connection.tools if self._agent.may_call(connection.name, tool["name"])]
            return {"result": {"tools": may}}
        if method == "ping":
            return {"result": {}}
        return error(_METHOD_NOT_FOUND, f"{method} is not offered here")

    def _call(self, connection: Connection, params: Mapping[str, Any], reply: Reply, asked_as: Any) -> None:
        """Only what the task may call, and only after it has been asked for: both are decided here as well as there."""
        tool = str(params.get("name"))
        shown = shown_name(connection.name, tool)
        known = any(one["name"] == tool for one in connection.tools)
        if not known or not self._agent.may_call(connection.name, tool):
            reply(error(_INVALID_PARAMS, f"the task has no tool {shown[:_TOLD]}"))
            return
        if not (self._granted[shown] or self.unasked):
            reply(error(_INVALID_PARAMS, f"{shown} was called without asking the daemon"))
            return
        self._granted[shown] -= not self.unasked
        # without _meta: what Claude Code says there of itself is nobody's business
        asked = {"name": tool, "arguments": params.get("arguments") or {}}
        connection.request("tools/call", asked, reply, asked_as)


async def _named(connection: Connection) -> None:
    try:
        await connection.open()
    except McpFailed as failed:
        raise McpFailed(f"{connection.name}: {failed}") from None


def error(code: int, why: str) -> Response:
    return {"error": {"code": code, "message": why}}


def _asked_back(message: Mapping[str, Any]) -> dict[str, Any]:
    """Our answer to what a server asks of its client."""
    if message["method"] == "ping":
        return {"jsonrpc": "2.0", "result": {}}
    return {"jsonrpc": "2.0", **error(_METHOD_NOT_FOUND, "this client offers nothing")}


def _is_tool(tool: Any) -> bool:
    """Whether Claude Code will take it: a name, and an object as its input."""
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str):
        return False
    schema = tool.get("inputSchema")
    return 0 < len(tool["name"]) <= MAX_NAME and isinstance(schema, dict) and schema.get("type") == "object"
