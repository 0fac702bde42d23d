"""Identifiers that sort by time and cannot be guessed."""

from __future__ import annotations

from collections.abc import Callable

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_TIME_BITS = 48
_RANDOM_BYTES = 10


def new_id(prefix: str, *, milliseconds: int, randbytes: Callable[[int], bytes]) -> str:
    """``prefix_`` and 26 characters: 48 bits of time, 80 of randomness (the layout of a ULID)."""
    number = (milliseconds & ((1 << _TIME_BITS) - 1)) << (8 * _RANDOM_BYTES)
    number |= int.from_bytes(randbytes(_RANDOM_BYTES), "big")
    return f"{prefix}_" + "".join(_ALPHABET[(number >> shift) & 31] for shift in range(125, -1, -5))
