"""What the model was asked, kept for tests that look at it."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

MAX_RECORDED: Final = 4_096
"""Requests kept, the newest; a test reads hundreds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One request as it arrived, refused ones included. `path` has the query, `headers` (lower case) the key.

    `body` is the parsed JSON; None where there is none, or where the request was refused unread.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: Any = field(repr=False)


class RequestLog:
    """The newest requests, in the order in which they arrived; empty unless `enabled`."""

    def __init__(self, *, enabled: bool, limit: int = MAX_RECORDED) -> None:
        self.enabled = enabled
        self._entries: deque[Recorded] = deque(maxlen=limit)

    @property
    def entries(self) -> list[Recorded]:
        """A copy, oldest first."""
        return list(self._entries)

    def add(self, recorded: Recorded) -> None:
        """Keep a request, if recording."""
        if self.enabled:
            self._entries.append(recorded)

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
