"""The daemon's own stream of what happens, to its proper end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from claudectl.client import Client, StreamCut, decoded
from claudectl.errors import NotRunning
from claudectl.render import Document, mapping

SNAPSHOT = "snapshot"
GONE = "the daemon went away"


class Line(NamedTuple):
    """A line as it came, and what it says."""

    raw: bytes
    document: Document


def watch(client: Client, path: str) -> Iterator[Line]:
    """Every line, until the daemon stops. Raises NotRunning where it went away without saying that it would."""
    stopping = False
    try:
        with client.stream(path) as lines:
            for raw in lines:
                line = Line(raw, decoded(raw))
                stopping = stopping or _stops(line.document)
                yield line
    except StreamCut:
        raise NotRunning(GONE) from None
    if not stopping:
        raise NotRunning(GONE)


def _stops(line: Document) -> bool:
    data = mapping(line.get("data"))
    if line.get("type") == SNAPSHOT:
        return mapping(data.get("status")).get("state") == "stopping"
    return line.get("type") == "daemon.state" and data.get("new") == "stopping"
