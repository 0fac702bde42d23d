"""Rate limits as the clients of the two dialects read them: what is left, and when all of it is there again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from claude_daemon.api.errors import Dialect
from claude_daemon.core.limits import Standing

_TOLD: Final = "limit", "remaining", "reset"
_COUNTED: Final = "requests", "tokens"
_NAMES: Final = {
    Dialect.OPENAI: {what: tuple(f"x-ratelimit-{told}-{what}" for told in _TOLD) for what in _COUNTED},
    Dialect.ANTHROPIC: {what: tuple(f"anthropic-ratelimit-{what}-{told}" for told in _TOLD) for what in _COUNTED},
}


def rate_headers(standings: Mapping[str, Standing], dialect: Dialect, now: float) -> dict[str, str]:
    """``x-ratelimit-*`` for OpenAI's clients, ``anthropic-ratelimit-*`` for Anthropic's; none on other routes.

    ``standings``: by ``requests`` and ``tokens``; ``now``: seconds since the epoch.
    """
    headers: dict[str, str] = {}
    names = _NAMES.get(dialect)
    if names is None:
        return headers
    for what, (most, left, reset_seconds) in standings.items():
        limit, remaining, reset = names[what]
        headers[limit] = str(most)
        headers[remaining] = str(left)
        headers[reset] = duration(reset_seconds) if dialect is Dialect.OPENAI else moment(now + reset_seconds)
    return headers


def duration(seconds: float) -> str:
    """As OpenAI's API writes one, never shorter than it is.

    >>> [duration(s) for s in (0.0, 0.02, 1.5, 59.9, 360.0)]
    ['0s', '20ms', '2s', '60s', '6m0s']
    """
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms" if seconds > 0 else "0s"
    whole = math.ceil(seconds)
    return f"{whole}s" if whole <= 60 else f"{whole // 60}m{whole % 60}s"


def moment(at: float) -> str:
    """RFC 3339, in whole seconds, never earlier than it is.

    >>> moment(0.5)
    '1970-01-01T00:00:01Z'
    """
    return _second(math.ceil(at))


@lru_cache(maxsize=256)  # of limits that are hardly touched many answers in a row tell the same moments
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
