"""The body of ``POST /v1/chat/completions``: every documented parameter by name.

What the Messages API can do is here with its type. What it cannot is here too, with the values that ask for
nothing: any other is refused by name. Null is the same as absent, as OpenAI has it.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from claude_daemon.wire.openai_messages import AUDIO, CACHE, FUNCTIONS, ChatMessage, Only, Strict
from claude_daemon.wire.parse import ONE_OF_MANY, unsupported, wrong

MAX_MESSAGES: Final = 100_000
"""The Messages API's own limit."""
MAX_STOPS: Final = 4
"""OpenAI's own limit."""

MAX_LABELS: Final = 16
"""OpenAI's own limit."""

_PENALTY: Final = "The Messages API has no penalties."
_LOGPROBS: Final = "The Messages API gives no log probabilities."


class FunctionDefinition(Strict):
    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    type: Annotated[Any, Only(("function",), "Only function tools are supported.")]
    function: FunctionDefinition


class FunctionName(Strict):
    name: str


class NamedToolChoice(Strict):
    type: Literal["function"]
    function: FunctionName


_CHOICE: Final = "Only none, auto, required and a function are supported."


class OtherToolChoice(BaseModel):
    type: Annotated[Any, Only((), _CHOICE)]


def _choice_tag(value: object) -> str:
    if not isinstance(value, dict):
        return "<mode>"
    return "<function>" if value.get("type") == "function" else "<other>"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[NamedToolChoice, Tag("<function>")]
    | Annotated[SkipJsonSchema[OtherToolChoice], Tag("<other>")],
    Discriminator(_choice_tag),
]


class JsonSchemaFormat(Strict):
    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class TextFormat(Strict):
    type: Literal["text"]


class SchemaFormat(Strict):
    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat


_JSON_OBJECT: Final = (
    "Only text and json_schema are supported: the Messages API cannot promise a JSON object of no particular "
    'shape. Send {"type": "json_schema"} with the shape you expect.'
)


class OtherFormat(BaseModel):
    type: Annotated[Any, Only((), _JSON_OBJECT)]


def _format_tag(value: object) -> str:
    kind = value.get("type") if isinstance(value, dict) else None
    return f"<{kind}>" if kind in ("text", "json_schema") else "<other>"


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("<text>")]
    | Annotated[SchemaFormat, Tag("<json_schema>")]
    | Annotated[SkipJsonSchema[OtherFormat], Tag("<other>")],
    Discriminator(_format_tag),
]


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: Annotated[Any, Only((False,), "Chunks are not padded.")] = None


def _temperature(value: float) -> float:
    if value > 1:
        raise unsupported("The Messages API takes temperatures from 0 to 1.")
    return value


def _effort(value: object) -> object:
    if value == "minimal":
        raise unsupported("The Messages API has none, low, medium, high, xhigh and max.")
    return value


def _stops(value: object) -> object:
    """One stop is a list of one; the checks that follow name the parameter itself where it is neither."""
    return [value] if isinstance(value, str) else value


def _labels(value: object) -> object:
    if isinstance(value, dict) and len(value) > MAX_LABELS:
        raise wrong(f"There must not be more than {MAX_LABELS} pairs.")
    return value


def _stop_count(value: object) -> object:
    if isinstance(value, list) and len(value) > MAX_STOPS:
        raise wrong(f"There must not be more than {MAX_STOPS} sequences.")
    return value


def _visible(value: list[str]) -> list[str]:
    if not all(stop.strip() for stop in value):
        raise wrong("Each stop sequence must hold more than white space.")
    return value


_Stop = Annotated[
    list[str],
    BeforeValidator(_stop_count),
    BeforeValidator(_stops),
    AfterValidator(_visible),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": MAX_STOPS}]}
    ),
]
_Effort = Annotated[Literal["none", "low", "medium", "high", "xhigh", "max"], BeforeValidator(_effort)]
_Temperature = Annotated[
    float,
    Field(ge=0, le=2),
    AfterValidator(_temperature),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1}),
]
_Tokens = Annotated[int, Field(ge=1)]
_Identifier = Annotated[str, Field(max_length=256)]


class ChatCompletionRequest(Strict):
    """``POST /v1/chat/completions``."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]

    # how it is answered
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    max_completion_tokens: _Tokens | None = None
    max_tokens: _Tokens | None = None
    stop: _Stop | None = None
    temperature: _Temperature | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    reasoning_effort: _Effort | None = None
    """none switches thinking off; else the model decides (adaptive), with this ``output_config.effort``."""
    service_tier: Annotated[Any, Only(("auto", "default"), "Only auto and default can be had.")] = None

    # tools
    tools: list[Annotated[Tool, ONE_OF_MANY]] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    # who asks: becomes metadata.user_id
    safety_identifier: _Identifier | None = None
    user: _Identifier | None = None

    # labels and hints that change no answer
    metadata: Annotated[dict[str, str], BeforeValidator(_labels)] | None = None
    """Labels of a stored completion: accepted, without a use, because nothing is stored."""
    prompt_cache_key: str | None = None
    """A hint at where OpenAI's cache may be found."""

    # known, and not to be had
    n: Annotated[Any, Only((1,), "One choice is made for a request; send several requests.")] = None
    store: Annotated[Any, Only((False,), "Chats are not stored.")] = None
    frequency_penalty: Annotated[Any, Only((0, 0.0), _PENALTY)] = None
    presence_penalty: Annotated[Any, Only((0, 0.0), _PENALTY)] = None
    logit_bias: Annotated[Any, Only(({},), "The Messages API has no bias of tokens.")] = None
    logprobs: Annotated[Any, Only((False,), _LOGPROBS)] = None
    top_logprobs: Annotated[Any, Only((0,), _LOGPROBS)] = None
    seed: Annotated[Any, Only((), "The Messages API has no seed.")] = None
    modalities: Annotated[Any, Only((["text"],), "Only text can be had.")] = None
    audio: Annotated[Any, Only((), AUDIO)] = None
    prediction: Annotated[Any, Only((), "The Messages API has no predicted output.")] = None
    verbosity: Annotated[Any, Only(("medium",), "The Messages API has no verbosity; ask in the prompt.")] = None
    web_search_options: Annotated[Any, Only((), "OpenAI's web search does not exist here.")] = None
    moderation: Annotated[Any, Only((), "OpenAI's moderation does not exist here.")] = None
    prompt_cache_retention: Annotated[Any, Only((), CACHE)] = None
    prompt_cache_options: Annotated[Any, Only((), CACHE)] = None
    functions: Annotated[Any, Only(([],), FUNCTIONS)] = None
    function_call: Annotated[Any, Only((), FUNCTIONS)] = None

    @model_validator(mode="after")
    def _one_limit(self) -> ChatCompletionRequest:
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise wrong("`max_tokens` and `max_completion_tokens` must not differ; send the latter only.")
        return self
