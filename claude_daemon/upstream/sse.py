"""Server-Sent Events, decoded, pure (WHATWG HTML, 9.2.6), as far as the Messages API uses them."""

from __future__ import annotations

from typing import Final

# One event carries at most one content block or message; the API's own answers stay far below.
MAX_EVENT_BYTES: Final = 32 * 1024 * 1024


class EventTooLong(Exception):
    """An event over :data:`MAX_EVENT_BYTES`."""


class SSEDecoder:
    """Cuts chunks into events, wherever the chunks are split.

    :meth:`feed` gives ``(event type, data)`` pairs; lines of ``data`` are joined with a newline, comments and unknown
    fields are dropped. Line ends are LF or CRLF.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._rest = b""
        self._type = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[tuple[str, bytes]]:
        lines = (self._rest + chunk if self._rest else chunk).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > self._max:
            raise EventTooLong(f"an event of the upstream is longer than {self._max} bytes")
        events = []
        for line in lines:
            if line.endswith(b"\r"):
                line = line[:-1]
            if not line:
                if self._data:
                    events.append((self._type.decode(errors="replace") or "message", b"\n".join(self._data)))
                self._type, self._data = b"", []
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif line.startswith(b"event:"):
                self._type = line[6:].strip()
        return events

    @property
    def pending(self) -> bool:
        """Whether an event has begun and is not complete."""
        return bool(self._rest or self._data or self._type)
