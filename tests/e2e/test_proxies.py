"""nginx and Caddy, on the files of etc/, in front of the real daemon: what they must not spoil."""

from __future__ import annotations

import asyncio
import contextlib
import io
import signal
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from claude_daemon.offline import OfflineModel
from tests.conftest import StartDaemon
from tests.debian import program
from tests.e2e import proxies
from tests.e2e.proxies import NAME, Certificate, Front, Proxy
from tests.e2e.sdk import unique, user
from tests.e2e.test_edge import read_answer
from tests.e2e.test_stream import SUBPROTOCOL, Client
from tests.e2e.test_stream import text_of as spoken
from tests.e2e.test_tasks import events
from tests.support import DaemonProcess, share_probe, sse

PATIENCE_S = 20.0
MIB = 1024 * 1024
ALLOWED = {"http.allowed_hosts": f'["127.0.0.1", "{NAME}"]'}


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def front(request: pytest.FixtureRequest) -> Front:
    make = {"nginx": proxies.nginx, "caddy": proxies.caddy}[request.param]
    return make(program(request.param, request.param))


@pytest.fixture(scope="module")
async def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return await proxies.make_certificate(program("openssl", "openssl"), tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module")
async def behind(
    daemon: DaemonProcess, model: OfflineModel, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[DaemonProcess]:
    """A daemon that answers the name in the files."""
    home = tmp_path_factory.mktemp("behind")
    share_probe(daemon, home)
    process = await DaemonProcess(home, model, {"engine.workers": 1, "engine.spares": 0, **ALLOWED}).start()
    yield process
    assert await process.stop() == 0


@pytest.fixture(scope="module")
async def proxy(
    front: Front, behind: DaemonProcess, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Proxy]:
    async with front(behind.url, behind.key, certificate, tmp_path_factory.mktemp("proxy")) as serving:
        yield serving


def chat(prompt: str, *, stream: bool = False) -> dict[str, Any]:
    """A body that both dialects understand."""
    return {"model": "sonnet", "max_tokens": 1024, "stream": stream, "messages": user(prompt)}


@contextlib.asynccontextmanager
async def begun(
    proxy: Proxy, prompt: str, *, path: str = "/v1/messages", **headers: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    """A streamed chat on the direct lane whose first text has come."""
    headers = {"Claude-Daemon-Lane": "direct", **headers}
    async with asyncio.timeout(PATIENCE_S):
        async with proxy.http.post(path, json=chat(prompt, stream=True), headers=headers) as response:
            assert response.status == 200
            while b"Hello" not in await response.content.readline():
                assert not response.content.at_eof()
            yield response


@contextlib.asynccontextmanager
async def websocket(proxy: Proxy, daemon: DaemonProcess) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {daemon.key}"}
    url = proxy.url.replace("https", "wss", 1) + "/v1/stream"
    async with connect(
        url,
        host="127.0.0.1",
        port=proxy.port,
        ssl=proxy.trust,
        proxy=None,
        subprotocols=[SUBPROTOCOL],  # type: ignore[list-item]
        additional_headers=headers,
    ) as connection:
        yield Client(connection)


# streams


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
async def test_a_chat_comes_while_it_is_written(proxy: Proxy, model: OfflineModel, path: str) -> None:
    async with begun(proxy, "[[tokens=8]] [[pace=100ms]]", path=path) as response:
        assert model.active == 1, "the first text came with the last"
        rest = await sse(response)
    assert rest[-1] == ("message", "[DONE]") if "chat" in path else rest[-1][0] == "message_stop"


async def test_a_client_that_leaves_cancels_its_turn(proxy: Proxy, behind: DaemonProcess, model: OfflineModel) -> None:
    request_id = f"leaves-{proxy.port}"
    async with begun(proxy, "[[stall=2]]", **{"X-Request-ID": request_id}) as response:
        assert response.connection is not None
        assert response.connection.transport is not None
        # As the kernel does for a process that has ended. TLS's own goodbye, while TCP stays open, nginx overlooks.
        response.connection.transport.abort()
    settled = await behind.logged("task.settled", request_id=request_id)
    assert (settled["state"], settled["code"]) == ("cancelled", "cancelled")
    await model.wait_until(lambda model: model.active == 0)


async def test_a_follower_of_a_task_comes_back_with_its_cursor(proxy: Proxy, model: OfflineModel) -> None:
    prompt = unique("[[tokens=8]] [[pace=100ms]]")
    async with proxy.http.post("/v1/tasks", json={"prompt": prompt}) as response:
        assert response.status == 202
        path = f"/v1/tasks/{(await response.json())['id']}/events"
    told: list[dict[str, Any]] = []
    async with asyncio.timeout(PATIENCE_S):
        async with proxy.http.get(path) as response:
            async for event in events(response):
                told.append(event)
                if event["type"] == "text.delta":
                    break
            assert model.active == 1, "the first event came with the last"
        async with proxy.http.get(path, headers={"Last-Event-ID": str(told[-1]["seq"])}) as response:
            told += [event async for event in events(response)]
        async with proxy.http.get(path) as response:
            assert told == [event async for event in events(response)]
    assert told[-1]["type"] == "task.succeeded"


async def test_a_websocket_carries_tasks_and_its_goodbye(proxy: Proxy, behind: DaemonProcess) -> None:
    async with websocket(proxy, behind) as ws:
        assert ws.connection.subprotocol == SUBPROTOCOL
        ack = await ws.ask(op="submit", ref=1, task={"prompt": "[[text=Hello there]]"})
        assert (ack["op"], ack["ref"]) == ("ack", 1)
        told = (await ws.events(ack["task"]))[ack["task"]]
        assert (spoken(told), told[-1]["type"]) == ("Hello there", "task.succeeded")
        await ws.connection.send(b"not text")
        with pytest.raises(ConnectionClosed) as closed:
            await ws.receive()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1003, "messages are JSON text")


# what goes with a request


async def test_the_id_of_a_request_is_the_same_on_both_sides(proxy: Proxy, behind: DaemonProcess) -> None:
    for given in ("of-the-client", None):
        headers = {"X-Request-ID": given} if given is not None else {}
        async with proxy.http.post("/v1/messages", json=chat("hello"), headers=headers) as response:
            assert response.status == 200
            request_id = response.headers["X-Request-ID"]
        assert request_id == given if given is not None else request_id.startswith("req_")
        logged = await behind.logged("http.access", request_id=request_id)
        assert logged["status"] == 200


async def test_a_page_of_the_proxys_own_name_and_port_may_ask_and_no_other(proxy: Proxy) -> None:
    for origin, status in ((proxy.url, 200), (f"https://{NAME}", 403), ("https://evil.example", 403)):
        async with proxy.http.get("/v1/models", headers={"Origin": origin}) as response:
            assert response.status == status


class Upstream:
    """Stands where the daemon does, and keeps what arrives."""

    def __init__(self) -> None:
        self.heads: list[Mapping[str, str]] = []
        self.peers: set[Any] = set()
        self.begun = asyncio.Event()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        self.heads.append(request.headers)
        body = await request.content.readexactly(5)
        self.begun.set()
        return web.Response(body=body + await request.content.read())

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        runner = web.ServerRunner(web.Server(self.answer))
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            yield "http://{}:{}".format(*runner.addresses[0])
        finally:
            await runner.cleanup()


async def test_a_request_is_passed_on_as_it_comes_on_a_connection_that_is_kept(
    front: Front, certificate: Certificate, tmp_path: Path
) -> None:
    upstream = Upstream()

    async def halves() -> AsyncIterator[bytes]:
        yield b"first"
        await upstream.begun.wait()
        yield b", second"

    passed = {"Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Idempotency-Key": "one"}
    claimed = {"X-Forwarded-For": "192.0.2.1", "Forwarded": "for=192.0.2.1"}
    async with upstream.serving() as url, front(url, "cd_key", certificate, tmp_path) as proxy:
        for _ in range(2):
            upstream.begun.clear()
            async with asyncio.timeout(PATIENCE_S):
                async with proxy.http.post("/v1/tasks", data=halves(), headers=passed | claimed) as response:
                    assert await response.read() == b"first, second"
    assert len(upstream.peers) == 1
    for head in upstream.heads:
        assert head["Host"] == proxy.url.removeprefix("https://")
        assert head["Authorization"] == "Bearer cd_key"
        assert {name: head[name] for name in passed} == passed
        assert "192.0.2.1" not in str(head)


# bodies


async def test_a_large_body_waits_for_leave_and_arrives(proxy: Proxy, model: OfflineModel) -> None:
    text = unique("x" * 4 * MIB)
    body = io.BytesIO(orjson.dumps(chat(text)))
    headers = {"Content-Type": "application/json", "Claude-Daemon-Lane": "direct"}
    async with asyncio.timeout(PATIENCE_S):
        async with proxy.http.post("/v1/messages", data=body, headers=headers, expect100=True) as response:
            assert response.status == 200, await response.text()
    assert model.requests[-1].body["messages"] == user(text)


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
async def test_a_body_too_large_for_the_daemon_is_refused_in_its_words(proxy: Proxy, chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(16):
            yield b" " * MIB
        yield b" "

    headers = {"Content-Type": "application/json"}
    data = pieces() if chunked else io.BytesIO(b" " * (16 * MIB + 1))
    async with asyncio.timeout(PATIENCE_S):
        async with proxy.http.post("/v1/messages", data=data, headers=headers) as response:
            assert response.status == 413
            assert response.headers["X-Request-ID"].startswith("req_")
            assert (await response.json())["error"]["type"] == "request_too_large"


async def test_a_body_that_is_announced_as_far_too_large_is_refused_while_it_comes(proxy: Proxy) -> None:
    key = f"Authorization: {proxy.http.headers['Authorization']}"
    head = f"POST /v1/messages HTTP/1.1\r\nHost: {NAME}\r\n{key}\r\nContent-Length: {1 << 40}\r\n\r\n"
    async with asyncio.timeout(PATIENCE_S), proxy.connected() as (reader, writer):
        writer.write(head.encode())
        answer = asyncio.create_task(read_answer(reader))
        with contextlib.suppress(ConnectionError):  # it may be ended while we still send
            while not answer.done():
                writer.write(b" " * MIB)
                await writer.drain()
        status, _, body = await answer
    assert status == 413
    assert orjson.loads(body)


# the end


async def test_a_drain_ends_nothing_that_runs_and_is_told_to_who_comes(
    front: Front, certificate: Certificate, start_daemon: StartDaemon, model: OfflineModel, tmp_path: Path
) -> None:
    daemon = await start_daemon(ALLOWED)
    (tmp_path / "proxy").mkdir()
    async with front(daemon.url, daemon.key, certificate, tmp_path / "proxy") as proxy:
        async with websocket(proxy, daemon) as ws, begun(proxy, "[[tokens=15]] [[pace=100ms]]") as running:
            assert (await ws.ask(op="ping"))["op"] == "pong"
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGTERM)
            assert (await ws.receive())["op"] == "drain"
            with pytest.raises(ConnectionClosed) as closed:
                await ws.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
            async with proxy.http.post("/v1/messages", json=chat("late")) as refused:
                assert (refused.status, int(refused.headers["Retry-After"]) >= 1) == (503, True)
            async with proxy.http.get("/ready") as ready:
                assert (ready.status, int(ready.headers["Retry-After"]) >= 1) == (503, True)
                assert (await ready.json())["state"] == "draining"
            assert model.active == 1, "the answer was over before anything was asked"
            assert (await sse(running))[-1][0] == "message_stop"
        assert await daemon.ended() == 0
        async with proxy.http.get("/ready") as gone:
            assert (gone.status, gone.content_type) == (502, "application/problem+json")
            assert (await gone.json())["status"] == 502
