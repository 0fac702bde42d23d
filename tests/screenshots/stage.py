"""A daemon on the offline model, and people and programs that use it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import orjson

from claude_daemon.offline import OfflineModel
from tests.support import BIN, DaemonProcess

ROOT: Final = Path(__file__).resolve().parents[2]
IMAGES: Final = ROOT / "docs" / "images"
HOME: Final = "/home/ada"
PREFIX: Final = "/opt/claude-daemon"
URL: Final = "http://127.0.0.1:8006"
UPSTREAM: Final = "http://127.0.0.1:8007"

WORKERS: Final = 4
WARMING: Final = 60
"""Chats that are over when the picture is taken, so that it has a last minute."""
SETTLED_PICTURES: Final = 8
"""Pictures to let pass while the load goes on, so that what runs has some age."""
LONG: Final = "[[tokens=4000]] [[pace=120ms]]"


class Stage:
    """``async with``: the daemon is up, and its load begins. :meth:`lines` are its events from there on."""

    def __init__(self) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="claude-daemon-screenshots-"))
        self._tasks: list[asyncio.Task[Any]] = []

    async def __aenter__(self) -> Self:
        self._model = OfflineModel()
        await self._model.__aenter__()
        settings = {"engine.workers": WORKERS, "engine.spares": 1, "http.port": 0}
        unset = {"ANTHROPIC_API_KEY": "", "ANTHROPIC_BASE_URL": ""}
        self.daemon = DaemonProcess(self._home, self._model, settings, environ=unset, args=("--offline",))
        await self.daemon.start()
        self._upstream = str((await self.daemon.control("status"))["base_url"])
        await self._warm()
        await self._load()
        return self

    async def __aexit__(self, *exc: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.daemon.control("panic", "POST", {})
        await self.daemon.stop()
        await self._model.__aexit__(None, None, None)
        shutil.rmtree(self._home, ignore_errors=True)

    async def _warm(self) -> None:
        for number in range(WARMING):
            await self.daemon.chat("Summarise this line. [[pace=2ms]]", lane="text" if number % 6 == 0 else "direct")
        await self.daemon.chat("Fail, please. [[error=400]]", lane="direct")

    async def _load(self) -> None:
        """Two agents and a session's turn run, chats come and go, three tasks wait for their turn."""
        read = {"allow": ["Read", "Grep"]}
        tasks: list[dict[str, Any]] = [
            {"prompt": f"Find where the totals go wrong. {LONG}", "tools": read},
            {"prompt": f"Write what you found into the report. {LONG}", "tools": read},
            {"prompt": f"Go on with the translation. {LONG}", "session": {}},
            *({"prompt": f"Nightly digest, part {part}. {LONG}"} for part in range(1, 5)),
        ]
        for task in tasks:
            await self.daemon.control("tasks?detach=true", "POST", task)
        self._begin(self.daemon.chat(f"What is on today? {LONG}", lane="direct", stream=True))
        self._begin(self._chatter())

    def _begin(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._tasks.append(asyncio.create_task(coroutine))

    async def _chatter(self) -> None:
        while True:
            await self.daemon.chat("And this line? [[pace=10ms]]", lane="direct", stream=True)

    @asynccontextmanager
    async def lines(self) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """What the daemon tells those who watch, with what is this machine's told otherwise."""
        headers = {"Claude-Daemon-Control": "1"}
        connector = aiohttp.UnixConnector(str(self.daemon.socket))
        async with (
            aiohttp.ClientSession("http://daemon", connector=connector, headers=headers) as session,
            session.get("/control/v1/events?interval_s=1") as response,
        ):
            yield self._told(response)

    async def _told(self, response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
        async for line in response.content:
            yield orjson.loads(self.elsewhere(line.decode()))

    def elsewhere(self, text: str) -> str:
        """As it would be on another machine, installed as the documentation says."""
        ours = {str(self._home): HOME, str(BIN.parent): PREFIX, self.daemon.url: URL, self._upstream: UPSTREAM}
        for here, there in ours.items():
            text = text.replace(here, there)
        return text
