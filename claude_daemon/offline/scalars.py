"""The smallest string or number that a flat JSON schema allows. Pure."""

import math
from fractions import Fraction
from typing import Any, Final

from claude_daemon.offline.pattern import example

MAX_CHARS: Final = 100_000
"""Longest string that a schema may demand."""

FORMATS: Final = {
    "date-time": "2025-01-01T00:00:00Z",
    "date": "2025-01-01",
    "time": "00:00:00Z",
    "duration": "PT0S",
    "email": "a@example.com",
    "hostname": "example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uri": "https://example.com",
    "uri-reference": "/",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "json-pointer": "",
    "regex": "",
}

Schema = dict[str, Any]


class SchemaError(ValueError):
    """No instance is found: the schema is contradictory, endless, too large, or has a remote `$ref`."""


def string(flat: Schema, salt: int) -> str:
    """The shortest string; different salts give different ones where no pattern is set."""
    shortest = count(flat, "minLength", MAX_CHARS)
    if "pattern" in flat:
        return example(str(flat["pattern"]), shortest)
    base = FORMATS.get(str(flat.get("format")), "")
    text = base.ljust(shortest, "x")
    if not salt:
        return text
    tail = str(salt)
    return text[: len(text) - len(tail)] + tail if len(text) >= len(tail) else tail


def number(flat: Schema, salt: int, *, integer: bool) -> int | float:
    """Zero, or the allowed number nearest to it; with a salt the n-th after or before it, where allowed."""
    step = _fraction(flat, "multipleOf")
    if integer:
        step = Fraction((step or Fraction(1)).numerator)
    low, high = _bound(flat, "minimum", step), _bound(flat, "maximum", step)
    if low is not None and high is not None and low > high:
        raise SchemaError("no number within the bounds")
    start = Fraction(0)
    if low is not None and low > 0:
        start = low
    elif high is not None and high < 0:
        start = high
    stride = (step or Fraction(1)) * salt
    shifted = (start + stride, start - stride, start)
    value = next(n for n in shifted if (low is None or n >= low) and (high is None or n <= high))
    return int(value) if value.denominator == 1 else float(value)


def _bound(flat: Schema, key: str, step: Fraction | None) -> Fraction | None:
    """The innermost allowed number on one side (a multiple of `step`), or None without a bound."""
    sign = 1 if key == "minimum" else -1
    exclusive = _fraction(flat, "exclusive" + key.capitalize())
    inclusive = _fraction(flat, key)
    bounds = []
    if inclusive is not None:
        bounds.append(sign * inclusive if step is None else math.ceil(sign * inclusive / step) * step)
    if exclusive is not None:
        inside = Fraction(1, 1000) if step is None else step
        bounds.append((math.floor(sign * exclusive / inside) + 1) * inside)
    return sign * max(bounds) if bounds else None


def _fraction(flat: Schema, key: str) -> Fraction | None:
    value = flat.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    if key == "multipleOf" and value <= 0:
        raise SchemaError("multipleOf: must be positive")
    return Fraction(str(value))


def count(flat: Schema, key: str, most: int, *, default: int = 0) -> int:
    """A keyword such as minLength. Raises SchemaError beyond `most`."""
    value = flat.get(key, default)
    if not isinstance(value, int | float) or value < 0 or value > most:
        raise SchemaError(f"{key}: must be from 0 to {most}")
    return int(value)
