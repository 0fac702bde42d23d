"""The daemon as the client of MCP servers, and as the one that shows their tools to Claude Code."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from claude_daemon.core.agent import AgentSpec
from claude_daemon.engine import mcp
from claude_daemon.engine.mcp import MAX_PAGES, MAX_TOOLS, Servers
from claude_daemon.engine.mcp_stdio import server_environment
from claude_daemon.ports import Heard, Lost, McpFailed, McpServer

SCHEMA = {"type": "object"}
AGENT = AgentSpec(mcp_servers=("small",), allow=("mcp__small",))


class Server:
    """A transport and the server behind it: answers at once, unless told to keep silent."""

    def __init__(self, **results: Any) -> None:
        self.results: dict[str, Any] = {
            "initialize": {"protocolVersion": "2024-11-05", "serverInfo": {"name": "s", "version": "1"}},
            "tools/list": {"tools": [{"name": "find", "inputSchema": SCHEMA}]},
            "tools/call": {"content": [{"type": "text", "text": "found"}]},
            **results,
        }
        self.sent: list[Mapping[str, Any]] = []
        self.silent: set[str] = set()
        self.version: str | None = None
        self.closed = False
        self.heard: Heard
        self.lost: Lost

    def connect(self, server: McpServer, heard: Heard, lost: Lost) -> Server:
        self.heard, self.lost = heard, lost
        return self

    async def open(self) -> None: ...

    def send(self, message: Mapping[str, Any]) -> None:
        self.sent.append(message)
        if "id" in message and "method" in message and message["method"] not in self.silent:
            result = self.results[message["method"]]
            told = result if "error" in result else {"result": result}
            self.heard({"jsonrpc": "2.0", "id": message["id"], **told})

    def speak(self, version: str) -> None:
        self.version = version

    async def close(self) -> None:
        self.closed = True

    def methods(self) -> list[Any]:
        return [message.get("method") for message in self.sent]


def servers(server: Server, agent: AgentSpec = AGENT) -> Servers:
    return Servers(agent, {"small": McpServer(name="small", command="x")}, server.connect)


async def opened(server: Server, agent: AgentSpec = AGENT) -> Servers:
    made = servers(server, agent)
    await made.open()
    return made


def ask(made: Servers, method: str, server: str = "small", **params: Any) -> list[Mapping[str, Any]]:
    """What was replied so far; more may come."""
    replies: list[Mapping[str, Any]] = []
    message = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
    made.answer(server, message, replies.append)
    return replies


async def test_a_server_is_greeted_and_its_tools_are_shown() -> None:
    server = Server()
    made = await opened(server)
    assert server.methods() == ["initialize", "notifications/initialized", "tools/list"]
    assert server.sent[0]["params"]["capabilities"] == {}
    assert server.version == "2024-11-05"
    (greeting,) = ask(made, "initialize", protocolVersion="2025-11-25")
    assert greeting["id"] == 7
    assert greeting["result"]["protocolVersion"] == "2025-11-25"
    assert greeting["result"]["capabilities"] == {"tools": {}}
    (told,) = ask(made, "tools/list")
    assert [tool["name"] for tool in told["result"]["tools"]] == ["find"]
    assert len(server.sent) == 3  # it was not asked again


async def test_a_call_that_was_granted_reaches_the_server_once() -> None:
    server = Server()
    made = await opened(server)
    (refused,) = ask(made, "tools/call", name="find", arguments={"q": 1})
    assert "without asking" in refused["error"]["message"]
    made.grant("mcp__small__find")
    (answered,) = ask(made, "tools/call", name="find", arguments={"q": 1}, _meta={"progressToken": 1})
    assert answered["result"]["content"][0]["text"] == "found"
    assert server.sent[-1]["params"] == {"name": "find", "arguments": {"q": 1}}
    (again,) = ask(made, "tools/call", name="find", arguments={"q": 1})
    assert "error" in again


@pytest.mark.parametrize("name", ["other", "find\n", ""])
async def test_a_tool_that_the_task_has_not_is_not_called(name: str) -> None:
    server = Server()
    made = await opened(server)
    made.grant(f"mcp__small__{name}")
    (refused,) = ask(made, "tools/call", name=name)
    assert "the task has no tool" in refused["error"]["message"]
    assert "tools/call" not in server.methods()


async def test_what_is_denied_is_neither_shown_nor_called() -> None:
    made = await opened(Server(), AgentSpec(mcp_servers=("small",), allow=("mcp__small",), deny=("mcp__small__find",)))
    assert ask(made, "tools/list")[0]["result"]["tools"] == []
    made.grant("mcp__small__find")
    assert "error" in ask(made, "tools/call", name="find")[0]


@pytest.mark.parametrize("method", ["resources/list", "prompts/get", "completion/complete", "logging/setLevel"])
async def test_nothing_but_tools_is_offered(method: str) -> None:
    server = Server()
    (refused,) = ask(await opened(server), method)
    assert "not offered" in refused["error"]["message"]
    assert method not in server.methods()


async def test_an_unknown_server_is_an_error_and_a_notification_gets_its_empty_answer() -> None:
    made = await opened(Server())
    assert "no such server" in ask(made, "tools/list", server="other")[0]["error"]["message"]
    replies: list[Mapping[str, Any]] = []
    made.answer("small", {"jsonrpc": "2.0", "method": "notifications/initialized"}, replies.append)
    assert replies == [{"jsonrpc": "2.0", "result": {}}]


async def test_a_cancelled_call_is_withdrawn_by_our_own_number_and_never_answered() -> None:
    server = Server()
    server.silent.add("tools/call")
    made = await opened(server)
    made.grant("mcp__small__find")
    replies = ask(made, "tools/call", name="find")
    number = server.sent[-1]["id"]
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7, "reason": "enough"}}
    made.answer("small", cancel, lambda response: None)
    assert server.sent[-1]["params"] == {"requestId": number, "reason": "enough"}
    server.heard({"jsonrpc": "2.0", "id": number, "result": {}})
    assert replies == []
    await made.close()


async def test_what_waits_for_a_server_that_is_gone_is_answered_and_so_is_what_comes_later() -> None:
    server = Server()
    server.silent.add("tools/call")
    made = await opened(server)
    made.grant("mcp__small__find")
    made.grant("mcp__small__find")
    replies = ask(made, "tools/call", name="find")
    server.lost("it ended with status 3")
    assert replies[0]["error"]["message"] == "the server small is gone: it ended with status 3"
    assert ask(made, "tools/call", name="find")[0]["error"] == replies[0]["error"]
    await made.close()
    assert server.closed


async def test_a_call_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp, "CALL_TIMEOUT_S", 0.01)
    server = Server()
    made = await opened(server)
    server.silent.add("tools/call")
    made.grant("mcp__small__find")
    answered: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
    message = {"id": 7, "method": "tools/call", "params": {"name": "find"}}
    made.answer("small", message, answered.set_result)
    assert "did not answer" in (await answered)["error"]["message"]
    assert server.methods()[-1] == "notifications/cancelled"


async def test_what_a_server_asks_of_its_client_is_declined() -> None:
    server = Server()
    await opened(server)
    server.heard({"jsonrpc": "2.0", "id": "x", "method": "sampling/createMessage", "params": {}})
    assert server.sent[-1]["id"] == "x"
    assert "error" in server.sent[-1]
    server.heard({"jsonrpc": "2.0", "id": 9, "method": "ping"})
    assert server.sent[-1] == {"jsonrpc": "2.0", "id": 9, "result": {}}
    sent = len(server.sent)
    noise: list[dict[str, Any]] = [
        {"method": "notifications/progress"},
        {"id": 99, "result": {}},
        {"id": None, "error": {}},
        {},
    ]
    for message in noise:
        server.heard(message)
    assert len(server.sent) == sent


MANY = [{"name": str(n), "inputSchema": SCHEMA} for n in range(MAX_TOOLS + 1)]
ENDLESS = {"tools": [], "nextCursor": "more"}


@pytest.mark.parametrize(
    ("results", "why"),
    [
        ({"initialize": {"error": {"code": 1, "message": "go away"}}}, "small: initialize: go away"),
        ({"initialize": {"error": "odd"}}, "small: initialize: odd"),
        ({"tools/list": {"tools": None}}, "small: its list of tools is none"),
        ({"tools/list": {"tools": MANY}}, "more than"),
    ],
)
async def test_a_server_that_does_not_speak_as_it_should_is_named(results: dict[str, Any], why: str) -> None:
    with pytest.raises(McpFailed, match=why):
        await servers(Server(**results)).open()


async def test_a_list_of_tools_without_an_end_is_not_followed_for_ever() -> None:
    server = Server(**{"tools/list": ENDLESS})
    await opened(server)
    assert server.methods().count("tools/list") == MAX_PAGES


@pytest.mark.parametrize(
    "odd", [None, {}, {"name": 1, "inputSchema": SCHEMA}, {"name": "x"}, {"name": "x" * 129, "inputSchema": SCHEMA}]
)
async def test_a_tool_that_would_cost_claude_code_all_of_them_is_left_out(odd: Any) -> None:
    made = await opened(Server(**{"tools/list": {"tools": [odd, {"name": "find", "inputSchema": SCHEMA}]}}))
    assert [tool["name"] for tool in ask(made, "tools/list")[0]["result"]["tools"]] == ["find"]


def test_a_server_that_is_not_configured_any_more_is_named() -> None:
    with pytest.raises(McpFailed, match="small: it is not configured any more"):
        Servers(AGENT, {}, Server().connect)


def test_a_servers_environment_is_an_allow_list_and_its_own() -> None:
    ours = {
        "PATH": "/bin",
        "HOME": "/h",
        "ANTHROPIC_API_KEY": "k",
        "CREDENTIALS_DIRECTORY": "/c",
        "NOTIFY_SOCKET": "/n",
    }
    assert server_environment(ours, {"KEY": "v", "HOME": "/own"}) == {"PATH": "/bin", "HOME": "/own", "KEY": "v"}


def test_nothing_secret_of_a_server_is_in_its_repr() -> None:
    server = McpServer(name="x", command="c", args=("s1",), env={"K": "s2"}, url="s3", headers={"K": "s4"})
    assert not any(secret in repr(server) for secret in ("s1", "s2", "s3", "s4"))
