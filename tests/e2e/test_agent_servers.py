"""MCP servers of agents end to end: real servers outside of the sandbox, the real CLI inside."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.e2e.agents import PATIENCE_S, SERVER, SERVER_SECRET, Agents, call, configured, ended, run, told
from tests.support import DaemonProcess, alive

pytestmark = pytest.mark.engine


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


async def result_of(daemon: DaemonProcess, prompt: str, **fields: Any) -> dict[str, Any]:
    fields = {"mcp_servers": ["small"], "tools": {"allow": ["mcp__small"]}, **fields}
    task, events = await run(daemon, prompt, **fields)
    assert task["state"] == "succeeded", (task, events)
    (result,) = told(events, "tool.result")
    return result


async def test_a_tool_of_a_server_is_called(workshop: DaemonProcess) -> None:
    result = await result_of(workshop, f"{call('mcp__small__echo', text='hello')} [[tokens=1]]")
    assert (result["name"], result["is_error"], result["content"]) == ("mcp__small__echo", False, "hello")
    result = await result_of(workshop, f"{call('mcp__small__ask_back')} [[tokens=1]]")
    assert "offers nothing" in result["content"]  # what a server asks of its client


async def test_a_server_has_its_own_environment_and_the_agent_has_nothing_of_it(
    workshop: DaemonProcess, repository: Path
) -> None:
    environment = orjson.loads(
        (await result_of(workshop, f"{call('mcp__small__environment')} [[tokens=1]]"))["content"]
    )
    assert environment["SERVER_KEY"] == SERVER_SECRET
    assert not [name for name in environment if name.startswith(("ANTHROPIC_", "CLAUDE_DAEMON_HOME", "CLAUDE_CODE"))]
    look = "env; cat /proc/*/environ /proc/*/cmdline | tr '\\0' '\\n'; grep -r 4711 $CLAUDE_CONFIG_DIR $HOME /tmp; true"
    tools = {"allow": ["Bash", "mcp__small"]}
    result = await result_of(workshop, f"{call('Bash', command=look)} [[tokens=1]]", tools=tools, cwd=str(repository))
    assert "CLAUDE_CONFIG_DIR" in result["content"]
    assert SERVER_SECRET not in result["content"]
    assert SERVER.name not in result["content"]
    assert not [line for line in workshop.log() if SERVER_SECRET in str(line)]


async def test_what_no_rule_allows_is_not_there(workshop: DaemonProcess) -> None:
    for tools in ({"allow": ["mcp__small"], "deny": ["mcp__small__echo"]}, {"allow": ["mcp__small__environment"]}):
        result = await result_of(workshop, f"{call('mcp__small__echo', text='x')} [[tokens=1]]", tools=tools)
        assert result["is_error"], result
    result = await result_of(workshop, f"{call('mcp__small__echo', text='x')} [[tokens=1]]", tools={"approval": "auto"})
    assert result["content"] == "x"


async def test_a_server_ends_with_its_task_and_all_that_it_left(workshop: DaemonProcess) -> None:
    result = await result_of(workshop, f"{call('mcp__small__stray')} [[tokens=1]]")
    pids = orjson.loads(result["content"])
    await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


async def hanging(daemon: DaemonProcess, repository: Path) -> tuple[str, int]:
    """A task in the middle of a call that will not end, and the server's pid."""
    path = repository / "pid"
    prompt = call("mcp__small__hang", path=str(path))
    body = {"prompt": prompt, "mcp_servers": ["small"], "tools": {"allow": ["mcp__small"]}}
    task = await daemon.control("tasks?detach=true", "POST", body)
    await eventually(lambda: path.exists() and path.read_text() != "")
    return task["id"], int(path.read_text())


async def test_a_cancel_ends_a_server_in_the_middle_of_a_call(workshop: DaemonProcess, repository: Path) -> None:
    task_id, pid = await hanging(workshop, repository)
    await workshop.control(f"tasks/{task_id}/cancel", "POST")
    await eventually(lambda: not alive(pid))
    assert (await ended(workshop, task_id))[0]["state"] == "cancelled"


async def test_a_daemon_that_was_killed_leaves_no_server_to_the_next(agents: Agents, repository: Path) -> None:
    daemon = await agents(toml=configured("small"))
    task_id, pid = await hanging(daemon, repository)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGKILL)
    await daemon.ended()
    assert alive(pid)
    await daemon.start()
    await eventually(lambda: not alive(pid))
    assert (await ended(daemon, task_id))[0]["error"]["code"] == "interrupted"  # it may have changed something


async def test_a_server_that_dies_fails_the_call_and_not_the_task(workshop: DaemonProcess) -> None:
    result = await result_of(workshop, f"{call('mcp__small__die')} [[tokens=1]]")
    assert result["is_error"]
    assert "it ended with status 3" in result["content"]
    await workshop.logged("mcp.stderr", server="small", said="the end is near")


@pytest.mark.parametrize(
    ("toml", "why"),
    [
        (configured("small", "--refuse"), "it ended with status 1"),
        ('[mcp.small]\ncommand = "/nowhere/at-all"\n', "cannot be started"),
        ('[mcp.small]\nurl = "http://127.0.0.1:9/mcp"\n', "cannot be reached"),
    ],
)
async def test_a_server_that_cannot_be_reached_fails_the_task_by_name(agents: Agents, toml: str, why: str) -> None:
    daemon = await agents(toml=toml)
    task, _ = await run(daemon, "x", mcp_servers=["small"], tools={"allow": ["mcp__small"]})
    assert task["error"]["code"] == "mcp_unavailable", task
    assert task["error"]["message"].startswith("the MCP server small: ")
    assert why in task["error"]["message"]


async def test_a_server_that_nobody_configured_is_refused_by_name(agents: Agents) -> None:
    daemon = await agents()
    answer = await daemon.control("tasks?detach=true", "POST", {"prompt": "x", "mcp_servers": ["small"]})
    assert answer["code"] == "invalid_request"
    assert "[mcp.small]" in answer["detail"]


async def test_what_a_servers_tool_may_have_changed_is_written_down(agents: Agents) -> None:
    daemon = await agents(toml=configured("small"))
    await result_of(daemon, f"{call('mcp__small__echo', text='x')} [[tokens=1]]")
    with closing(sqlite3.connect(daemon.home / ".claude-daemon" / "daemon.db")) as db:
        assert db.execute("SELECT effects FROM tasks").fetchall() == [("possible",)]
        audit = [
            orjson.loads(details) for (details,) in db.execute("SELECT details FROM audit WHERE act='tool.called'")
        ]
    assert [details["tool"] for details in audit] == ["mcp__small__echo"]


# over HTTP


class Small:
    """A server at a URL: it wants its header and its session, and answers as events or as JSON."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str | None]] = []
        self.elsewhere = 0
        self.redirects = False
        self.events = True

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if request.headers.get("Authorization") != SERVER_SECRET:
            return web.Response(status=401)
        if self.redirects:
            return web.Response(status=307, headers={"Location": "/elsewhere"})
        message = {} if request.method == "DELETE" else await request.json()
        method = message.get("method", request.method)
        self.seen.append((method, request.headers.get("Mcp-Session-Id")))
        if "id" not in message:
            return web.Response(status=202)
        reply = orjson.dumps({"jsonrpc": "2.0", "id": message["id"], "result": self.result(method, message["params"])})
        headers = {"Mcp-Session-Id": "s1"} if method == "initialize" else {}
        if not self.events:
            return web.Response(body=reply, content_type="application/json", headers=headers)
        note = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{}}'
        body = b": hello\r\n\r\nevent: message\r\ndata: " + note + b"\r\n\r\ndata: " + reply + b"\r\n\r\n"
        return web.Response(body=body, content_type="text/event-stream", headers=headers)

    def result(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "initialize":
            return {"protocolVersion": "2025-03-26", "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}}
        if method == "tools/list":
            return {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}
        return {"content": [{"type": "text", "text": params["arguments"]["text"]}]}

    async def lead_astray(self, request: web.Request) -> web.Response:
        self.elsewhere += 1
        return web.Response()


@pytest.fixture
async def small() -> AsyncIterator[tuple[Small, str]]:
    server, app = Small(), web.Application()
    app.router.add_route("*", "/mcp", server.answer)
    app.router.add_route("*", "/elsewhere", server.lead_astray)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/mcp"
    yield server, f'[mcp.small]\nurl = "{url}"\nheaders = {{ Authorization = "{SERVER_SECRET}" }}\n'
    await runner.cleanup()


@pytest.mark.parametrize("events", [True, False])
async def test_a_server_with_a_url_is_spoken_to_by_the_daemon(
    agents: Agents, small: tuple[Small, str], events: bool
) -> None:
    server, toml = small
    server.events = events
    daemon = await agents(toml=toml)
    result = await result_of(daemon, f"{call('mcp__small__echo', text='hello')} [[tokens=1]]")
    assert result["content"] == "hello"
    await eventually(lambda: server.seen[-1][0] == "DELETE")
    assert server.seen == [
        ("initialize", None),
        ("notifications/initialized", "s1"),
        ("tools/list", "s1"),
        ("tools/call", "s1"),
        ("DELETE", "s1"),
    ]


async def test_headers_do_not_follow_a_redirect(agents: Agents, small: tuple[Small, str]) -> None:
    server, toml = small
    server.redirects = True
    daemon = await agents(toml=toml)
    task, _ = await run(daemon, "x", mcp_servers=["small"])
    assert task["error"]["code"] == "mcp_unavailable"
    assert "nothing is followed to another address" in task["error"]["message"]
    assert server.elsewhere == 0


async def test_a_server_made_with_the_published_sdk_is_understood(agents: Agents, tmp_path: Path) -> None:
    script = tmp_path / "root" / "published.py"
    script.write_text(
        "try:\n    from mcp.server.mcpserver import MCPServer\n"
        "except ImportError:\n    from mcp.server.fastmcp import FastMCP as MCPServer\n"
        "server = MCPServer('small')\n"
        "@server.tool()\ndef add(a: int, b: int) -> int:\n    return a + b\n"
        "server.run('stdio')\n"
    )
    argv = orjson.dumps([str(script)]).decode()
    daemon = await agents(toml=f'[mcp.small]\ncommand = "{sys.executable}"\nargs = {argv}\n')
    result = await result_of(daemon, f"{call('mcp__small__add', a=2, b=3)} [[tokens=1]]")
    assert result["content"].strip() in ("5", '{"result":5}')
