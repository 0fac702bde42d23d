"""Webhooks, prices and upkeep on the real daemon: what is wired together in the composition root."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web

from tests.conftest import StartDaemon
from tests.support import DaemonProcess

SECRET = "a secret that both know"
PATIENCE_S = 20.0


class Receiver:
    """Keeps what it is sent; answers with the statuses it was told, then with 200."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.got: asyncio.Queue[tuple[dict[str, str], bytes]] = asyncio.Queue()
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.got.put_nowait((dict(request.headers), await request.read()))
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200)

    async def next(self) -> tuple[dict[str, str], dict[str, Any]]:
        """The next delivery, its signature checked by hand."""
        async with asyncio.timeout(PATIENCE_S):
            headers, body = await self.got.get()
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        mac = base64.b64encode(hmac.digest(SECRET.encode(), signed, hashlib.sha256)).decode()
        assert headers["webhook-signature"] == f"v1,{mac}"
        return headers, orjson.loads(body)


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_post("/hook", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield made
    finally:
        await runner.cleanup()


SETTINGS = {"webhooks.allow_private": True}
ENVIRON = {"CLAUDE_DAEMON_WEBHOOKS__SECRET": SECRET}


async def submit(daemon: DaemonProcess, **fields: Any) -> dict[str, Any]:
    async with daemon.http.post("/v1/tasks", json=fields) as response:
        document: dict[str, Any] = await response.json(content_type=None)
        return document


async def test_an_end_is_told_signed(start_daemon: StartDaemon) -> None:
    async with receiver() as hook:
        daemon = await start_daemon(SETTINGS, environ=ENVIRON)
        done = await submit(daemon, prompt="[[text=told]]", webhook=hook.url, metadata={"order": "7"})
        _, body = await hook.next()
        assert (body["type"], body["data"]["id"]) == ("task.succeeded", done["id"])
        assert (body["data"]["result"]["text"], body["data"]["metadata"]) == ("told", {"order": "7"})
        failed = await submit(daemon, prompt="[[error=400]]", webhook=hook.url)
        _, body = await hook.next()
        assert (body["type"], body["data"]["id"]) == ("task.failed", failed["id"])
        await daemon.control("queue/pause", "POST")
        waiting = await submit(daemon, prompt="x", webhook=hook.url)
        async with daemon.http.post(f"/v1/tasks/{waiting['id']}/cancel"):
            pass
        _, body = await hook.next()
        assert (body["type"], body["data"]["state"]) == ("task.cancelled", "cancelled")
        await daemon.logged("webhook.delivered", task_id=waiting["id"])


async def test_what_a_receiver_did_not_take_is_told_after_a_restart_too(start_daemon: StartDaemon) -> None:
    async with receiver() as hook:
        hook.statuses = [503]
        daemon = await start_daemon(SETTINGS, environ=ENVIRON)
        task = await submit(daemon, prompt="[[text=told]]", webhook=hook.url)
        first, _ = await hook.next()
        await daemon.logged("webhook.failed", task_id=task["id"])
        assert await daemon.stop() == 0
        await start_daemon(SETTINGS, environ=ENVIRON, home=daemon.home)
        again, body = await hook.next()
        assert (again["webhook-id"], body["data"]["id"]) == (first["webhook-id"], task["id"])


async def test_without_a_secret_or_to_a_private_address_nothing_is_promised(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    refused = await submit(daemon, prompt="x", webhook="https://example.org/hook")
    assert (refused["code"], "webhooks.secret" in refused["detail"]) == ("invalid_request", True)
    await daemon.stop()
    daemon = await start_daemon(environ=ENVIRON, home=daemon.home)
    refused = await submit(daemon, prompt="x", webhook="http://127.0.0.1:1/hook")
    assert (refused["errors"][0]["path"], "allow_private" in refused["detail"]) == ("webhook", True)


async def test_a_secret_that_is_none_is_78(start_daemon: StartDaemon, daemon: DaemonProcess) -> None:
    broken = DaemonProcess(daemon.home / "other", daemon.model, environ={"CLAUDE_DAEMON_WEBHOOKS__SECRET": "whsec_%%%"})
    broken.home.mkdir()
    await broken.launch()
    assert await broken.ended() == 78
    assert any("webhooks.secret" in line for line in broken._stderr)


async def test_a_price_makes_a_cost_and_what_is_old_is_purged(start_daemon: StartDaemon, daemon: DaemonProcess) -> None:
    home = daemon.home / "priced"
    (home / ".claude-daemon").mkdir(parents=True, mode=0o700)
    (home / ".claude-daemon" / "config.toml").write_text(
        "[prices.sonnet]\ninput = 3.0\noutput = 15.0\ncache_write = 3.75\ncache_read = 0.3\n"
    )
    priced = await start_daemon(home=home)
    task = await submit(priced, prompt="[[tokens=10]]")
    async with priced.http.get(f"/v1/tasks/{task['id']}/events") as response:
        await response.read()
    async with priced.http.get(f"/v1/tasks/{task['id']}") as response:
        done = await response.json()
    usage = done["usage"]
    micro = usage["input_tokens"] * 3 + usage["output_tokens"] * 15
    micro += usage["cache_creation_input_tokens"] * 3.75 + usage["cache_read_input_tokens"] * 0.3
    assert abs(done["cost_usd"] * 1e6 - micro) <= 1
    assert (await priced.control("tasks/purge", "POST", {"before": time.time() - 3600}))["purged"] == 0
    assert (await priced.control("tasks/purge", "POST", {"before": time.time()}))["purged"] == 1
    async with priced.http.get(f"/v1/tasks/{task['id']}") as response:
        assert response.status == 404
