"""Rate limits in force: of each key and of all together, asked before anything is begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.limits import NO_RATES, Bucket, Rates, Standing
from claude_daemon.core.task import Usage
from claude_daemon.ports import Clock

_TURN_S: Final = 1.0
"""When a turn will be over is not known; a client that comes back after so long asks for little."""
_OVERALL: Final = ""
_WHOSE: Final = "with this key", "in all"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """``per_key``: of each one; ``overall``: of all together."""

    per_key: Rates = NO_RATES
    overall: Rates = NO_RATES

    @property
    def any(self) -> bool:
        return self != NO_LIMITS


NO_LIMITS: Final = LimitSettings()


class _Buckets:
    """Of one key, or of all."""

    __slots__ = ("followed", "requests", "tokens")

    def __init__(self) -> None:
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.followed: Rates | None = None

    def follow(self, rates: Rates, now: float) -> None:
        self.followed = rates
        self.requests = _followed(self.requests, rates.requests_per_minute, now)
        self.tokens = _followed(self.tokens, rates.tokens_per_minute, now)


def _followed(bucket: Bucket | None, most: int | None, now: float) -> Bucket | None:
    if most is None:
        return None
    if bucket is None:
        return Bucket.full(most, now)
    if bucket.most != most:
        bucket.resize(most, now)
    return bucket


class Limits:
    """``turns``: how many turns a key has under way or waiting for a place, None for all of them.

    Tokens are counted when a task is over, those read from the prompt cache excepted: whoever has used more than its
    minute's waits until that is made good.
    """

    def __init__(
        self, settings: LimitSettings, *, monotonic: Clock, turns: Callable[[str | None], int] = lambda key_id: 0
    ) -> None:
        self.apply(settings)
        self._monotonic = monotonic
        self.turns = turns
        self._buckets: dict[str, _Buckets] = {}

    def apply(self, settings: LimitSettings) -> None:
        self._settings = settings
        self._any = settings.any
        self._turns = settings.per_key.concurrent, settings.overall.concurrent

    def may_begin(self, key_id: str, running: int, running_of_all: int) -> bool:
        """Whether a durable task of the key may begin besides those that run; it waits otherwise."""
        settings = self._settings
        of_all, of_key = settings.overall.concurrent, settings.per_key.concurrent
        return not ((of_key is not None and running >= of_key) or (of_all is not None and running_of_all >= of_all))

    @property
    def bounds_turns(self) -> bool:
        return self._turns != (None, None)

    def enter(self, key_id: str, *, turn: bool) -> None:
        """One request more; ``turn``: it begins at once. Raises Refusal, and then it does not count."""
        if not self._any:
            return
        now = self._monotonic()
        if turn:
            self._check_turns(key_id)
        found = self._of(key_id, now)
        for buckets, whose in zip(found, _WHOSE, strict=True):
            for bucket, what in ((buckets.requests, "requests"), (buckets.tokens, "tokens")):
                if bucket is not None and (wait := bucket.wait(1, now)) > 0:
                    why = f"more than {bucket.most} {what} a minute {whose}"
                    raise Refusal(_limited(why, wait))
        for buckets in found:
            if buckets.requests is not None:
                buckets.requests.take(1, now)

    def used(self, key_id: str, usage: Usage) -> None:
        """What a task has used."""
        if not self._any:
            return
        now = self._monotonic()
        tokens = usage.input_tokens + usage.output_tokens + usage.cache_creation_input_tokens
        for buckets in self._of(key_id, now):
            if buckets.tokens is not None:
                buckets.tokens.take(tokens, now)

    def standing(self, key_id: str) -> Mapping[str, Standing]:
        """By ``requests`` and ``tokens``, as far as there is a limit: whichever of the two has less left."""
        if not self._any:
            return {}
        now = self._monotonic()
        least: dict[str, Bucket] = {}
        for buckets in self._of(key_id, now):
            for name, bucket in (("requests", buckets.requests), ("tokens", buckets.tokens)):
                if bucket is not None:
                    left = bucket.left(now)
                    if name not in least or left < least[name].level:
                        least[name] = bucket
        return {name: bucket.standing(now) for name, bucket in least.items()}

    def _check_turns(self, key_id: str) -> None:
        for name, most, whose in zip((key_id, None), self._turns, _WHOSE, strict=True):
            if most is not None and self.turns(name) >= most:
                raise Refusal(_limited(f"more than {most} turns at once {whose}", _TURN_S))

    def _of(self, key_id: str, now: float) -> tuple[_Buckets, _Buckets]:
        """The key's, and those of all."""
        settings = self._settings
        return self._following(key_id, settings.per_key, now), self._following(_OVERALL, settings.overall, now)

    def _following(self, name: str, rates: Rates, now: float) -> _Buckets:
        buckets = self._buckets.get(name)
        if buckets is None:  # one for each key that there is, at most
            buckets = self._buckets[name] = _Buckets()
        if buckets.followed is not rates:
            buckets.follow(rates, now)
        return buckets


def _limited(why: str, wait_seconds: float) -> Failure:
    return Failure(code=Code.RATE_LIMITED, message=f"Too much at once: {why}.", retry_after_seconds=wait_seconds)
