"""W3C trace context: what joins one request's lines here with its caller's and its upstream's. Pure.

A request is one span of its trace: the caller's, or one that begins here; each of its model calls is a span below it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Self

HEADER: Final = "traceparent"
_HEADER: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?P<trace>(?!0{32})[0-9a-f]{32})-(?P<span>(?!0{16})[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
)
_NOT_RECORDED: Final = "00"
_RECORDED: Final = "01"

RandBytes = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Trace:
    """One span. ``parent_id``: the one it is below of, None where the trace begins with it. Ids are in hex."""

    trace_id: str
    span_id: str
    parent_id: str | None = None
    flags: str = _NOT_RECORDED

    @classmethod
    def parse(cls, header: str | None) -> Self | None:
        """The span that a ``traceparent`` names; None for what is none."""
        found = _HEADER.fullmatch(header) if header is not None else None
        return None if found is None else cls(found["trace"], found["span"], flags=found["flags"])

    @classmethod
    def begin(cls, header: str | None, randbytes: RandBytes, *, recorded: bool = False) -> Trace:
        """A span of our own: below the caller's, or the first of a trace; whether that is ``recorded``, it says to all
        who come after."""
        above = cls.parse(header)
        if above is not None:
            return above.below(randbytes)
        return cls(_hex(16, randbytes), _hex(8, randbytes), flags=_RECORDED if recorded else _NOT_RECORDED)

    def below(self, randbytes: RandBytes) -> Trace:
        """A span below this one."""
        return Trace(self.trace_id, _hex(8, randbytes), self.span_id, self.flags)

    @property
    def recorded(self) -> bool:
        """Whether somebody collects its spans, as far as whoever began it knew."""
        return bool(int(self.flags, 16) & 1)

    @property
    def header(self) -> str:
        """As ``traceparent`` has it."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"

    @property
    def fields(self) -> dict[str, str]:
        """As log lines have it."""
        told = {"trace_id": self.trace_id, "span_id": self.span_id}
        return told if self.parent_id is None else {**told, "parent_span_id": self.parent_id}


def _hex(size: int, randbytes: RandBytes) -> str:
    """Never all zero, which means none."""
    while not any(made := randbytes(size)):
        pass
    return made.hex()


TRACE: Final[ContextVar[Trace | None]] = ContextVar("TRACE", default=None)
"""The span of the request whose attempt is under way."""
