"""What strangers, pages and tenants try at the edge of the real daemon: none gets through, and it goes on."""

from __future__ import annotations

import asyncio
import io
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.conftest import StartDaemon
from tests.support import DaemonProcess

STORM = 150
PATIENCE_S = 30.0
FORGED = "daemon.forged"


def websocket(daemon: DaemonProcess) -> str:
    return daemon.url.replace("http", "ws", 1) + "/v1/stream"


async def raw(daemon: DaemonProcess, *lines: bytes) -> bytes:
    """All that comes back for these bytes, to the end of the connection."""
    url = urlsplit(daemon.url)
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    writer.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
    async with asyncio.timeout(PATIENCE_S):
        answer = await reader.read()
    writer.close()
    return answer


async def tasks(daemon: DaemonProcess) -> int:
    async with daemon.http.get("/v1/tasks?limit=100") as response:
        return len((await response.json())["data"])


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1.evil.example"])
async def test_a_page_of_another_origin_opens_no_websocket_even_with_a_key(daemon: DaemonProcess, origin: str) -> None:
    bearer = {"Authorization": f"Bearer {daemon.key}", "Origin": origin}
    with pytest.raises(InvalidStatus) as refused:
        async with connect(websocket(daemon), additional_headers=bearer):
            pass
    assert refused.value.response.status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8006", "127.0.0.1.evil.example", "169.254.169.254"])
async def test_a_name_that_was_bound_to_our_address_is_not_answered(daemon: DaemonProcess, host: str) -> None:
    """DNS rebinding: to the browser the page and we are one origin then."""
    for path in ("/live", "/v1/models"):
        headers = {"Host": host, "Origin": f"http://{host}"}
        async with daemon.http.get(path, headers=headers) as response:
            assert response.status == 421 and "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"])
async def test_a_form_of_a_page_submits_nothing(daemon: DaemonProcess, kind: str) -> None:
    """These need no preflight; with the key, because a page may have been given one."""
    before = await tasks(daemon)
    for path in ("/v1/tasks", "/v1/messages", "/v1/chat/completions"):
        async with daemon.http.post(path, data=b'{"prompt": "x"}', headers={"Content-Type": kind}) as response:
            assert response.status == 415
    assert await tasks(daemon) == before


async def test_nothing_that_a_client_sends_makes_a_header_or_a_log_line(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"log.format": "json"})
    key = b"x-api-key: " + daemon.key.encode()
    line = f'{{"event": "{FORGED}"}}'.encode()
    for evil in (b"ok\x1b[31m" + line, b"a\tb " + line, b"x" * 200, "ü".encode()):
        answer = await raw(daemon, b"GET /v1/models HTTP/1.1", b"Host: localhost", key, b"X-Request-ID: " + evil)
        assert evil not in answer
    folded = (b"X-Request-ID: a", b" " + line, b"X-Forged: 1")
    assert b"X-Forged" not in await raw(daemon, b"GET /v1/models HTTP/1.1", b"Host: localhost", key, *folded)
    path = b"/v1/tasks/x%0d%0aX-Forged:%201%0a" + line.replace(b" ", b"%20")
    assert b"\r\nX-Forged" not in await raw(daemon, b"GET " + path + b" HTTP/1.1", b"Host: localhost", key)
    prompt = f"\n{line.decode()}\r\n\x1b]0;title\x07"
    async with daemon.http.post("/v1/tasks", json={"prompt": prompt, "metadata": {"note": prompt}}) as response:
        assert response.status == 202
        task_id = (await response.json())["id"]
    async with daemon.http.get(f"/v1/tasks/{task_id}/events") as response:
        await response.read()
    assert await daemon.stop() == 0
    lines = Path(daemon.home, ".claude-daemon", "log", "daemon.log").read_bytes().splitlines()
    assert len(lines) > 5
    told = [orjson.loads(each) for each in lines]  # each is one whole object
    assert FORGED not in {each["event"] for each in told}
    assert not any(byte in each for each in lines for byte in (0x1B, 0x07))


async def test_a_request_id_that_collides_mixes_nothing_up(daemon: DaemonProcess) -> None:
    made = [await daemon.control("keys", "POST", {"name": f"collide-{n}-{os.getpid()}"}) for n in range(2)]
    same = {"X-Request-ID": "everybody-has-this-one"}
    ids = []
    for key in made:
        async with aiohttp.ClientSession(daemon.url, headers={"x-api-key": key["key"], **same}) as http:
            async with http.post("/v1/tasks", json={"prompt": "Hello [[tokens=1]]"}) as response:
                assert response.headers["X-Request-ID"] == same["X-Request-ID"]
                ids.append((await response.json())["id"])
            async with http.get(f"/v1/tasks/{ids[0]}") as response:
                assert response.status == (200 if key is made[0] else 404)
    accepted = [
        (record["task_id"], record["key_id"])
        for record in (await daemon.control("audit?limit=1000&act=task.accepted"))["data"]
        if record["request_id"] == same["X-Request-ID"]
    ]
    assert accepted == [(task, key["id"]) for task, key in zip(ids, made, strict=True)]


def bombs() -> dict[str, Any]:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(5000):
        deep = {"type": "array", "items": deep}
    return {
        "deep": deep,
        "wide": {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(50_000)}},
        "remote": {"$ref": "http://169.254.169.254/latest/meta-data"},
        "laughs": {
            "$defs": {
                f"l{n}": {"anyOf": [{"$ref": f"#/$defs/l{n + 1}"}] * 10} if n < 20 else {"type": "string"}
                for n in range(21)
            },
            "$ref": "#/$defs/l0",
        },
    }


@pytest.mark.parametrize("bomb", ["deep", "wide", "remote"])
async def test_a_schema_that_is_a_bomb_is_refused(daemon: DaemonProcess, bomb: str) -> None:
    body = io.BytesIO(b'{"prompt":"x","schema":' + _json(bombs()[bomb]) + b"}")
    headers = {"Content-Type": "application/json"}
    async with daemon.http.post("/v1/tasks", data=body, headers=headers) as response:
        assert response.status == 400, await response.text()
    assert await _answers(daemon)


async def test_a_schema_that_takes_for_ever_ends_its_own_task_alone(daemon: DaemonProcess) -> None:
    async with daemon.http.post("/v1/tasks", json={"prompt": "[[text=1]]", "schema": bombs()["laughs"]}) as response:
        assert response.status in (202, 400)
        task = await response.json()
    assert await _answers(daemon)
    if response.status == 202:
        async with asyncio.timeout(PATIENCE_S), daemon.http.get(f"/v1/tasks/{task['id']}/events") as events:
            await events.read()
    assert await _answers(daemon)


async def test_a_storm_of_reconnects_leaves_nothing_behind(daemon: DaemonProcess) -> None:
    assert daemon.process is not None
    bearer = {"Authorization": f"Bearer {daemon.key}"}
    async with daemon.http.post("/v1/tasks", json={"prompt": "Hello [[tokens=50]]"}) as response:
        task_id = (await response.json())["id"]
    before = len(os.listdir(f"/proc/{daemon.process.pid}/fd"))  # noqa: PTH208

    async def come_and_go(n: int) -> None:
        async with connect(websocket(daemon), additional_headers=bearer) as socket:
            await socket.send(orjson.dumps({"op": "subscribe", "task": task_id}).decode())
            if n % 2:
                await socket.recv()
            socket.transport.abort()

    for start in range(0, STORM, 50):
        await asyncio.gather(*(come_and_go(n) for n in range(start, start + 50)))
    async with asyncio.timeout(PATIENCE_S):
        while len(os.listdir(f"/proc/{daemon.process.pid}/fd")) > before + 5:  # noqa: PTH208
            await _answers(daemon)
    assert await _answers(daemon)


def _json(document: Any) -> bytes:
    """Deeper than a library writes."""
    depth, inner = 0, document
    while isinstance(inner, dict) and set(inner) == {"type", "items"}:
        depth, inner = depth + 1, inner["items"]
    if depth < 100:
        return orjson.dumps(document)
    return b'{"type":"array","items":' * depth + orjson.dumps(inner) + b"}" * depth


async def _answers(daemon: DaemonProcess) -> bool:
    async with asyncio.timeout(PATIENCE_S), daemon.http.get("/live") as response:
        return response.status == 200
