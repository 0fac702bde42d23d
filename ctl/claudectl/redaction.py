"""Takes secrets out of text that somebody else will read. Pure, but for finding out which there are.

The daemon masks what it tells already. This is the second net: what looks like a key, what stands under the name of
one, and every secret that this user's environment, home and configuration hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

MASK = "***"
# Shorter ones are words that stand in innocent text.
MIN_SECRET_CHARS = 8
_MAX_SECRET_FILE_BYTES = 64 * 1024

# As claude_daemon.secret and telemetry.masking have them; a test compares.
SECRET_LIKE = re.compile(r"(?<![A-Za-z0-9])(sk-|cd_)[A-Za-z0-9_-]{8,}|\b(Bearer\s+)[^\s\"',;]+", re.IGNORECASE)
SECRET_NAME = re.compile(r"(.*[_-])?(authorization|api[_-]?key|token|secret|password|passwd|cookie)|key", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"""(?P<name>["']?\b[\w-]*(?:authorization|api[_-]?key|secret|password|passwd|cookie|auth[_-]?token)["']?\s*[=:]\s*)"""
    r"""(?P<value>"(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;}\]"']+)""",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"(?<=://)[^/\s@]*:[^/\s@]*(?=@)")


class Redactor:
    """``secrets`` are known ones, in whatever form they are written: plain, in JSON, in a URL."""

    def __init__(self, secrets: Iterable[str]) -> None:
        known = {secret for secret in secrets if len(secret) >= MIN_SECRET_CHARS}
        forms = {form for secret in known for form in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1])}
        self._known = sorted(forms, key=len, reverse=True)  # one may be within another

    def text(self, text: str) -> str:
        """
        >>> Redactor(["a-known-one"]).text('a-known-one cd_0123456789 "password": "x y" http://me:pw@host/')
        '*** cd_*** "password": *** http://***@host/'
        """
        for secret in self._known:
            text = text.replace(secret, MASK)
        text = SECRET_LIKE.sub(lambda found: f"{found[1] or found[2]}{MASK}", text)
        text = _ASSIGNED.sub(lambda found: found["name"] + MASK, text)
        return _URL_PASSWORD.sub(MASK, text)

    def document(self, document: object) -> Any:
        """JSON without them; its shape stays."""
        if isinstance(document, Mapping):
            return {self.text(str(name)): self._field(str(name), value) for name, value in document.items()}
        if isinstance(document, list | tuple):
            return [self.document(entry) for entry in document]
        return self.text(document) if isinstance(document, str) else document

    def _field(self, name: str, value: object) -> Any:
        return MASK if isinstance(value, str) and SECRET_NAME.fullmatch(name) else self.document(value)


def known_secrets(environ: Mapping[str, str], home: Path, config: Path) -> Iterator[str]:
    """Those of this environment, of the home's key files and of the configuration, as far as this user may read."""
    for name, value in environ.items():
        if SECRET_NAME.fullmatch(name):
            yield value
        elif name.endswith("_FILE") and SECRET_NAME.fullmatch(name.removesuffix("_FILE")):
            yield from _first_line(Path(value))
        elif "://" in value:
            yield from _passwords(value)
    for name in ("local.key", "audit.key"):
        yield from _first_line(home / name)
    yield from _configured(config)


def _first_line(file: Path) -> Iterator[str]:
    with suppress(OSError, ValueError), file.open(encoding="utf-8") as opened:
        if text := opened.read(_MAX_SECRET_FILE_BYTES).strip():
            yield text


def _configured(file: Path) -> Iterator[str]:
    import tomllib

    with suppress(OSError, ValueError), file.open("rb") as opened:
        yield from _values(tomllib.load(opened), secret=False)


def _values(node: object, *, secret: bool) -> Iterator[str]:
    """Strings under the name of a secret, all of an environment and of headers, and the passwords in URLs."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _values(value, secret=secret or name in ("env", "headers") or bool(SECRET_NAME.fullmatch(name)))
    elif isinstance(node, list):
        for entry in node:
            yield from _values(entry, secret=secret)
    elif isinstance(node, str):
        if secret:
            yield node
            yield from node.split()  # "Bearer …": the second word is the secret
        yield from _passwords(node)


def _passwords(url: str) -> Iterator[str]:
    for found in _URL_PASSWORD.finditer(url):
        yield found[0]
        yield found[0].partition(":")[2]
