"""Chats and models in the OpenAPI document: the routes of the two dialects."""

from __future__ import annotations

from typing import Final

from claude_daemon.wire.openapi_parts import (
    ANY_BODY,
    ANY_ROUTE,
    Json,
    answer,
    body,
    errors,
    events,
    headers,
    path_id,
    ref,
)

_OPENAI: Final = (*ANY_BODY, "404", "429", "499", "502", "504")
_ANTHROPIC: Final = (*_OPENAI, "402", "529")


def paths() -> Json:
    return {
        "/v1/chat/completions": {"post": _chat_completions()},
        "/v1/messages": {"post": _messages()},
        "/v1/messages/count_tokens": {"post": _count_tokens()},
        "/v1/models": {"get": {"operationId": "listModels"} | _models("ModelList", *ANY_ROUTE, "429")},
        "/v1/models/{id}": {
            "parameters": [path_id("An alias or a model's name.")],
            "get": {"operationId": "getModel"} | _models("Model", *ANY_ROUTE, "404", "429"),
        },
    }


def parameters() -> Json:
    lanes = {"type": "string", "enum": ["auto", "direct", "text"], "default": "auto"}
    return {
        "Lane": {"name": "Claude-Daemon-Lane", "in": "header", "schema": lanes},
        "Session": {
            "name": "X-Session-ID",
            "in": "header",
            "description": "The session that the chat continues: what was said last is its next turn.",
            "schema": {"type": "string"},
        },
    }


def _chat_completions() -> Json:
    chat = _chat("Chat Completions", "ChatCompletionRequest")
    answered = _answered("ChatCompletion", "ChatCompletionChunk")
    return {"operationId": "createChatCompletion", **chat, "responses": answered | errors("OpenAIError", *_OPENAI)}


def _messages() -> Json:
    answered = _answered("Message", "MessageEvent")
    responses = answered | errors("AnthropicError", *_ANTHROPIC)
    return {"operationId": "createMessage", **_chat("Messages", "MessagesRequest"), "responses": responses}


def _chat(title: str, request: str) -> Json:
    return {
        "tags": ["chat"],
        "summary": title,
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in ("Lane", "Session")],
        "requestBody": body(request),
    }


def _answered(model: str, event: str) -> Json:
    return {
        "200": {
            "description": "The answer, whole or as server-sent events.",
            "headers": headers("X-Request-ID", "X-Task-ID", "X-Session-ID", "Claude-Daemon-Lane"),
            "content": {"application/json": {"schema": ref(model)}, **events(f"`data:` is a {event}.")},
        }
    }


def _count_tokens() -> Json:
    return {
        "operationId": "countTokens",
        "tags": ["chat"],
        "summary": "Count a request's input tokens",
        "requestBody": body("CountTokensRequest"),
        "responses": {"200": answer("The count; estimated where the login does not count.", "TokenCount")}
        | errors("AnthropicError", *_ANTHROPIC),
    }


def _models(model: str, *statuses: str) -> Json:
    return {
        "tags": ["models"],
        "summary": "Models and their aliases",
        "responses": {"200": answer("For the OpenAI and the Anthropic client libraries alike.", model)}
        | errors("OpenAIError", *statuses),
    }
