"""A Chat Completions conversation as ``system`` and ``messages`` of the Messages API."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import orjson

from claude_daemon.core.errors import Fault
from claude_daemon.wire.openai_messages import (
    AssistantMessage,
    ChatMessage,
    FilePart,
    ImagePart,
    OtherPart,
    RefusalPart,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)

IMAGE_TYPES: Final = ("image/jpeg", "image/png", "image/gif", "image/webp")
"""What the Messages API takes as base64."""

_DATA_URL: Final = re.compile(r"data:([\w.+-]+/[\w.+-]+)(?:;[\w-]+=[\w.+-]+)*;base64,", re.A | re.I)

Block = dict[str, Any]
Part = TextPart | RefusalPart | ImagePart | FilePart | OtherPart


def translate_history(messages: Sequence[ChatMessage]) -> History:
    """The whole conversation; its faults are told with the client's own paths."""
    history = History()
    for n, message in enumerate(messages):
        history.add(f"messages.{n}", message)
    if not history.messages and not history.faults:
        history.fault("messages", "At least one user message is needed.")
    return history


class History:
    """Collects a conversation, message by message.

    System and developer messages may stand anywhere and are joined in their order. Neighbours of one role
    become one message: the results of parallel tool calls, and what the user says next, arrive together.
    """

    def __init__(self) -> None:
        self.system: list[Block] = []
        self.messages: list[dict[str, Any]] = []
        self.faults: list[Fault] = []
        self._calls: set[str] = set()

    def add(self, path: str, message: ChatMessage) -> None:
        if isinstance(message, SystemMessage):
            self.system += self._blocks(path, message.content, ())
        elif isinstance(message, UserMessage):
            self._add_user(path, message)
        elif isinstance(message, AssistantMessage):
            self._add_assistant(path, message)
        elif isinstance(message, ToolMessage):
            self._add_result(path, message)

    def fault(self, path: str, message: str) -> None:
        self.faults.append(Fault(path=path, message=message))

    def _append(self, role: str, blocks: list[Block]) -> None:
        if self.messages and self.messages[-1]["role"] == role:
            self.messages[-1]["content"] += blocks
        else:
            self.messages.append({"role": role, "content": blocks})

    def _add_user(self, path: str, message: UserMessage) -> None:
        blocks = self._blocks(path, message.content, ("image_url", "file"))
        if not blocks:
            self.fault(f"{path}.content", "A user message must not be empty.")
        self._append("user", blocks)

    def _add_assistant(self, path: str, message: AssistantMessage) -> None:
        self._must_follow_the_user(path)
        blocks = self._blocks(path, message.content or "", ("refusal",))
        if not blocks and message.refusal:
            blocks = [_text(message.refusal)]
        blocks += [self._call(f"{path}.tool_calls.{n}", call) for n, call in enumerate(message.tool_calls or ())]
        self._calls |= {call.id for call in message.tool_calls or ()}
        if blocks:
            self._append("assistant", blocks)

    def _must_follow_the_user(self, path: str) -> None:
        if not self.messages and not self.faults:
            self.fault(f"{path}.role", "The conversation must begin with a user message.")

    def _call(self, path: str, call: ToolCall) -> Block:
        arguments: Any = None
        try:
            arguments = orjson.loads(call.function.arguments.strip() or "{}")
        except orjson.JSONDecodeError as error:
            self.fault(f"{path}.function.arguments", f"This is not valid JSON: {error.msg} (at {error.pos}).")
        else:
            if not isinstance(arguments, dict):
                self.fault(f"{path}.function.arguments", "The arguments must be a JSON object.")
        return {"type": "tool_use", "id": call.id, "name": call.function.name, "input": arguments}

    def _add_result(self, path: str, message: ToolMessage) -> None:
        if message.tool_call_id not in self._calls:
            self.fault(f"{path}.tool_call_id", "No tool call before this message has this id.")
        content: str | list[Block] = message.content if isinstance(message.content, str) else []
        if isinstance(content, list):
            content = self._blocks(path, message.content, ("image_url", "file"))
        result: Block = {"type": "tool_result", "tool_use_id": message.tool_call_id}
        self._append("user", [result | ({"content": content} if content else {})])

    def _blocks(self, path: str, content: str | Sequence[Part], allowed: Sequence[str]) -> list[Block]:
        """The content's blocks, empty texts left out because the Messages API refuses them."""
        if isinstance(content, str):
            return [_text(content)] if content else []
        found = [self._block(f"{path}.content.{n}", part, allowed) for n, part in enumerate(content)]
        return [block for block in found if block is not None]

    def _block(self, path: str, part: Part, allowed: Sequence[str]) -> Block | None:
        if isinstance(part, TextPart):
            return _text(part.text) if part.text else None
        if part.type not in allowed:
            self.fault(f"{path}.type", f"A message of this role cannot hold `{part.type}`.")
            return None
        if isinstance(part, ImagePart):
            return self._image(f"{path}.image_url.url", part.image_url.url)
        if isinstance(part, FilePart):
            return self._file(f"{path}.file.file_data", part)
        return _text(part.refusal) if isinstance(part, RefusalPart) and part.refusal else None

    def _image(self, path: str, url: str) -> Block | None:
        if url[:8].lower().startswith(("http://", "https://")):
            return {"type": "image", "source": {"type": "url", "url": url}}
        source = _base64_source(url)
        if source is None:
            self.fault(path, "The URL must be http, https, or data with base64.")
        elif source["media_type"] not in IMAGE_TYPES:
            self.fault(path, f"The image must be one of {', '.join(IMAGE_TYPES)}.")
        return {"type": "image", "source": source}

    def _file(self, path: str, part: FilePart) -> Block | None:
        source = _base64_source(part.file.file_data)
        if source is None or source["media_type"] != "application/pdf":
            self.fault(path, "The file must be a data URL with a base64 PDF.")
        title = {"title": part.file.filename} if part.file.filename else {}
        return {"type": "document", "source": source} | title


def _text(text: str) -> Block:
    return {"type": "text", "text": text}


def _base64_source(url: str) -> dict[str, str] | None:
    """A data URL's source; what the base64 holds is checked by the upstream, which must decode it anyway."""
    head = _DATA_URL.match(url)
    if head is None:
        return None
    return {"type": "base64", "media_type": head[1].lower(), "data": url[head.end() :]}
