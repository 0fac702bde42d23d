"""What tokens cost: whole micro-USD, never less than was used."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.core.price import Price, cost_micro_usd
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
