"""A model that records, a bare HTTP client with its key, and the real SDK pointed at it."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import anthropic
import orjson
import pytest

from claude_daemon.offline import OfflineModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One SSE event; `data` is None where it is not JSON."""

    type: str
    data: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Plain HTTP to the model, with its key."""

    http: aiohttp.ClientSession
    base_url: str

    def post(self, body: Any, path: str = "/v1/messages") -> Any:
        """POST a body as JSON."""
        return self.http.post(self.base_url + path, data=orjson.dumps(body))

    async def whole(self, prompt: Any, **fields: Any) -> dict[str, Any]:
        """The answer to one prompt, not streamed, as JSON."""
        async with self.post(request(prompt, **fields)) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, Any] = orjson.loads(await response.read())
            return answer

    async def text(self, prompt: Any, **fields: Any) -> str:
        """The text of the answer."""
        return text_of(await self.whole(prompt, **fields))

    async def events(self, prompt: Any, **fields: Any) -> list[Event]:
        """All events of a streamed answer that ends well."""
        async with self.post(request(prompt, stream=True, **fields)) as response:
            assert response.status == 200, await response.text()
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            return parse_events(await response.read())


def request(prompt: Any, **fields: Any) -> dict[str, Any]:
    """A request body: the prompt is the user's text, its blocks, or a list of messages."""
    is_messages = isinstance(prompt, list) and all("role" in item for item in prompt)
    messages = prompt if is_messages else [{"role": "user", "content": prompt}]
    return {"model": "claude-sonnet-5", "max_tokens": 4096, "messages": messages} | fields


def text_of(message: dict[str, Any]) -> str:
    """The text blocks of a message."""
    return "".join(block["text"] for block in message["content"] if block["type"] == "text")


def parse_events(raw: bytes) -> list[Event]:
    """The events in a body; raises where it does not end with a whole one."""
    frames = raw.decode().split("\n\n")
    assert frames.pop() == ""
    return [_event(frame) for frame in frames]


def _event(frame: str) -> Event:
    head, data = frame.split("\n")
    try:
        return Event(type=head.removeprefix("event: "), data=orjson.loads(data.removeprefix("data: ")))
    except orjson.JSONDecodeError:
        return Event(type=head.removeprefix("event: "), data=None)


def deltas(events: list[Event]) -> list[str]:
    """The text of the deltas that carry text."""
    found = [event.data["delta"] for event in events if event.type == "content_block_delta" and event.data]
    return [delta["text"] for delta in found if delta["type"] == "text_delta"]


@pytest.fixture
async def model() -> AsyncIterator[OfflineModel]:
    async with OfflineModel(record=True) as model:
        yield model


@pytest.fixture
async def caller(model: OfflineModel) -> AsyncIterator[Caller]:
    headers = {"x-api-key": model.api_key, "content-type": "application/json"}
    async with aiohttp.ClientSession(headers=headers) as http:
        yield Caller(http=http, base_url=model.base_url)


@pytest.fixture
async def sdk(model: OfflineModel) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=model.base_url, api_key=model.api_key, max_retries=0) as client:
        yield client
