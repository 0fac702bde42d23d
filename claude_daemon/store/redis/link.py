"""The connection to Redis: made, watched, and made again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from redis import asyncio as aioredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import InvalidResponse, RedisError, ResponseError

from claude_daemon.core.retry import Backoff
from claude_daemon.ports import Clock, HealthReport
from claude_daemon.store.redis.address import Address, Sealed
from claude_daemon.store.redis.fault import why
from claude_daemon.store.redis.standing import Standing

BACKOFF: Final = Backoff(first_seconds=0.25, limit_seconds=10.0)
"""A restart of Redis takes less than a second; one that was away for long is back in use within ten."""
CLOSE_S: Final = 0.5
"""For a connection's end: that of TLS waits for the other side, and nothing is lost without it."""
MAX_VERSION_CHARS: Final = 32
"""Of what a server says of itself: three numbers, and room for a fork's name."""

Told = Callable[[str, Mapping[str, Any]], None]
"""A line for the log: its name and its fields."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often and how patiently Redis is asked, in seconds."""

    ping_interval_s: float = 5.0
    """A server that is gone shows at once, by its connection's end; this finds one that hangs, at no cost to speak of.
    A connection that lasts for less is a failure to the backoff."""
    connect_s: float = 3.0
    """Name, connection, TLS, password and a first answer; from far away these are seven round trips."""
    answer_s: float = 1.0
    """To a ping. Whoever takes longer serves nobody."""
    slow_s: float = 0.1
    """A near Redis answers within a millisecond, one across an ocean within this."""
    backoff: Backoff = BACKOFF


class RedisLink:
    """Tells ``redis.connected`` and ``redis.lost`` once for each change, however many attempts are made; ``changed``
    is called when :meth:`check` has something new to say.

    One owner awaits :meth:`run`; the rest may be called at any time, in the same loop. ``random`` is uniform in [0, 1).
    """

    def __init__(
        self,
        url: Sealed,
        *,
        told: Told,
        changed: Callable[[], None],
        random: Callable[[], float] = random.random,
        monotonic: Clock = time.monotonic,
        pace: Pace = Pace(),
    ) -> None:
        """Raises BadAddress."""
        self._told = told
        self._changed = changed
        self._random = random
        self._monotonic = monotonic
        self._pace = pace
        self._address = Address.of(url)
        self._standing = self._unknown()
        self._closed = False
        self._turn: asyncio.Timeout | None = None
        self._at_rest = asyncio.Event()
        self._at_rest.set()

    async def run(self) -> None:
        """Connects and stays connected until it is cancelled or :meth:`close`; what Redis does wrong raises nothing."""
        self._at_rest.clear()
        try:
            while not self._closed:
                with suppress(TimeoutError):  # the address has changed, or this is the end
                    async with asyncio.timeout(None) as self._turn:
                        await self._hold(self._address, self._standing)
        finally:
            self._turn = None
            self._at_rest.set()

    def check(self) -> HealthReport:
        """How Redis is, as far as it is known now. Details: ``address``, and while connected ``version`` (None where
        it is not told), ``latency_seconds`` of the last answer, ``connected_seconds``.
        """
        return self._standing.report()

    def retarget(self, url: Sealed) -> None:
        """From now on this address; the same one changes nothing. Raises BadAddress, and then nothing has changed."""
        address = Address.of(url)
        if address != self._address:
            self._address = address
            self._start_anew()

    async def close(self) -> None:
        """Ends :meth:`run` and the connection, within twice :data:`CLOSE_S`; again, it changes nothing."""
        if not self._closed:
            self._closed = True
            self._start_anew()
        with suppress(TimeoutError):
            async with asyncio.timeout(2 * CLOSE_S):
                await self._at_rest.wait()

    def _start_anew(self) -> None:
        """Cuts short whatever is under way. It may still do a step, but only to a standing that nobody reads."""
        self._standing = self._unknown()
        if self._turn is not None and not self._turn.expired():
            self._turn.reschedule(asyncio.get_running_loop().time())
        self._changed()

    def _unknown(self) -> Standing:
        return Standing(self._address.shown, slow_s=self._pace.slow_s, monotonic=self._monotonic)

    # one address

    async def _hold(self, address: Address, standing: Standing) -> NoReturn:
        """Connects again and again."""
        failures = 0
        while True:
            lasted_seconds = await self._attempt(address, standing)
            failures = 1 if lasted_seconds >= self._pace.ping_interval_s else failures + 1
            await asyncio.sleep(self._pace.backoff.delay(failures, self._random()))

    async def _attempt(self, address: Address, standing: Standing) -> float:
        """Connects and stays so until something fails; for how many seconds that was."""
        connection = address.connection()
        try:
            await self._connect(connection, standing)
            await self._stay(connection, standing)
        except Exception as error:  # the boundary of an attempt
            return self._lost(standing, why(error))
        finally:
            await _disconnect(connection)

    async def _connect(self, connection: AbstractConnection, standing: Standing) -> None:
        async with asyncio.timeout(self._pace.connect_s):
            if isinstance(connection, aioredis.SSLConnection):
                await asyncio.to_thread(connection.ssl_context.get)  # reads certificates for some 20 ms
            await connection.connect_check_health(retry_socket_connect=False)
            latency_seconds = await self._ping(connection)
            version = await _version(connection)
        standing.connected(latency_seconds, version)
        self._tell(standing, "redis.connected", version=version, latency_seconds=round(latency_seconds, 6))
        self._note(standing)

    async def _stay(self, connection: AbstractConnection, standing: Standing) -> NoReturn:
        """Pings; in between it listens, so that the connection's end shows at once."""
        while True:
            unasked = await connection.read_response(timeout=self._pace.ping_interval_s, disconnect_on_error=False)
            if unasked is not None:
                raise InvalidResponse("an answer to no question")
            async with asyncio.timeout(self._pace.answer_s):
                latency_seconds = await self._ping(connection)
            if standing.measured(latency_seconds):
                self._note(standing)

    async def _ping(self, connection: AbstractConnection) -> float:
        """Seconds until the answer."""
        begun = self._monotonic()
        await connection.send_command("PING")
        if await connection.read_response() != b"PONG":
            raise InvalidResponse("not the answer to a ping")
        return self._monotonic() - begun

    def _lost(self, standing: Standing, reason: str) -> float:
        """It ended, or never was; for how many seconds it was."""
        lasted_seconds = standing.connected_seconds
        if standing.up is not False:
            self._tell(standing, "redis.lost", reason=reason, connected_seconds=round(lasted_seconds, 3))
        if standing.lost(reason):
            self._note(standing)
        return lasted_seconds

    def _tell(self, standing: Standing, event: str, **fields: Any) -> None:
        if standing is self._standing:
            self._told(event, {"address": standing.shown, **fields})

    def _note(self, standing: Standing) -> None:
        if standing is self._standing:
            self._changed()


async def _version(connection: AbstractConnection) -> str | None:
    """None from a server before 6, from a proxy, and for a user who may not ask."""
    await connection.send_command("HELLO")
    try:
        answer = await connection.read_response()
    except ResponseError:
        return None
    fields = answer if isinstance(answer, list) else []
    versions = (value for name, value in zip(fields[::2], fields[1::2], strict=False) if name == b"version")
    version = next(versions, None)
    return version.decode("ascii", "replace")[:MAX_VERSION_CHARS] if isinstance(version, bytes) else None


async def _disconnect(connection: AbstractConnection) -> None:
    with suppress(RedisError, OSError):
        async with asyncio.timeout(CLOSE_S):
            await connection.disconnect()
