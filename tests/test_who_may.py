"""Every route and every WebSocket operation, asked with every kind of key. A new one without a row here fails."""

from __future__ import annotations

import asyncio
import secrets
import socket
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import aiohttp
import orjson
import pytest
from aiohttp import web

from claude_daemon import assembly
from claude_daemon.api.middleware import OPEN_ROUTES
from claude_daemon.config import Settings
from claude_daemon.core.event import MESSAGE, Emission
from claude_daemon.core.key import Key, digest, new_secret
from claude_daemon.core.role import BUILT_IN, ROUTES, route_of
from claude_daemon.core.task import Lane, TaskSpec
from claude_daemon.durable import Durable
from claude_daemon.engine.session import SessionLane
from claude_daemon.front import Front
from claude_daemon.ports import Answer, Question
from claude_daemon.service.admit import Admission
from claude_daemon.service.health import Health
from claude_daemon.service.keys import KeyDesk, KeyWish, Maker
from claude_daemon.store import SqliteStore
from tests.service.doubles import PATIENCE_S, SUCCEEDED, FakeEngine, FakeHomes, FakeLease, FakeSchemas

MAKER = Maker(key_id="local", request_id="req_1", peer_uid=1000)
DAY_S = 86_400.0
ROLES = {
    **BUILT_IN,
    "elsewhere": replace(BUILT_IN["full"], name="elsewhere", routes=frozenset({"/v1/nothing"})),
    "small": replace(BUILT_IN["full"], name="small", models=frozenset({"haiku"})),
    "slow-lane": replace(BUILT_IN["full"], name="slow-lane", lanes=frozenset({"text"})),
    "plain": replace(BUILT_IN["full"], name="plain", scopes=frozenset(), routes=frozenset({"/v1/stream"})),
}
REFUSED = {
    "no key": (401, "A key is needed: Authorization: Bearer cd_… or x-api-key."),
    "malformed": (401, "This key is not valid."),
    "unknown": (401, "This key is not valid."),
    "revoked": (401, "This key was revoked."),
    "rotated": (401, "This key has a new secret, and the time of this one is over."),
    "expired": (401, "This key has expired."),
    "suspended": (403, "This key is suspended."),
    "wrong scope": (403, "The role `elsewhere` may not use `{route}`; its routes are `/v1/nothing`."),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is asked of a route, and what its own key and another good one are answered. ``other`` None: the route is
    about no object, so any good key is answered alike."""

    right: int
    other: int | None = None
    path: str = ""
    body: Mapping[str, Any] | None = None


CHAT = {"model": "sonnet", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
OPEN = {("GET", "/live"), ("GET", "/ready"), ("GET", "/startup"), ("GET", "/health"), ("GET", "/openapi.json")}
ROWS: Mapping[tuple[str, str], Row] = {
    ("POST", "/v1/chat/completions"): Row(right=200, body=CHAT),
    ("GET", "/v1/models"): Row(right=200),
    ("GET", "/v1/models/{model}"): Row(right=200, path="/v1/models/sonnet"),
    ("POST", "/v1/messages"): Row(right=200, body=CHAT),
    ("POST", "/v1/messages/count_tokens"): Row(right=200, body={"model": "sonnet", "messages": CHAT["messages"]}),
    ("POST", "/v1/tasks"): Row(right=202, body={"prompt": "x"}),
    ("GET", "/v1/tasks"): Row(right=200),
    ("GET", "/v1/tasks/{id}"): Row(right=200, other=404),
    ("GET", "/v1/tasks/{id}/events"): Row(right=200, other=404),
    ("POST", "/v1/tasks/{id}/cancel"): Row(right=200, other=404),
    ("POST", "/v1/tasks/{id}/approvals/{approval}"): Row(right=200, other=404, body={"allow": True}),
    ("POST", "/v1/batches"): Row(right=202, body={"tasks": [{"prompt": "x"}]}),
    ("GET", "/v1/batches/{id}"): Row(right=200, other=404, path="/v1/batches/{batch}"),
    ("GET", "/v1/sessions"): Row(right=200),
    ("GET", "/v1/sessions/{id}"): Row(right=200, other=404, path="/v1/sessions/{session}"),
    ("DELETE", "/v1/sessions/{id}"): Row(right=200, other=404, path="/v1/sessions/{session}"),
    ("GET", "/v1/usage"): Row(right=200),
    ("GET", "/metrics"): Row(right=200),
    ("GET", "/v1/stream"): Row(right=400),  # by a client that speaks no WebSocket; those who do are below
}
OPS: Mapping[str, Mapping[str, Any]] = {
    "submit": {"task": {"prompt": "x"}},
    "subscribe": {"task": "{id}"},
    "unsubscribe": {"task": "{id}"},
    "cancel": {"task": "{id}"},
    "approve": {"task": "{id}", "approval": "{approval}", "allow": True},
    "ping": {},
}
OWN_ONLY = ("subscribe", "unsubscribe", "cancel", "approve")
"""Those about a task, which another key's is to nobody."""
SCOPED = {
    "submit": ({"task": {"prompt": "x", "webhook": "https://example.org/"}}, "has no scope `webhooks`"),
    "approve": ({}, "has no scope `approvals`"),
}
"""Those that a role without scopes may not do, as they ask here."""


class Answering(FakeEngine):
    """Answers every chat at once; tasks wait, for the queue is held."""

    def lease(self, spec: TaskSpec) -> FakeLease | None:
        lease = super().lease(spec)
        if lease is not None:
            message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "usage": {}}
            lease.say(Emission(MESSAGE, {**message, "stop_reason": "end_turn"}), SUCCEEDED)
        return lease


class Scene:
    """The public port of a daemon, in this process: real but for the engines; and keys of every kind."""

    def __init__(self, store: SqliteStore) -> None:
        models = {"sonnet": "claude-sonnet-5-5", "haiku": "claude-haiku-5-5"}
        settings = Settings.model_validate({"engine": {"models": models}})
        agents = [FakeEngine(100, lane) for lane in (Lane.SESSION, Lane.AGENT)]
        engines = [Answering(100), Answering(100, Lane.DIRECT), *agents]
        self.ahead = 0.0
        self.secret = new_secret(secrets.token_bytes)
        local = Key(id="local", name="local", digest=digest(self.secret), role="standard", trust_domain="default")
        self.keys = KeyDesk(
            store,
            local,
            shared=False,
            roles=ROLES,
            now=lambda: time.time() + self.ahead,
            monotonic=time.monotonic,
            ids=assembly.ids,
            randbytes=secrets.token_bytes,
        )
        homes = cast(SessionLane, FakeHomes())
        self.durable = Durable(settings, store, cast(Any, engines), homes, FakeSchemas(), audit_key=b"")
        health = Health(version="0", monotonic=time.monotonic)
        admission = Admission(
            self.durable.dispatcher,
            cast(Any, engines),
            state=lambda: health.state,
            models=settings.engine.models,
            default_model="sonnet",
        )
        self.durable.serve(admission, health, draining=lambda: False, keys=self.keys)
        self.durable.dispatcher.hold()
        health.settle()
        self.front = Front(settings, self.durable, admission, health, FakeSchemas(), self.keys, None)
        self.named: dict[str, str] = {}

    async def prepare(self, http: aiohttp.ClientSession) -> None:
        """A key of every kind, and something of each sort that belongs to the right one."""
        for name, role in (("right", "full"), ("other", "full"), ("wrong scope", "elsewhere"), ("plain", "plain")):
            self.named[name] = await self.make(name, role)
        for name in ("revoked", "suspended", "rotated"):
            self.named[name] = await self.make(name)
        self.named["expired"] = await self.make("expired", expires_at=time.time() + DAY_S)
        self.ahead = 2 * DAY_S
        for name in ("revoked", "suspended", "rotated"):
            await self.end(name, name)
        self.named |= {"malformed": "cd_short", "unknown": new_secret(secrets.token_bytes)}
        first = await self.ask(http, "POST", "/v1/tasks", body={"prompt": "x", "session": {}})
        batch = await self.ask(http, "POST", "/v1/batches", body={"tasks": [{"prompt": "x"}]})
        (await self.ask(http, "POST", f"/v1/tasks/{first['id']}/cancel"))
        question = Question(tool="Bash", tool_use_id="toolu_1", given={}, cwd=None)
        self.durable.dispatcher.approvals.ask(first["id"], question, lambda event: None, self.answered.append)
        (asked,) = self.durable.dispatcher.approvals.of(first["id"])
        self.objects = {
            "id": first["id"],
            "session": first["session_id"],
            "batch": batch["id"],
            "approval": asked.id,
        }

    answered: list[Answer]

    async def make(self, name: str, role: str = "full", **wish: Any) -> str:
        made = await self.keys.create(MAKER, KeyWish(name=name.replace(" ", "-"), role=role, **wish))
        return made.secret

    async def end(self, key: str, how: str) -> None:
        """Makes a key one of this kind."""
        if how == "revoked":
            await self.keys.revoke(MAKER, key)
        elif how == "suspended":
            await self.keys.suspend(MAKER, key)
        elif how == "rotated":
            await self.keys.rotate(MAKER, key)
        else:
            raise AssertionError(how)

    async def ask(
        self, http: aiohttp.ClientSession, method: str, path: str, name: str = "right", body: Any = None
    ) -> dict[str, Any]:
        status, answer = await self.status(http, method, path, name, body)
        assert status < 300, answer
        return cast(dict[str, Any], answer)

    async def status(
        self, http: aiohttp.ClientSession, method: str, path: str, name: str, body: Any = None
    ) -> tuple[int, Any]:
        """The status, and the answer where it is JSON."""
        headers = {"Authorization": f"Bearer {self.named[name]}"} if name in self.named else {}
        async with http.request(method, path, headers=headers, json=body) as response:
            is_json = response.content_type.endswith("json")
            return response.status, await response.json(content_type=None) if is_json else await response.read()


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[tuple[Scene, aiohttp.ClientSession]]:
    async with AsyncExitStack() as stack:
        store = SqliteStore.open(path / "daemon.db")
        stack.push_async_callback(store.close)
        scene = Scene(store)
        scene.answered = []
        sock = socket.create_server(("127.0.0.1", 0))
        running = asyncio.ensure_future(scene.durable.dispatcher.run())
        await scene.front.public.listen([sock])
        http = aiohttp.ClientSession(f"http://127.0.0.1:{sock.getsockname()[1]}")
        stack.push_async_callback(_end, scene, running)
        stack.push_async_callback(http.close)
        await scene.prepare(http)
        yield scene, http


async def _end(scene: Scene, running: asyncio.Future[None]) -> None:
    await scene.front.public.close()
    scene.durable.dispatcher.close()
    async with asyncio.timeout(PATIENCE_S):
        await running


def routes_of(app: web.Application) -> set[tuple[str, str]]:
    found = {(route.method, route.resource.canonical) for route in app.router.routes() if route.resource is not None}
    return {(method, path) for method, path in found if method != "HEAD"}  # which aiohttp adds to each GET


async def test_every_route_has_a_row_here_and_a_role_can_name_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as (scene, _):
        routes = routes_of(scene.front.public._app)
    assert routes == set(ROWS) | OPEN
    assert {path for _, path in OPEN} <= OPEN_ROUTES
    assert {route_of(path) for _, path in ROWS} <= set(ROUTES)


@pytest.mark.parametrize(("method", "route"), list(ROWS), ids=lambda part: part)
async def test_a_route_answers_every_kind_of_key(tmp_path: Path, method: str, route: str) -> None:
    row = ROWS[method, route]
    async with opened(tmp_path) as (scene, http):
        path = (row.path or route).format_map(scene.objects)
        for kind, (status, message) in REFUSED.items():
            for verb in {method, "HEAD"} if method == "GET" else {method}:
                answered, body = await scene.status(http, verb, path, kind, row.body)
                assert answered == status, (kind, verb, body)
                if verb != "HEAD":
                    assert message.format(route=route_of(route)) == words(body), kind
        if row.other is not None:
            answered, body = await scene.status(http, method, path, "other", row.body)
            assert answered == row.other, body
            assert words(body) in ("There is no such task.", "There is no such batch.", "There is no such session.")
        answered, body = await scene.status(http, method, path, "right", row.body)
        assert answered == row.right, body


def words(body: Any) -> str:
    """What a refusal says, in whatever dialect."""
    return str(body["error"]["message"] if "error" in body else body["detail"])


@pytest.mark.parametrize("path", sorted(path for _, path in OPEN))
async def test_an_open_route_is_open_to_whatever_key_and_tells_no_details_for_a_bad_one(
    tmp_path: Path, path: str
) -> None:
    async with opened(tmp_path) as (scene, http):
        told = {kind: await scene.status(http, "GET", path, kind) for kind in (*REFUSED, "right")}
        assert {status for status, _ in told.values()} == {200}
        if path != "/health":
            return
        details = {kind for kind, (_, body) in told.items() if body["checks"] != told["no key"][1]["checks"]}
        assert details <= {"right", "wrong scope"}


# the WebSocket


@asynccontextmanager
async def stream(
    scene: Scene, http: aiohttp.ClientSession, name: str
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    headers = {"Authorization": f"Bearer {scene.named[name]}"}
    async with http.ws_connect("/v1/stream", headers=headers, protocols=("claude-daemon.v1",)) as socket:
        yield socket


async def answer(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    """The next message that is no event."""
    async with asyncio.timeout(PATIENCE_S):
        while (message := await socket.receive_json())["op"] == "event":
            pass
    return cast(dict[str, Any], message)


def filled(scene: Scene, asked: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.format_map(scene.objects) if isinstance(value, str) else value for name, value in asked.items()}


async def test_every_operation_has_a_row_here(tmp_path: Path) -> None:
    async with opened(tmp_path) as (scene, http), stream(scene, http, "right"):
        (connection,) = scene.front.streams.open
        assert set(connection._ops) == set(OPS)


@pytest.mark.parametrize("op", OPS)
async def test_an_operation_answers_every_kind_of_key(tmp_path: Path, op: str) -> None:
    async with opened(tmp_path) as (scene, http):
        message = {"op": op, "ref": "r", **filled(scene, OPS[op])}
        if op in OWN_ONLY:
            async with stream(scene, http, "other") as socket:
                await socket.send_json(message)
                assert (await answer(socket))["error"]["code"] == "not_found"
        if op in SCOPED:
            more, why = SCOPED[op]
            plain = await own_task(scene, http, "plain") if op == "approve" else {}
            async with stream(scene, http, "plain") as socket:
                await socket.send_json(message | plain | more)
                told = await answer(socket)
            assert told["error"]["code"] == "forbidden" and why in told["error"]["message"]
        async with stream(scene, http, "right") as socket:
            if op == "unsubscribe":
                scene.objects["id"] = (await scene.ask(http, "POST", "/v1/tasks", body={"prompt": "x"}))["id"]
                await socket.send_json({"op": "subscribe", "task": scene.objects["id"]})
                await answer(socket)
                message |= filled(scene, OPS[op])
            await socket.send_json(message)
            told = await answer(socket)
        assert (told["op"], told["ref"]) == ("pong" if op == "ping" else "ack", "r"), told
        assert [one.allow for one in scene.answered] == ([True] if op == "approve" else [])


async def own_task(scene: Scene, http: aiohttp.ClientSession, name: str) -> dict[str, str]:
    async with stream(scene, http, name) as socket:
        await socket.send_json({"op": "submit", "task": {"prompt": "x"}})
        return {"task": str((await answer(socket))["task"])}


@pytest.mark.parametrize("how", ["revoked", "suspended", "rotated", "expired"])
@pytest.mark.parametrize("op", OPS)
async def test_no_operation_is_done_once_the_key_is_not_good_any_more(tmp_path: Path, how: str, op: str) -> None:
    """The connection is closed with 1008 by itself, at once, and what it asks meanwhile is not done."""
    async with opened(tmp_path) as (scene, http):
        scene.named["open"] = await scene.make("open", expires_at=scene.keys._now() + DAY_S)
        async with stream(scene, http, "open") as socket:
            before = await tasks_of(scene)
            if how == "expired":
                scene.ahead += DAY_S  # no timer knows of it: the clock was set
            else:
                await scene.end("open", how)
            with suppress(aiohttp.ClientConnectionResetError):  # we may have heard of it already
                await socket.send_json({"op": op, **filled(scene, OPS[op])})
            await closed_with(socket, REFUSED[how][1])
        assert await tasks_of(scene) == before and not scene.answered
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with stream(scene, http, "open"):
                pass
        assert refused.value.status == REFUSED[how][0]


async def closed_with(socket: aiohttp.ClientWebSocketResponse, why: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        closed = await socket.receive()
    assert (closed.type, closed.data, closed.extra) == (aiohttp.WSMsgType.CLOSE, 1008, why)


async def test_a_connection_ends_by_itself_when_its_key_expires(tmp_path: Path) -> None:
    async with opened(tmp_path) as (scene, http):
        scene.named["brief"] = await scene.make("brief", expires_at=scene.keys._now() + 0.3)
        async with stream(scene, http, "brief") as socket:
            await closed_with(socket, REFUSED["expired"][1])


async def test_who_has_the_new_secret_stays_connected_and_the_old_one_ends_with_its_overlap(tmp_path: Path) -> None:
    async with opened(tmp_path) as (scene, http):
        old = await scene.make("rotating")
        scene.named |= {"old": old, "new": (await scene.keys.rotate(MAKER, "rotating", 0.3)).secret}
        async with stream(scene, http, "old") as first, stream(scene, http, "new") as second:
            await closed_with(first, REFUSED["rotated"][1])
            await second.send_json({"op": "ping"})
            assert (await answer(second))["op"] == "pong"


@pytest.mark.parametrize("how", ["revoked", "suspended"])
async def test_an_event_stream_is_cut_with_its_key(tmp_path: Path, how: str) -> None:
    async with opened(tmp_path) as (scene, http):
        scene.named["open"] = await scene.make("open")
        task = await scene.ask(http, "POST", "/v1/tasks", "open", {"prompt": "x"})
        headers = {"Authorization": f"Bearer {scene.named['open']}"}
        async with http.get(f"/v1/tasks/{task['id']}/events", headers=headers) as response:
            assert (await response.content.readline()).startswith(b"retry:")
            await scene.end("open", how)
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.read()
        state = "cancelled" if how == "revoked" else "queued"
        kept = await scene.durable.store.get(task["id"])
        assert kept is not None and kept.state.value == state


async def test_a_body_that_comes_after_the_end_of_its_key_asks_for_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as (scene, http):
        for path, asked in (("/v1/tasks", {"prompt": "x"}), ("/v1/messages", CHAT)):
            scene.named["slow"] = await scene.make("slow")
            before, begun = await tasks_of(scene), asyncio.Event()

            async def body(asked: Any = asked, begun: asyncio.Event = begun) -> AsyncIterator[bytes]:
                yield b" "
                begun.set()
                await scene.keys.revoke(MAKER, "slow")
                yield orjson.dumps(asked)

            headers = {"Authorization": f"Bearer {scene.named['slow']}", "Content-Type": "application/json"}
            async with http.post(path, headers=headers, data=body()) as response:
                assert (response.status, words(await response.json(content_type=None))) == REFUSED["revoked"]
            assert await tasks_of(scene) == before


async def test_models_are_those_of_the_role(tmp_path: Path) -> None:
    async with opened(tmp_path) as (scene, http):
        scene.named["small"] = await scene.make("small", "small")
        listed = await scene.ask(http, "GET", "/v1/models", "small")
        assert {one["id"] for one in listed["data"]} == {"haiku", "claude-haiku-5-5"}
        for method, path, body in (
            ("GET", "/v1/models/sonnet", None),
            ("POST", "/v1/messages", CHAT),
            ("POST", "/v1/chat/completions", CHAT),
            ("POST", "/v1/messages/count_tokens", {"model": "sonnet", "messages": CHAT["messages"]}),
            ("POST", "/v1/tasks", {"prompt": "x"}),
        ):
            status, refused = await scene.status(http, method, path, "small", body)
            assert status == 403 and "may not use the model `claude-sonnet-5-5`; its models" in words(refused), path
        await scene.ask(http, "POST", "/v1/messages", "small", CHAT | {"model": "haiku"})
        await scene.ask(http, "POST", "/v1/tasks", "small", {"prompt": "x", "model": "claude-haiku-5-5"})


@pytest.mark.parametrize(
    ("headers", "lane"),
    [({}, "text"), ({"Claude-Daemon-Lane": "auto"}, "text"), ({"Claude-Daemon-Lane": "direct"}, None)],
)
async def test_lanes_are_those_of_the_role_and_auto_is_the_first_of_them(
    tmp_path: Path, headers: dict[str, str], lane: str | None
) -> None:
    async with opened(tmp_path) as (scene, http):
        scene.named["slow-lane"] = await scene.make("slow-lane", "slow-lane")
        sent = headers | {"Authorization": f"Bearer {scene.named['slow-lane']}"}
        async with http.post("/v1/messages", headers=sent, json=CHAT) as response:
            body = await response.json(content_type=None)
            told = response.headers.get("Claude-Daemon-Lane")
        assert told == lane and (lane is not None or "may not use the lane `direct`" in words(body))
        sent = headers | {"Authorization": f"Bearer {scene.named['right']}"}
        async with http.post("/v1/messages", headers=sent, json=CHAT) as response:
            assert (response.status, response.headers["Claude-Daemon-Lane"]) == (200, "direct")


async def tasks_of(scene: Scene) -> Sequence[str]:
    return [one.id for one in await scene.durable.store.queued()]
