"""Text from elsewhere made safe for a terminal. Pure.

Model text and names may hold escape sequences: they could move the cursor, set the title, write the clipboard
or fake a prompt. What is taken out: escape sequences as a whole, C0 and C1 controls, DEL. What stays:
everything else, newline and tab.
"""

from __future__ import annotations

import re
from functools import cache

# Real sequences are far shorter. Past these bounds only the introducer is taken out, so that a stray one
# cannot swallow an answer.
MAX_PARAMETERS = 64
MAX_INTERMEDIATES = 8
MAX_STRING = 1024

_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"

_CSI = rf"(?:\x1b\[|\x9b)[0-?]{{0,{MAX_PARAMETERS}}}[ -/]{{0,{MAX_INTERMEDIATES}}}"
# OSC, DCS, SOS, PM, APC: a body without controls, ended by BEL or ST
_STRING = rf"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x00-\x1f\x7f-\x9f]{{0,{MAX_STRING}}}"
_SHORT = rf"\x1b[ -/]{{0,{MAX_INTERMEDIATES}}}"

_SEQUENCE = rf"{_CSI}[@-~]|{_STRING}(?:\x07|\x1b\\|\x9c)?|{_SHORT}[0-~]|{_CONTROL}"
_UNFINISHED = rf"(?:{_CSI}|{_STRING}\x1b?|{_SHORT})\Z"


@cache
def _pattern(source: str) -> re.Pattern[str]:
    """Compiled when first needed: it takes milliseconds, and most text has nothing to take out."""
    return re.compile(source)


class Cleaner:
    """Cleans text that comes in pieces.

    The result does not depend on where the pieces are split: a sequence that is not complete is held back
    until it is. Call :meth:`flush` after the last piece.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        """What of ``piece``, and of what was held back, may be shown now."""
        if not self._held and _is_clean(piece):
            return piece
        text = self._held + piece
        unfinished = _pattern(_UNFINISHED).search(text)
        end = unfinished.start() if unfinished else len(text)
        self._held = text[end:]
        return _pattern(_SEQUENCE).sub("", text[:end])

    def flush(self) -> str:
        """What was held back, as it reads now that nothing follows."""
        held, self._held = self._held, ""
        return _pattern(_SEQUENCE).sub("", held)


def clean(text: str) -> str:
    """``text`` without escape sequences and control characters, newline and tab excepted.

    >>> clean("a\\x1b[31mred\\x1b[0m\\r\\n\\tb\\x07")
    'ared\\n\\tb'
    """
    return text if _is_clean(text) else _pattern(_SEQUENCE).sub("", text)


def _is_clean(text: str) -> bool:
    return text.isprintable() or not _pattern(_CONTROL).search(text)


def clean_line(text: str) -> str:
    """The same on one line: for names and reasons, which could otherwise fake a line of ours.

    >>> clean_line("disk full\\nall is well")
    'disk full all is well'
    """
    return text if text.isprintable() else " ".join(clean(text).split())
