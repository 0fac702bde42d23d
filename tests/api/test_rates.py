"""Rate limits as headers."""

from __future__ import annotations

from claude_daemon.api.errors import Dialect
from claude_daemon.api.rates import rate_headers
from claude_daemon.core.limits import Standing

STANDINGS = {
    "requests": Standing(limit=60, remaining=59, reset_seconds=1.0),
    "tokens": Standing(limit=1000, remaining=0, reset_seconds=90.2),
}


def test_openais_clients_read_what_is_left_and_how_long_until_all_of_it_is() -> None:
    assert rate_headers(STANDINGS, Dialect.OPENAI, 0.0) == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "1m31s",
    }


def test_anthropics_clients_read_what_is_left_and_until_when() -> None:
    assert rate_headers(STANDINGS, Dialect.ANTHROPIC, 60.0) == {
        "anthropic-ratelimit-requests-limit": "60",
        "anthropic-ratelimit-requests-remaining": "59",
        "anthropic-ratelimit-requests-reset": "1970-01-01T00:01:01Z",
        "anthropic-ratelimit-tokens-limit": "1000",
        "anthropic-ratelimit-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-reset": "1970-01-01T00:02:31Z",
    }


def test_other_routes_tell_none() -> None:
    assert rate_headers(STANDINGS, Dialect.PROBLEM, 0.0) == {}
