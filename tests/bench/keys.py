"""What it costs to know a key, among ten thousand: from the secret in a header to the key, and whether it may."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, cast

from claude_daemon.core.key import Key, digest, new_secret
from claude_daemon.ports import KeyRecord, Keys
from claude_daemon.service.keys import MAX_KEYS, KeyDesk
from tests.bench.measure import Row, Scale, Summary
from tests.bench.stage import Stage

_AT_MOST_US = 5.0
_AT_ONCE = 1000


class _Stored:
    """A store that has these keys, and takes every last use."""

    def __init__(self, records: Sequence[KeyRecord]) -> None:
        self._records = records

    async def keys(self) -> Sequence[KeyRecord]:
        return self._records

    def key_used(self, key_id: str, at: float) -> None:
        pass


def keys(stage: Stage, scale: Scale) -> Iterator[Row]:
    """As the gate asks, once for each request."""
    made = [new_secret(secrets.token_bytes) for _ in range(MAX_KEYS)]
    desk = _desk([_record(number, secret) for number, secret in enumerate(made)])
    chosen = [secrets.choice(made) for _ in range(_AT_ONCE)]
    samples = [_asked(desk, chosen) for _ in range(scale.direct)]
    ours = Summary.of(samples, 1e6)
    yield Row(
        what=f"look up one of {MAX_KEYS} keys",
        unit="µs",
        ours=ours,
        hold=f"≤ {_AT_MOST_US:g} µs",
        holds=ours.median <= _AT_MOST_US,
    )


def _asked(desk: KeyDesk, chosen: Sequence[str]) -> float:
    """Seconds of this thread for one: it waits for nothing, so what others do meanwhile is not its cost."""
    began = time.thread_time()
    for secret in chosen:
        desk.check_route(desk.identify(secret, "127.0.0.1"), "/v1/messages")
    return (time.thread_time() - began) / len(chosen)


def _desk(records: Sequence[KeyRecord]) -> KeyDesk:
    local = Key(id="local", name="local", digest=digest("cd_"), role="standard", trust_domain="default")
    numbers = count()
    desk = KeyDesk(
        cast(Keys, cast(Any, _Stored(records))),
        local,
        shared=False,
        now=time.time,
        monotonic=time.monotonic,
        ids=lambda prefix: f"{prefix}_{next(numbers)}",
        randbytes=secrets.token_bytes,
    )
    asyncio.run(desk.load())
    return desk


def _record(number: int, secret: str) -> KeyRecord:
    return KeyRecord(
        id=f"key_{number}",
        name=f"n{number}",
        trust_domain=f"key_{number}",
        digest=digest(secret),
        role="standard",
        created_at=1.0,
        expires_at=1e12,
    )
