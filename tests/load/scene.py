"""A server is told to stop while twenty requests are being answered, a WebSocket and an SSE stream are open.

The client's side, the same for every server: what each of them gets, and when, by its own clock from the signal on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import orjson

REQUESTS: Final = 20
ANSWER_S: Final = 3.0
LIMIT_S: Final = 15.0
"""From the signal on; most of those who supervise a server kill it sooner."""
_ASKED_AGAIN_S: Final = (0.2, 0.5, 0.5)
"""New work comes so long after the signal, and after the work before it."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=None, sock_connect=LIMIT_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """``chat``: what is posted to ``/v1/chat/completions`` and answered after :data:`ANSWER_S`. ``events``: the path of
    the SSE stream. ``stream``: that of the WebSocket; each message of ``hello`` is sent there and answered once."""

    url: str
    headers: Mapping[str, str]
    chat: Mapping[str, Any]
    events: str
    stream: str
    hello: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def daemon(cls, url: str, key: str, running: str, queued: str) -> Server:
        """Ours: the WebSocket follows both tasks, the SSE stream the one that waits."""
        prompt = f"Wait. [[first={ANSWER_S:g}s]] [[text=Done.]]"
        return cls(
            url=url,
            headers={"Authorization": f"Bearer {key}", "Claude-Daemon-Lane": "direct"},
            chat={"model": "sonnet", "messages": [{"role": "user", "content": prompt}]},
            events=f"/v1/tasks/{queued}/events",
            stream="/v1/stream",
            hello=[{"op": "subscribe", "task": task} for task in (running, queued)],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """What came of a request for new work. ``status`` None: nobody accepted the connection, or it was cut."""

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def well(self) -> bool:
        """Whether a client learns that it is to come back, when, and that this connection is over."""
        retry_after = self.headers.get("Retry-After", "")
        return self.status == 503 and retry_after.isdigit() and self.headers.get("Connection") == "close"


@dataclass(slots=True, kw_only=True)
class Seen:
    """Seconds are since the signal; None is never. ``status`` None: it had to be killed at :data:`LIMIT_S`.

    ``notice``: what the WebSocket was told before or with its close. ``said``: what the SSE stream said in the end.
    """

    answered_s: list[float] = field(default_factory=list)
    new_work: list[Refused] = field(default_factory=list)
    notice_s: float | None = None
    notice: Mapping[str, Any] = field(default_factory=dict)
    close_code: int | None = None
    end_s: float | None = None
    said: str = ""
    exit_s: float | None = None
    status: int | None = None

    @property
    def exit_after_slowest_s(self) -> float | None:
        """None also where no request was answered."""
        return self.exit_s - max(self.answered_s) if self.exit_s is not None and self.answered_s else None


class Scene:
    """:meth:`play` it once. ``moment`` waits until the signal is due, and ``stop`` sends it; ``ended`` waits for the
    process, with :data:`LIMIT_S` for it, and tells its status, or None for one that it had to kill."""

    def __init__(
        self,
        server: Server,
        *,
        moment: Callable[[], Awaitable[None]],
        stop: Callable[[], None],
        ended: Callable[[], Awaitable[int | None]],
    ) -> None:
        self._server = server
        self._moment = moment
        self._stop = stop
        self._ended = ended
        self._seen = Seen()
        self._signalled_at = float("inf")
        self._following = asyncio.Event()
        self._streaming = asyncio.Event()

    async def play(self) -> Seen:
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(
                self._server.url, headers=self._server.headers, connector=connector, timeout=_TIMEOUT
            ) as self._session,
            asyncio.TaskGroup() as group,
        ):
            group.create_task(self._follow())
            group.create_task(self._listen())
            await self._streaming.wait()
            await self._following.wait()
            for _ in range(REQUESTS):
                group.create_task(self._chat())
            await self._moment()
            self._signalled_at = time.perf_counter()
            self._stop()
            group.create_task(self._ask_again())
            self._seen.status = await self._ended()
            if self._seen.status is not None:
                self._seen.exit_s = self._now()
        return self._seen

    def _now(self) -> float:
        return time.perf_counter() - self._signalled_at

    async def _chat(self) -> None:
        with contextlib.suppress(aiohttp.ClientError):
            async with self._session.post("/v1/chat/completions", json=self._server.chat) as response:
                answer = orjson.loads(await response.read())
                if response.status == 200 and answer["choices"][0]["message"]["content"]:
                    self._seen.answered_s.append(self._now())

    async def _ask_again(self) -> None:
        for wait_s in _ASKED_AGAIN_S:
            await asyncio.sleep(wait_s)
            self._seen.new_work.append(await self._new_work())

    async def _new_work(self) -> Refused:
        """On a connection of its own. An answer that takes its time is given away: this is none of the twenty."""
        try:
            async with (
                asyncio.timeout(ANSWER_S / 3),
                aiohttp.ClientSession(self._server.url, headers=self._server.headers) as session,
                session.post("/v1/chat/completions", json=self._server.chat) as response,
            ):
                return Refused(status=response.status, headers=dict(response.headers))
        except (aiohttp.ClientError, TimeoutError):
            return Refused(status=None)

    async def _listen(self) -> None:
        """The SSE stream, to its end."""
        with contextlib.suppress(aiohttp.ClientError):
            async with self._session.get(self._server.events) as response:
                assert response.status == 200, await response.text()
                async for line in response.content:
                    self._streaming.set()  # headers alone are no stream yet
                    if self._signalled_at < float("inf"):
                        self._seen.said += line.decode()
                if self._now() < LIMIT_S:
                    self._seen.end_s = self._now()

    async def _follow(self) -> None:
        """The WebSocket, to its close."""
        async with self._session.ws_connect(self._server.stream) as socket:
            for words in self._server.hello:
                await socket.send_json(words)
                while (answer := await socket.receive_json())["op"] == "event":
                    pass
                assert answer["op"] == "ack", answer
            self._following.set()
            while (message := await socket.receive()).type is aiohttp.WSMsgType.TEXT:
                told = orjson.loads(message.data)
                if told["op"] == "drain":
                    self._notice(told)
            if message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING) and socket.close_code != 1006:
                self._notice({})
            self._seen.close_code = None if socket.close_code is None else int(socket.close_code)

    def _notice(self, told: Mapping[str, Any]) -> None:
        if self._seen.notice_s is None and self._now() < LIMIT_S:
            self._seen.notice_s, self._seen.notice = self._now(), told
