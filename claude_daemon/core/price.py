"""What tokens cost, in whole micro-USD: no floats where money is added up."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from claude_daemon.core.task import Usage

_DATE: Final = re.compile(r"-20[0-9]{6}$", re.ASCII)
_TOKENS: Final = 1_000_000
"""Prices are told for so many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Micro-USD per million tokens."""

    input: int
    output: int
    cache_write: int
    cache_read: int


def dearest(models: Iterable[str], price: Callable[[str], Price | None]) -> Price | None:
    """What these models cost at most: the tokens of a task are not told apart by model. None if one has no price."""
    found = [price(model) for model in models]
    known = [one for one in found if one is not None]
    if not known or len(known) < len(found):
        return None
    return Price(
        input=max(one.input for one in known),
        output=max(one.output for one in known),
        cache_write=max(one.cache_write for one in known),
        cache_read=max(one.cache_read for one in known),
    )


def told_price(model: str, price: Callable[[str], Price | None]) -> Price | None:
    """Of a model as an upstream names it: often with the date of its release.

    >>> told_price("claude-x-20260401", {"claude-x": Price(input=1, output=1, cache_write=1, cache_read=1)}.get).input
    1
    """
    found = price(model)
    return found if found is not None else price(_DATE.sub("", model))


def is_dearer(one: Price, other: Price) -> bool:
    """Whether any kind of token costs more."""
    return (
        one.input > other.input
        or one.output > other.output
        or one.cache_write > other.cache_write
        or one.cache_read > other.cache_read
    )


def cost_micro_usd(usage: Usage, price: Price) -> int:
    """The cost of this usage, rounded up: what was used is never free.

    >>> cost_micro_usd(Usage(input_tokens=1), Price(input=3_000_000, output=0, cache_write=0, cache_read=0))
    3
    """
    total = (
        usage.input_tokens * price.input
        + usage.output_tokens * price.output
        + usage.cache_creation_input_tokens * price.cache_write
        + usage.cache_read_input_tokens * price.cache_read
    )
    return -(-total // _TOKENS)
