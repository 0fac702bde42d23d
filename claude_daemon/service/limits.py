"""Rate limits in force: of each key and of all together, asked before anything is begun."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from claude_daemon.core.errors import Code, Failure, Refusal
from claude_daemon.core.limits import NO_RATES, Bucket, Rates, Standing, refill
from claude_daemon.core.task import Usage
from claude_daemon.ports import Clock

_TURN_S: Final = 1.0
"""When a turn will be over is not known; a client that comes back after so long asks for little."""
_OVERALL: Final = ""
_WITH_KEY: Final = "with this key"
_IN_ALL: Final = "in all"
_REQUESTS: Final = "requests"
_TOKENS: Final = "tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSettings:
    """``per_key``: of each one; ``overall``: of all together."""

    per_key: Rates = NO_RATES
    overall: Rates = NO_RATES

    @property
    def any(self) -> bool:
        return self != NO_LIMITS


NO_LIMITS: Final = LimitSettings()


@dataclass(frozen=True, slots=True)
class _Way:
    """What a key's requests have to pass under these settings, as far as there are limits. ``every``: its own buckets,
    then those of all; ``counts``: what each of them counts, and for whom; ``of``: by :data:`_REQUESTS` and
    :data:`_TOKENS`."""

    settings: LimitSettings
    every: tuple[Bucket, ...]
    counts: tuple[str, ...]
    of: Mapping[str, tuple[Bucket, ...]]


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
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._ways: dict[str, _Way] = {}

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
        if turn:
            self._check_turns(key_id)
        way = self._way(key_id)
        refill(way.every, self._monotonic())
        for bucket in way.every:
            if bucket.level < 1:
                why = f"more than {bucket.most} {way.counts[way.every.index(bucket)]}"
                raise Refusal(_limited(why, bucket.wait(1)))
        for bucket in way.of.get(_REQUESTS, ()):
            bucket.level -= 1

    def used(self, key_id: str, usage: Usage) -> None:
        """What a task has used."""
        if not self._any:
            return
        tokens = usage.input_tokens + usage.output_tokens + usage.cache_creation_input_tokens
        buckets = self._way(key_id).of.get(_TOKENS, ())
        refill(buckets, self._monotonic())
        for bucket in buckets:
            bucket.level -= tokens

    def standing(self, key_id: str) -> Mapping[str, Standing]:
        """By ``requests`` and ``tokens``, as far as there is a limit: whichever of the two has less left."""
        if not self._any:
            return {}
        way = self._way(key_id)
        refill(way.every, self._monotonic())
        found: dict[str, Standing] = {}
        for what, buckets in way.of.items():
            least = buckets[0]
            for other in buckets:
                if other.level < least.level:
                    least = other
            found[what] = least.standing()
        return found

    def _check_turns(self, key_id: str) -> None:
        of_key, of_all = self._turns
        if of_key is not None and self.turns(key_id) >= of_key:
            raise Refusal(_limited(f"more than {of_key} turns at once {_WITH_KEY}", _TURN_S))
        if of_all is not None and self.turns(None) >= of_all:
            raise Refusal(_limited(f"more than {of_all} turns at once {_IN_ALL}", _TURN_S))

    def _way(self, key_id: str) -> _Way:
        way = self._ways.get(key_id)
        if way is None or way.settings is not self._settings:
            way = self._ways[key_id] = self._new_way(key_id, self._monotonic())
        return way

    def _new_way(self, key_id: str, now: float) -> _Way:
        settings = self._settings
        found = [
            (what, f"{what} a minute {told}", bucket)
            for whose, rates, told in ((key_id, settings.per_key, _WITH_KEY), (_OVERALL, settings.overall, _IN_ALL))
            for what, most in ((_REQUESTS, rates.requests_per_minute), (_TOKENS, rates.tokens_per_minute))
            if (bucket := self._bucket(whose, what, most, now)) is not None
        ]
        of: dict[str, tuple[Bucket, ...]] = {}
        for what, _, bucket in found:
            of[what] = *of.get(what, ()), bucket
        return _Way(settings, tuple(one for *_, one in found), tuple(counts for _, counts, _ in found), of)

    def _bucket(self, whose: str, what: str, most: int | None, now: float) -> Bucket | None:
        """One for each key that there is, at most, and one of all."""
        if most is None:
            self._buckets.pop((whose, what), None)
            return None
        bucket = self._buckets.get((whose, what))
        if bucket is None:
            bucket = self._buckets[whose, what] = Bucket.full(most, now)
        elif bucket.most != most:
            refill((bucket,), now)
            bucket.resize(most)
        return bucket


def _limited(why: str, wait_seconds: float) -> Failure:
    return Failure(code=Code.RATE_LIMITED, message=f"Too much at once: {why}.", retry_after_seconds=wait_seconds)
