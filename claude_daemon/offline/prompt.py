"""A checked request body, read: who said what, and what is asked of the model now. Pure."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

Block = Mapping[str, Any]

_REMINDER: Final = re.compile(r"<(system-reminder|command-[a-z]+|local-command-[a-z]+)>")
STRUCTURED_OUTPUT: Final = "StructuredOutput"
"""Claude Code's tool for `--json-schema`."""
_IN_A_USERS_NAME: Final = (
    "[structured-output-enforce]",
    "Your response above was stopped by a safety classifier",
    "[Image: source: ",
)
"""How Claude Code begins what it writes as a user: for that tool, after a refusal, beside an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message; its content always as blocks."""

    role: str
    blocks: tuple[Block, ...]

    @property
    def text(self) -> str:
        """What was written, without the reminders and command blocks that Claude Code puts in."""
        return join_text(self.blocks)

    @property
    def results(self) -> tuple[Block, ...]:
        """The tool_result blocks."""
        return tuple(block for block in self.blocks if block["type"] == "tool_result")

    @property
    def attachments(self) -> tuple[Block, ...]:
        """The images and documents."""
        return tuple(block for block in self.blocks if block["type"] in ("image", "document"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One request. `text` is what a user wrote last, markers included; `round` counts model calls since."""

    model: str
    max_tokens: int
    stream: bool
    stop_sequences: tuple[str, ...]
    system: str
    turns: tuple[Turn, ...]
    tools: Mapping[str, Block]
    tool_choice: Block
    thinking: str
    schema: Any
    text: str
    round: int
    attachments: tuple[Block, ...]
    results: tuple[Block, ...]
    structured_done: bool


def read(body: Mapping[str, Any]) -> Prompt:
    """The prompt in a body that `validate.check` let pass."""
    turns = tuple(_turn(message) for message in body["messages"] if message["content"])
    start = _start_of_turn(turns)
    since = turns[start + 1 :]
    return Prompt(
        model=body["model"],
        max_tokens=body["max_tokens"],
        stream=bool(body.get("stream")),
        stop_sequences=tuple(body.get("stop_sequences") or ()),
        system=_system(body.get("system"), turns),
        turns=turns,
        tools={tool["name"]: tool for tool in body.get("tools") or ()},
        tool_choice=body.get("tool_choice") or {"type": "auto"},
        thinking=(body.get("thinking") or {}).get("type", "disabled"),
        schema=_schema(body),
        text=turns[start].text,
        round=1 + sum(turn.role == "assistant" for turn in since),
        attachments=() if since else turns[start].attachments,
        results=_last_results(turns),
        structured_done=_answered(turns, start, STRUCTURED_OUTPUT),
    )


def join_text(blocks: tuple[Block, ...]) -> str:
    """The text blocks as one text, without reminders."""
    written = (block.get("text") for block in blocks if block["type"] == "text")
    texts = (strip_reminders(text) for text in written if isinstance(text, str))
    return "\n".join(text for text in texts if text)


def strip_reminders(text: str) -> str:
    """The text without what Claude Code writes in a user's name; a block that never ends is text."""
    if text.startswith(_IN_A_USERS_NAME):
        return ""
    kept: list[str] = []
    end = 0
    while match := _REMINDER.search(text, end):
        closing = f"</{match[1]}>"
        stop = text.find(closing, match.end())
        if stop < 0:
            break
        kept.append(text[end : match.start()])
        end = stop + len(closing)
    kept.append(text[end:])
    return "".join(kept).strip()


def result_text(block: Block) -> str:
    """What a tool_result says."""
    return join_text(_blocks(block.get("content") or ()))


def tool_names(turns: tuple[Turn, ...]) -> dict[str, str]:
    """The tool behind every tool_use id."""
    return {block["id"]: block["name"] for block in _all_blocks(turns) if block["type"] == "tool_use"}


def _turn(message: Block) -> Turn:
    return Turn(role=message["role"], blocks=_blocks(message["content"]))


def _blocks(content: Any) -> tuple[Block, ...]:
    if isinstance(content, str):
        return ({"type": "text", "text": content},)
    return tuple(block for block in content if isinstance(block, dict) and "type" in block)


def _all_blocks(turns: tuple[Turn, ...]) -> Iterator[Block]:
    for turn in turns:
        yield from turn.blocks


def _start_of_turn(turns: tuple[Turn, ...]) -> int:
    """Where a user last wrote something of their own; the first user message if nobody ever did."""
    users = [index for index, turn in enumerate(turns) if turn.role == "user"]
    own = (i for i in reversed(users) if turns[i].text or (turns[i].attachments and not turns[i].results))
    return next(own, users[0])


def _last_results(turns: tuple[Turn, ...]) -> tuple[Block, ...]:
    last = next(turn for turn in reversed(turns) if turn.role != "system")
    return last.results if last.role == "user" else ()


def _answered(turns: tuple[Turn, ...], start: int, tool: str) -> bool:
    """Whether a call of this tool succeeded in the turn that began at `start`."""
    names = tool_names(turns)
    results = (block for turn in turns[start:] for block in turn.results)
    return any(names.get(block["tool_use_id"]) == tool and not block.get("is_error") for block in results)


def _system(system: Any, turns: tuple[Turn, ...]) -> str:
    texts = [system] if isinstance(system, str) else [block["text"] for block in system or ()]
    texts += [block["text"] for t in turns if t.role == "system" for block in t.blocks if block["type"] == "text"]
    return "\n".join(texts)


def _schema(body: Mapping[str, Any]) -> Any:
    """The schema of a structured output, in the current place or the older one; None where text is wanted."""
    wanted = (body.get("output_config") or {}).get("format") or body.get("output_format")
    if isinstance(wanted, dict) and wanted.get("type") == "json_schema":
        return wanted.get("schema", {})
    return None
