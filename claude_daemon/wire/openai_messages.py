"""Chat Completions messages, as strict as the request they stand in.

Only what OpenAI's own answers contain is accepted in a history without effect (``annotations``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import CoreSchema, core_schema

from claude_daemon.wire.parse import ONE_OF_MANY, unsupported, wrong

MAX_FIELDS: Final = 100
"""Of one object. No documented one has half as many, and each unknown one would be a fault to tell."""

MAX_PARTS: Final = 100_000
"""Of one message: far beyond what the Messages API takes, and few enough to look at."""


@dataclass(frozen=True, slots=True)
class Only:
    """Marks a parameter that we know and cannot honour: but for these values and null, `why` is told."""

    values: tuple[object, ...]
    why: str

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [*self.values, None], "description": self.why}

    def _check(self, value: object) -> object:
        if value is None or any(type(value) is type(v) and value == v for v in self.values):
            return value
        raise unsupported(self.why)


FUNCTIONS: Final = "Legacy function calling is not supported; use `tools`."
CACHE: Final = "Lifetimes and places of OpenAI's prompt cache do not exist here."
AUDIO: Final = "Audio is not supported."
_NAME: Final = "The Messages API does not name participants; put the name into the text."


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise wrong(f"An object here must not have more than {MAX_FIELDS} fields.")
        return value


class TextPart(Strict):
    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Annotated[Any, Only((), CACHE)] = None


class RefusalPart(Strict):
    type: Literal["refusal"]
    refusal: str


class ImageUrl(Strict):
    url: str
    detail: Annotated[Any, Only(("auto", "high"), "Images are seen in full; only auto and high can be had.")] = None


class ImagePart(Strict):
    type: Literal["image_url"]
    image_url: ImageUrl
    prompt_cache_breakpoint: Annotated[Any, Only((), CACHE)] = None


class File(Strict):
    file_data: str
    filename: str | None = None
    file_id: Annotated[Any, Only((), "There is no store of uploaded files; send `file_data`.")] = None


class FilePart(Strict):
    type: Literal["file"]
    file: File
    prompt_cache_breakpoint: Annotated[Any, Only((), CACHE)] = None


def _refuse_part(value: object) -> object:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str):
        raise unsupported(f"Content of the type `{kind[:32]}` is not supported here.")
    return value


class OtherPart(BaseModel):
    """Whatever else: refused by name where it has a type, a fault where it has none."""

    type: Annotated[str, Field(min_length=1)]


def _part_tag(value: object) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return f"<{kind}>" if kind in ("text", "refusal", "image_url", "file") else "<other>"


_Text = Annotated[TextPart, Tag("<text>")]
_Refusal = Annotated[RefusalPart, Tag("<refusal>")]
_Image = Annotated[ImagePart, Tag("<image_url>")]
_File = Annotated[FilePart, Tag("<file>")]
_Other = Annotated[SkipJsonSchema[OtherPart], BeforeValidator(_refuse_part), Tag("<other>")]
_Part = Annotated[_Text | _Refusal | _Image | _File | _Other, Discriminator(_part_tag), ONE_OF_MANY]
_Parts = Annotated[list[_Part], Field(max_length=MAX_PARTS), Tag("<parts>")]


def _content_tag(value: object) -> str:
    return "<string>" if isinstance(value, str) else "<parts>"


Content = Annotated[Annotated[str, Tag("<string>")] | _Parts, Discriminator(_content_tag)]
"""A text or a list of parts; which parts a role may have is the translation's business."""


class FunctionCall(Strict):
    name: Annotated[str, Field(min_length=1)]
    arguments: str


class ToolCall(Strict):
    id: Annotated[str, Field(min_length=1)]
    type: Annotated[Any, Only(("function",), "Only function tools are supported.")] = "function"
    function: FunctionCall
    index: int | None = None
    """Not OpenAI's, but what naive clients leave in when they join a stream's deltas."""


class SystemMessage(Strict):
    role: Literal["system", "developer"]
    content: Content
    name: Annotated[Any, Only((), _NAME)] = None


class UserMessage(Strict):
    role: Literal["user"]
    content: Content
    name: Annotated[Any, Only((), _NAME)] = None


class AssistantMessage(Strict):
    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[Annotated[ToolCall, ONE_OF_MANY]] | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None
    reasoning_content: str | None = None
    """What we told as thinking; without its signature it cannot be sent back, and is left out."""
    name: Annotated[Any, Only((), _NAME)] = None
    audio: Annotated[Any, Only((), AUDIO)] = None
    function_call: Annotated[Any, Only((), FUNCTIONS)] = None


class ToolMessage(Strict):
    role: Literal["tool"]
    content: Content
    tool_call_id: Annotated[str, Field(min_length=1)]
    name: str | None = None
    """The tool's name, which its call has told already."""


_ROLE: Final = "The role must be system, developer, user, assistant or tool (which replaces `function`)."


class OtherMessage(BaseModel):
    role: Annotated[Any, Only((), _ROLE)]


_ROLES: Final = ("system", "user", "assistant", "tool")


def _role_tag(value: object) -> str:
    role = value.get("role") if isinstance(value, dict) else None
    return f"<{role}>" if role in _ROLES else "<system>" if role == "developer" else "<other>"


ChatMessage = Annotated[
    Annotated[SystemMessage, Tag("<system>")]
    | Annotated[UserMessage, Tag("<user>")]
    | Annotated[AssistantMessage, Tag("<assistant>")]
    | Annotated[ToolMessage, Tag("<tool>")]
    | Annotated[SkipJsonSchema[OtherMessage], Tag("<other>")],
    Discriminator(_role_tag),
    ONE_OF_MANY,
]
