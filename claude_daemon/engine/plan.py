"""A Messages API request as the steps of one turn on the CLI, pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from claude_daemon.core.task import TaskSpec
from claude_daemon.engine import client_tools

Content = str | Sequence[Mapping[str, Any]]

# Bytes of English text a token stands for, roughly: what max_tokens is approximated with when we must count ourselves.
BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What a process is bound to for its life: requests with an equal binding may share it.

    ``tools``: the client's own, as :func:`client_tools.listing` lists them.
    """

    trust_domain: str
    system: str = ""
    schema: bytes | None = None
    tools: bytes | None = field(default=None, repr=False)

    @property
    def plain(self) -> bool:
        """Nothing to bind: any unbound process serves as it is."""
        return not self.system and self.schema is None and self.tools is None

    @property
    def label(self) -> str:
        """Short and safe for people: never the prompt itself."""
        if self.plain:
            return "plain"
        bound = (self.system.encode(), self.schema or b"", self.tools or b"")
        return hashlib.sha256(b"\0".join(bound)).hexdigest()[:12]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What must be fixed when a process is spawned; ``binding`` only for CLIs that cannot be bound later."""

    model: str
    binding: Binding | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnPlan:
    """The steps of one turn: earlier exchanges, then the message that is answered.

    ``thinking_tokens`` None leaves the model's own adaptive thinking; 0 asks for none. ``tool_choice`` is what the
    upstream must be sent, as JSON, where it is not sent so anyway.
    """

    binding: Binding
    model: str
    history: Sequence[tuple[Content, Sequence[Mapping[str, Any]]]]
    last: Content
    max_tokens: int | None
    show_thinking: bool
    thinking_tokens: int | None
    tool_choice: bytes | None = None

    @property
    def tools(self) -> frozenset[str]:
        """The names of the client's own tools."""
        return client_tools.names(self.binding.tools)

    def told_at_once(self) -> Content:
        """The conversation in one message, for a CLI that cannot be given its history: an approximation."""
        if not self.history:
            return self.last
        told: list[Mapping[str, Any]] = [_text("The conversation so far:")]
        for content, answer in self.history:
            told += [_text("Human:"), *_blocks(content), _text("Assistant:"), *answer]
        return [*told, _text("Answer the human, who now says:"), *_blocks(self.last)]


def without_commands(content: Content) -> Content:
    """For a CLI without ``client_composed``: a command counts only where it begins a text, so no text begins so."""
    if isinstance(content, str):
        return f"\n{content}" if content.startswith("/") else content
    return [
        {**block, "text": f"\n{block['text']}"} if str(block.get("text", "")).startswith("/") else block
        for block in content
    ]


def plan(spec: TaskSpec) -> TurnPlan:
    """The plan of a request that the lane supports (``wire.anthropic.text_lane_unsupported`` has passed)."""
    request = spec.request
    thinking = request.get("thinking") or {}
    show_thinking = thinking.get("type") in ("enabled", "adaptive")
    turns = _merged(request["messages"], _loop_start(request["messages"]) if show_thinking else None)
    history = [(turns[i][1], _blocks(turns[i + 1][1])) for i in range(0, len(turns) - 1, 2)]
    schema = spec.output_schema
    return TurnPlan(
        binding=Binding(
            trust_domain=spec.trust_domain,
            system=system_text(request.get("system")),
            schema=orjson.dumps(schema, option=orjson.OPT_SORT_KEYS) if schema is not None else None,
            tools=client_tools.listing(request.get("tools") or ()),
        ),
        model=spec.model,
        history=history,
        last=turns[-1][1],
        max_tokens=request.get("max_tokens"),
        show_thinking=show_thinking,
        thinking_tokens=None if thinking.get("type") == "adaptive" else int(thinking.get("budget_tokens", 0)),
        tool_choice=client_tools.upstream_choice(request.get("tool_choice")) if request.get("tools") else None,
    )


def system_text(system: str | Sequence[Mapping[str, Any]] | None) -> str:
    """A Messages API ``system`` as one text."""
    if system is None:
        return ""
    if isinstance(system, str):
        return system
    return "\n\n".join(str(block["text"]) for block in system)


def _loop_start(messages: Sequence[Mapping[str, Any]]) -> int | None:
    """Where the calls begin whose results come last: the API wants to see what the model thought about those."""
    start = None
    for number in range(len(messages) - 1, -1, -1):
        if messages[number]["role"] != "user":
            continue
        if not _has_results(messages[number]["content"]):
            break
        start = number - 1
    return start


def _has_results(content: Content) -> bool:
    return not isinstance(content, str) and any(block["type"] == "tool_result" for block in content)


def _merged(messages: Sequence[Mapping[str, Any]], loop_start: int | None) -> list[tuple[str, Content]]:
    """Alternating (role, content) from user to user: neighbours of one role are one turn, as for the API itself.

    From ``loop_start`` on thinking is kept.
    """
    turns: list[tuple[str, Content]] = []
    for number, message in enumerate(messages):
        content = _clean(message["content"], keep_thinking=loop_start is not None and number >= loop_start)
        if not content and message["role"] == "assistant":
            continue  # it was nothing but thinking: its neighbours become one turn
        if turns and turns[-1][0] == message["role"]:
            turns[-1] = (message["role"], [*_blocks(turns[-1][1]), *_blocks(content)])
        else:
            turns.append((message["role"], content))
    return turns


def _text(text: str) -> Mapping[str, Any]:
    return {"type": "text", "text": text}


def _blocks(content: Content) -> list[Mapping[str, Any]]:
    return [_text(content)] if isinstance(content, str) else list(content)


def _clean(content: Content, *, keep_thinking: bool = False) -> Content:
    """Without cache marks (the CLI sets its own) and, but in a loop of tool calls, without thinking, which the API does
    not ask for; tools by their names upstream."""
    if isinstance(content, str):
        return content
    return [
        _clean_block(block)
        for block in content
        if keep_thinking or block.get("type") not in ("thinking", "redacted_thinking")
    ]


def _clean_block(block: Mapping[str, Any]) -> Mapping[str, Any]:
    cleaned = {key: value for key, value in block.items() if key not in ("cache_control", "caller")}
    if block.get("type") == "tool_use":
        cleaned["name"] = client_tools.upstream_name(str(block["name"]))
    elif block.get("type") == "tool_result" and isinstance(block.get("content"), list):
        cleaned["content"] = [_clean_block(part) for part in block["content"]]
    return cleaned
