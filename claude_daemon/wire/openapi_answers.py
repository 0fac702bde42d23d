"""The shapes of what is answered, for the OpenAPI document; answers may have more fields than named here."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from claude_daemon.core.task import Kind, Lane, State
from claude_daemon.wire.openapi_parts import Json
from claude_daemon.wire.openapi_parts import ref as _ref

_TEXT: Final[Json] = {"type": "string"}
_MAYBE_TEXT: Final[Json] = {"type": ["string", "null"]}
_COUNT: Final[Json] = {"type": "integer", "minimum": 0}
_STATUS: Final[Json] = {"enum": ["pass", "warn", "fail"]}
_TIME: Final[Json] = {"type": "number", "description": "Seconds since the epoch."}
_MAYBE_TIME: Final[Json] = {"type": ["number", "null"], "description": "Seconds since the epoch."}


def _object(**required: Json) -> Json:
    return {"type": "object", "properties": required, "required": list(required)}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _one_of(names: type[StrEnum]) -> Json:
    return {"enum": [name.value for name in names]}


def _maybe(shape: Json) -> Json:
    return {"anyOf": [shape, {"type": "null"}]}


def _and_perhaps(shape: Json, **optional: Json) -> Json:
    return {**shape, "properties": {**shape["properties"], **optional}}


_FINISH: Final = ["stop", "length", "tool_calls", "content_filter"]
_FAULTS: Final = _list(_object(path=_TEXT, message=_TEXT))
_BATCH_STATES: Final = [*(state.value for state in State), "refused", "purged"]
"""Of one of its tasks. A purged one ended and is kept no longer."""

_DATE: Final[Json] = {"type": "string", "format": "date"}
_USD: Final[Json] = {"type": "number", "minimum": 0}
_USED: Final = _object(
    tasks=_COUNT,
    input_tokens=_COUNT,
    output_tokens=_COUNT,
    cache_creation_input_tokens=_COUNT,
    cache_read_input_tokens=_COUNT,
    model_calls=_COUNT,
    cost_usd={**_USD, "description": "Metered usage at the configured prices."},
    charged_usd={**_USD, "description": "What counts against budgets: what was set aside, where a cost is not known."},
    unpriced={**_COUNT, "description": "Attempts whose cost is not known."},
)
_SPAN: Final = _object(since=_DATE, limit_usd={**_USD, "type": ["number", "null"]}, spent_usd=_USD)

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
    "Health": {
        **_and_perhaps(
            _object(
                status=_STATUS,
                state=_TEXT,
                version=_TEXT,
                uptime_seconds={"type": "number", "minimum": 0},
                checks={"type": "object"},
            ),
            changes={"type": "array", "items": {"type": "object"}},
        ),
        "description": "Reasons, details and the last changes for those with a key (docs/health.md).",
    },
    "OpenAIError": _object(error=_object(message=_TEXT, type=_TEXT, param=_MAYBE_TEXT, code=_MAYBE_TEXT)),
    "AnthropicError": _object(
        type={"const": "error"}, error=_object(type=_TEXT, message=_TEXT), request_id=_MAYBE_TEXT
    ),
    "Problem": {
        **_and_perhaps(
            _object(type=_TEXT, title=_TEXT, status=_COUNT, detail=_TEXT, code=_TEXT, request_id=_TEXT),
            errors=_FAULTS,
        ),
        "description": "RFC 9457, on every route outside the two chat dialects.",
    },
    "Task": _object(
        id=_TEXT,
        object={"const": "task"},
        kind=_one_of(Kind),
        state=_one_of(State),
        created_at=_TIME,
        started_at=_MAYBE_TIME,
        finished_at=_MAYBE_TIME,
        cancel_requested_at=_MAYBE_TIME,
        model=_TEXT,
        lane=_one_of(Lane),
        session_id=_MAYBE_TEXT,
        attempt=_COUNT,
        result=_maybe(_ref("TaskResult")),
        usage=_maybe(_ref("TaskUsage")),
        cost_usd={"type": ["number", "null"], "minimum": 0, "description": "Null where the model has no price."},
        error=_maybe(_ref("TaskError")),
        last_seq=_COUNT,
        batch_id=_MAYBE_TEXT,
        priority={"type": "integer"},
        metadata={"type": "object", "additionalProperties": _TEXT},
    ),
    "Session": _object(
        id=_TEXT,
        object={"const": "session"},
        state={"enum": ["running", "warm", "idle"]},
        key_id=_TEXT,
        created_at=_TIME,
        used_at=_TIME,
        cwd=_MAYBE_TEXT,
        add_dirs=_list(_TEXT),
    ),
    "SessionList": _object(object={"const": "list"}, data=_list(_ref("Session")), next=_MAYBE_TEXT),
    "SessionDeleted": _object(id=_TEXT, object={"const": "session"}, deleted={"const": True}),
    "TaskResult": _object(
        text=_MAYBE_TEXT,
        structured={"description": "What the text says as JSON, where a schema was given; else null."},
        stop_reason=_MAYBE_TEXT,
        diff={
            "type": ["string", "null"],
            "description": "What an agent changed with its file tools, as a unified diff; not what a command did.",
        },
        files={
            "type": "array",
            "items": _TEXT,
            "description": "The files that an agent changed with its file tools; not those that a command changed.",
        },
    ),
    "TaskUsage": _object(
        input_tokens=_COUNT,
        output_tokens=_COUNT,
        cache_creation_input_tokens=_COUNT,
        cache_read_input_tokens=_COUNT,
        model_calls=_COUNT,
    ),
    "Usage": _object(
        object={"const": "usage"},
        by={"enum": ["key", "model", "day"]},
        days=_COUNT,
        timezone=_TEXT,
        since=_DATE,
        until=_DATE,
        data=_list(_and_perhaps(_USED, day=_DATE, model=_TEXT, key_id=_TEXT)),
        total=_USED,
        budgets=_list(
            _object(
                purse={"enum": ["all", "domain", "key"]},
                name=_TEXT,
                day=_SPAN,
                month=_SPAN,
                reserved_usd={**_USD, "description": "Set aside by what is under way."},
            )
        ),
    ),
    "TaskError": _and_perhaps(
        _object(code=_TEXT, message=_TEXT), errors=_FAULTS, retry_after_s={"type": "number", "minimum": 0}
    ),
    "TaskList": _object(object={"const": "list"}, data=_list(_ref("Task")), next=_MAYBE_TEXT),
    "Approval": _and_perhaps(
        _object(
            object={"const": "approval"},
            task=_TEXT,
            approval=_TEXT,
            allow={"type": "boolean"},
            tool=_TEXT,
            tool_use_id=_TEXT,
            input={"type": "object"},
            cwd=_MAYBE_TEXT,
            expires_at=_TIME,
        ),
        diff={"type": "string", "description": "What the call would change in a file, as a unified diff."},
    ),
    "TaskEvent": {
        **_object(task=_TEXT, seq=_COUNT, type=_TEXT, at=_TIME, data={"type": "object"}),
        "description": (
            "Of a tool call, `tool.use` tells `id`, `name` and `input`, `tool.result` `id`, `name`, `is_error` and "
            "`content`, `tool.denied` `id`, `name` and `message`, `file.changed` `id`, `name` and `path`. A subagent's "
            "calls and results also have `parent`: the id of the call that started it. `approval.requested` is the "
            "call as an Approval has it. `data` is at most 64 KiB: what is longer is cut, with `truncated` and "
            "`size_bytes`."
        ),
    },
    "DrainNotice": _object(task=_TEXT, cursor=_COUNT, retry_after_ms=_COUNT),
    "Batch": _object(
        id=_TEXT,
        object={"const": "batch"},
        state={"enum": ["running", "finished"]},
        created_at=_TIME,
        counts={"type": "object", "propertyNames": {"enum": _BATCH_STATES}, "additionalProperties": _COUNT},
        tasks=_list(_object(id=_MAYBE_TEXT, state={"enum": _BATCH_STATES}, error=_maybe(_ref("TaskError")))),
    ),
}
