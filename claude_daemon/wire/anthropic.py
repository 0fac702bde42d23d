"""The Messages API's bodies.

A request is checked for its shape only, and the body itself is what goes on: the direct lane sends what the
client wrote, fields that we have never heard of included. What the *text* lane cannot honour is found by
:func:`text_lane_unsupported`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from claude_daemon.core.errors import Failure
from claude_daemon.wire.parse import ONE_OF_MANY, load, validate
from claude_daemon.wire.text_lane import text_lane_unsupported

__all__ = [
    "ContentBlock",
    "CountTokensRequest",
    "InputMessage",
    "MessagesRequest",
    "error_body",
    "parse_count_tokens",
    "parse_messages",
    "text_lane_unsupported",
]

MAX_MESSAGES: Final = 100_000
"""The API's own limit."""
MAX_BLOCKS: Final = 100_000
"""Of one message: far beyond what the API takes, and few enough to look at."""


def _is_text(value: object) -> str:
    return "<text>" if isinstance(value, str) else "<blocks>"


class _Open(BaseModel):
    """Types as the API has them, without coercion; further fields are the upstream's to judge."""

    model_config = ConfigDict(strict=True, extra="allow")


class ContentBlock(_Open):
    """A block of content: text, image, document, tool_use, tool_result, thinking, whatever the API adds."""

    type: str


class TextBlock(_Open):
    type: Literal["text"]
    text: str


class InputMessage(_Open):
    role: Literal["user", "assistant", "system"]
    content: Annotated[
        Annotated[str, Tag("<text>")]
        | Annotated[list[Annotated[ContentBlock, ONE_OF_MANY]], Field(max_length=MAX_BLOCKS), Tag("<blocks>")],
        Discriminator(_is_text),
    ]


System = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Annotated[TextBlock, ONE_OF_MANY]], Tag("<blocks>")],
    Discriminator(_is_text),
]


class CountTokensRequest(_Open):
    """What counts towards a request's input."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[list[Annotated[InputMessage, ONE_OF_MANY]], Field(min_length=1, max_length=MAX_MESSAGES)]
    system: System | None = None
    tools: list[Annotated[dict[str, Any], ONE_OF_MANY]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None


class MessagesRequest(CountTokensRequest):
    """``POST /v1/messages``."""

    max_tokens: Annotated[int, Field(ge=0)]
    """0 asks the API only to fill its prompt cache."""
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[Annotated[str, ONE_OF_MANY]] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None


def parse_messages(body: bytes) -> dict[str, Any]:
    """The request as the client wrote it, once it is known to be one; raises as ``parse.parse`` does."""
    document = load(body)
    validate(MessagesRequest, document)
    return document


def parse_count_tokens(body: bytes) -> dict[str, Any]:
    """The same for ``/v1/messages/count_tokens``."""
    document = load(body)
    validate(CountTokensRequest, document)
    return document


ERROR_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_body(failure: Failure, status: int, request_id: str) -> dict[str, Any]:
    """The Messages API's error object; also the data of its ``error`` event in a stream."""
    usual = "invalid_request_error" if 400 <= status < 500 else "api_error"
    error = {"type": ERROR_TYPES.get(status, usual), "message": failure.message}
    return {"type": "error", "error": error, "request_id": request_id}
