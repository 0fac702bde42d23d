"""Server-Sent Events, decoded, pure (WHATWG HTML, 9.2.6), as far as the Messages API uses them."""

from __future__ import annotations

from typing import Final

# One event carries at most one content block or message; the API's own answers stay far below.
MAX_EVENT_BYTES: Final = 32 * 1024 * 1024


class EventTooLong(Exception):
    """An event over :data:`MAX_EVENT_BYTES`."""


class SSEDecoder:
    """Cuts chunks into events, wherever the chunks are split; each byte is looked at once.

    :meth:`feed` gives ``(event type, data)`` pairs; lines of ``data`` are joined with a newline, comments and unknown
    fields are dropped. Line ends are LF or CRLF.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._pieces: list[bytes] = []  # of a line whose end has not come
        self._type = b""
        self._data: list[bytes] = []
        self._held = 0  # bytes of the event so far

    def feed(self, chunk: bytes) -> list[tuple[str, bytes]]:
        """The events that ``chunk`` completes. Raises :class:`EventTooLong`."""
        *lines, rest = chunk.split(b"\n")
        events = []
        for line in lines:
            self._hold(len(line))
            if self._pieces:
                line = b"".join((*self._pieces, line))
                self._pieces = []
            if line.endswith(b"\r"):
                line = line[:-1]
            if line:
                self._field(line)
            elif (event := self._dispatched()) is not None:
                events.append(event)
        if rest:
            self._hold(len(rest))
            self._pieces.append(rest)
        return events

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > self._max:
            raise EventTooLong(f"an event of the upstream is longer than {self._max} bytes")

    def _field(self, line: bytes) -> None:
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
        elif line.startswith(b"event:"):
            self._type = line[6:].strip()

    def _dispatched(self) -> tuple[str, bytes] | None:
        """An empty line ends the event; without data it is none."""
        event = (self._type.decode(errors="replace") or "message", b"\n".join(self._data)) if self._data else None
        self._type, self._data, self._held = b"", [], 0
        return event
