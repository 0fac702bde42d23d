"""Values as texts: parsed as the type of their key asks, and repeated in faults."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args, get_origin

from claude_daemon.layers.schema import NONE, Octal, bare, is_secret
from claude_daemon.secret import SECRET_LIKE, Secret

MAX_ECHO_CHARS = 60
"""A longer value is not repeated in a fault: it is no slip of the finger, and hides the reason."""

_BOOLEANS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def parse(text: str, annotation: Any) -> Any:
    """A text as the type asks: numbers, booleans, comma or JSON lists, JSON tables.

    ``none`` is left for the model, and so is all that it parses itself. Raises ValueError with what is
    expected.
    """
    kind, notes = bare(annotation)
    origin = get_origin(kind)
    if text == NONE or (not text and NoneType in notes):
        return NONE
    if kind is Secret:
        return Secret(text)
    if kind is bool:
        return _looked_up(text)
    if kind is int:
        return _whole(text, octal=any(note is Octal for note in notes))
    if kind is float:
        return _number(text)
    if origin is tuple:
        return _listed(text, get_args(kind)[0])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _json(text, dict, "a table in JSON")
    return text


def _looked_up(text: str) -> bool:
    try:
        return _BOOLEANS[text.strip().lower()]
    except KeyError:
        raise ValueError("must be true or false (or 1, 0, yes, no)") from None


def _whole(text: str, *, octal: bool) -> int:
    try:
        return int(text, 8 if octal else 10)
    except ValueError:
        raise ValueError(f"must be a whole number{' in octal' * octal}") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("must be a number") from None


def _listed(text: str, item: Any) -> list[Any]:
    """``a, b`` or ``["a", "b"]``. ``[::1]`` is no JSON, and thus one name."""
    if text.strip().startswith("["):
        try:
            return list(_json(text, list, "a list"))
        except ValueError:
            if bare(item)[0] is not str:
                raise
    return [parse(part, item) for part in map(str.strip, text.split(",")) if part]


def _json(text: str, kind: type, what: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise ValueError(f"must be {what}")
    return value


def echo(value: object, annotation: Any) -> str:
    """``, not 'abc'`` for what may be shown: short plain values that neither are nor look like secrets."""
    if is_secret(annotation) or not isinstance(value, str | int | float):
        return ""
    text = repr(value)
    hidden = len(text) > MAX_ECHO_CHARS or SECRET_LIKE.search(text) or re.search(r"://[^/]*@", text)
    return "" if hidden else f", not {text}"
