"""What tokens cost, in whole micro-USD: no floats where money is added up."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from claude_daemon.core.task import Usage

_DATE: Final = re.compile(r"-20[0-9]{6}$", re.ASCII)
_VARIANT: Final = re.compile(r"\[[a-z0-9]+\]$", re.ASCII)
"""Claude Code asks for more context so; what the upstream is asked for, and names, is the model without it."""
_TOKENS: Final = 1_000_000
"""Prices are told for so many."""

LONG_PROMPT_TOKENS: Final = 100_000
"""Beyond so many in its prompt, what is read from the cache and written to it included, a call may cost otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Micro-USD per million tokens. ``long``: of calls with a long prompt, where those cost more."""

    input: int
    output: int
    cache_write: int
    cache_read: int
    long: Price | None = None

    @property
    def of_long(self) -> Price:
        return self.long or self


def dearest(models: Iterable[str], price: Callable[[str], Price | None]) -> Price | None:
    """What these models cost at most: the tokens of a task are not told apart by model. None if one has no price."""
    found = [price(model) for model in models]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    long = _most([one.of_long for one in known]) if any(one.long for one in known) else None
    return replace(_most(known), long=long)


def _most(prices: Sequence[Price]) -> Price:
    return Price(
        input=max(one.input for one in prices),
        output=max(one.output for one in prices),
        cache_write=max(one.cache_write for one in prices),
        cache_read=max(one.cache_read for one in prices),
    )


def told_price(model: str, price: Callable[[str], Price | None]) -> Price | None:
    """Of a model as an upstream names it: often with the date of its release.

    >>> told_price("claude-x-20260401", {"claude-x": Price(input=1, output=1, cache_write=1, cache_read=1)}.get).input
    1
    """
    found = price(model)
    return found if found is not None else price(undated(model))


def is_model(told: str, model: str) -> bool:
    """Whether this is the model, as an upstream names it.

    >>> is_model("claude-x-20260401", "claude-x"), is_model("claude-x-1", "claude-x")
    (True, False)
    >>> is_model("claude-x-20260401", "claude-x[1m]")
    True
    """
    return _VARIANT.sub("", model) in (told, undated(told))


def undated(model: str) -> str:
    """The same without the date of its release."""
    return _DATE.sub("", model)


def is_dearer(one: Price, other: Price) -> bool:
    """Whether any kind of token costs more, in a long prompt or in another."""
    return _exceeds(one, other) or _exceeds(one.of_long, other.of_long)


def _exceeds(one: Price, other: Price) -> bool:
    return (
        one.input > other.input
        or one.output > other.output
        or one.cache_write > other.cache_write
        or one.cache_read > other.cache_read
    )


def cost_micro_usd(usage: Usage, price: Price) -> int:
    """The cost of this usage, rounded up: what was used is never free. Of several calls, which are metered together,
    the prompts count as long where they are so on average.

    >>> cost_micro_usd(Usage(input_tokens=1), Price(input=3_000_000, output=0, cache_write=0, cache_read=0))
    3
    """
    prompts = usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens
    if price.long is not None and prompts > LONG_PROMPT_TOKENS * max(1, usage.model_calls):
        price = price.long
    total = (
        usage.input_tokens * price.input
        + usage.output_tokens * price.output
        + usage.cache_creation_input_tokens * price.cache_write
        + usage.cache_read_input_tokens * price.cache_read
    )
    return -(-total // _TOKENS)
