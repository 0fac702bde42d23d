"""What tokens cost: whole micro-USD, never less than was used."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.config.models import MODELS
from claude_daemon.core.list_prices import LIST_PRICES
from claude_daemon.core.price import LONG_PROMPT_TOKENS, Price, cost_micro_usd, dearest, is_dearer, is_model
from claude_daemon.core.task import Usage

PRICE = Price(input=3_000_000, output=15_000_000, cache_write=3_750_000, cache_read=300_000)

COUNTS = st.integers(0, 10**9)
USAGES = st.builds(
    Usage,
    input_tokens=COUNTS,
    output_tokens=COUNTS,
    cache_creation_input_tokens=COUNTS,
    cache_read_input_tokens=COUNTS,
    model_calls=st.integers(0, 100),
)
# up to a thousand USD per million; whole micro-USD, as the configuration is read
RATES = st.integers(0, 10**9)
PRICES = st.builds(Price, input=RATES, output=RATES, cache_write=RATES, cache_read=RATES)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (Usage(), 0),
        (Usage(model_calls=7), 0),
        (Usage(input_tokens=1_000_000), 3_000_000),
        (Usage(output_tokens=1_000_000), 15_000_000),
        (Usage(cache_creation_input_tokens=1_000_000), 3_750_000),
        (Usage(cache_read_input_tokens=1_000_000), 300_000),
        (Usage(cache_read_input_tokens=1), 1),  # 0.3
        (Usage(cache_read_input_tokens=10), 3),
        (Usage(cache_read_input_tokens=11), 4),  # 3.3
        (Usage(cache_creation_input_tokens=1, cache_read_input_tokens=1), 5),  # 4.05: rounded once, not each
        (Usage(input_tokens=10, output_tokens=20, cache_creation_input_tokens=4, cache_read_input_tokens=10), 348),
    ],
)
def test_a_cost_is_the_sum_of_its_parts_rounded_up(usage: Usage, expected: int) -> None:
    assert cost_micro_usd(usage, PRICE) == expected


@given(USAGES)
def test_what_has_no_price_costs_nothing(usage: Usage) -> None:
    assert cost_micro_usd(usage, Price(input=0, output=0, cache_write=0, cache_read=0)) == 0


@given(USAGES, PRICES)
def test_a_cost_is_whole_not_less_than_exact_and_less_than_one_more(usage: Usage, price: Price) -> None:
    parts = (
        (usage.input_tokens, price.input),
        (usage.output_tokens, price.output),
        (usage.cache_creation_input_tokens, price.cache_write),
        (usage.cache_read_input_tokens, price.cache_read),
    )
    exact = sum((Fraction(tokens * rate, 1_000_000) for tokens, rate in parts), Fraction())
    cost = cost_micro_usd(usage, price)
    assert type(cost) is int
    assert exact <= cost < exact + 1


@given(st.lists(USAGES, max_size=6), PRICES)
def test_costs_add_up_within_one_micro_usd_for_each_addend(usages: list[Usage], price: Price) -> None:
    total = cost_micro_usd(sum(usages, Usage()), price)
    apart = sum(cost_micro_usd(usage, price) for usage in usages)
    assert total <= apart <= total + max(0, len(usages) - 1)


@given(USAGES, USAGES, PRICES)
def test_more_never_costs_less(usage: Usage, more: Usage, price: Price) -> None:
    assert cost_micro_usd(usage + more, price) >= cost_micro_usd(usage, price)


def test_every_shipped_alias_has_a_list_price_and_no_kind_of_token_is_free() -> None:
    assert set(LIST_PRICES) == set(MODELS.values())
    for price in LIST_PRICES.values():
        for one in (price, price.of_long):
            assert 0 < one.cache_read < one.input < one.cache_write < one.output


HAIKU = LIST_PRICES["claude-haiku-5-5"]


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (Usage(input_tokens=LONG_PROMPT_TOKENS, output_tokens=1000, model_calls=1), 10_500),
        (Usage(input_tokens=LONG_PROMPT_TOKENS + 1, output_tokens=1000, model_calls=1), 52_501),  # 52,500.5
        (Usage(cache_read_input_tokens=LONG_PROMPT_TOKENS + 10, model_calls=1), 5_001),
        (Usage(input_tokens=2 * LONG_PROMPT_TOKENS, model_calls=2), 20_000),
        (Usage(input_tokens=LONG_PROMPT_TOKENS + 10), 50_005),
    ],
)
def test_a_long_prompt_has_its_own_price(usage: Usage, expected: int) -> None:
    assert cost_micro_usd(usage, HAIKU) == expected


def test_the_dearest_of_several_is_so_for_long_prompts_too() -> None:
    cheap = Price(input=200_000, output=400_000, cache_write=250_000, cache_read=20_000)
    both = dearest(["claude-haiku-5-5", "cheap"], {**LIST_PRICES, "cheap": cheap}.get)
    assert both == Price(input=200_000, output=500_000, cache_write=250_000, cache_read=20_000, long=HAIKU.long)
    assert dearest(["cheap"], {"cheap": cheap}.get) == cheap
    assert is_dearer(Price(input=300_000, output=1, cache_write=1, cache_read=1), cheap)
    higher = Price(input=150_000, output=400_000, cache_write=250_000, cache_read=20_000, long=HAIKU.long)
    assert is_dearer(higher, cheap)  # in long prompts alone
    assert not is_dearer(cheap, both)


@pytest.mark.parametrize(
    ("told", "model", "same"),
    [
        ("claude-x-20260401", "claude-x", True),
        ("claude-x-20260401", "claude-x-20260401", True),
        ("claude-x", "claude-x[1m]", True),  # the CLI keeps the bracket to itself
        ("claude-x-20260401", "claude-x[1m]", True),
        ("claude-x-20260401", "claude-x-20260401[1m]", True),
        ("claude-x-1", "claude-x", False),
        ("claude-x", "claude-x-20260401", False),
        ("claude-x-20260401", "claude-x-20260501", False),
        ("claude-y", "claude-x[1m]", False),
        ("claude", "claude[x]y", False),
    ],
)
def test_a_model_is_the_one_that_was_asked_for_whatever_the_upstream_adds_to_its_name(
    told: str, model: str, same: bool
) -> None:
    assert is_model(told, model) is same
