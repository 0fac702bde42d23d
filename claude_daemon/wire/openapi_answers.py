"""The shapes of what is answered, for the OpenAPI document; answers may have more fields than named here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Json = dict[str, Any]

_TEXT: Final[Json] = {"type": "string"}
_MAYBE_TEXT: Final[Json] = {"type": ["string", "null"]}
_COUNT: Final[Json] = {"type": "integer", "minimum": 0}
_STATUS: Final[Json] = {"enum": ["pass", "warn", "fail"]}


def _object(**required: Json) -> Json:
    return {"type": "object", "properties": required, "required": list(required)}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


_FINISH: Final = ["stop", "length", "tool_calls", "content_filter"]

SCHEMAS: Final[Mapping[str, Json]] = {
    "ChatCompletion": _object(
        id=_TEXT,
        object={"const": "chat.completion"},
        created=_COUNT,
        model=_TEXT,
        choices=_list(
            _object(
                index=_COUNT,
                message=_object(role={"const": "assistant"}, content=_MAYBE_TEXT),
                finish_reason={"enum": _FINISH},
            )
        ),
        usage=_ref("CompletionUsage"),
    ),
    "ChatCompletionChunk": _object(
        id=_TEXT,
        object={"const": "chat.completion.chunk"},
        created=_COUNT,
        model=_TEXT,
        choices=_list(_object(index=_COUNT, delta={"type": "object"}, finish_reason={"enum": [*_FINISH, None]})),
    ),
    "CompletionUsage": _object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT),
    "Message": _object(
        id=_TEXT,
        type={"const": "message"},
        role={"const": "assistant"},
        model=_TEXT,
        content=_list(_object(type=_TEXT)),
        stop_reason=_MAYBE_TEXT,
        usage=_object(input_tokens=_COUNT, output_tokens=_COUNT),
    ),
    "MessageEvent": _object(type=_TEXT),
    "TokenCount": _object(input_tokens=_COUNT),
    "Model": _object(
        id=_TEXT,
        object={"const": "model"},
        type={"const": "model"},
        created=_COUNT,
        created_at={"type": "string", "format": "date-time"},
        owned_by=_TEXT,
        display_name=_TEXT,
    ),
    "ModelList": _object(
        object={"const": "list"},
        data=_list(_ref("Model")),
        has_more={"type": "boolean"},
        first_id=_MAYBE_TEXT,
        last_id=_MAYBE_TEXT,
    ),
    "Probe": _object(status=_TEXT, state=_TEXT, reason=_TEXT),
    "Health": _object(
        status=_STATUS,
        state=_TEXT,
        version=_TEXT,
        uptime_seconds={"type": "number", "minimum": 0},
        checks={"type": "object"},
    ),
    "OpenAIError": _object(error=_object(message=_TEXT, type=_TEXT, param=_MAYBE_TEXT, code=_MAYBE_TEXT)),
    "AnthropicError": _object(
        type={"const": "error"}, error=_object(type=_TEXT, message=_TEXT), request_id=_MAYBE_TEXT
    ),
    "Problem": {
        **_object(title=_TEXT, status=_COUNT, detail=_TEXT, code=_TEXT, request_id=_TEXT),
        "description": "RFC 9457, on every route outside the two chat dialects.",
    },
}
