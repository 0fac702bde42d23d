"""The CLI's stream-json, pure: bytes to messages, messages to lines.

Shapes are those that the published Python SDK reads and writes (``claude_agent_sdk``: ``subprocess_cli``, ``query``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

# One line carries at most one whole message; an answer of 10 MB with its JSON escapes stays well below this.
MAX_LINE_BYTES = 32 * 1024 * 1024


class LineTooLong(Exception):
    """The CLI sent a line over :data:`MAX_LINE_BYTES`; its stream can no longer be trusted."""


class LineFramer:
    """Cuts chunks of bytes into lines. Each byte is looked at once, wherever the chunks are split."""

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max = max_line_bytes
        self._pieces: list[bytes] = []
        self._held = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that ``chunk`` completes, without their line ends. Raises :class:`LineTooLong`."""
        *lines, rest = chunk.split(b"\n")
        for number, line in enumerate(lines):
            self._check(self._held + len(line))
            if self._pieces:
                lines[number] = b"".join((*self._pieces, line))
                self._pieces, self._held = [], 0
        self._check(self._held + len(rest))
        if rest:
            self._pieces.append(rest)
            self._held += len(rest)
        return lines

    def _check(self, size: int) -> None:
        if size > self._max:
            raise LineTooLong(f"a line of the CLI's stdout is longer than {self._max} bytes")


def decode(line: bytes) -> dict[str, Any] | None:
    """One line as a message; None for what is no JSON object (the CLI's builds sometimes print notes to stdout)."""
    if not line.startswith(b"{"):
        return None
    try:
        message = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return message if isinstance(message, dict) else None


def user_line(
    content: str | Sequence[Mapping[str, Any]], *, query: bool = True, composed: bool = True, uuid: str | None = None
) -> bytes:
    """A user message. ``query=False`` only adds it to the conversation. ``uuid`` is its id in the transcript.

    ``composed`` marks text as written by a client, so that ``/clear`` or ``@file`` in it mean nothing.
    """
    line: dict[str, Any] = {"type": "user", "message": {"role": "user", "content": content}}
    if composed:
        line["client_composed"] = True
    if not query:
        line["shouldQuery"] = False
    if uuid is not None:
        line["uuid"] = uuid
    return orjson.dumps(line) + b"\n"


def assistant_line(content: Sequence[Mapping[str, Any]], model: str | None = None) -> bytes:
    """An earlier answer, added to the conversation.

    The CLI takes out its thinking unless ``model`` is the running one.
    """
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if model is not None:
        message["model"] = model
    return orjson.dumps({"type": "assistant", "message": message}) + b"\n"


def control_line(request_id: str, subtype: str, **fields: Any) -> bytes:
    """A control request; its answer is a ``control_response`` with the same ``request_id``."""
    request = {"subtype": subtype, **fields}
    return orjson.dumps({"type": "control_request", "request_id": request_id, "request": request}) + b"\n"


def control_reply(request_id: str, response: Mapping[str, Any]) -> bytes:
    """Our answer to a control request of the CLI's."""
    body = {"subtype": "success", "request_id": request_id, "response": response}
    return orjson.dumps({"type": "control_response", "response": body}) + b"\n"


def control_refusal(request_id: str, error: str) -> bytes:
    """Our answer to a control request of the CLI's that we do not know."""
    body = {"subtype": "error", "request_id": request_id, "error": error}
    return orjson.dumps({"type": "control_response", "response": body}) + b"\n"


# The one command we send ourselves: it empties the conversation and keeps the process.
CLEAR_LINE = user_line("/clear", composed=False)


def is_result(message: Mapping[str, Any]) -> bool:
    return message.get("type") == "result"


def control_answer(message: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """``(request_id, response)`` of a control response, None for other messages.

    ``response["subtype"]`` is ``success`` (with ``response``) or ``error`` (with ``error``, a sentence).
    """
    if message.get("type") != "control_response":
        return None
    response = message.get("response")
    if not isinstance(response, dict):
        return None
    return str(response.get("request_id", "")), response
