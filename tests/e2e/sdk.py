"""The official SDKs on the daemon, unmodified, and what the upstream saw of their requests."""

from __future__ import annotations

import base64
import itertools
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import anthropic
import openai
import pytest

from claude_daemon.offline import OfflineModel, Recorded
from claude_daemon.offline.prompt import read
from tests.support import DaemonProcess

both_lanes = pytest.mark.parametrize("lane", ["direct", "text"])

_numbers = itertools.count(1)


def openai_sdk(daemon: DaemonProcess, lane: str | None, **options: Any) -> openai.AsyncOpenAI:
    """To be entered with ``async with``; ``lane`` None says nothing of lanes."""
    return openai.AsyncOpenAI(**{"base_url": f"{daemon.url}/v1", **_options(daemon, lane), **options})


def anthropic_sdk(daemon: DaemonProcess, lane: str | None, **options: Any) -> anthropic.AsyncAnthropic:
    """The same for Anthropic's."""
    return anthropic.AsyncAnthropic(**{"base_url": daemon.url, **_options(daemon, lane), **options})


def _options(daemon: DaemonProcess, lane: str | None) -> dict[str, Any]:
    headers = {"Claude-Daemon-Lane": lane} if lane is not None else {}
    return {"api_key": daemon.key, "max_retries": 0, "default_headers": headers}


def unique(prompt: str) -> str:
    """The prompt with a word that no other request of this run has, by which :func:`asked` finds it upstream."""
    return f"{prompt} (no. {next(_numbers)}.)"


def user(prompt: str | list[dict[str, Any]]) -> list[Any]:
    """A conversation of one message."""
    return [{"role": "user", "content": prompt}]


def asked(model: OfflineModel, prompt: str) -> Recorded:
    """The one request of the upstream whose user said this last."""
    found = [r for r in model.requests if r.path.startswith("/v1/messages") and prompt in _last_text(r.body)]
    assert len(found) == 1, f"{len(found)} requests with {prompt!r}"
    return found[0]


def said(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Who said what in a request, in order, without Claude Code's own notes."""
    return [(turn.role, turn.text) for turn in read(body).turns if turn.text]


def blocks(body: Mapping[str, Any], kind: str) -> list[Any]:
    """All content blocks of one type in a request."""
    return [
        block
        for message in body["messages"]
        if isinstance(message["content"], list)
        for block in message["content"]
        if block["type"] == kind
    ]


def _last_text(body: Any) -> str:
    return read(body).text if isinstance(body, dict) and body.get("messages") and "max_tokens" in body else ""


def png(size: int = 16) -> bytes:
    """A valid picture, small enough that nobody wants to shrink it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes((x * 16 + y) % 256 for x in range(3 * size)) for y in range(size))
    head = struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def pdf() -> bytes:
    """A document of one empty page."""
    return (
        b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n"
        b"2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
        b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 9 9]>>endobj\n"
        b"trailer<</Root 1 0 R>>\n%%EOF\n"
    )


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


WEATHER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "minLength": 2}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
REMOTE_REF: dict[str, Any] = {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}}
BACKTRACKING: dict[str, Any] = {
    "type": "object",
    "properties": {"name": {"type": "string", "pattern": "^(a+)+$", "minLength": 40, "maxLength": 60}},
    "required": ["name"],
    "additionalProperties": False,
}
