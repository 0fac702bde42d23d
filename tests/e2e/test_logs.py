"""The log of a real daemon: the story of a request from edge to audit, and a log that cannot be written."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from claude_daemon.core.trace import Trace
from tests.conftest import StartDaemon
from tests.support import BIN, DaemonProcess
from tests.telemetry.test_names import listed

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
_KEPT = ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG", "COVERAGE_FILE", "TMPDIR")


async def claudectl(daemon: DaemonProcess, *args: str) -> tuple[int, str, str]:
    """As somebody in the daemon's home; status, stdout, stderr."""
    env = {name: os.environ[name] for name in _KEPT if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        str(BIN / "claudectl"),
        *args,
        env={**env, "PATH": os.environ["PATH"], "HOME": str(daemon.home), "LANG": "C.UTF-8"},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(30):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def story(daemon: DaemonProcess, request_id: str) -> list[dict[str, Any]]:
    """What ``claudectl logs --request`` tells."""
    status, out, err = await claudectl(daemon, "logs", "--request", request_id, "--json")
    assert status == 0, err
    return [json.loads(line) for line in out.splitlines()]


async def direct_chat(daemon: DaemonProcess, headers: dict[str, str]) -> str:
    return await chat(daemon, headers, "direct")


async def text_chat(daemon: DaemonProcess, headers: dict[str, str]) -> str:
    return await chat(daemon, headers, "text")


async def chat(daemon: DaemonProcess, headers: dict[str, str], lane: str) -> str:
    body = {"model": "sonnet", "max_tokens": 99, "messages": [{"role": "user", "content": "Hello"}]}
    async with daemon.http.post("/v1/messages", json=body, headers={**headers, "Claude-Daemon-Lane": lane}) as response:
        assert response.status == 200, await response.text()
        return response.headers["X-Task-ID"]


async def task(daemon: DaemonProcess, headers: dict[str, str]) -> str:
    follow = {**headers, "Accept": "text/event-stream"}
    async with daemon.http.post("/v1/tasks", json={"prompt": "Hello"}, headers=follow) as response:
        lines = (await response.text()).splitlines()
    last = json.loads([line for line in lines if line.startswith("data: ")][-1].removeprefix("data: "))
    assert last["type"] == "task.succeeded"
    return str(last["task"])


async def over_websocket(daemon: DaemonProcess, headers: dict[str, str]) -> str:
    async with daemon.http.ws_connect("/v1/stream", protocols=["claude-daemon.v1"], headers=headers) as socket:
        await socket.send_json({"op": "submit", "ref": 1, "task": {"prompt": "Hello"}})
        while True:
            message = await socket.receive_json(timeout=30)
            if message.get("type") == "task.succeeded":
                return str(message["task"])


@pytest.mark.parametrize(
    ("ask", "expected", "acts"),
    [
        (direct_chat, ["http.access", "model_call", "task.settled"], ["chat.ended"]),
        (text_chat, ["worker.ready", "http.access", "model_call", "task.settled"], ["chat.ended"]),
        (
            task,
            ["worker.ready", "http.access", "task.accepted", "task.started", "model_call", "task.settled"],
            ["task.accepted", "task.ended"],
        ),
        (
            over_websocket,
            ["worker.ready", "ws.opened", "task.accepted", "task.started", "model_call", "task.settled", "http.access"],
            ["task.accepted", "task.ended"],
        ),
    ],
)
async def test_a_requests_story_goes_from_edge_to_task_to_worker_to_broker_to_audit(
    daemon: DaemonProcess,
    ask: Callable[[DaemonProcess, dict[str, str]], Awaitable[str]],
    expected: list[str],
    acts: list[str],
) -> None:
    request_id = f"story-{ask.__name__}"
    task_id = await ask(daemon, {"X-Request-ID": request_id, "traceparent": TRACE})
    await daemon.logged("http.access", request_id=request_id)
    await daemon.logged("task.settled", request_id=request_id)
    async with asyncio.timeout(10):  # a chat waits for no commit
        while not (found := await daemon.control(f"audit?request={request_id}"))["data"]:
            await asyncio.sleep(0.01)
    assert [one["act"] for one in found["data"]] == acts
    lines = await story(daemon, request_id)
    told = {line["event"] for line in lines}
    assert told >= set(expected)
    own = [line for line in lines if not line["event"].startswith("worker.")]
    assert {line["request_id"] for line in own} == {request_id}
    assert {line["key_id"] for line in own} == {"local"}
    assert {line["task_id"] for line in own if line["event"] not in ("ws.opened", "http.access")} == {task_id}
    traced = [line for line in own if line.get("act") in (None, *acts[:1])]  # of the audit the first record is
    assert {line["trace_id"] for line in traced} == {TRACE.split("-")[1]}
    by_event = {line["event"]: line for line in own}
    edge, call, settled = (by_event[name] for name in ("http.access", "model_call", "task.settled"))
    assert edge["parent_span_id"] == TRACE.split("-")[2]
    assert call["parent_span_id"] == settled["span_id"] == edge["span_id"]
    workers = {line["worker_id"] for line in lines if line.get("worker_id")}
    assert workers == ({settled["worker_id"]} if settled["worker_id"] else set())
    assert bool(workers) == ("worker.ready" in told)
    if ask is not over_websocket:
        assert edge["task_id"] == task_id and edge["lane"] == settled["lane"]
    upstream = Trace.parse(
        next(r.headers["traceparent"] for r in reversed(daemon.model.requests) if "traceparent" in r.headers)
    )
    assert upstream is not None and upstream.trace_id == TRACE.split("-")[1]

    status, out, _ = await claudectl(daemon, "logs", "--request", request_id)
    heading, *rest = out.splitlines()
    assert status == 0 and f"request {request_id}" in heading and f"task {task_id}" in heading
    shown = [line.split()[4] for line in rest]
    # a connection's access line comes when it is closed; of the audit the last record is the end
    order = [shown.index(event) for event in expected if event != "http.access" or ask is not over_websocket]
    assert order == sorted(order), shown
    assert len(shown) - shown[::-1].index("audit") > shown.index("model_call"), shown


async def test_an_access_line_of_a_chat_tells_what_it_took_and_cost(daemon: DaemonProcess) -> None:
    await text_chat(daemon, {"X-Request-ID": "what-it-took"})
    line = await daemon.logged("http.access", request_id="what-it-took")
    assert (line["status"], line["lane"], line["path"]) == (200, "text", "/v1/messages")
    assert 0 < line["first_delta_seconds"] <= line["seconds"]
    assert line["output_tokens"] > 0 and "cost_usd" in line and line["model"].startswith("claude-")
    settled = await daemon.logged("task.settled", request_id="what-it-took")
    assert (settled["output_tokens"], settled["cost_usd"]) == (line["output_tokens"], line["cost_usd"])


async def test_on_one_connection_no_request_has_the_ids_of_the_one_before(daemon: DaemonProcess) -> None:
    connector = aiohttp.TCPConnector(limit=1)
    async with aiohttp.ClientSession(daemon.url, connector=connector) as session:
        good = {"Authorization": f"Bearer {daemon.key}", "X-Request-ID": "first-of-two"}
        body = {"model": "sonnet", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]}
        async with session.post("/v1/messages", json=body, headers=good) as response:
            assert response.status == 200
            await response.read()
        async with session.get("/v1/models", headers={"X-Request-ID": "second-of-two"}) as response:
            assert response.status == 401
    line = await daemon.logged("http.access", request_id="second-of-two")
    assert line.keys().isdisjoint({"key_id", "task_id", "lane"})


async def test_every_event_so_far_is_on_the_page(daemon: DaemonProcess) -> None:
    await text_chat(daemon, {"X-Request-ID": "on-the-page"})
    assert {line["event"] for line in daemon.log()} <= set(listed())


async def test_status_says_where_the_log_is_and_what_it_lacks(daemon: DaemonProcess) -> None:
    log = (await daemon.control("status"))["log"]
    assert log["file"] == str(daemon.home / ".claude-daemon" / "log" / "daemon.log")
    assert log.keys() == {"file", "format", "lost", "access_lines_spared", "sampled_out"}
    assert (await daemon.control("health"))["checks"]["log"]["status"] == "pass"


@pytest.fixture
async def full(start_daemon: StartDaemon) -> AsyncIterator[DaemonProcess]:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    yield await start_daemon({"log.file": "/dev/full"})


async def test_a_log_that_cannot_be_written_is_told_and_costs_no_request(full: DaemonProcess) -> None:
    assert (await full.chat("Hello", lane="direct")).status == 200
    scarce = await full.logged("log.scarce")
    assert scarce["reason"] == "No space left on device"
    assert (await full.chat("Hello", lane="direct")).status == 200
    check = (await full.control("health"))["checks"]["log"]
    assert (check["status"], check["reason"]) == ("warn", "access lines are left out: No space left on device")
    assert check["lost"] > 0
    await full.logged("http.access", path="/v1/messages")
    assert (await full.control("status"))["log"]["access_lines_spared"] >= 1
