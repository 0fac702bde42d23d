"""``python -m tests.bench.run_app``: what the scene of a stop asks for, by aiohttp's own ``run_app`` with its defaults.

Its first line is its URL.
"""

from __future__ import annotations

import asyncio
import socket

from aiohttp import web

from tests.bench.child import answer
from tests.load.scene import ANSWER_S

_BEAT_S = 1.0


async def chat(request: web.Request) -> web.Response:
    await request.json()
    await asyncio.sleep(ANSWER_S)
    return web.json_response({"choices": [{"message": {"role": "assistant", "content": "Done."}}]})


async def events(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    await response.prepare(request)
    while True:
        await response.write(b":\n\n")
        await asyncio.sleep(_BEAT_S)


async def stream(request: web.Request) -> web.WebSocketResponse:
    ws = web.WebSocketResponse()
    await ws.prepare(request)
    async for _ in ws:
        pass
    return ws


def main() -> None:
    app = web.Application()
    app.add_routes(
        [web.post("/v1/chat/completions", chat), web.get("/v1/events", events), web.get("/v1/stream", stream)]
    )
    sock = socket.create_server(("127.0.0.1", 0))
    answer({"url": f"http://127.0.0.1:{sock.getsockname()[1]}"})
    web.run_app(app, sock=sock, print=None)


if __name__ == "__main__":
    main()
