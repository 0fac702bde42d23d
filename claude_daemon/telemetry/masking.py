"""Makes what a line carries fit to be written: plain JSON types, bounded, without secrets."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import orjson

from claude_daemon.secret import SECRET_LIKE, Secret

MAX_TEXT_CHARS = 8 * 1024
"""A value's text; a prompt or a page of HTML is no log line."""

MAX_ITEMS = 64
"""Entries of one list or table, frames of one stack (the innermost)."""

MAX_GROUP = 8
"""Exceptions told of one group; the rest is more of the same."""

MAX_DEPTH = 6
"""Tables in tables, causes of causes; deeper is a cycle, or nothing a person reads."""

MIN_KNOWN_SECRET_CHARS = 8
"""Shorter secrets are words that stand in innocent text."""

_PLAIN = frozenset({str, int, float, bool, type(None)})

_SECRET_NAME = re.compile(
    r"(.*[_-])?(authorization|api[_-]?key|token|secret|password|passwd|cookie)|key", re.IGNORECASE
)
_URL_PASSWORD = re.compile(r"(?<=://)[^/\s@]*:[^/\s@]*(?=@)")


class Masker:
    """Makes values fit to be written: plain JSON types, bounded, without secrets."""

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        texts = (secret.reveal() for secret in secrets)
        self._known = tuple(text for text in texts if len(text) >= MIN_KNOWN_SECRET_CHARS)
        self._encoded = tuple(_encoded(text) for text in self._known)

    def plain(self, line: Mapping[str, object]) -> bytes | None:
        """A line as JSON where nothing in it is to be masked, cut or told in other words, as nearly always; else None.

        Looks at all of it at once, which costs a third of looking at each value.
        """
        if not (_innocent.issuperset(line) and _PLAIN.issuperset(map(type, line.values()))):
            return None
        try:
            rendered = orjson.dumps(line)
        except TypeError:  # lone surrogates, integers that are too large
            return None
        low = rendered.lower()
        if len(rendered) > MAX_TEXT_CHARS or b"sk-" in low or b"cd_" in low or b"bearer" in low or b"://" in low:
            return None
        for secret in self._encoded:
            if secret in rendered:
                return None
        return rendered

    def masked(self, line: Mapping[str, object]) -> dict[str, Any]:
        """The line as it may be written."""
        return {name: self.field(name, value) for name, value in line.items()}

    def field(self, name: str, value: object, depth: int = 0) -> Any:
        """The value as it may be written under this name."""
        if _names_a_secret(name) and value is not None:
            return "***"
        return self.value(value, depth)

    def value(self, value: object, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            return self.text(value)  # type: ignore[arg-type]
        if value is None or kind is bool:
            return value
        if kind is int:
            return value if -(2**63) <= value < 2**64 else self.text(str(value)[:MAX_ITEMS])  # type: ignore[operator]
        if kind is float:
            return value if abs(value) < float("inf") else str(value)  # type: ignore[arg-type]
        if depth < MAX_DEPTH:
            if isinstance(value, Mapping):
                return {
                    (key := self.text(str(name))): self.field(key, entry, depth + 1)
                    for name, entry in list(value.items())[:MAX_ITEMS]
                }
            if isinstance(value, list | tuple | set | frozenset):
                return [self.value(entry, depth + 1) for entry in list(value)[:MAX_ITEMS]]
        return self.text(said(value))

    def text(self, text: str) -> str:
        if len(text) > MAX_TEXT_CHARS:
            text = f"{text[:MAX_TEXT_CHARS]}… ({len(text)} characters)"
        low = text.lower()
        if "sk-" in low or "cd_" in low or "bearer" in low:
            text = SECRET_LIKE.sub(_prefix_only, text)
        if "://" in text:
            text = _URL_PASSWORD.sub("***", text)
        for secret in self._known:
            if secret in text:
                text = text.replace(secret, "***")
        return text


_MAX_INNOCENT = 1024
_innocent: set[str] = set()
"""Names that were looked at: those of our own fields, and some of others'."""


def _names_a_secret(name: str) -> bool:
    if name in _innocent:
        return False
    if _SECRET_NAME.fullmatch(name) is not None:
        return True
    if len(_innocent) < _MAX_INNOCENT:
        _innocent.add(name)
    return False


def _encoded(secret: str) -> bytes:
    """As it stands in a line of JSON; one that has no such form is in no line that has one."""
    return json.dumps(secret, ensure_ascii=False)[1:-1].encode("utf-8", "surrogatepass")


def _prefix_only(match: re.Match[str]) -> str:
    return f"{match[1] or match[2]}***"


def said(value: object) -> str:
    """``str`` of what has one (paths, enums, exceptions), with a word for what fails at it."""
    try:
        return repr(value) if isinstance(value, bytes | bytearray) else str(value)
    except Exception:
        return f"<unprintable {type(value).__name__}>"


def exception_fields(error: BaseException, depth: int = 0) -> dict[str, Any]:
    """``type``, ``message``, ``stack`` (outermost first); ``cause`` and ``exceptions`` where there are."""
    fields: dict[str, Any] = {
        "type": type(error).__qualname__,
        "message": said(error),
        "stack": _stack(error.__traceback__),
    }
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and depth < MAX_DEPTH:
        fields["cause"] = exception_fields(cause, depth + 1)
    if isinstance(error, BaseExceptionGroup) and depth < MAX_DEPTH:
        fields["exceptions"] = [exception_fields(inner, depth + 1) for inner in error.exceptions[:MAX_GROUP]]
    return fields


def _stack(traceback: TracebackType | None) -> list[str]:
    frames = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        frames.append(f"{code.co_filename}:{traceback.tb_lineno} in {code.co_name}")
        traceback = traceback.tb_next
    return frames[-MAX_ITEMS:]


def exception_of(info: object) -> BaseException | None:
    """What ``exc_info`` means: an exception, True for the one being handled, or ``sys.exc_info()``."""
    if isinstance(info, BaseException):
        return info
    if isinstance(info, tuple):
        return info[1]  # type: ignore[no-any-return]
    return sys.exception() if info else None
