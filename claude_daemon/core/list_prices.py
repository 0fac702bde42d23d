"""What Anthropic asks for the models that the shipped aliases name, as of 2026-11-27. ``[prices]`` goes before it.

Source: the catalogue within Claude Code 2.1.330, in accord with platform.claude.com/docs/en/about-claude/pricing
and, for Claude Haiku 5.5, …/docs/en/models/haiku-5-5/overview. What is written to the prompt cache is that of five
minutes. Batches, fast mode, other platforms' and agreed prices differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from claude_daemon.core.price import Price

LIST_PRICES: Final[Mapping[str, Price]] = MappingProxyType(
    {
        "claude-sonnet-5-5": Price(input=2_000_000, output=10_000_000, cache_write=2_500_000, cache_read=100_000),
        "claude-opus-5-5": Price(input=4_000_000, output=20_000_000, cache_write=5_000_000, cache_read=200_000),
        "claude-fable-5-2": Price(input=8_000_000, output=40_000_000, cache_write=10_000_000, cache_read=200_000),
        "claude-haiku-5-5": Price(
            input=100_000,
            output=500_000,
            cache_write=125_000,
            cache_read=10_000,
            long=Price(input=500_000, output=2_500_000, cache_write=625_000, cache_read=50_000),
        ),
    }
)
