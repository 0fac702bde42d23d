"""What is wrong with the configuration: all of it at once, each with its source."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong with the configuration.

    ``where`` is a file (with line and column where its syntax is broken), a variable or a flag; ``key`` is
    the dotted key, "" where there is none.
    """

    where: str
    key: str = ""
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.message) if part)


class ConfigError(Exception):
    """The configuration is bad; ``faults`` holds everything that is wrong with it, at least one."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = tuple(faults)


CONFLICT = "conflict"
"""The type of the pydantic error that carries ``ctx["conflicts"]``, a list of :class:`Conflict`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflict:
    """Values that are fine alone and not together: blamed on ``key``, void where one of ``given`` is bad."""

    key: str
    message: str
    given: tuple[str, ...] = ()


def nearest(name: str, known: Sequence[str]) -> str:
    """``; did you mean …?``, or nothing where nothing is near."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
