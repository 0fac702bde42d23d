"""Requests of every kind on the real CLI: what is asked arrives upstream as it was written, and comes back whole."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from claude_daemon.offline import OfflineModel
from tests.conftest import StartDaemon
from tests.support import DaemonProcess, sse, text_of

pytestmark = pytest.mark.engine

LANES = pytest.mark.parametrize("lane", ["direct", "text"])
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
FORM = {"format": {"type": "json_schema", "schema": SCHEMA}}


def texts(message: Mapping[str, Any]) -> str:
    """What a message upstream says, without what Claude Code adds about /clear."""
    content = message["content"]
    blocks = [{"text": content}] if isinstance(content, str) else content
    said = [block.get("text", "") for block in blocks if not block.get("text", "").startswith("<")]
    return "".join(said)


def conversation(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    spoken = [m for m in body["messages"] if m["role"] in ("user", "assistant")]
    return [(message["role"], texts(message)) for message in spoken]


def asked_with(model: OfflineModel, mark: str) -> list[Mapping[str, Any]]:
    """The bodies of all requests upstream that hold the mark."""
    return [r.body for r in model.requests if r.body and mark in orjson.dumps(r.body).decode()]


@LANES
async def test_a_prompt_of_200_kb_arrives_whole(daemon: DaemonProcess, model: OfflineModel, lane: str) -> None:
    prompt = f"{lane} whole " + "0123456789" * 20_000 + " [[tokens=3]]"
    response = await daemon.chat(prompt, lane=lane)
    assert response.status == 200
    assert conversation(asked_with(model, f"{lane} whole 0123456789")[-1]) == [("user", prompt)]


@LANES
@pytest.mark.parametrize(
    "prompt",
    [
        "--help",
        "--model opus",
        "/clear",
        "/clear ",
        "/model opus",
        "/help",
        "@/etc/hostname",
        "see @/etc/hostname",
        "!ls",
        "#x",
    ],
)
async def test_a_prompt_is_text_and_nothing_else(
    daemon: DaemonProcess, model: OfflineModel, lane: str, prompt: str
) -> None:
    before = len(model.requests)
    response = await daemon.chat(prompt, lane=lane)
    assert response.status == 200, await response.text()
    assert text_of(await response.json()).startswith("Hello from the offline model")
    asked = model.requests[before:]
    assert [conversation(request.body) for request in asked] == [[("user", prompt)]]


@LANES
async def test_a_lone_surrogate_is_a_bad_request(daemon: DaemonProcess, lane: str) -> None:
    body = b'{"model":"sonnet","max_tokens":9,"messages":[{"role":"user","content":"\\ud800"}]}'
    headers = {"Claude-Daemon-Lane": lane, "Content-Type": "application/json"}
    async with daemon.http.post("/v1/messages", data=body, headers=headers) as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"


@LANES
async def test_an_answer_of_10_mb_comes_back_whole(daemon: DaemonProcess, lane: str) -> None:
    """In deltas of 64 KiB, so that each line of the CLI is longer than asyncio's own limit."""
    response = await daemon.chat("[[bytes=10000000]]", lane=lane, max_tokens=100_000_000)
    assert response.status == 200
    assert len(text_of(await response.json())) == 10_000_000


@LANES
async def test_a_history_of_five_turns_arrives_in_order(daemon: DaemonProcess, model: OfflineModel, lane: str) -> None:
    messages = []
    for turn in range(5):
        messages += [
            {"role": "user", "content": f"{lane} question {turn}"},
            {"role": "assistant", "content": f"answer {turn}"},
        ]
    messages.append({"role": "user", "content": f"{lane} and now? [[tokens=3]]"})
    response = await daemon.chat("", lane=lane, messages=messages)
    assert response.status == 200, await response.text()
    asked = asked_with(model, f"{lane} and now?")[-1]
    assert conversation(asked) == [(message["role"], message["content"]) for message in messages]


async def test_a_conversation_leaves_nothing_to_the_next_request(daemon: DaemonProcess, model: OfflineModel) -> None:
    for number in range(4):
        assert (await daemon.chat(f"stranger {number} [[tokens=3]]")).status == 200
        asked = asked_with(model, f"stranger {number}")[-1]
        assert conversation(asked) == [("user", f"stranger {number} [[tokens=3]]")]


@LANES
async def test_a_system_prompt_and_a_model_arrive(daemon: DaemonProcess, model: OfflineModel, lane: str) -> None:
    response = await daemon.chat(f"{lane} who [[tokens=3]]", lane=lane, system="You are a lighthouse.", model="opus")
    assert response.status == 200
    asked = asked_with(model, f"{lane} who [[tokens=3]]")[-1]
    assert "You are a lighthouse." in orjson.dumps(asked["system"]).decode()
    assert asked["model"] == "claude-opus-5-5" == (await response.json())["model"]


async def test_an_image_arrives(daemon: DaemonProcess, model: OfflineModel) -> None:
    pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    source = {"type": "base64", "media_type": "image/png", "data": pixel}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "a pixel? [[tokens=3]]"}]
    response = await daemon.chat("", messages=[{"role": "user", "content": content}])
    assert response.status == 200, await response.text()
    asked = asked_with(model, "a pixel?")[-1]
    assert any(block["type"] == "image" for block in asked["messages"][0]["content"])


async def test_thinking_is_shown_where_it_was_asked_for(daemon: DaemonProcess) -> None:
    thinking = {"type": "adaptive"}
    shown = await (await daemon.chat("a riddle [[thinking]] [[tokens=3]]", thinking=thinking)).json()
    assert [block["type"] for block in shown["content"]] == ["thinking", "text"]
    assert shown["content"][0]["signature"]
    hidden = await (await daemon.chat("a riddle [[thinking]] [[tokens=3]]")).json()
    assert [block["type"] for block in hidden["content"]] == ["text"]


@LANES
async def test_a_schema_is_kept(daemon: DaemonProcess, lane: str) -> None:
    response = await daemon.chat(f"{lane} fill in the form", lane=lane, output_config=FORM)
    assert response.status == 200, await response.text()
    assert set(orjson.loads(text_of(await response.json()))) == {"city", "people"}


@pytest.mark.parametrize("marker", ["[[no-structured]]", "[[invalid]]"])
async def test_a_form_that_is_missing_or_wrong_is_an_error(daemon: DaemonProcess, marker: str) -> None:
    response = await daemon.chat(f"fill it in {marker} [[tokens=3]]", output_config=FORM)
    assert response.status == 502
    line = await daemon.logged("task.settled", task_id=response.headers["X-Task-ID"])
    assert (line["code"], line["lane"]) == ("schema_mismatch", "text")


async def test_usage_is_what_the_upstream_metered(daemon: DaemonProcess) -> None:
    usage = (await (await daemon.chat("count me [[tokens=7]]")).json())["usage"]
    assert usage["output_tokens"] == 7
    assert usage["input_tokens"] + usage["cache_creation_input_tokens"] + usage["cache_read_input_tokens"] > 0


@LANES
async def test_text_streams_as_it_comes(daemon: DaemonProcess, model: OfflineModel, lane: str) -> None:
    """The first delta is here while the model is still at its answer."""
    prompt = f"{lane} slowly [[tokens=30]] [[pace=50ms]]"
    body = {"model": "sonnet", "max_tokens": 99, "stream": True, "messages": [{"role": "user", "content": prompt}]}
    async with daemon.http.post("/v1/messages", json=body, headers={"Claude-Daemon-Lane": lane}) as response:
        async for line in response.content:
            if b"text_delta" in line:
                assert model.active == 1
                break
        rest = await sse(response)
    assert rest[-1][0] == "message_stop"
    assert sum(kind == "content_block_delta" for kind, _ in rest) > 10


async def test_two_system_prompts_each_keep_a_worker(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.workers": 2, "engine.spares": 1, "engine.without": "system_block"})

    async def ask(system: str) -> tuple[str, str]:
        response = await daemon.chat("Who are you? [[system]]", system=system)
        assert system in text_of(await response.json())
        line = await daemon.logged("task.settled", task_id=response.headers["X-Task-ID"])
        async with asyncio.timeout(20):  # whoever comes while it is being cleared may be given another one
            while (line["worker_id"], "idle") not in [(one["id"], one["state"]) for one in await daemon.workers()]:
                await asyncio.sleep(0.02)
        return line["worker_id"], line["start"]

    first, second = await ask("You are a cat."), await ask("You are a dog.")
    assert first[0] != second[0]
    for _ in range(3):
        assert await ask("You are a cat.") == (first[0], "warm")
        assert await ask("You are a dog.") == (second[0], "warm")


async def test_fifty_requests_on_four_workers_are_all_answered(start_daemon: StartDaemon, model: OfflineModel) -> None:
    daemon = await start_daemon({"engine.workers": 4, "engine.spares": 1})
    most = 0

    async def ask(number: int) -> str:
        nonlocal most
        response = await daemon.chat(f"one of fifty, {number:02} [[text=answer {number}]] [[pace=5ms]]")
        most = max(most, model.active + 1)
        return text_of(await response.json())

    assert await asyncio.gather(*map(ask, range(50))) == [f"answer {number}" for number in range(50)]
    assert most <= 4
    status = await daemon.control("status")
    assert status["workers"]["spawned"] <= 9  # 5 kept, and no more than 4 spares while demand was high


async def test_requests_of_one_key_are_begun_in_the_order_they_came(
    start_daemon: StartDaemon, model: OfflineModel
) -> None:
    daemon = await start_daemon({"engine.workers": 1})  # of two, either might reach the model first
    first = asyncio.ensure_future(daemon.chat("the slow one [[tokens=40]] [[pace=50ms]]"))
    await model.wait_until(lambda m: bool(asked_with(m, "the slow one")))
    begun = []
    for number in range(12):
        begun.append(asyncio.ensure_future(daemon.chat(f"in order {number:02} [[tokens=1]]")))
        while (await daemon.control("status"))["queue"]["waiting"] <= number:  # each is queued before the next is sent
            assert not first.done(), "the slow one was not slow enough"
    await asyncio.gather(first, *begun)
    order = [conversation(body)[-1][1][:11] for body in asked_with(model, "in order ")]
    assert order == sorted(order)
    assert len(order) == 12


async def test_a_request_that_waited_too_long_never_runs(start_daemon: StartDaemon, model: OfflineModel) -> None:
    daemon = await start_daemon({"queue.wait_timeout_s": 0.5})
    slow = asyncio.ensure_future(daemon.chat("the slowest one [[tokens=600]] [[pace=100ms]]"))
    await model.wait_until(lambda m: bool(asked_with(m, "the slowest one")))
    late = await daemon.chat("the late one [[tokens=1]]")
    assert late.status in (503, 529)
    assert int(late.headers["Retry-After"]) >= 1
    assert not slow.done()
    slow.cancel()  # its place is free again
    async with asyncio.timeout(30):
        while (await daemon.chat("the next one [[tokens=1]]")).status != 200:
            pass
    assert asked_with(model, "the late one") == []
