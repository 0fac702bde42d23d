"""Who may ask what, over real sockets; the pure functions on their own."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from structlog.contextvars import get_contextvars

from claude_daemon.api.middleware import KEY, OPEN_ROUTES, Gate, host_name, request_id_of
from claude_daemon.api.server import Limits, read_body
from claude_daemon.core.key import Key, Keyring, Unfit, digest, new_secret
from claude_daemon.core.trace import Trace
from claude_daemon.service.keys import refusal_of
from tests.api.test_server import Answer, Served, assert_ours, parse, serving

SECRET, REVOKED = new_secret(lambda n: b"s" * n), new_secret(lambda n: b"r" * n)
KEYRING = Keyring(
    [Key(id="key_1", name="alice", digest=digest(SECRET), role="standard", trust_domain="key_1")],
)


def identify(secret: str, peer: str | None) -> Key:
    """The peer is told by the server: loopback here."""
    assert peer == "127.0.0.1"
    found = KEYRING.identify(secret)
    if isinstance(found, Unfit):
        raise refusal_of(found)
    return found


BEARER = f"Authorization: Bearer {SECRET}"


def guarded(served: list[Served], limits: Limits) -> web.Application:
    gate = Gate(
        identify=identify,
        allowed_hosts=("localhost", "127.0.0.1", "[::1]", "Daemon.Example"),
        allowed_origins=("https://app.example", "http://localhost:3000/"),
    )

    async def who(request: web.Request) -> web.Response:
        key = request.get(KEY)
        return web.json_response({"key": key.id if key else None, "log": get_contextvars().get("key_id")})

    async def body(request: web.Request) -> web.Response:
        return web.Response(body=await read_body(request, 1000, 5))

    app = web.Application(middlewares=[gate.middleware()])
    for path in (*OPEN_ROUTES, "/v1/tasks", "/v1/models", "/v1/stream"):
        app.router.add_get(path, who)
    for path in ("/v1/messages", "/v1/chat/completions", "/v1/tasks"):
        app.router.add_post(path, body)
    return app


async def ask(
    served: Served, target: str, *headers: str, method: str = "GET", body: str = "", version: str = "1.1"
) -> Answer:
    lines = [f"{method} {target} HTTP/{version}", *headers, "Connection: close"]
    if version == "1.1" and not any(h.lower().startswith("host:") for h in headers):
        lines.append("Host: localhost")
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return parse(await served.raw(("\r\n".join(lines) + "\r\n\r\n" + body).encode()))


# the start


async def test_who_comes_while_the_daemon_starts_waits_for_it_and_probes_do_not() -> None:
    began, started = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        began.set()
        await started.wait()

    def starting(served: list[Served], limits: Limits) -> web.Application:
        gate = Gate(identify=identify, allowed_hosts=("localhost",), started=wait)

        async def answer(request: web.Request) -> web.Response:
            return web.Response()

        app = web.Application(middlewares=[gate.middleware()])
        for path in ("/ready", "/v1/models"):
            app.router.add_get(path, answer)
        return app

    async with serving(starting) as served, asyncio.TaskGroup() as group:
        early = group.create_task(ask(served, "/v1/models", BEARER))
        await began.wait()
        assert (await ask(served, "/ready")).status == 200
        assert (await ask(served, "/v1/models")).status == 401  # who may not ask need not wait for that
        assert not early.done()
        started.set()
        assert (await early).status == 200


# keys


@pytest.mark.parametrize("path", sorted(OPEN_ROUTES))
async def test_open_routes_need_no_key_and_know_one_that_is_given(path: str) -> None:
    async with serving(guarded) as served:
        assert (await ask(served, path)).json == {"key": None, "log": None}
        assert (await ask(served, path, f"x-api-key: {REVOKED}")).json["key"] is None
        assert (await ask(served, path, BEARER)).json == {"key": "key_1", "log": "key_1"}


@pytest.mark.parametrize(
    "header",
    [
        BEARER,
        f"authorization: bearer  {SECRET} ",
        f"X-Api-Key: {SECRET}",
        f"Sec-WebSocket-Protocol: claude-daemon.v1, bearer.{SECRET}",
    ],
)
async def test_a_key_is_taken_in_each_of_its_forms(header: str) -> None:
    async with serving(guarded) as served:
        assert (await ask(served, "/v1/tasks", header)).json["key"] == "key_1"


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (f"Authorization: Bearer {REVOKED}",),
        (f"Authorization: Basic {SECRET}",),
        (f"Authorization: {SECRET}",),
        ("Authorization: Bearer ",),
        (f"x-api-key: {SECRET[:-1]}",),
        (f"x-api-key: {SECRET}x",),
        ("x-api-key: " + "x" * 8000,),
        ("x-api-key: cd_" + "ä" * 43,),
        (f"Cookie: key={SECRET}",),
        (f"Authorization: Bearer {REVOKED}", f"x-api-key: {SECRET}"),
    ],
)
async def test_without_a_good_key_it_is_401_and_no_key_is_echoed(headers: tuple[str, ...]) -> None:
    async with serving(guarded) as served:
        answer = await ask(served, "/v1/tasks", *headers)
        assert_ours(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert SECRET.encode() not in answer.body and REVOKED.encode() not in answer.body


async def test_a_key_in_the_query_is_not_a_key() -> None:
    async with serving(guarded) as served:
        assert (await ask(served, f"/v1/tasks?key={SECRET}&x-api-key={SECRET}")).status == 401


async def test_401_has_the_form_of_the_route() -> None:
    async with serving(guarded) as served:
        anthropic = await ask(served, "/v1/messages", method="POST")
        assert anthropic.json["error"]["type"] == "authentication_error" and anthropic.json["request_id"]
        openai = await ask(served, "/v1/models")
        assert set(openai.json["error"]) == {"message", "type", "param", "code"}
        assert openai.headers["content-type"] == anthropic.headers["content-type"] == "application/json"


# hosts


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "localhost:8006",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:8006",
        "daemon.example:443",
    ],
)
async def test_hosts_that_are_ours_pass_with_any_port(host: str) -> None:
    async with serving(guarded) as served:
        assert (await ask(served, "/live", f"Host: {host}")).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8006",
        "localhost.evil.example",
        "evil-localhost",
        "",
        "127.0.0.1.evil",
        "[::2]",
        "localhost:80@evil.example",
        "evil.example#localhost",
        "localhost, evil.example",
        "::1",
    ],
)
async def test_a_foreign_host_is_421_even_on_open_routes_and_with_a_key(host: str) -> None:
    async with serving(guarded) as served:
        for path in ("/live", "/v1/tasks"):
            answer = await ask(served, path, f"Host: {host}", BEARER)
            assert_ours(answer, 421, "host_not_allowed")
            assert b"evil" not in answer.body


async def test_an_absolute_target_is_held_to_the_same_hosts() -> None:
    async with serving(guarded) as served:
        assert (await ask(served, "http://localhost:1/live")).status == 200
        assert (await ask(served, "http://evil.example/live")).status == 421
        assert (await ask(served, "http://localhost@evil.example/live")).status == 421
        assert (await ask(served, "http://localhost/live", "Host: evil.example")).status == 421


async def test_http_1_0_may_leave_its_host_out() -> None:
    async with serving(guarded) as served:
        assert (await ask(served, "/live", version="1.0")).status == 200


async def test_a_star_allows_every_host() -> None:
    def app(served: list[Served], limits: Limits) -> web.Application:
        gate = Gate(identify=identify, allowed_hosts=("*",))
        return web.Application(middlewares=[gate.middleware()])

    async with serving(app) as served:
        assert (await ask(served, "/live", "Host: whatever.example")).status == 404


@pytest.mark.parametrize(
    ("authority", "name"),
    [
        ("Example.com:80", "example.com"),
        ("[::1]:80", "[::1]"),
        ("[::1]", "[::1]"),
        ("a.", "a"),
        ("", ""),
        (":80", ""),
    ],
)
def test_the_name_of_an_authority(authority: str, name: str) -> None:
    assert host_name(authority) == name


# origins


@pytest.mark.parametrize(
    "origin", ["http://localhost", "https://LOCALHOST", "https://app.example", "http://localhost:3000"]
)
async def test_our_own_origin_and_those_allowed_pass(origin: str) -> None:
    async with serving(guarded) as served:
        assert (await ask(served, "/v1/tasks", BEARER, f"Origin: {origin}")).status == 200


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "",
        "http://localhost:3001",
        "http://localhost.evil.example",
        "file://",
        "https://app.example.evil.example",
        "http://app.example",
        "localhost",
    ],
)
async def test_a_foreign_origin_is_403_on_every_route(origin: str) -> None:
    async with serving(guarded) as served:
        for path in ("/live", "/v1/tasks", "/v1/stream"):
            answer = await ask(served, path, BEARER, f"Origin: {origin}")
            assert_ours(answer, 403, "origin_not_allowed")


APP = "Origin: https://app.example"


async def test_a_page_that_may_ask_is_told_so_before_it_asks() -> None:
    async with serving(guarded) as served:
        asks = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization,content-type")
        answer = await ask(served, "/v1/messages", APP, *asks, method="OPTIONS")
        assert (answer.status, answer.body) == (204, b"")
        headers = answer.headers
        assert headers["access-control-allow-origin"] == "https://app.example" and headers["vary"] == "Origin"
        assert headers["access-control-allow-methods"] == "POST"
        assert headers["access-control-allow-headers"] == "authorization,content-type"
        assert "access-control-allow-credentials" not in headers
        private = "Access-Control-Request-Private-Network: true"
        answer = await ask(served, "/v1/tasks", APP, *asks, private, method="OPTIONS")
        assert answer.headers["access-control-allow-private-network"] == "true"
        assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST"


@pytest.mark.parametrize("names", ["x y", "a\u00e9", "x" * 65, ",".join(["x"] * 65), "a;b"])
async def test_names_of_headers_that_are_none_are_not_repeated(names: str) -> None:
    async with serving(guarded) as served:
        asks = ("Access-Control-Request-Method: POST", f"Access-Control-Request-Headers: {names}")
        answer = await ask(served, "/v1/messages", APP, *asks, method="OPTIONS")
        assert answer.status in (204, 400) and "access-control-allow-headers" not in answer.headers


async def test_a_page_that_may_not_ask_is_not_told_otherwise() -> None:
    async with serving(guarded) as served:
        asks = "Access-Control-Request-Method: POST"
        foreign = await ask(served, "/v1/messages", "Origin: https://evil.example", asks, method="OPTIONS")
        assert foreign.status == 403
        own = await ask(served, "/v1/messages", "Origin: http://localhost", asks, method="OPTIONS")
        rebound = await ask(served, "/v1/messages", APP, asks, "Host: evil.example", method="OPTIONS")
        nowhere = await ask(served, "/v1/nope", APP, asks, method="OPTIONS")
        assert (own.status, rebound.status, nowhere.status) == (405, 421, 404)
        for answer in (foreign, own, rebound):
            assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_page_that_may_ask_may_read_answers_and_errors() -> None:
    async with serving(guarded) as served:
        for key, status in ((BEARER, 200), ("x-api-key: cd_none", 401)):
            answer = await ask(served, "/v1/tasks", key, APP)
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, "https://app.example")
            assert "X-Request-ID" in answer.headers["access-control-expose-headers"]
        plain = await ask(served, "/v1/tasks", BEARER)
        assert "access-control-allow-origin" not in plain.headers


async def test_no_answer_is_to_be_kept_framed_or_guessed_at() -> None:
    async with serving(guarded) as served:
        for target in ("/live", "/v1/nope"):
            headers = (await ask(served, target)).headers
            assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
            assert headers["referrer-policy"] == "no-referrer"
            assert headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


# routes and media types


async def test_an_unknown_route_or_method_is_told_before_the_key() -> None:
    async with serving(guarded) as served:
        assert_ours(await ask(served, "/v1/nope"), 404, "not_found")
        wrong = await ask(served, "/v1/tasks", method="DELETE")
        assert_ours(wrong, 405, "method_not_allowed")
        assert wrong.headers["allow"] == "GET, HEAD, POST"
        assert (await ask(served, "/v1/messages")).json["type"] == "error"
        assert (await ask(served, "/v1/tasks", method="CONNECT")).status in (400, 404, 405)


@pytest.mark.parametrize(
    "media",
    [
        (),
        ("Content-Type: application/json",),
        ("Content-Type: Application/JSON; charset=utf-8",),
        ("Content-Type: application/json", "Content-Encoding: identity"),
    ],
)
async def test_json_bodies_pass(media: tuple[str, ...]) -> None:
    async with serving(guarded) as served:
        assert (await ask(served, "/v1/tasks", BEARER, *media, method="POST", body="{}")).body == b"{}"


@pytest.mark.parametrize(
    "media",
    [
        "Content-Type: text/plain",
        "Content-Type: application/x-www-form-urlencoded",
        "Content-Type: ",
        "Content-Type: multipart/form-data; boundary=x",
        "Content-Type: application/jsonx",
        "Content-Encoding: compress",
    ],
)
async def test_any_other_body_is_415(media: str) -> None:
    async with serving(guarded) as served:
        answer = await ask(served, "/v1/tasks", BEARER, media, method="POST", body="{}")
        assert_ours(answer, 415, "unsupported_media_type")


async def test_without_a_body_its_media_type_does_not_matter() -> None:
    async with serving(guarded) as served:
        assert (await ask(served, "/v1/tasks", BEARER, "Content-Type: text/plain", method="POST")).status == 200


# nothing of a client's gets into headers or logs unseen


@pytest.mark.parametrize("evil", ["a\r\nSet-Cookie: x=y", "a\nlevel=error", "\x1b[31m", "a\u2028b", "\udcff"])
def test_a_request_id_or_trace_that_could_forge_a_line_is_not_taken(evil: str) -> None:
    assert request_id_of(evil, lambda prefix: f"{prefix}_new") == "req_new"
    good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    span = Trace.parse(good)
    assert span is not None and span.header == good
    assert Trace.parse(evil) is Trace.parse(good + "\n") is Trace.parse(None) is None
    assert request_id_of("abc\n", lambda prefix: f"{prefix}_new") == "req_new"


async def test_a_path_with_an_encoded_line_break_forges_nothing() -> None:
    async with serving(guarded) as served:
        answer: Any = await ask(served, "/live%0d%0aSet-Cookie:%20a=b")
        assert_ours(answer, 404, "not_found")
        assert "set-cookie" not in answer.headers
