"""What to answer to one prompt: blocks, why it stops, what goes wrong, how fast. Pure."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Final

import orjson

from claude_daemon.offline.errors import ApiError
from claude_daemon.offline.prompt import STRUCTURED_OUTPUT, Prompt
from claude_daemon.offline.reply import bytes_reply, text_reply, thinking_text
from claude_daemon.offline.scalars import SchemaError
from claude_daemon.offline.schema import instance
from claude_daemon.offline.settings import Fault, Settings, UsageKind
from claude_daemon.offline.tokens import InputUsage, pieces

BYTES_PER_DELTA: Final = 64 * 1024
"""Deltas of a reply asked for in bytes: larger than any line limit left at its default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text block, one piece a delta."""

    pieces: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """A thinking block, one piece a delta; then its signature."""

    pieces: tuple[str, ...]
    signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """A tool call; the pieces of its input join to JSON, unless max_tokens cut them."""

    name: str
    pieces: tuple[str, ...]
    complete: bool = True


Block = Text | Thinking | ToolUse


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One answer. `fault` is what goes wrong this time, None when all goes well."""

    model: str
    blocks: tuple[Block, ...]
    stop_reason: str
    stop_sequence: str | None
    input_usage: InputUsage
    usage_kind: UsageKind
    fault: Fault | None
    retry_after_s: int | None
    first_s: float
    pace_s: float

    @property
    def output_tokens(self) -> int:
        """One a piece, and never none: the API counts the end of an empty reply too."""
        return max(1, sum(len(block.pieces) for block in self.blocks))


def write(prompt: Prompt, settings: Settings, said: str, *, input_usage: InputUsage, sight: int) -> Script:
    """The script for a prompt seen for the `sight`-th time (from 1); `said` is its text without markers.

    Raises ApiError 400 for an output schema that has no instance.
    """
    if settings.round not in (None, prompt.round):
        settings = replace(settings, fault=None, invalid=False)
    blocks = tuple(_blocks(prompt, settings, said, drifted=settings.drift and sight > 1))
    stop_reason = "tool_use" if any(isinstance(block, ToolUse) for block in blocks) else "end_turn"
    stop_reason = "refusal" if settings.refusal else stop_reason
    blocks, stop_sequence = _stop(blocks, prompt.stop_sequences)
    if stop_sequence is not None:
        stop_reason = "stop_sequence"
    if sum(len(block.pieces) for block in blocks) > prompt.max_tokens:
        blocks, stop_reason, stop_sequence = _limit(blocks, prompt.max_tokens), "max_tokens", None
    return Script(
        model=prompt.model,
        blocks=blocks,
        stop_reason=stop_reason,
        stop_sequence=stop_sequence,
        input_usage=input_usage,
        usage_kind=settings.usage,
        fault=_fault(settings, sight),
        retry_after_s=settings.retry_after_s,
        first_s=settings.first_s,
        pace_s=settings.pace_s,
    )


def _fault(settings: Settings, sight: int) -> Fault | None:
    over = settings.times is not None and sight > settings.times
    return None if over else settings.fault


def _blocks(prompt: Prompt, settings: Settings, said: str, *, drifted: bool) -> Iterator[Block]:
    if prompt.thinking == "enabled" or (prompt.thinking == "adaptive" and settings.thinking):
        yield _thinking(said)
    calls = [] if settings.refusal else _calls(prompt, settings)
    if calls:
        yield from calls
        return
    if settings.reply_bytes is not None and not settings.refusal:
        text = bytes_reply(settings.reply_bytes)
        starts = range(0, len(text), BYTES_PER_DELTA)
        yield Text(pieces=tuple(_drift(text[start : start + BYTES_PER_DELTA], drifted) for start in starts))
        return
    text = _json_reply(prompt, settings) or text_reply(prompt, settings, said)
    if text:
        yield Text(pieces=pieces(_drift(text, drifted)))


def _drift(text: str, drifted: bool) -> str:
    return text.upper() if drifted else text


def _thinking(said: str) -> Thinking:
    text = thinking_text(said)
    signature = base64.b64encode(blake2b(text.encode(), digest_size=48).digest()).decode()
    return Thinking(pieces=pieces(text), signature=signature)


def _calls(prompt: Prompt, settings: Settings) -> list[ToolUse]:
    """The tools to call now: those asked for by markers, by tool_choice, or by Claude Code for its schema."""
    if prompt.tool_choice["type"] == "none":
        return []
    first = prompt.round - 1 if settings.one_by_one else 0
    names = list(settings.tools) if prompt.round <= settings.repeat else []
    if settings.one_by_one:
        names = list(settings.tools[first : first + 1])
    if not names and not prompt.results:
        names = _forced(prompt)
    if not names and settings.structured and STRUCTURED_OUTPUT in prompt.tools and not prompt.structured_done:
        names = [STRUCTURED_OUTPUT]
    if prompt.tool_choice.get("disable_parallel_tool_use"):
        names = names[:1]
    return [_call(prompt, settings, name, index) for index, name in enumerate(names, first)]


def _forced(prompt: Prompt) -> list[str]:
    if prompt.tool_choice["type"] == "tool":
        return [prompt.tool_choice["name"]]
    return list(prompt.tools)[:1] if prompt.tool_choice["type"] == "any" else []


def _call(prompt: Prompt, settings: Settings, name: str, index: int) -> ToolUse:
    """One call. A tool that was not offered, or whose schema has no instance, gets an empty input."""
    value: Any
    if index < len(settings.inputs) and name != STRUCTURED_OUTPUT:
        value = settings.inputs[index]
    else:
        value = _tool_input(prompt.tools.get(name, {}).get("input_schema", {}))
    if settings.invalid:
        value = {key: value[key] for key in list(value)[1:]} if value else {"unexpected": True}
    return ToolUse(name=name, pieces=pieces(_json(value)))


def _tool_input(schema: Any) -> dict[str, Any]:
    try:
        value = instance(schema)
    except SchemaError:
        return {}
    return value if isinstance(value, dict) else {}


def _json_reply(prompt: Prompt, settings: Settings) -> str | None:
    """The structured output, where the request wants one and no marker asks for other words."""
    if prompt.schema is None or settings.refusal or settings.text is not None or not settings.structured:
        return None
    if not settings.formats:
        raise ApiError(400, "output_config: Extra inputs are not permitted")
    try:
        value = instance(prompt.schema)
    except SchemaError as error:
        raise ApiError(400, f"output_config.format.schema: {error}") from None
    return _json(_broken(value) if settings.invalid else value)


def _broken(value: Any) -> Any:
    """A value the schema does not allow: without its first (required) member, or of another type."""
    if isinstance(value, dict) and value:
        return {key: value[key] for key in list(value)[1:]}
    return 0 if isinstance(value, str) else "invalid"


def _json(value: Any) -> str:
    return orjson.dumps(value).decode()


def _stop(blocks: tuple[Block, ...], sequences: tuple[str, ...]) -> tuple[tuple[Block, ...], str | None]:
    """The blocks up to the first stop sequence that is said, and which it was."""
    for index, block in enumerate(blocks if sequences else ()):
        if not isinstance(block, Text):
            continue
        text = "".join(block.pieces)
        found = [(at, sequence) for sequence in sequences if (at := text.find(sequence)) >= 0]
        if found:
            at, sequence = min(found)
            said = (Text(pieces=pieces(text[:at])),) if at else ()
            return (*blocks[:index], *said), sequence
    return blocks, None


def _limit(blocks: tuple[Block, ...], max_tokens: int) -> tuple[Block, ...]:
    """The first `max_tokens` pieces; a block that has none of them is not begun."""
    kept: list[Block] = []
    left = max_tokens
    for block in blocks:
        if left <= 0:
            break
        taken = block.pieces[:left]
        left -= len(taken)
        if isinstance(block, ToolUse):
            kept.append(ToolUse(name=block.name, pieces=taken, complete=len(taken) == len(block.pieces)))
        elif isinstance(block, Thinking):
            kept.append(Thinking(pieces=taken, signature=block.signature))
        else:
            kept.append(Text(pieces=taken))
    return tuple(kept)
