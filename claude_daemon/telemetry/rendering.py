"""One event, one line: as JSON for machines, aligned for people."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import orjson
from structlog.dev import ConsoleRenderer

Event = MutableMapping[str, Any]

# What breaks lines or moves the cursor or the reading direction, in a terminal or a viewer.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def escaped(text: str) -> str:
    """Text without anything that could end a line, move a cursor or turn the reading direction."""
    return _UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def render_json(line: Event) -> bytes:
    """One JSON object in one line: whatever could break or disturb the line is an escape in it."""
    try:
        rendered = orjson.dumps(line)
    except TypeError:  # lone surrogates
        rendered = json.dumps(line).encode()
    return escaped_json(rendered)


def escaped_json(rendered: bytes) -> bytes:
    """A line of JSON with escapes for whatever could break or disturb it."""
    if rendered.isascii() and b"\x7f" not in rendered:
        return rendered
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", rendered.decode()).encode()


def console_renderer(*, colors: bool) -> Callable[[Event], bytes]:
    """For people: aligned, values quoted, exceptions indented below their line behind a bar."""
    render = ConsoleRenderer(colors=colors, timestamp_key="ts", repr_native_str=True, sort_keys=False, pad_event_to=28)

    def rendered(line: Event) -> bytes:
        line = {escaped(name): value for name, value in line.items()}
        line["event"], line["logger"] = escaped(line["event"]), escaped(line["logger"])
        exception = line.pop("exception", None)
        text = render(None, line["level"], line)
        if isinstance(exception, dict):
            text = "\n    | ".join((text, *map(escaped, _told(exception))))
        return text.encode()

    return rendered


def _told(fields: Mapping[str, Any], why: str = "") -> Iterator[str]:
    """The lines of an exception, its causes after it."""
    yield f"{why}{fields['type']}: {fields['message']}"
    stack = fields["stack"]
    yield from (f"  {frame}" for frame in (stack if isinstance(stack, list) else [stack]))  # deep down it is a text
    if cause := fields.get("cause"):
        yield from _told(cause, "because of ")
    for inner in fields.get("exceptions", ()):
        yield from _told(inner, "including ")
