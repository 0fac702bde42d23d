"""Agents on the real daemon: what makes the offline model call tools, and what became of a task."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson

from tests.support import PATIENCE, DaemonProcess, sse

PATIENCE_S = 60.0 * PATIENCE
Agents = Callable[..., Awaitable[DaemonProcess]]
"""The fixture ``agents``."""
AGENT_SETTINGS = {"engine.stall_timeout_s": 10 * PATIENCE}
SERVER = Path(__file__).with_name("mcp_server.py")
SERVER_SECRET = "of-the-server-alone-4711"


def configured(name: str, *args: str) -> str:
    """The configuration of an MCP server that runs :data:`SERVER`."""
    argv = orjson.dumps([str(SERVER), *args]).decode()
    return f'[mcp.{name}]\ncommand = "{sys.executable}"\nargs = {argv}\nenv = {{ SERVER_KEY = "{SERVER_SECRET}" }}\n'


def call(tool: str, **given: Any) -> str:
    """What makes the offline model call this tool."""
    return f"[[tool={tool}]] [[input={orjson.dumps(given).decode()}]]"


async def run(daemon: DaemonProcess, prompt: str, **fields: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The task as it ended, and its events. Over the control socket: whoever reaches that may use tools."""
    task = await daemon.control("tasks?detach=true", "POST", {"prompt": prompt, **fields})
    assert "id" in task, task
    return await ended(daemon, task["id"])


async def ended(daemon: DaemonProcess, task_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    async with asyncio.timeout(PATIENCE_S):
        async with daemon.http.get(f"/v1/tasks/{task_id}/events") as response:
            events = [data for _, data in await sse(response)]
        return await daemon.control(f"tasks/{task_id}"), events


def told(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event["data"] for event in events if event["type"] == kind]
