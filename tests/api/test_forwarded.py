"""Who asks, through proxies that are trusted and past what others write."""

from __future__ import annotations

import pytest
from aiohttp import web

from claude_daemon.api.forwarded import MAX_HOPS, client_of, networks
from claude_daemon.api.server import Limits
from tests.api.test_server import HEAD, Served, parse, serving

TRUSTED = networks(["10.0.0.0/8", "127.0.0.1", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # whoever comes directly says what he likes
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),  # the rest is the client's own word
        ("10.0.0.1", ["198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        ("10.0.0.1", ["198.51.100.1", "10.0.0.2 , 10.0.0.3"], "198.51.100.1"),
        ("10.0.0.1", ["10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["198.51.100.1, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["unknown, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("fd00::1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["198.51.100.1\\r\\nX: y"], "10.0.0.1"),
        ("10.0.0.1", [", ".join(["198.51.100.1", *["10.0.0.2"] * MAX_HOPS])], "10.0.0.2"),
    ],
)
def test_the_client_is_the_first_that_nobody_trusts(peer: str, forwarded: list[str], client: str) -> None:
    assert client_of(peer, forwarded, TRUSTED) == client


def test_without_trusted_proxies_nobody_is_believed() -> None:
    assert client_of("10.0.0.1", ["198.51.100.1"], ()) == "10.0.0.1"


def who(served: list[Served], limits: Limits) -> web.Application:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=request.remote)

    app = web.Application()
    app.router.add_get("/", answer)
    return app


@pytest.mark.parametrize(("proxies", "told"), [([], "127.0.0.1"), (["127.0.0.0/8"], "198.51.100.1")])
async def test_a_request_knows_its_client(proxies: list[str], told: str) -> None:
    async with serving(who, trusted_proxies=networks(proxies)) as served:
        answer = parse(
            await served.raw(b"GET / " + HEAD + b"X-Forwarded-For: 198.51.100.1\r\nConnection: close\r\n\r\n")
        )
        assert answer.body == told.encode()


@pytest.mark.parametrize(("proxies", "turned_away"), [([], 1), (["127.0.0.0/8"], 0)])
async def test_a_proxy_is_not_one_peer(proxies: list[str], turned_away: int) -> None:
    async with serving(who, trusted_proxies=networks(proxies), max_connections_per_peer=1) as served:
        first = await served.connect()
        first.send(b"GET / " + HEAD + b"\r\n")
        assert (await first.answer()).status == 200
        second = await served.connect()
        second.send(b"GET / " + HEAD + b"\r\n")
        assert (await second.answer()).status == (503 if turned_away else 200)
        assert served.server.turned_away == turned_away
        await first.close()
        await second.close()
