"""Every fault a prompt can ask for, and when it happens."""

import asyncio
import time
from typing import Any

import aiohttp
import pytest

from claude_daemon.offline import Fault, FaultKind, OfflineModel, Settings
from tests.offline.conftest import Caller, deltas, parse_events, request

HANGING = ["[[hang]]", "[[stall=3]]"]
STOP_SECONDS = 2.0
"""An idle machine needs 0.03 s; the rest is for one that is busy. Without care it would be a minute."""


async def _read_some(response: aiohttp.ClientResponse, count: int) -> bytes:
    """The body until `count` deltas have arrived."""
    raw = b""
    while raw.count(b"text_delta") < count:
        raw += await response.content.readany()
    return raw


@pytest.mark.parametrize("stream", [True, False])
async def test_a_hang_sends_not_even_headers_and_ends_with_the_client(
    model: OfflineModel, caller: Caller, stream: bool
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), caller.post(request("[[hang]]", stream=stream)):
            pass
    await model.wait_until(lambda model: not model.active)


async def test_a_stall_sends_its_deltas_and_nothing_more(model: OfflineModel, caller: Caller) -> None:
    async with caller.post(request("[[stall=3]] hello", stream=True)) as response:
        raw = await _read_some(response, 3)
        assert len(deltas(parse_events(raw))) == 3
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await response.content.readany()
        assert model.active == 1
    await model.wait_until(lambda model: not model.active)


async def test_a_stall_without_a_stream_is_a_hang(caller: Caller) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), caller.post(request("[[stall=3]]")):
            pass


@pytest.mark.parametrize("after", [0, 3, 1000])
async def test_a_cut_sends_its_deltas_and_drops_the_connection(caller: Caller, after: int) -> None:
    async with caller.post(request(f"[[cut={after}]] [[tokens=10]]", stream=True)) as response:
        raw = b""
        with pytest.raises(aiohttp.ClientPayloadError):
            while True:
                raw += await response.content.readany()
    events = parse_events(raw)
    assert len(deltas(events)) == min(after, 10)
    assert events[0].type == "message_start"
    assert "message_stop" not in [event.type for event in events]


async def test_a_cut_without_a_stream_drops_the_connection_unanswered(caller: Caller) -> None:
    with pytest.raises(aiohttp.ServerDisconnectedError):
        async with caller.post(request("[[cut=3]]")):
            pass


async def test_a_malformed_event_ends_the_stream(caller: Caller) -> None:
    events = await caller.events("[[malformed=3]] hello")
    assert len(deltas(events)) == 3
    assert (events[-1].type, events[-1].data) == ("content_block_delta", None)


async def test_an_error_event_ends_the_stream(caller: Caller) -> None:
    events = await caller.events("[[error-event=3]] hello")
    assert len(deltas(events)) == 3
    assert events[-1].type == "error"
    assert events[-1].data["error"] == {"type": "overloaded_error", "message": "Overloaded"}


@pytest.mark.parametrize("fault", ["malformed", "error-event"])
async def test_what_only_a_stream_can_suffer_leaves_the_whole_answer_unharmed(caller: Caller, fault: str) -> None:
    assert (await caller.whole(f"[[{fault}=1]] hi"))["stop_reason"] == "end_turn"


async def test_an_error_says_when_to_come_back(caller: Caller) -> None:
    async with caller.post(request("[[error=429]] [[retry-after=7]]")) as response:
        assert (response.status, response.headers["retry-after"]) == (429, "7")
    async with caller.post(request("[[error=429]]")) as response:
        assert "retry-after" not in response.headers


async def _statuses(caller: Caller, *prompts: Any) -> list[int]:
    statuses = []
    for prompt in prompts:
        async with caller.post(request(prompt)) as response:
            statuses.append(response.status)
    return statuses


async def test_a_fault_with_times_is_over_after_that_many_sights_of_its_prompt(caller: Caller) -> None:
    one, other = "[[error=529]] [[times=2]] one", "[[error=529]] [[times=2]] other"
    assert await _statuses(caller, one, one, other, one, one) == [529, 529, 529, 200, 200]


async def test_a_fault_with_a_round_happens_in_that_round_alone(caller: Caller) -> None:
    prompt = "[[tool=A]] [[error=500]] [[times=1]] [[round=2]]"
    answer = await caller.whole(prompt)
    result = {"type": "tool_result", "tool_use_id": answer["content"][0]["id"], "content": "ok"}
    after = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer["content"]},
        {"role": "user", "content": [result]},
    ]
    assert await _statuses(caller, after, after) == [500, 200]


async def test_a_drift_changes_the_text_from_the_second_time_on(caller: Caller) -> None:
    prompt = "[[drift]] hello"
    assert [await caller.text(prompt) for _ in range(3)] == [
        "Hello from the offline model. You said: “hello”.",
        "HELLO FROM THE OFFLINE MODEL. YOU SAID: “HELLO”.",
        "HELLO FROM THE OFFLINE MODEL. YOU SAID: “HELLO”.",
    ]


async def test_a_fault_by_default_strikes_every_prompt_until_it_is_taken_back(
    model: OfflineModel, caller: Caller
) -> None:
    model.settings = Settings(fault=Fault(kind=FaultKind.ERROR, status=500))
    assert await _statuses(caller, "a", "b") == [500, 500]
    model.settings = Settings()
    assert await _statuses(caller, "a") == [200]


async def test_a_paced_stream_takes_its_time_and_says_the_same(caller: Caller) -> None:
    started = time.monotonic()
    events = await caller.events("[[tokens=6]] [[pace=20ms]]")
    assert time.monotonic() - started >= 5 * 0.02
    assert deltas(events) == deltas(await caller.events("[[tokens=6]]"))


async def test_the_first_delta_of_a_paced_stream_does_not_wait(caller: Caller) -> None:
    async with asyncio.timeout(10), caller.post(request("[[pace=1000s]]", stream=True)) as response:
        assert len(deltas(parse_events(await _read_some(response, 1)))) == 1


async def test_headers_come_before_a_late_first_event(caller: Caller) -> None:
    async with asyncio.timeout(10), caller.post(request("[[first=1000s]]", stream=True)) as response:
        assert response.status == 200
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await response.content.readany()


async def test_an_answer_not_streamed_takes_as_long_as_its_stream(caller: Caller) -> None:
    started = time.monotonic()
    await caller.whole("[[tokens=3]] [[pace=20ms]] [[first=20ms]]")
    assert time.monotonic() - started >= 3 * 0.02


@pytest.mark.parametrize("prompt", [*HANGING, "[[pace=1000s]]", "[[first=1000s]]", "[[bytes=20000000]]"])
async def test_stop_ends_a_running_answer_at_once(prompt: str) -> None:
    await _stop_while_running([prompt])


async def test_stop_ends_a_hundred_hung_answers_at_once() -> None:
    await _stop_while_running([f"[[hang]] {number}" for number in range(100)])


async def _stop_while_running(prompts: list[str]) -> None:
    """Ask all prompts at once, stop, and see every answer dropped within STOP_SECONDS."""
    model = OfflineModel(record=True)
    await model.start()
    stopped = asyncio.Event()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers={"x-api-key": model.api_key}, connector=connector) as http:
        caller = Caller(http=http, base_url=model.base_url)
        async with asyncio.TaskGroup() as group:
            for prompt in prompts:
                group.create_task(_dropped(caller, prompt, stopped))
            await model.wait_until(lambda model: len(model.requests) == len(prompts))
            started = time.monotonic()
            await model.stop()
            assert time.monotonic() - started < STOP_SECONDS
            stopped.set()
    assert model.active == 0


async def _dropped(caller: Caller, prompt: str, stopped: asyncio.Event) -> None:
    """Send a prompt; what comes is read only after the stop, so a large answer cannot be complete."""
    with pytest.raises(aiohttp.ClientError):
        async with caller.post(request(prompt, stream=True)) as response:
            await stopped.wait()
            await response.read()
