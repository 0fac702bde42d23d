"""What counts as a token, going out and coming in; and the prompt cache. Pure but for the cache's memory."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Final

import orjson

from claude_daemon.offline.lru import Lru

CHARS_PER_TOKEN: Final = 4
"""The usual rule of thumb for English."""
ATTACHMENT_CHARS: Final = 6_000
"""An image or document counts as 1,500 tokens, whatever its bytes."""
MAX_CACHED_PREFIXES: Final = 4_096
"""Prefixes the prompt cache remembers, 16 bytes each: more than any test run has conversations."""

_PIECE: Final = re.compile(r"\s*\S{1,12}|\s+")


def pieces(text: str) -> tuple[str, ...]:
    """The text as tokens: word-ish pieces of at most 12 characters and the space before them."""
    return tuple(_PIECE.findall(text))


@dataclass(frozen=True, slots=True, kw_only=True)
class InputUsage:
    """Input tokens: neither cached nor about to be; written to the cache; read from it."""

    fresh: int
    cache_creation: int = 0
    cache_read: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.fresh + self.cache_creation + self.cache_read


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One block of the prompt, in the order in which it is cached."""

    place: str
    block: Any
    chars: int
    breakpoint: bool


class PromptCache:
    """Which prefixes were seen: what ends at a `cache_control` block is written once and read afterwards."""

    def __init__(self, limit: int = MAX_CACHED_PREFIXES) -> None:
        self._known: Lru[bytes, bool] = Lru(limit)

    def measure(self, body: Mapping[str, Any]) -> InputUsage:
        """The input tokens of a request, remembering the prefixes it marks."""
        parts = list(_parts(body))
        total = _tokens(sum(part.chars for part in parts))
        last = max((index for index, part in enumerate(parts) if part.breakpoint), default=None)
        if last is None:
            return InputUsage(fresh=total)
        digest = blake2b(str(body.get("model")).encode(), digest_size=16)
        chars = read = written = 0
        marked: list[bytes] = []
        for part in parts[: last + 1]:
            digest.update(_material(part))
            chars += part.chars
            prefix = digest.digest()
            if self._known.get(prefix):
                read = _tokens(chars)
            if part.breakpoint:
                marked.append(prefix)
                written = _tokens(chars)
        for prefix in marked:
            self._known.put(prefix, True)
        return InputUsage(fresh=total - written, cache_creation=written - read, cache_read=read)


def count(body: Mapping[str, Any]) -> int:
    """The input tokens of a request, cached or not."""
    return _tokens(sum(part.chars for part in _parts(body)))


def _tokens(chars: int) -> int:
    return -(-chars // CHARS_PER_TOKEN)


def _parts(body: Mapping[str, Any]) -> Iterator[_Part]:
    """Tools, system, messages: the order of the real cache. A top-level `cache_control` marks the last."""
    held: _Part | None = None
    for place, content in _contents(body):
        for block in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if held is not None:
                yield held
            marked = isinstance(block, dict) and block.get("cache_control") is not None
            held = _Part(place=place, block=block, chars=_chars(block), breakpoint=marked)
    if held is not None:
        yield replace(held, breakpoint=True) if body.get("cache_control") else held


def _contents(body: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "tools", body.get("tools") or ()
    yield "system", body.get("system") or ()
    for message in body["messages"]:
        yield message["role"], message["content"]


def _chars(block: Any) -> int:
    """The characters of a block that a model would read; the base64 of an attachment is none."""
    if isinstance(block, str):
        return len(block)
    if isinstance(block, list):
        return sum(_chars(item) for item in block)
    if not isinstance(block, dict):
        return 0
    kind = block.get("type")
    if kind == "text":
        return len(str(block.get("text", "")))
    if kind in ("image", "document"):
        return ATTACHMENT_CHARS
    if kind == "tool_result":
        return _chars(block.get("content"))
    return len(_encoded(block))


def _material(part: _Part) -> bytes:
    return part.place.encode() + b"\0" + _encoded(part.block) + b"\0"


def _encoded(block: Any) -> bytes:
    if isinstance(block, dict) and "cache_control" in block:
        block = {key: value for key, value in block.items() if key != "cache_control"}
    return orjson.dumps(block)
