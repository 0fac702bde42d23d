"""Writes scripts, remembering what it has seen: how often each prompt, and which prefixes are cached."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from claude_daemon.offline import markers, prompt, script
from claude_daemon.offline.errors import ApiError
from claude_daemon.offline.lru import Lru
from claude_daemon.offline.settings import FaultKind, Settings
from claude_daemon.offline.tokens import PromptCache

MAX_PROMPTS: Final = 16_384
"""Prompts counted for `[[times=N]]`, 16 bytes each: far more than come between a fault and its retry."""


class Author:
    """Turns request bodies into scripts. `settings` are the defaults for every prompt and may be replaced."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._sights: Lru[bytes, int] = Lru(MAX_PROMPTS)
        self._cache = PromptCache()

    def write(self, body: Mapping[str, Any]) -> script.Script:
        """The script for a checked body. Raises ApiError: 400 for bad markers, or what a fault asks for."""
        asked = prompt.read(body)
        try:
            settings, said = markers.apply(self.settings, asked.text)
        except markers.MarkerError as error:
            raise ApiError(400, f"messages: {error}") from None
        sight = self._see(asked)
        written = script.write(asked, settings, said, input_usage=self._cache.measure(body), sight=sight)
        if written.fault is not None and written.fault.kind is FaultKind.ERROR:
            raise ApiError(written.fault.status, retry_after_seconds=written.retry_after_s)
        return written

    def _see(self, asked: prompt.Prompt) -> int:
        """How often this text was seen in this round, this time included."""
        text = asked.text.encode("utf-8", "surrogatepass")
        digest = blake2b(b"%d\0%b" % (asked.round, text), digest_size=16).digest()
        sight = (self._sights.get(digest) or 0) + 1
        self._sights.put(digest, sight)
        return sight
