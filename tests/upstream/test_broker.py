"""The broker between a worker and the upstream, with the offline model behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson
import pytest
from structlog.contextvars import bind_contextvars, get_contextvars

from claude_daemon.core.errors import Code
from claude_daemon.core.trace import TRACE, Trace
from claude_daemon.offline import OfflineModel
from claude_daemon.upstream.broker import Broker, WorkerAccount
from claude_daemon.upstream.client import MessagesClient
from claude_daemon.upstream.credential import CredentialKind, UpstreamCredential


@dataclass
class Site:
    model: OfflineModel
    broker: Broker
    account: WorkerAccount
    session: aiohttp.ClientSession
    told: list[dict[str, Any]]

    def post(self, prompt: str, *, token: str | None = None, path: str = "/v1/messages", **body: Any) -> Any:
        request = {
            "model": "claude-sonnet-5-5",
            "max_tokens": 99,
            "messages": [{"role": "user", "content": prompt}],
            **body,
        }
        headers = {"x-api-key": self.account.token if token is None else token}
        return self.session.post(self.broker.base_url + path, json=request, headers=headers)


@asynccontextmanager
async def _site(model: OfflineModel, secret: str) -> AsyncIterator[Site]:
    credential = UpstreamCredential(kind=CredentialKind.API_KEY, secret=secret)
    client = MessagesClient(model.base_url, lambda: credential)
    told: list[dict[str, Any]] = []
    broker = Broker(client, told=lambda name, fields: told.append({"event": name, **fields}))
    await client.start()
    await broker.start()
    async with aiohttp.ClientSession() as session:
        account = broker.open("wrk_1")
        account.begin("req_1")
        yield Site(model, broker, account, session, told)
    await broker.stop()
    await client.close()


@pytest.fixture
async def site(model: OfflineModel) -> AsyncIterator[Site]:
    async with _site(model, model.api_key) as made:
        yield made


async def test_the_real_credential_is_added_here_and_the_workers_stays_here(site: Site) -> None:
    async with site.post("Hello [[tokens=3]]") as response:
        assert response.status == 200
        assert (await response.json())["usage"]["output_tokens"] == 3
    headers = site.model.requests[-1].headers
    assert headers["x-api-key"] == site.model.api_key
    assert site.account.token not in str(headers)
    assert (site.account.usage.output_tokens, site.account.usage.model_calls, site.account.calls) == (3, 1, 1)
    assert site.account.token not in repr(site.account)


async def test_a_streamed_call_is_metered_and_told_as_it_passes(site: Site) -> None:
    async with site.post("Hello [[tokens=5]]", stream=True) as response:
        body = await response.read()
    assert body.count(b"text_delta") == 5
    assert site.account.usage.output_tokens == 5
    (told,) = site.told
    assert told.pop("seconds") > 0
    assert told == {
        "event": "model_call",
        "worker_id": "wrk_1",
        "request_id": "req_1",
        "path": "/v1/messages",
        "model": "claude-sonnet-5-5",
        "input_tokens": site.account.usage.input_tokens,
        "output_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "stop_reason": "end_turn",
        "failure": None,
    }


async def test_a_call_is_a_span_below_its_turns_and_told_in_the_turns_context(site: Site) -> None:
    turn = Trace("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", flags="01")
    logged: list[dict[str, Any]] = []
    site.broker._told = lambda name, fields: logged.append({**get_contextvars(), **fields})

    def begin() -> None:
        TRACE.set(turn)
        bind_contextvars(task_id="task_1", request_id="req_1")
        site.account.begin("req_1")

    Context().run(begin)
    for _ in range(2):
        async with site.post("Hello [[tokens=1]]") as response:
            assert response.status == 200
    first, second = logged
    assert first["task_id"] == second["task_id"] == "task_1"
    for call, request in zip(logged, site.model.requests[-2:], strict=True):
        assert (call["trace_id"], call["parent_span_id"]) == (turn.trace_id, turn.span_id)
        assert request.headers["traceparent"] == f"00-{turn.trace_id}-{call['span_id']}-01"
    assert len({turn.span_id, first["span_id"], second["span_id"]}) == 3
    assert "task_id" not in get_contextvars()


@pytest.mark.parametrize("token", ["", "cdw_wrong", "x" * 5000])
async def test_a_token_that_is_nobodys_is_refused(site: Site, token: str) -> None:
    before = len(site.model.requests)
    async with site.post("Hello", token=token) as response:
        assert response.status == 401
    assert len(site.model.requests) == before


async def test_a_token_ends_with_its_worker_and_is_no_other_workers(site: Site) -> None:
    other = site.broker.open("wrk_2")
    other.begin()
    site.account.close()
    async with site.post("Hello") as response:
        assert response.status == 401
    async with site.post("Hello [[tokens=1]]", token=other.token) as response:
        assert response.status == 200
    assert site.account.usage.output_tokens == 0
    assert other.usage.output_tokens == 1


async def test_nothing_but_the_messages_api_is_passed_on(site: Site) -> None:
    async with site.post("Hello", path="/v1/files") as response:
        assert response.status == 404


async def test_a_barred_worker_makes_no_call_until_its_next_turn(site: Site) -> None:
    site.account.bar("budget spent")
    before = len(site.model.requests)
    async with site.post("Hello") as response:
        assert response.status == 403
        assert "budget spent" in (await response.json())["error"]["message"]
    assert len(site.model.requests) == before
    site.account.begin("req_2")
    async with site.post("Hello [[tokens=1]]") as response:
        assert response.status == 200


async def test_a_bar_cuts_the_call_that_is_under_way(site: Site) -> None:
    async with site.post("slow [[tokens=100]] [[pace=100ms]]", stream=True) as response:
        await response.content.readany()
        site.account.bar("enough")
        with pytest.raises(aiohttp.ClientError):
            await response.content.read()
    async with asyncio.timeout(5):
        await site.model.wait_until(lambda m: m.active == 0)


@pytest.mark.parametrize("prompt", ["[[hang]]", "[[stall=2]]"])
async def test_a_worker_that_leaves_takes_its_call_with_it(site: Site, prompt: str) -> None:
    asking = asyncio.ensure_future(_read(site, prompt))
    await site.model.wait_until(lambda m: m.active == 1)
    asking.cancel()
    async with asyncio.timeout(5):
        await site.model.wait_until(lambda m: m.active == 0)
    assert site.account.failure is None


@pytest.mark.parametrize("stream", [True, False])
async def test_an_answer_of_a_forbidden_model_reaches_nobody(site: Site, stream: bool) -> None:
    site.account.forbids = lambda model: f"not {model}" if "opus" in model else None
    with pytest.raises(aiohttp.ClientError):
        async with site.post("Hello [[text=dear]]", stream=stream, model="claude-opus-5-5") as response:
            assert b"dear" not in await response.content.readany()
            await response.read()
    assert site.account.forbidden == "not claude-opus-5-5" and site.account.failure is None
    async with site.post("Hello [[text=cheap]]", stream=stream) as response:
        assert (response.status, b"cheap" in await response.read()) == (200, True)
    site.account.begin("req_2")
    assert site.account.forbidden is None


async def _read(site: Site, prompt: str) -> bytes:
    async with site.post(prompt, stream=True) as response:
        return bytes(await response.read())


async def test_what_a_turn_left_behind_counts_for_no_later_turn(site: Site) -> None:
    asking = asyncio.ensure_future(_read(site, "left [[cut=2]] [[pace=50ms]] [[tokens=9]]"))
    await site.model.wait_until(lambda m: m.active == 1)
    site.account.begin("req_2")
    with pytest.raises(aiohttp.ClientError):
        await asking
    await site.model.wait_until(lambda m: m.active == 0)
    assert (site.account.usage.output_tokens, site.account.failure) == (0, None)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, Code.UPSTREAM_INVALID_REQUEST),
        (401, Code.UPSTREAM_CREDENTIAL),
        (403, Code.UPSTREAM_CREDENTIAL),
        (404, Code.UPSTREAM_NOT_FOUND),
        (413, Code.UPSTREAM_TOO_LARGE),
        (500, Code.UPSTREAM_ERROR),
        (529, Code.UPSTREAM_OVERLOADED),
    ],
)
async def test_an_upstream_error_is_passed_on_and_kept(site: Site, status: int, code: Code) -> None:
    async with site.post(f"[[error={status}]]") as response:
        assert response.status == status
        assert (await response.json())["type"] == "error"
    assert site.account.failure is not None and site.account.failure.code is code


async def test_a_retry_after_is_passed_on(site: Site) -> None:
    async with site.post("[[error=429]] [[retry-after=7]]") as response:
        assert (response.status, response.headers["retry-after"]) == (429, "7")
    assert site.account.failure is not None and site.account.failure.retry_after_seconds == 7


async def test_a_refused_credential_is_not_to_be_tried_again(model: OfflineModel) -> None:
    async with _site(model, "sk-wrong") as site:
        async with site.post("Hello") as response:
            assert (response.status, response.headers["x-should-retry"]) == (401, "false")
        async with site.post("Hello") as response:
            assert response.status == 403
        assert site.account.failure is not None and site.account.failure.code is Code.UPSTREAM_CREDENTIAL


async def test_a_cut_is_passed_on_as_a_cut(site: Site) -> None:
    with pytest.raises(aiohttp.ClientError):
        await _read(site, "[[cut=2]]")
    assert site.account.failure is not None and site.account.failure.code is Code.UPSTREAM_CUT


async def test_an_upstream_that_is_not_there_is_502(site: Site, unused_tcp_port: int) -> None:
    site.broker._client = MessagesClient(f"http://127.0.0.1:{unused_tcp_port}", _credential)
    await site.broker._client.start()
    async with site.post("Hello") as response:
        assert response.status == 502
    await site.broker._client.close()
    assert site.account.failure is not None and site.account.failure.code is Code.UPSTREAM_UNREACHABLE


def _credential() -> UpstreamCredential:
    return UpstreamCredential(kind=CredentialKind.AUTH_TOKEN, secret="t")


async def test_after_its_last_stop_reason_a_turn_makes_no_further_call(site: Site) -> None:
    assert b"max_tokens" in await _read(site, "long [[tokens=200]]")
    async with site.post("go on") as response:
        assert response.status == 403


@pytest.mark.parametrize("stream", [True, False])
async def test_where_calls_are_the_clients_the_turn_ends_with_them(site: Site, stream: bool) -> None:
    tools = [{"name": "look", "input_schema": {"type": "object"}}]
    for ends, status in ((False, 200), (True, 403)):
        site.account.begin("req_1", ends_with_tools=ends)
        async with site.post("[[tool=look]]", tools=tools, stream=stream) as response:
            assert response.status == 200
            await response.read()
        async with site.post("and on") as response:
            assert response.status == status
    site.account.begin("req_2")
    async with site.post("again") as response:
        assert response.status == 200


async def test_without_a_credential_nothing_is_passed_on() -> None:
    broker = Broker(None)
    await broker.start()
    account = broker.open("wrk_1")
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            broker.base_url + "/v1/messages", json={}, headers={"Authorization": f"Bearer {account.token}"}
        ) as r,
    ):
        assert r.status == 403
    await broker.stop()


@pytest.mark.parametrize("stream", [False, True])
async def test_probes_are_answered_here_and_see_what_would_be_sent(site: Site, stream: bool) -> None:
    account = site.broker.open("wrk_probe", canned=True)
    before = len(site.model.requests)
    async with site.post("what?", token=account.token, stream=stream, system="S") as response:
        text = await response.text()
    if not stream:
        sent = orjson.loads(orjson.loads(text)["content"][0]["text"])
        assert (sent["system"], sent["messages"]) == (["S"], [["user", "what?"]])
    assert "what?" in text
    assert len(site.model.requests) == before


async def test_a_call_that_was_begun_before_the_end_and_sent_after_it_is_refused(site: Site) -> None:
    before, headers = len(site.model.requests), {"x-api-key": site.account.token}
    held, half = asyncio.Event(), asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"model": "claude-sonnet-5-5", "max_tokens": 9, '
        half.set()
        await held.wait()
        yield b'"messages": [{"role": "user", "content": "[[tokens=1]]"}]}'

    async def post() -> int:
        async with site.session.post(f"{site.broker.base_url}/v1/messages", data=body(), headers=headers) as response:
            return response.status

    early = asyncio.ensure_future(post())
    async with asyncio.timeout(5):
        await half.wait()
        while not site.account.at_once:
            await asyncio.sleep(0.005)
    site.account.bar("the turn is over")
    held.set()
    assert await early == 403
    assert len(site.model.requests) == before


async def test_a_worker_makes_only_so_many_calls_at_once(site: Site) -> None:
    async def status(prompt: str) -> int:
        async with site.post(prompt) as response:
            return int(response.status)

    waiting = [asyncio.ensure_future(status("[[hang]]")) for _ in range(16)]
    async with asyncio.timeout(5):
        while site.account.at_once < len(waiting):
            await asyncio.sleep(0.005)
    assert await status("[[tokens=1]]") == 429
    other = site.broker.open("wrk_2")
    other.begin()
    async with site.post("[[tokens=1]]", token=other.token) as response:
        assert response.status == 200
    for task in waiting:
        task.cancel()
    async with asyncio.timeout(5):
        while site.account.at_once:
            await asyncio.sleep(0.005)
    assert await status("[[tokens=1]]") == 200
