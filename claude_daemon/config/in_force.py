"""What can be written down already and is not in force yet.

The configuration has its final form from the first version on, its parts are built one after another. Nobody must
believe in a limit that nobody keeps: settings that protect are refused until they do, the others are told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from claude_daemon.config.loading import Loaded
from claude_daemon.layers.fault import Fault
from claude_daemon.layers.tree import Layer

# prefix of the dotted key -> what it waits for
PROTECTING: Final[Mapping[str, str]] = MappingProxyType({})
"""Refused: without them somebody would be less protected than the file says."""

OTHERS: Final[Mapping[str, str]] = MappingProxyType({})
"""Told in the log: they do nothing yet."""


def refused(loaded: Loaded) -> list[Fault]:
    """A fault for each protecting setting that somebody has set."""
    return [
        Fault(where=str(loaded.origins[key]), key=key, message=f"is not in force yet: this version has no {what}")
        for key, what in _set(loaded, PROTECTING)
    ]


def idle(loaded: Loaded) -> list[str]:
    """The other keys that somebody has set, and that do nothing yet."""
    return [key for key, _ in _set(loaded, OTHERS)]


def _set(loaded: Loaded, prefixes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for key, origin in loaded.origins.items():
        if origin.layer in (Layer.DEFAULT, Layer.PROFILE):
            continue
        for prefix, what in prefixes.items():
            if key == prefix or key.startswith(f"{prefix}."):
                yield key, what
