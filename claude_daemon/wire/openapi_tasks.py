"""Tasks, batches and the stream in the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from claude_daemon.core.task import Kind, State
from claude_daemon.wire.openapi_parts import ANY_BODY, ANY_ROUTE, Json, answer, body, errors, events, headers, path_id
from claude_daemon.wire.problem import CONTENT_TYPE

DEFAULT_LIMIT: Final = 20
MAX_LIMIT: Final = 100
"""What ``?limit=`` may be: as ``api.tasks`` has it."""
MAX_CURSOR: Final = (1 << 63) - 1
"""Event numbers are kept as 64-bit integers."""

_EVENTS: Final = (
    "Of each event, `id:` is its seq, `event:` its type, and `data:` a TaskEvent. The stream ends after the event that "
    "ends the task. Of the event `drain`, which has no id, `data:` is a DrainNotice: come back after that time. "
    "A comment every 15 s keeps proxies from cutting a stream in which nothing happens."
)
_CONFLICT: Final = "`idempotency_conflict`: this Idempotency-Key was used before with another body."
_FULL: Final = "`queue_full`: as many tasks of this key wait as may; `rate_limited`; see Retry-After."
_STREAM: Final = """\
A WebSocket (RFC 6455) of JSON text messages; one connection follows many tasks. Its subprotocol is \
`claude-daemon.v1`. A browser, which cannot set headers, gives its key as a second one: \
`claude-daemon.v1, bearer.<key>`.

The client sends `{"op":"submit","ref","task":{…}}` (a TaskRequest, followed from its first event), \
`{"op":"subscribe","ref","task","after"}`, `{"op":"unsubscribe","ref","task"}`, `{"op":"cancel","ref","task"}`, \
`{"op":"approve","ref","task","approval","allow","message"}` and `{"op":"ping","ref"}`. `ref` (text or a number, given \
back as it is), `after` (the seq of the last event seen) and `message` may be left out.

The server sends `{"op":"ack","ref","task"}`, `{"op":"event","task","seq","type","at","data"}` (a TaskEvent), \
`{"op":"error","ref","error"}` (a TaskError), `{"op":"pong","ref"}` and, before it stops, \
`{"op":"drain","retry_after_ms","cursors":{task: seq}}`.

It closes with 1001 when it stops, 1003 for a message that is no text, 1008 when the key is not good any more (it was \
revoked, suspended or rotated, or has expired), 1009 for a message that is too big, and 1013 when its reader is too \
slow: come back with your cursors."""


def paths() -> Json:
    return {
        "/v1/tasks": {"post": _submit(), "get": _list()},
        "/v1/tasks/{id}": {"parameters": [path_id("A task.")], "get": _get()},
        "/v1/tasks/{id}/events": {"parameters": [path_id("A task.")], "get": _follow()},
        "/v1/tasks/{id}/cancel": {"parameters": [path_id("A task.")], "post": _cancel()},
        "/v1/tasks/{id}/approvals/{approval}": {
            "parameters": [path_id("A task."), path_id("What `approval.requested` names.", "approval")],
            "post": _approve(),
        },
        "/v1/batches": {"post": _submit_batch()},
        "/v1/batches/{id}": {"parameters": [path_id("A batch.")], "get": _batch()},
        "/v1/stream": {"get": _stream()},
    }


def batch_items() -> Json:
    """What stands in a batch: a faulty submission is taken with the others, and refused in its place."""
    return {"anyOf": [{"$ref": "#/components/schemas/TaskRequest"}, {"type": "object"}]}


def _submit() -> Json:
    idempotency = {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"}
    description = "Sent again with the same body, it is answered with the task that it became the first time."
    told = headers("X-Request-ID", "X-Task-ID", "Location")
    queued = {**answer("Accepted: the task is durable.", "Task"), "headers": told}
    known = {**answer("The task that this Idempotency-Key became before, or the events asked for.", "Task")}
    known["headers"] = told
    known["content"] |= events(f"Answered to `Accept: text/event-stream`. {_EVENTS}")
    return {
        "operationId": "createTask",
        "tags": ["tasks"],
        "summary": "Submit a task",
        "parameters": [_header("Idempotency-Key", idempotency, description)],
        "requestBody": body("TaskRequest"),
        "responses": {"200": known, "202": queued}
        | _problems(*ANY_BODY, "402", "404", status_409=_CONFLICT, status_429=_FULL),
    }


def _list() -> Json:
    kinds = {"enum": [kind.value for kind in Kind], "default": Kind.TASK.value}
    states = {"type": "array", "items": {"enum": [state.value for state in State]}}
    limits = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT}
    return {
        "operationId": "listTasks",
        "tags": ["tasks"],
        "summary": "The key's tasks, newest first",
        "parameters": [
            _query("kind", kinds, "Of chats, nothing of what was said is kept."),
            _query("state", states, "Any of these; all without it."),
            _query("limit", limits, "How many at once."),
            _query("cursor", {"type": "string"}, "`next` of the page before."),
        ],
        "responses": {"200": answer("A page.", "TaskList")} | _problems("400", *ANY_ROUTE),
    }


def _get() -> Json:
    return {
        "operationId": "getTask",
        "tags": ["tasks"],
        "summary": "A task as it is now",
        "responses": {"200": answer("The task.", "Task")} | _problems(*ANY_ROUTE, "404"),
    }


def _follow() -> Json:
    last, after = "The seq of the last event seen; goes before `after`.", "The same, where headers cannot be set."
    told = {"description": "The events after the cursor.", "headers": headers("X-Request-ID", "X-Task-ID")}
    return {
        "operationId": "followTask",
        "tags": ["tasks"],
        "summary": "A task's events, from its first or from where one was",
        "parameters": [
            _header("Last-Event-ID", _cursor(), last),
            _query("after", _cursor(), after),
        ],
        "responses": {"200": {**told, "content": events(_EVENTS)}}
        | _problems("400", *ANY_ROUTE, "404", status_409="A chat keeps no events."),
    }


def _cancel() -> Json:
    return {
        "operationId": "cancelTask",
        "tags": ["tasks"],
        "summary": "Cancel a task",
        "responses": {"200": answer("The task: cancelled, about to be, or unchanged where it had ended.", "Task")}
        | _problems(*ANY_ROUTE, "404", "503"),
    }


def _approve() -> Json:
    return {
        "operationId": "answerApproval",
        "tags": ["tasks"],
        "summary": "Allow or deny a tool call that waits",
        "description": "Needs the scope `approvals`. The same answer again changes nothing.",
        "requestBody": body("ApprovalAnswer"),
        "responses": {"200": answer("The call, and what was said.", "Approval")}
        | _problems(*ANY_BODY, "404", "503", status_409="It was answered otherwise already."),
    }


def _submit_batch() -> Json:
    queued = answer("Accepted; what was refused stands in its place, with why.", "Batch")
    return {
        "operationId": "createBatch",
        "tags": ["tasks"],
        "summary": "Submit many tasks at once",
        "requestBody": body("BatchRequest"),
        "responses": {"202": {**queued, "headers": headers("X-Request-ID", "Location")}} | _problems(*ANY_BODY),
    }


def _batch() -> Json:
    return {
        "operationId": "getBatch",
        "tags": ["tasks"],
        "summary": "A batch and its tasks as they are now",
        "responses": {"200": answer("The batch.", "Batch")} | _problems(*ANY_ROUTE, "404"),
    }


def _stream() -> Json:
    protocols = {"type": "string", "examples": ["claude-daemon.v1", "claude-daemon.v1, bearer.cd_…"]}
    return {
        "operationId": "stream",
        "tags": ["tasks"],
        "summary": "Many tasks over one WebSocket",
        "description": _STREAM,
        "parameters": [_header("Sec-WebSocket-Protocol", protocols, "The subprotocol, and a browser's key.")],
        "responses": {"101": {"description": "The WebSocket is open."}}
        | _problems(*ANY_ROUTE, status_400="Not a WebSocket handshake of version 13."),
    }


def _problems(*statuses: str, **told: str) -> Json:
    return errors("Problem", *statuses, media_type=CONTENT_TYPE, **told)


def _cursor() -> Json:
    return {"type": "integer", "minimum": 0, "maximum": MAX_CURSOR, "default": 0}


def _header(name: str, schema: Any, description: str) -> Json:
    return {"name": name, "in": "header", "description": description, "schema": schema}


def _query(name: str, schema: Any, description: str) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": schema}
