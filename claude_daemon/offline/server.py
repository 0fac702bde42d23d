"""The server's life: a port, a key, and everything a test wants to look at."""

import asyncio
import random
import secrets
from collections.abc import Callable
from types import TracebackType
from typing import Final

from aiohttp import web

from claude_daemon.offline.app import Routes
from claude_daemon.offline.author import Author
from claude_daemon.offline.events import Ids
from claude_daemon.offline.requestlog import Recorded, RequestLog
from claude_daemon.offline.settings import Settings

SHUTDOWN_SECONDS: Final = 0.01
"""What a running answer is given at stop; aiohttp waits this long up to twice, then cuts the connection."""


class OfflineModel:
    """A Messages API server on loopback. Start or enter it; then `base_url` and `api_key` are for a client.

    `api_key` is random when None, and so is the port when 0. With `record` every request is kept in
    `requests`. `ids` makes ids from a prefix (`msg`, `toolu`, `req`); the default makes random ones. A model
    can be started again after a stop; with port 0 it then has another port.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        settings: Settings | None = None,
        record: bool = False,
        ids: Ids | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._api_key = api_key or f"sk-offline-{secrets.token_hex(24)}"
        self._author = Author(settings or Settings())
        self._log = RequestLog(enabled=record)
        self._routes = Routes(
            api_key=self._api_key,
            author=self._author,
            log=self._log,
            ids=ids or random_ids(random.Random()),  # noqa: S311 - names, not secrets
            changed=self._wake,
        )
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._address: tuple[str, int] | None = None

    def __repr__(self) -> str:
        where = self.base_url if self._address else "not listening"
        return f"<OfflineModel {where} active={self.active}>"

    @property
    def base_url(self) -> str:
        """Where it listens, without `/v1`. Raises RuntimeError while it does not."""
        if self._address is None:
            raise RuntimeError("the offline model is not started")
        host, port = self._address
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @property
    def api_key(self) -> str:
        """The one key it accepts, as `x-api-key` or bearer token."""
        return self._api_key

    @property
    def settings(self) -> Settings:
        """The defaults for every prompt; assign others at any time, for requests that arrive later."""
        return self._author.settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self._author.settings = settings

    @property
    def requests(self) -> list[Recorded]:
        """What was asked, oldest first: a copy. Empty without `record`."""
        return self._log.entries

    @property
    def active(self) -> int:
        """Requests being answered now, hung ones included."""
        return self._routes.active

    async def wait_until(self, condition: Callable[["OfflineModel"], bool]) -> None:
        """Return when the condition holds; it is tried when a request arrives and when one ends.

        Examples: `lambda model: len(model.requests) == 2`, `lambda model: not model.active`.
        """
        while not condition(self):
            await self._changed.wait()

    async def start(self) -> None:
        """Listen. Raises OSError where the port is taken, RuntimeError where it already listens."""
        if self._runner is not None:
            raise RuntimeError("the offline model is already started")
        runner = web.AppRunner(
            self._routes.application(),
            access_log=None,
            handler_cancellation=True,
            shutdown_timeout=SHUTDOWN_SECONDS,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._host, self._port).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner
        self._address = (runner.addresses[0][0], runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening and end every answer, hung ones at once. Does nothing when it is not started."""
        runner, self._runner, self._address = self._runner, None, None
        if runner is not None:
            await runner.cleanup()

    async def __aenter__(self) -> "OfflineModel":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _wake(self) -> None:
        """Let every `wait_until` look again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def random_ids(rng: random.Random) -> Ids:
    """Ids like the API's: `msg_01` and 22 digits. Not secret."""
    return lambda prefix: f"{prefix}_01{rng.getrandbits(88):022x}"
