"""Every way the upstream can fail, on both lanes: its own status, in time, saying which it was."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from claude_daemon.offline import OfflineModel
from tests.conftest import STALL_TIMEOUT_S, StartDaemon
from tests.support import DaemonProcess, sse, text_of

pytestmark = pytest.mark.engine

LANES = pytest.mark.parametrize("lane", ["direct", "text"])
# A stall is seen after the stall timeout, ended after the interrupt; the rest is the machine's.
DEADLINE_S = STALL_TIMEOUT_S + 12


async def asked(
    daemon: DaemonProcess, prompt: str, lane: str, **body: Any
) -> tuple[int, dict[str, Any], dict[str, str]]:
    async with asyncio.timeout(DEADLINE_S):
        response = await daemon.chat(prompt, lane=lane, **body)
        return response.status, await response.json(), dict(response.headers)


async def streamed(daemon: DaemonProcess, prompt: str, lane: str) -> list[tuple[str, Any]]:
    body = {"model": "sonnet", "max_tokens": 1024, "stream": True, "messages": [{"role": "user", "content": prompt}]}
    async with (
        asyncio.timeout(DEADLINE_S),
        daemon.http.post("/v1/messages", json=body, headers={"Claude-Daemon-Lane": lane}) as response,
    ):
        assert response.status == 200, await response.text()
        return await sse(response)


def text_streamed(events: list[tuple[str, Any]]) -> str:
    return "".join(data["delta"].get("text", "") for kind, data in events if kind == "content_block_delta")


@LANES
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("upstream", "status", "kind", "says"),
    [
        (400, 400, "invalid_request_error", "refused on demand"),
        (401, 502, "api_error", ""),
        (403, 502, "api_error", ""),
        (404, 404, "not_found_error", ""),
        (413, 413, "request_too_large", ""),
        (429, 429, "rate_limit_error", ""),
        (500, 502, "api_error", ""),
        (529, 529, "overloaded_error", ""),
    ],
)
async def test_an_upstream_error_has_its_own_status(
    daemon: DaemonProcess, lane: str, stream: bool, upstream: int, status: int, kind: str, says: str
) -> None:
    answer = await asked(daemon, f"{lane} {stream} [[error={upstream}]]", lane, stream=stream)
    assert answer[0] == status
    assert answer[1]["error"]["type"] == kind
    assert says in answer[1]["error"]["message"]
    assert "API Error" not in answer[1]["error"]["message"]


@LANES
async def test_retry_after_is_passed_on(daemon: DaemonProcess, lane: str) -> None:
    status, body, headers = await asked(daemon, f"{lane} [[error=429]] [[retry-after=120]]", lane)
    assert (status, body["error"]["type"], headers["Retry-After"]) == (429, "rate_limit_error", "120")


async def test_a_refused_credential_is_not_tried_again(daemon: DaemonProcess, model: OfflineModel) -> None:
    before = len(model.requests)
    assert (await asked(daemon, "once [[error=401]]", "text"))[0] == 502
    assert len(model.requests) - before == 1


@LANES
async def test_a_hang_before_the_first_byte_is_a_stall(daemon: DaemonProcess, lane: str) -> None:
    status, body, _ = await asked(daemon, f"{lane} [[hang]]", lane, stream=True)
    assert status == 504
    assert "nothing came from the" in body["error"]["message"]
    line = await daemon.logged("task.settled", code="stalled", lane=lane)
    assert line["state"] == "failed"


@LANES
@pytest.mark.parametrize(
    ("marker", "code"),
    [
        ("[[stall=3]]", "stalled"),
        ("[[cut=3]] [[drift]]", None),
        ("[[malformed=3]] [[drift]]", None),
        ("[[error-event=3]] [[drift]]", None),
    ],
)
async def test_after_the_first_byte_a_failure_is_an_error_event_and_never_text(
    daemon: DaemonProcess, lane: str, marker: str, code: str | None
) -> None:
    """Repeats differ (drift), so that no retry can mend it."""
    events = await streamed(daemon, f"{lane} tell me {marker} [[tokens=20]]", lane)
    kinds = [kind for kind, _ in events]
    assert kinds[0] == "message_start"
    assert kinds[-1] == "error"
    assert "message_stop" not in kinds
    said = text_streamed(events)
    assert said and "Hello from the offline model. This is a stand-in".startswith(said[:20])
    assert "rror" not in said
    if code is not None:
        assert (await daemon.logged("task.settled", code=code, lane=lane))["state"] == "failed"


@pytest.mark.parametrize("marker", ["cut=3", "malformed=3", "error-event=3"])
async def test_a_stream_that_broke_once_goes_on_where_it_was(daemon: DaemonProcess, marker: str) -> None:
    whole = text_of(await (await daemon.chat(f"plain {marker} [[tokens=20]]")).json())
    events = await streamed(daemon, f"plain {marker} [[{marker}]] [[times=1]] [[tokens=20]]", "text")
    assert events[-1][0] == "message_stop"
    assert text_streamed(events) == whole


async def test_a_stream_that_breaks_every_time_is_an_error_in_the_end(daemon: DaemonProcess) -> None:
    events = await streamed(daemon, "always [[cut=3]] [[tokens=20]]", "text")
    assert events[-1][0] == "error"


@LANES
async def test_an_upstream_that_refuses_connections_is_said_to_be_unreachable(
    start_daemon: StartDaemon, lane: str
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # taken, and nobody listens
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        daemon = await start_daemon(environ={"ANTHROPIC_BASE_URL": url})
        status, body, _ = await asked(daemon, "hello", lane)
    assert status == 502
    assert "cannot be reached" in body["error"]["message"]


@LANES
async def test_a_turn_that_takes_too_long_is_ended(start_daemon: StartDaemon, lane: str) -> None:
    daemon = await start_daemon({"engine.turn_timeout_s": 2})
    status, body, _ = await asked(daemon, "slow [[tokens=400]] [[pace=100ms]]", lane)
    assert status == 504
    assert "longer than 2 s" in body["error"]["message"]
    assert (await daemon.chat("and then [[tokens=3]]")).status == 200


@LANES
async def test_max_tokens_is_one_model_call(daemon: DaemonProcess, model: OfflineModel, lane: str) -> None:
    before = len(model.requests)
    status, body, headers = await asked(daemon, f"{lane} short [[tokens=500]]", lane, max_tokens=10)
    assert (status, body["stop_reason"]) == (200, "max_tokens")
    assert text_of(body).startswith("Hello from the offline model.")
    assert len(text_of(body)) < 100
    assert (headers.get("Claude-Daemon-Approximated") == "max_tokens") is (lane == "text")
    assert len(model.requests) - before == 1


async def test_the_upstreams_own_max_tokens_is_one_model_call_too(daemon: DaemonProcess, model: OfflineModel) -> None:
    """A model with a low limit of its own. Claude Code asks once whether a model without an alias exists."""
    before = len(model.requests)
    old_model = "claude-3-5-haiku-20241022"
    status, body, _ = await asked(daemon, "long [[tokens=40000]]", "text", model=old_model, max_tokens=1_000_000)
    assert (status, body["stop_reason"]) == (200, "max_tokens")
    assert sum(request.body.get("stream", False) for request in model.requests[before:]) == 1


@LANES
async def test_a_refusal_is_told_as_one(daemon: DaemonProcess, lane: str) -> None:
    status, body, _ = await asked(daemon, f"{lane} [[refusal]]", lane)
    assert (status, body["stop_reason"]) == (200, "refusal")
