"""The OpenAPI 3.1 document: requests from the models that parse them, answers from ``openapi_answers``."""

from __future__ import annotations

from typing import Final

import orjson
from pydantic.json_schema import models_json_schema

from claude_daemon.wire import openapi_chats, openapi_sessions, openapi_tasks, openapi_usage
from claude_daemon.wire.anthropic import CountTokensRequest, MessagesRequest
from claude_daemon.wire.openai_request import ChatCompletionRequest
from claude_daemon.wire.openapi_answers import SCHEMAS
from claude_daemon.wire.openapi_parts import ANY_ROUTE, REF, SECURITY, Json, answer, errors, ref, ref_to
from claude_daemon.wire.problem import CONTENT_TYPE
from claude_daemon.wire.tasks import ApprovalAnswer, BatchRequest, TaskRequest

_REQUESTS: Final = (
    ChatCompletionRequest,
    MessagesRequest,
    CountTokensRequest,
    TaskRequest,
    BatchRequest,
    ApprovalAnswer,
)


def document(version: str) -> Json:
    """The document for this version of the daemon. Built anew at each call: keep what you serve."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "claude-daemon",
            "version": version,
            "summary": "Claude Code as a local service",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": SECURITY,
        "paths": {
            **openapi_chats.paths(),
            **openapi_tasks.paths(),
            **openapi_sessions.paths(),
            **openapi_usage.paths(),
            **_operations(),
        },
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A key: `cd_…`"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "parameters": openapi_chats.parameters(),
            "headers": _headers(),
        },
    }


def _schemas() -> Json:
    """All shapes by name, but for those that nothing refers to: they only catch what is refused."""
    _, made = models_json_schema([(model, "validation") for model in _REQUESTS], ref_template=REF)
    schemas: Json = made["$defs"]
    schemas["BatchRequest"]["properties"]["tasks"]["items"] = openapi_tasks.batch_items()
    text = orjson.dumps(schemas).decode()
    named = {model.__name__ for model in _REQUESTS}
    used = {name: schema for name, schema in schemas.items() if name in named or f'"{ref_to(name)}"' in text}
    return dict(sorted({**used, **SCHEMAS}.items()))


def _headers() -> Json:
    text = {"type": "string"}
    return {
        "X-Request-ID": {
            "description": "The client's own where it is well formed, else a new one.",
            "schema": text,
        },
        "X-Task-ID": {"description": "The task this request became.", "schema": text},
        "X-Session-ID": {"description": "The session, where the chat continues one.", "schema": text},
        "Claude-Daemon-Lane": {"description": "The lane taken.", "schema": text},
        "Location": {"description": "Where what was made is found.", "schema": text},
    }


def _operations() -> Json:
    return {
        **{path: {"get": _probe(path)} for path in ("/live", "/ready", "/startup")},
        "/health": {"get": _health()},
        "/metrics": {"get": _metrics()},
        "/openapi.json": {"get": _this_document()},
    }


def _probe(path: str) -> Json:
    return {
        "operationId": f"probe{path[1:].capitalize()}",
        "tags": ["operations"],
        "summary": f"Is the daemon {path[1:]}?",
        "security": [],
        "responses": {status: answer(text, "Probe") for status, text in (("200", "Yes."), ("503", "No, and why."))},
    }


def _health() -> Json:
    content = {"application/health+json": {"schema": ref("Health")}}
    texts = {"200": "Pass or warn.", "503": "Fail."}
    return {
        "operationId": "health",
        "tags": ["operations"],
        "summary": "How each part is; details with a key only",
        "security": [{}, *SECURITY],
        "responses": {status: {"description": text, "content": content} for status, text in texts.items()},
    }


def _metrics() -> Json:
    content = {"text/plain": {"schema": {"type": "string", "description": "Prometheus' text format, version 0.0.4."}}}
    return {
        "operationId": "metrics",
        "tags": ["operations"],
        "summary": "Numbers for Prometheus; takes a key whose role has the scope `metrics`",
        "responses": {"200": {"description": "Every metric.", "content": content}}
        | errors("Problem", *ANY_ROUTE, media_type=CONTENT_TYPE),
    }


def _this_document() -> Json:
    content = {"application/json": {"schema": {"type": "object"}}}
    return {
        "operationId": "openapi",
        "tags": ["operations"],
        "summary": "This document",
        "security": [],
        "responses": {"200": {"description": "OpenAPI 3.1.", "content": content}},
    }
