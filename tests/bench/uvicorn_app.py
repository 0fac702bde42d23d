"""``python -m tests.bench.uvicorn_app``: what the scene of a stop asks for, by uvicorn with its defaults.

Its first line is its URL.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson
import uvicorn

from tests.bench.child import answer
from tests.load.scene import ANSWER_S

_BEAT_S = 1.0

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def app(scope: Message, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await stream(receive, send)
    elif scope["path"] == "/v1/events":
        await events(send)
    else:
        await chat(receive, send)


async def chat(receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(ANSWER_S)
    await _start(send, b"application/json")
    document = {"choices": [{"message": {"role": "assistant", "content": "Done."}}]}
    await send({"type": "http.response.body", "body": orjson.dumps(document)})


async def events(send: Send) -> None:
    await _start(send, b"text/event-stream")
    while True:
        await send({"type": "http.response.body", "body": b":\n\n", "more_body": True})
        await asyncio.sleep(_BEAT_S)


async def stream(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] != "websocket.disconnect":
        pass


async def _start(send: Send, content_type: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]})


def main() -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    answer({"url": f"http://127.0.0.1:{sock.getsockname()[1]}"})
    uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off")).run(sockets=[sock])


if __name__ == "__main__":
    main()
