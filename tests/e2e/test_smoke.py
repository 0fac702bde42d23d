"""The shortest way through everything: both lanes, both dialects."""

from __future__ import annotations

import pytest

from tests.support import DaemonProcess, sse, text_of


@pytest.mark.parametrize("lane", ["direct", "text"])
async def test_a_streamed_chat_completion_ends_with_done(daemon: DaemonProcess, lane: str) -> None:
    body = {"model": "sonnet", "stream": True, "messages": [{"role": "user", "content": "Hello [[tokens=5]]"}]}
    async with daemon.http.post("/v1/chat/completions", json=body, headers={"Claude-Daemon-Lane": lane}) as response:
        assert response.headers["Claude-Daemon-Lane"] == lane
        events = await sse(response)
    assert events[-1] == ("message", "[DONE]")
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for _, chunk in events[:-1])
    assert text == "Hello from the offline model."


@pytest.mark.parametrize("lane", ["direct", "text"])
async def test_a_message_is_answered_whole(daemon: DaemonProcess, lane: str) -> None:
    response = await daemon.chat("Hello [[tokens=5]]", lane=lane)
    assert response.status == 200
    message = await response.json()
    assert text_of(message) == "Hello from the offline model."
    assert message["stop_reason"] == "end_turn"
    assert message["usage"]["output_tokens"] == 5
