"""The direct lane's engine against the offline model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any, cast

import orjson
import pytest

from claude_daemon.core.errors import Code
from claude_daemon.core.event import MESSAGE
from claude_daemon.core.message import MessageBuilder
from claude_daemon.core.task import Kind, Lane, Outcome, State, TaskSpec
from claude_daemon.offline import OfflineModel
from claude_daemon.ports import Ended
from claude_daemon.upstream.client import MessagesClient
from claude_daemon.upstream.credential import CredentialKind, UpstreamCredential
from claude_daemon.upstream.direct import DirectEngine, DirectSettings

SETTINGS = DirectSettings(direct_max=2, stall_timeout_s=0.5, turn_timeout_s=2.0)


def spec(prompt: str, *, stream: bool = True, timeout_seconds: float | None = None, **fields: Any) -> TaskSpec:
    messages = [{"role": "user", "content": prompt}]
    return TaskSpec(
        kind=Kind.CHAT,
        lane=Lane.DIRECT,
        request={"model": "claude-sonnet-5-5", "max_tokens": 99, "messages": messages, "stream": stream, **fields},
        key_id="local",
        trust_domain="default",
        request_id="req_1",
        stream=stream,
        timeout_seconds=timeout_seconds,
        headers={"anthropic-beta": "some-beta", "authorization": "Bearer cd_ours"},
    )


@pytest.fixture
async def client(model: OfflineModel) -> AsyncIterator[MessagesClient]:
    credential = UpstreamCredential(kind=CredentialKind.AUTH_TOKEN, secret=model.api_key)
    made = MessagesClient(model.base_url + "/", lambda: credential)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def engine(client: MessagesClient) -> DirectEngine:
    return DirectEngine(client, SETTINGS)


async def run(engine: DirectEngine, task: TaskSpec) -> tuple[dict[str, Any], Outcome]:
    lease = engine.lease(task)
    assert lease is not None
    builder, outcome = MessageBuilder(), None
    async for batch in lease.run():
        for item in batch:
            if isinstance(item, Ended):
                outcome = item.outcome
            elif item.type == MESSAGE:
                builder.message = dict(item.data)
            else:
                assert item.raw is not None and orjson.loads(item.raw) == item.data
                builder.add(item.data)
    assert outcome is not None
    assert engine.room.taken == 0
    return builder.message, outcome


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_comes_as_the_upstream_gave_it(engine: DirectEngine, model: OfflineModel, stream: bool) -> None:
    message, outcome = await run(engine, spec("Hello [[tokens=5]]", stream=stream, metadata={"user_id": "u"}))
    assert message["content"] == [{"type": "text", "text": "Hello from the offline model."}]
    assert (outcome.state, outcome.usage.output_tokens, outcome.stop_reason) == (State.SUCCEEDED, 5, "end_turn")
    asked = model.requests[-1]
    assert asked.body["metadata"] == {"user_id": "u"}
    assert asked.headers["anthropic-beta"] == "some-beta"
    assert asked.headers["authorization"] == f"Bearer {model.api_key}"


@pytest.mark.parametrize(("prompt", "failure"), [("Hello", None), ("[[error=529]]", "upstream_overloaded")])
async def test_each_call_is_told_once_as_a_span_below_its_request(
    engine: DirectEngine, model: OfflineModel, prompt: str, failure: str | None
) -> None:
    told: list[dict[str, Any]] = []
    engine.told = lambda name, fields: told.append({"event": name, **fields})
    await run(engine, replace(spec(prompt), traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"))
    (call,) = told
    assert (call["event"], call["failure"]) == ("model_call", failure)
    assert (call["trace_id"], call["parent_span_id"]) == ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")
    assert model.requests[-1].headers["traceparent"] == f"00-{call['trace_id']}-{call['span_id']}-01"


async def test_a_caller_who_leaves_ends_a_call_that_is_told_as_cancelled(engine: DirectEngine) -> None:
    told: list[dict[str, Any]] = []
    engine.told = lambda name, fields: told.append(fields)
    lease = engine.lease(spec("[[tokens=5]] [[pace=1s]]", stream=True))
    assert lease is not None
    async with aclosing(cast(Any, lease.run())) as batches:
        async for _ in batches:
            break
    assert [call["failure"] for call in told] == ["cancelled"]


async def test_a_connection_serves_the_next_call_too(engine: DirectEngine, client: MessagesClient) -> None:
    for _ in range(3):
        await run(engine, spec("Hello [[tokens=5]]"))
    assert client._session is not None and client._session.connector is not None
    assert sum(map(len, cast(Any, client._session.connector)._conns.values())) == 1


@pytest.mark.parametrize(
    ("prompt", "stream", "code"),
    [
        ("[[error=400]]", True, Code.UPSTREAM_INVALID_REQUEST),
        ("[[error=529]]", False, Code.UPSTREAM_OVERLOADED),
        ("[[hang]]", True, Code.STALLED),
        ("[[hang]]", False, Code.DEADLINE),
        ("[[stall=2]]", True, Code.STALLED),
        ("[[cut=2]]", True, Code.UPSTREAM_CUT),
        ("[[cut=2]]", False, Code.UPSTREAM_CUT),
        ("[[malformed=2]]", True, Code.UPSTREAM_MALFORMED),
        ("[[error-event=2]]", True, Code.UPSTREAM_OVERLOADED),
        ("[[tokens=90]] [[pace=100ms]]", True, Code.DEADLINE),
    ],
)
async def test_each_failure_has_its_code(engine: DirectEngine, prompt: str, stream: bool, code: Code) -> None:
    message, outcome = await run(engine, spec(prompt, stream=stream))
    assert outcome.failure is not None and outcome.failure.code is code
    assert "stop_reason" not in message or message["stop_reason"] is None


async def test_a_slow_caller_is_not_the_upstreams_deadline(engine: DirectEngine) -> None:
    """The turn's time runs out while nobody reads: that is told as it is, and cancels nobody."""
    lease = engine.lease(spec("[[tokens=90]] [[pace=20ms]]", timeout_seconds=0.3))
    assert lease is not None
    last: Any = None
    async for batch in lease.run():
        last = batch[-1]
        await asyncio.sleep(0.4)
    assert last.outcome.failure.code is Code.DEADLINE


async def test_a_caller_who_leaves_ends_the_call(engine: DirectEngine, model: OfflineModel) -> None:
    lease = engine.lease(spec("[[tokens=90]] [[pace=100ms]]"))
    assert lease is not None
    async with aclosing(cast(Any, lease.run())) as batches:
        await anext(batches)
    async with asyncio.timeout(5):
        await model.wait_until(lambda m: m.active == 0)
    assert engine.room.taken == 0


async def test_no_more_calls_at_once_than_allowed_and_room_is_told(engine: DirectEngine) -> None:
    told: list[int] = []
    engine.room.on_change(lambda: told.append(engine.room.taken))
    first, second = engine.lease(spec("a")), engine.lease(spec("b"))
    assert first is not None and second is not None
    assert engine.lease(spec("c")) is None
    first.release()
    first.release()
    assert told == [1]
    assert engine.lease(spec("c")) is not None
    assert (engine.unsupported(spec("a")), engine.unavailable(), dict(engine.health())) == (None, None, {})


async def test_an_answer_that_is_no_message_is_malformed(unused_tcp_port: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n[1]")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", unused_tcp_port)
    client = MessagesClient(
        f"http://127.0.0.1:{unused_tcp_port}",
        lambda: UpstreamCredential(kind=CredentialKind.API_KEY, secret="k"),
    )
    await client.start()
    async with server:
        _, outcome = await run(DirectEngine(client, SETTINGS), spec("Hello", stream=False))
    await client.close()
    assert outcome.failure is not None and outcome.failure.code is Code.UPSTREAM_MALFORMED
