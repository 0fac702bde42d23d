"""The control API on the real daemon, over its real socket."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import orjson
import pytest
from aiohttp.test_utils import make_mocked_request

from claude_daemon.api.connection import Peer
from claude_daemon.api.control import ControlRoutes, ControlSettings, may_descend_from
from claude_daemon.api.server import PEER
from claude_daemon.core.errors import Code, Refusal
from claude_daemon.core.key import Key
from tests.conftest import StartDaemon
from tests.support import DaemonProcess

HEADERS = {"Claude-Daemon-Control": "1"}
LOCAL = Key(id="local", name="local", digest=b"", role="standard", trust_domain="default")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells who descends from whom")


@pytest.fixture
async def control(daemon: DaemonProcess) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of the control socket that brings no header of its own."""
    async with aiohttp.ClientSession("http://d", connector=aiohttp.UnixConnector(str(daemon.socket))) as session:
        yield session


async def told(response: aiohttp.ClientResponse) -> tuple[int, str]:
    assert response.headers["Content-Type"] == "application/problem+json"
    return response.status, orjson.loads(await response.read())["code"]


async def lines(response: aiohttp.ClientResponse) -> list[dict[str, Any]]:
    assert response.headers["Content-Type"] == "application/x-ndjson"
    return [orjson.loads(line) async for line in response.content]


@pytest.mark.parametrize(
    ("method", "path", "headers", "expected"),
    [
        ("GET", "/control/v1/health", {}, (426, "control_version")),
        ("GET", "/control/v1/health", {"Claude-Daemon-Control": "2"}, (426, "control_version")),
        ("GET", "/control/v1/health", {**HEADERS, "Origin": "http://localhost"}, (403, "origin_not_allowed")),
        ("GET", "/control/v1/health", {**HEADERS, "Origin": "null"}, (403, "origin_not_allowed")),
        ("GET", "/control/v2/health", {}, (426, "control_version")),
        ("GET", "/control/v1/nothing", HEADERS, (404, "not_found")),
        ("DELETE", "/control/v1/health", HEADERS, (405, "method_not_allowed")),
        ("GET", "/control/v1/ready?wait=long", HEADERS, (400, "invalid_request")),
    ],
)
async def test_who_does_not_speak_the_protocol_is_refused(
    control: aiohttp.ClientSession, method: str, path: str, headers: dict[str, str], expected: tuple[int, str]
) -> None:
    async with control.request(method, path, headers=headers) as response:
        assert await told(response) == expected
        assert response.headers["X-Request-ID"]


async def test_an_unknown_version_is_told_the_known_one(control: aiohttp.ClientSession) -> None:
    async with control.get("/control/v1/status", headers={"Claude-Daemon-Control": "7"}) as response:
        assert (response.status, response.headers["Claude-Daemon-Control"]) == (426, "1")


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("drain", {"deadline": 1}, (400, "unsupported_parameter")),
        ("drain", {"deadline_s": -1}, (400, "invalid_request")),
        ("drain", {"deadline_s": 1e300}, (400, "invalid_request")),
        ("drain", {"stop": "yes"}, (400, "invalid_request")),
        ("tasks", {}, (400, "invalid_request")),
        ("tasks", {"prompt": ""}, (400, "invalid_request")),
        ("tasks", {"prompt": "x", "lane": "direct"}, (400, "unsupported_parameter")),
        ("tasks", {"prompt": "x", "tools": []}, (400, "invalid_request")),
        ("tasks", {"prompt": "x", "model": "gpt-4"}, (404, "model_not_found")),
        ("undrain", {}, (409, "conflict")),
        ("tasks/task_x/cancel", {}, (404, "not_found")),
        ("tasks/task_x/retry", {}, (404, "not_found")),
        ("tasks/purge", {}, (400, "invalid_request")),
        ("tasks/purge", {"before": 1e12}, (400, "invalid_request")),
        ("backup", {"path": "relative.db"}, (400, "invalid_request")),
        ("backup", {"path": "/nowhere/at/all/copy.db"}, (400, "invalid_request")),
    ],
)
async def test_a_bad_body_changes_nothing(
    control: aiohttp.ClientSession, daemon: DaemonProcess, path: str, body: object, expected: tuple[int, str]
) -> None:
    async with control.post(f"/control/v1/{path}", json=body, headers=HEADERS) as response:
        assert await told(response) == expected
    assert (await daemon.control("ready"))["state"] in ("ready", "degraded")


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff"])
async def test_a_body_that_is_no_object_is_refused(control: aiohttp.ClientSession, data: bytes) -> None:
    headers = {**HEADERS, "Content-Type": "application/json"}
    async with control.post("/control/v1/drain", data=data, headers=headers) as response:
        assert await told(response) == (400, "invalid_request")


async def test_a_body_of_another_type_is_415(control: aiohttp.ClientSession) -> None:
    async with control.post(
        "/control/v1/drain", data=b"stop=1", headers={**HEADERS, "Content-Type": "text/plain"}
    ) as r:
        assert await told(r) == (415, "unsupported_media_type")


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(daemon: DaemonProcess) -> None:
    reader, writer = await asyncio.open_unix_connection(str(daemon.socket))
    writer.write(
        b"POST /control/v1/tasks HTTP/1.1\r\nHost: d\r\nClaude-Daemon-Control: 1\r\n"
        b"Content-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
    )
    async with asyncio.timeout(10):
        assert b" 413 " in await reader.readline()
    writer.close()


async def test_health_tells_its_details(control: aiohttp.ClientSession) -> None:
    async with control.get("/control/v1/health", headers=HEADERS) as response:
        document = orjson.loads(await response.read())
    assert response.headers["Content-Type"] == "application/health+json"
    assert "version" in document["checks"]["engine"]


async def test_status_tells_what_people_ask_for_and_no_secret(daemon: DaemonProcess) -> None:
    status = await daemon.control("status")
    assert daemon.process is not None
    assert (status["pid"], status["url"]) == (daemon.process.pid, daemon.url)
    assert status["lanes"] == ["direct", "text", "agent", "session"]
    assert status["credential"] == {"kind": "api_key", "origin": "environment ANTHROPIC_API_KEY"}
    said = orjson.dumps(status).decode()
    assert daemon.model.api_key not in said
    assert daemon.key not in said


async def test_every_worker_is_listed(daemon: DaemonProcess) -> None:
    for worker in await daemon.workers():
        assert worker["id"].startswith("wrk_")
        assert worker["state"] in ("starting", "idle", "busy", "recycling", "retiring")


@pytest.mark.parametrize("wait", ["", "?wait=0", "?wait=5", "?wait=-1", "?wait=nan", "?wait=inf"])
async def test_ready_answers_at_once_when_it_is(control: aiohttp.ClientSession, wait: str) -> None:
    async with asyncio.timeout(10), control.get(f"/control/v1/ready{wait}", headers=HEADERS) as response:
        assert response.status == 200
        assert orjson.loads(await response.read())["status"] == "pass"


async def test_a_task_is_streamed_event_by_event(control: aiohttp.ClientSession) -> None:
    body = {"prompt": "Hello [[tokens=5]]", "model": "sonnet", "system": "Be brief."}
    async with control.post("/control/v1/tasks", json=body, headers=HEADERS) as response:
        assert response.status == 200
        events = await lines(response)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["task.queued", "task.started"]
    assert kinds[-1] == "task.succeeded"
    assert "".join(e["data"]["text"] for e in events if e["type"] == "text.delta") == "Hello from the offline model."
    assert [event["seq"] for event in events] == sorted(event["seq"] for event in events)
    path = f"/control/v1/tasks/{events[0]['task']}"
    async with control.get(f"{path}/events?after={events[2]['seq']}", headers=HEADERS) as response:
        assert await lines(response) == events[3:]
    async with control.get(path, headers=HEADERS) as response:
        assert orjson.loads(await response.read())["state"] == "succeeded"
    async with control.post(f"{path}/retry", headers=HEADERS) as response:
        assert await told(response) == (409, "conflict")


async def test_who_leaves_a_task_leaves_it_running(control: aiohttp.ClientSession, daemon: DaemonProcess) -> None:
    body = {"prompt": "Count. [[tokens=20]] [[pace=10ms]]"}
    response = await control.post("/control/v1/tasks", json=body, headers={**HEADERS, "X-Request-ID": "leaver"})
    await response.content.readline()
    response.close()
    line = await daemon.logged("task.settled", request_id="leaver")
    assert (line["state"], line["key_id"]) == ("succeeded", "local")


async def test_a_task_that_fails_says_so_in_its_stream_and_is_tried_again(control: aiohttp.ClientSession) -> None:
    body = {"prompt": "No. [[error=400]] [[times=3]]"}  # as often as the CLI itself asks
    async with control.post("/control/v1/tasks", json=body, headers=HEADERS) as response:
        events = await lines(response)
    assert (events[-1]["type"], events[-1]["data"]["error"]["code"]) == ("task.failed", "upstream_invalid_request")
    path = f"/control/v1/tasks/{events[0]['task']}"
    async with control.post(f"{path}/retry", headers=HEADERS) as response:
        again = orjson.loads(await response.read())
        assert (response.status, again["state"], again["attempt"]) == (202, "queued", 0)
    async with control.get(f"{path}/events", headers=HEADERS) as response:
        whole = await lines(response)
    kinds = [event["type"] for event in whole]
    assert whole[: len(events)] == events
    assert kinds[len(events) :][:3] == ["task.queued", "task.started", "text.reset"]
    assert kinds[-1] == "task.succeeded"


async def test_a_task_may_be_left_at_once(control: aiohttp.ClientSession) -> None:
    body = {"prompt": "[[tokens=3]]"}
    async with control.post("/control/v1/tasks?detach=true", json=body, headers=HEADERS) as response:
        task = orjson.loads(await response.read())
    assert (response.status, task["state"]) == (202, "queued")
    async with control.post(f"/control/v1/tasks/{task['id']}/cancel", headers=HEADERS) as response:
        assert response.status == 200


# who is at the other end


def gate(peer: Peer | None, told: list[object], **settings: frozenset[int]) -> None:
    """Asks the control routes about a peer. Raises Refusal."""
    allowed: dict[str, Any] = {"allowed_uids": frozenset(), "allowed_gids": frozenset(), "deadline_s": 1.0, **settings}
    routes = ControlRoutes(
        ControlSettings(**allowed),
        cast(Any, None),
        cast(Any, None),
        cast(Any, None),
        LOCAL,
        status=dict,
        workers=list,
        begin_drain=lambda deadline, stop: None,
        record=cast(Any, None),
        refused=lambda *fields: told.append(fields),
    )
    request = make_mocked_request("GET", "/control/v1/health", headers=HEADERS)
    if peer is not None:
        request[PEER] = peer
    routes._check_peer(request)


STRANGER = os.getuid() + 4711


@linux_only
def test_who_has_another_uid_cannot_be_a_workers_child_however_little_is_seen_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()  # as invisible as everybody else's processes under systemd's ProtectProc=
    told: list[object] = []
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    gate(Peer(0, 0, ended.pid), told)
    assert told == []
    with pytest.raises(Refusal):
        gate(Peer(4711, 0, ended.pid), told)
    assert told == [("from_worker", 4711, ended.pid)]


@pytest.mark.parametrize(
    ("peer", "settings"),
    [
        (Peer(0, 0, 0), {}),
        (Peer(os.getuid(), 1, 0), {}),
        (Peer(STRANGER, 1, 0), {"allowed_uids": frozenset({STRANGER})}),
        (Peer(STRANGER, 77, 0), {"allowed_gids": frozenset({77})}),
    ],
)
def test_root_our_own_user_and_those_who_are_allowed_may(peer: Peer, settings: dict[str, frozenset[int]]) -> None:
    told: list[object] = []
    gate(peer, told, **settings)
    assert told == []


@pytest.mark.parametrize("peer", [None, Peer(STRANGER, 1, 0)])
def test_everybody_else_may_not_and_it_is_told(peer: Peer | None) -> None:
    told: list[object] = []
    with pytest.raises(Refusal) as refused:
        gate(peer, told)
    assert refused.value.failure.code is Code.FORBIDDEN
    assert told == [(Code.FORBIDDEN, peer and STRANGER, peer and 0)]


@linux_only
def test_descent_is_read_from_proc() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert may_descend_from(child.pid, os.getpid())
        assert may_descend_from(child.pid, os.getppid())
        assert not may_descend_from(os.getpid(), child.pid)
        assert not may_descend_from(os.getppid(), os.getpid())
        child.kill()
        child.wait()
        assert may_descend_from(child.pid, os.getpid()), "one that has ended cannot be asked"
    assert not may_descend_from(1, os.getpid())
    assert not may_descend_from(0, os.getpid()), "0 is somebody outside of our pid namespace"


# A worker's child tries: as itself, double-forked into a session of its own, and by handing its connection on.
INTRUDER = """#!{python}
import os, socket, sys, time
HEAD = b"Host: d\\r\\nClaude-Daemon-Control: 1\\r\\nConnection: close\\r\\n\\r\\n"
REQUEST = b"POST /control/v1/drain HTTP/1.1\\r\\n" + HEAD
def connect():
    sock = socket.socket(socket.AF_UNIX)
    sock.connect({socket!r})
    return sock
def ask(sock):
    sock.sendall(REQUEST)
    answer = b""
    while data := sock.recv(65536):
        answer += data
    out = socket.socket(socket.AF_UNIX)
    out.connect({report!r})
    out.sendall(answer)
if sys.argv[1:] == ["--version"]:
    if {way!r} == "plain":
        ask(connect())
    elif {way!r} == "orphan":
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                while os.getppid() == os.getsid(0):
                    time.sleep(0.01)
                ask(connect())
            os._exit(0)
    elif {way!r} == "handed on":
        if os.fork() == 0:
            sock, connector = connect(), os.getpid()
            if os.fork() == 0:
                os.setsid()
                while os.getppid() == connector:
                    time.sleep(0.01)
                ask(sock)
            os._exit(0)
        os.wait()
print("2.0.0 (Claude Code)")
"""


@linux_only
@pytest.mark.parametrize("way", ["plain", "orphan", "handed on"])
async def test_a_workers_child_is_refused_however_it_comes(start_daemon: StartDaemon, tmp_path: Path, way: str) -> None:
    said: asyncio.Queue[bytes] = asyncio.Queue()

    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said.put_nowait(await reader.read())
        writer.close()

    report = tmp_path / "report.sock"
    server = await asyncio.start_unix_server(hear, str(report))
    cli = tmp_path / "claude"
    path = tmp_path / ".claude-daemon" / "run" / "ctl.sock"
    cli.write_text(INTRUDER.format(python=sys.executable, socket=str(path), report=str(report), way=way))
    cli.chmod(0o755)
    async with server:
        daemon = await start_daemon({"engine.cli_path": str(cli)})
        async with asyncio.timeout(20):
            answer = await said.get()
        assert answer.startswith(b"HTTP/1.1 403 "), answer
        assert b'"code":"from_worker"' in answer
        await daemon.logged("control.refused", reason="from_worker")
        async with asyncio.timeout(20):
            while not (found := (await daemon.control("audit?act=control.refused"))["data"]):
                pass
        assert found[0]["details"] == {"peer": f"uid {os.getuid()}", "reason": "from_worker", "count": 1}
        assert (await daemon.control("status"))["state"] in ("ready", "degraded")


@linux_only
async def test_a_client_that_was_not_started_by_the_daemon_is_let_in(daemon: DaemonProcess) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(daemon.socket))
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, b"GET /control/v1/ready HTTP/1.1\r\nHost: d\r\nClaude-Daemon-Control: 1\r\n\r\n")
        assert (await loop.sock_recv(sock, 100)).startswith(b"HTTP/1.1 200 ")
