"""The words of a reply. Pure: the same prompt and settings give the same text."""

import re
from collections.abc import Iterable
from typing import Final

from claude_daemon.offline import markers
from claude_daemon.offline.prompt import (
    STRUCTURED_OUTPUT,
    Block,
    Prompt,
    Turn,
    result_text,
    tool_names,
)
from claude_daemon.offline.settings import Settings
from claude_daemon.offline.tokens import pieces

MAX_QUOTED_WORDS: Final = 20
MAX_HISTORY_WORDS: Final = 6
MAX_QUOTED_CHARS: Final = 400
"""A prompt of one endless word is cut too."""
REFUSAL: Final = "I can't help with that."
_WORD: Final = re.compile(r"\S+")
_FILLER: Final = (
    "and",
    "so",
    "on,",
    "word",
    "after",
    "word,",
    "for",
    "as",
    "long",
    "as",
    "it",
    "was",
    "asked",
)
_BYTES: Final = "The offline model fills this reply with text. "


def text_reply(prompt: Prompt, settings: Settings, said: str) -> str:
    """What the model says in words; `said` is the user's text without markers."""
    if settings.refusal:
        return REFUSAL
    if settings.text is not None:
        return settings.text
    if settings.history or settings.system:
        views = [_history(prompt)] if settings.history else []
        views += [prompt.system or "There is no system prompt."] if settings.system else []
        return "\n".join(views)
    text = _about_results(prompt) if prompt.results else _about_prompt(prompt, said)
    return text if settings.tokens is None else _exactly(text, settings.tokens)


def bytes_reply(size: int) -> str:
    """ASCII text of exactly `size` bytes."""
    return (_BYTES * (size // len(_BYTES) + 1))[:size]


def thinking_text(said: str) -> str:
    """What the model thinks before it answers."""
    return f"The user wrote {_quote(said)} and I should answer briefly." if said else "I should answer briefly."


def _about_prompt(prompt: Prompt, said: str) -> str:
    text = f"Hello from the offline model. You said: {_quote(said)}." if said else "Hello from the offline model."
    if not prompt.attachments:
        return text
    return f"{text} With it came {' and '.join(_attachment(block) for block in prompt.attachments)}."


def _about_results(prompt: Prompt) -> str:
    names = tool_names(prompt.turns)
    return " ".join(_about_result(block, names.get(block["tool_use_id"], "tool")) for block in prompt.results)


def _about_result(block: Block, name: str) -> str:
    if name == STRUCTURED_OUTPUT and not block.get("is_error"):
        return "The structured answer is given."
    verb = "failed" if block.get("is_error") else "answered"
    return f"The tool {name} {verb}: {_quote(result_text(block)) or 'nothing'}."


def _history(prompt: Prompt) -> str:
    return "\n".join(f"{turn.role}: {_first_words(turn)}" for turn in prompt.turns)


def _first_words(turn: Turn) -> str:
    words = [_cut(markers.strip(turn.text), MAX_HISTORY_WORDS), *map(_label, turn.blocks)]
    return " ".join(word for word in words if word)


def _label(block: Block) -> str:
    if block["type"] == "text":
        return ""
    if block["type"] == "tool_use":
        return f"[tool_use {block['name']}]"
    if block["type"] == "tool_result":
        return f"[tool_result {_cut(result_text(block), MAX_HISTORY_WORDS)}]"
    return f"[{block['type']}]"


def _attachment(block: Block) -> str:
    """An attachment in words: its media type and, where they are in the request, its bytes."""
    source = block["source"]
    kind = source.get("media_type") or f"{source.get('type', 'unknown')} {block['type']}"
    data = source.get("data")
    if not isinstance(data, str):
        return f"one {kind}"
    size = _base64_bytes(data) if source.get("type") == "base64" else len(data.encode())
    return f"one {kind} of {size} bytes"


def _base64_bytes(data: str) -> int:
    digits = len(data.rstrip("="))
    return digits * 3 // 4


def _quote(text: str) -> str:
    cut = _cut(text, MAX_QUOTED_WORDS)
    return f"“{cut}”" if cut else ""


def _cut(text: str, most: int) -> str:
    words = _take(_WORD.finditer(text), most + 1)
    cut = " ".join(words[:most])
    return cut[:MAX_QUOTED_CHARS] + "…" if len(words) > most or len(cut) > MAX_QUOTED_CHARS else cut


def _take(matches: Iterable[re.Match[str]], most: int) -> list[str]:
    return [match[0] for _, match in zip(range(most), matches, strict=False)]


def _exactly(text: str, tokens: int) -> str:
    """The text, cut or continued to that many tokens."""
    start = pieces(text)[:tokens]
    rest = (" " + _FILLER[number % len(_FILLER)] for number in range(tokens - len(start)))
    return "".join([*start, *rest])
