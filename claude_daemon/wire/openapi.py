"""The OpenAPI 3.1 document: requests from the models that parse them, answers from ``openapi_answers``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import orjson
from pydantic.json_schema import models_json_schema

from claude_daemon.wire.anthropic import CountTokensRequest, MessagesRequest
from claude_daemon.wire.openai_request import ChatCompletionRequest
from claude_daemon.wire.openapi_answers import SCHEMAS

REF: Final = "#/components/schemas/{model}"
_REQUESTS: Final = (ChatCompletionRequest, MessagesRequest, CountTokensRequest)

Json = dict[str, Any]

_SECURITY: Final[list[dict[str, list[str]]]] = [{"bearer": []}, {"apiKey": []}]
_ERRORS: Final[Mapping[str, str]] = {
    "400": "The request is wrong, or asks for what cannot be had; all faults are told at once.",
    "401": "No key, or one that is not valid.",
    "403": "The key may not do this.",
    "404": "Unknown, or not this key's.",
    "413": "The body is too large.",
    "429": "Too many requests; see Retry-After.",
    "502": "The upstream cannot be reached or has failed, or the engine has crashed.",
    "503": "Draining, or overloaded; see Retry-After.",
    "504": "The deadline has passed.",
}
_OVERLOADED: Final = {"529": "Overloaded; see Retry-After."}


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
        "security": _SECURITY,
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "A key: `cd_…`"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
            "parameters": {"Lane": _lane_parameter(), "Session": _session_parameter()},
            "headers": _headers(),
        },
    }


def _schemas() -> Json:
    """All shapes by name, but for those that nothing refers to: they only catch what is refused."""
    _, made = models_json_schema([(model, "validation") for model in _REQUESTS], ref_template=REF)
    text = orjson.dumps(made["$defs"]).decode()
    named = {model.__name__ for model in _REQUESTS}
    used = {name: schema for name, schema in made["$defs"].items() if name in named or f'"{_ref_to(name)}"' in text}
    return dict(sorted({**used, **SCHEMAS}.items()))


def _paths() -> Json:
    chat = _chat("Chat Completions", "ChatCompletionRequest", "ChatCompletion", "OpenAIError", "ChatCompletionChunk")
    messages = _chat("Messages", "MessagesRequest", "Message", "AnthropicError", "MessageEvent", _OVERLOADED)
    return {
        "/v1/chat/completions": {"post": {"operationId": "createChatCompletion"} | chat},
        "/v1/messages": {"post": {"operationId": "createMessage"} | messages},
        "/v1/messages/count_tokens": {"post": {"operationId": "countTokens"} | _count_tokens()},
        "/v1/models": {"get": {"operationId": "listModels"} | _models("ModelList", "200")},
        "/v1/models/{id}": {
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}],
            "get": {"operationId": "getModel"} | _models("Model", "200", "404"),
        },
        **{path: {"get": _probe(path)} for path in ("/live", "/ready", "/startup")},
        "/health": {"get": _health()},
        "/openapi.json": {"get": _this_document()},
    }


def _chat(title: str, request: str, answer: str, error: str, event: str, more: Mapping[str, str] | None = None) -> Json:
    answered = {
        "description": "The answer, whole or as server-sent events.",
        "headers": {
            name: {"$ref": f"#/components/headers/{name}"}
            for name in ("X-Request-ID", "X-Task-ID", "Claude-Daemon-Lane")
        },
        "content": {
            "application/json": {"schema": _ref(answer)},
            "text/event-stream": {"schema": {"type": "string", "description": f"`data:` is a {event}."}},
        },
    }
    return {
        "tags": ["chat"],
        "summary": title,
        "parameters": [{"$ref": "#/components/parameters/Lane"}, {"$ref": "#/components/parameters/Session"}],
        "requestBody": _body(request),
        "responses": {"200": answered} | _errors(error, {**_ERRORS, **(more or {})}),
    }


def _count_tokens() -> Json:
    return {
        "tags": ["chat"],
        "summary": "Count a request's input tokens",
        "requestBody": _body("CountTokensRequest"),
        "responses": {"200": _json("The count; estimated where the login does not count.", "TokenCount")}
        | _errors("AnthropicError", {**_ERRORS, **_OVERLOADED}),
    }


def _models(answer: str, *statuses: str) -> Json:
    errors = {status: text for status, text in _ERRORS.items() if status in ("401", "429", *statuses)}
    return {
        "tags": ["models"],
        "summary": "Models and their aliases",
        "responses": {"200": _json("For the OpenAI and the Anthropic client libraries alike.", answer)}
        | _errors("OpenAIError", errors),
    }


def _probe(path: str) -> Json:
    answers = {status: _json(text, "Probe") for status, text in (("200", "Yes."), ("503", "No, and why."))}
    return {
        "operationId": f"probe{path[1:].capitalize()}",
        "tags": ["operations"],
        "summary": f"Is the daemon {path[1:]}?",
        "security": [],
        "responses": answers,
    }


def _health() -> Json:
    content = {"application/health+json": {"schema": _ref("Health")}}
    texts = {"200": "Pass or warn.", "503": "Fail."}
    return {
        "operationId": "health",
        "tags": ["operations"],
        "summary": "How each part is; details with a key only",
        "security": [{}, *_SECURITY],
        "responses": {status: {"description": text, "content": content} for status, text in texts.items()},
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


def _body(model: str) -> Json:
    return {"required": True, "content": {"application/json": {"schema": _ref(model)}}}


def _json(description: str, model: str) -> Json:
    return {"description": description, "content": {"application/json": {"schema": _ref(model)}}}


def _errors(model: str, texts: Mapping[str, str]) -> Json:
    return {status: _json(text, model) for status, text in texts.items()}


def _ref(model: str) -> Json:
    return {"$ref": _ref_to(model)}


def _ref_to(model: str) -> str:
    return REF.format(model=model)


def _lane_parameter() -> Json:
    lanes = {"type": "string", "enum": ["auto", "direct", "text"], "default": "auto"}
    return {"name": "Claude-Daemon-Lane", "in": "header", "schema": lanes}


def _session_parameter() -> Json:
    return {"name": "X-Session-ID", "in": "header", "schema": {"type": "string"}}


def _headers() -> Json:
    text = {"type": "string"}
    return {
        "X-Request-ID": {
            "description": "The client's own where it is well formed, else a new one.",
            "schema": text,
        },
        "X-Task-ID": {"description": "The task this request became.", "schema": text},
        "Claude-Daemon-Lane": {"description": "The lane taken.", "schema": text},
    }
