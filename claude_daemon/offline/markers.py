"""Markers in a prompt: `[[name]]` or `[[name=value]]`, turned into settings for this prompt. Pure.

The table of what each marker does is in the docstring of the package.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from claude_daemon.offline.settings import Fault, FaultKind, Settings, UsageKind

_OPEN: Final = re.compile(r"\[\[([a-z]+(?:-[a-z]+)*)(=|\]\])")
_DURATION: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s)")
_SPACES: Final = re.compile(r"[ \t]{2,}")
_JSON: Final = json.JSONDecoder()


class MarkerError(ValueError):
    """A known marker with a value it cannot have."""


def apply(defaults: Settings, prompt: str) -> tuple[Settings, str]:
    """The settings for this prompt, and the prompt without its markers.

    Raises MarkerError where a known marker has a bad value; an unknown one stays in the text.
    """
    changes: dict[str, Any] = {}
    kept: list[str] = []
    end = 0
    while match := _OPEN.search(prompt, end):
        name, valued = match[1], match[2] == "="
        if name not in _MARKERS:
            kept.append(prompt[end : match.end()])
            end = match.end()
            continue
        kept.append(prompt[end : match.start()])
        value, end = _value(name, prompt, match.end()) if valued else (None, match.end())
        _change(changes, name, value)
    kept.append(prompt[end:])
    if not changes:
        return defaults, prompt.strip()
    return _replace(defaults, changes), _SPACES.sub(" ", "".join(kept)).strip()


def strip(text: str) -> str:
    """The text without its markers; with a bad one, as it is."""
    try:
        return apply(Settings(), text)[1]
    except MarkerError:
        return text


def _value(name: str, prompt: str, start: int) -> tuple[Any, int]:
    """The value that begins at `start`, and where the marker ends. JSON may contain `]]`, text may not."""
    if name == "input":
        try:
            _, stop = _JSON.raw_decode(prompt, start)
            value = orjson.loads(prompt[start:stop])
            orjson.dumps(value)
        except (ValueError, TypeError, RecursionError):
            raise MarkerError("[[input=…]]: not JSON") from None
        if not prompt.startswith("]]", stop):
            raise MarkerError("[[input=…]]: more than one JSON value")
        return value, stop + 2
    stop = prompt.find("]]", start)
    if stop < 0:
        raise MarkerError(f"[[{name}=…]]: no closing ]]")
    return prompt[start:stop], stop + 2


def _change(changes: dict[str, Any], name: str, value: Any) -> None:
    field, convert = _MARKERS[name]
    try:
        converted = convert(value)
    except (ValueError, TypeError) as error:
        raise MarkerError(f"[[{name}]]: {error}") from None
    if field in ("tools", "inputs"):
        converted = (*changes.get(field, ()), converted)
    changes[field] = converted


def _replace(defaults: Settings, changes: dict[str, Any]) -> Settings:
    try:
        return dataclasses.replace(defaults, **changes)
    except ValueError as error:
        raise MarkerError(f"marker out of range: {error}") from None


def _flag(setting: bool) -> Callable[[str | None], bool]:
    def convert(value: str | None) -> bool:
        if value is not None:
            raise ValueError("takes no value")
        return setting

    return convert


def _text(value: str | None) -> str:
    if value is None:
        raise ValueError("needs a value")
    return value


def _number(value: str | None) -> int:
    if value is None or not value.isascii() or not value.isdigit() or len(value) > 9:
        raise ValueError("needs a whole number")
    return int(value)


def _seconds(value: str | None) -> float:
    match = _DURATION.fullmatch(_text(value))
    if match is None:
        raise ValueError("needs a duration such as 10ms or 2s")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


def _object(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("needs a JSON object")
    return value


def _usage(value: str | None) -> UsageKind:
    return UsageKind(_text(value))


def _error(value: str | None) -> Fault:
    return Fault(kind=FaultKind.ERROR, status=_number(value))


def _hang(value: str | None) -> Fault:
    _flag(True)(value)
    return Fault(kind=FaultKind.HANG)


def _after(kind: FaultKind) -> Callable[[str | None], Fault]:
    return lambda value: Fault(kind=kind, after=_number(value))


_MARKERS: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "tokens": ("tokens", _number),
    "text": ("text", _text),
    "bytes": ("reply_bytes", _number),
    "history": ("history", _flag(True)),
    "system": ("system", _flag(True)),
    "thinking": ("thinking", _flag(True)),
    "refusal": ("refusal", _flag(True)),
    "tool": ("tools", _text),
    "input": ("inputs", _object),
    "repeat": ("repeat", _number),
    "one-by-one": ("one_by_one", _flag(True)),
    "no-structured": ("structured", _flag(False)),
    "no-format": ("formats", _flag(False)),
    "invalid": ("invalid", _flag(True)),
    "usage": ("usage", _usage),
    "first": ("first_s", _seconds),
    "pace": ("pace_s", _seconds),
    "hang": ("fault", _hang),
    "error": ("fault", _error),
    "stall": ("fault", _after(FaultKind.STALL)),
    "cut": ("fault", _after(FaultKind.CUT)),
    "malformed": ("fault", _after(FaultKind.MALFORMED)),
    "error-event": ("fault", _after(FaultKind.ERROR_EVENT)),
    "retry-after": ("retry_after_s", _number),
    "times": ("times", _number),
    "round": ("round", _number),
    "drift": ("drift", _flag(True)),
}
