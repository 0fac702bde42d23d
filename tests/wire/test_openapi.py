"""The OpenAPI document: valid, complete, and true of the models that parse."""

from __future__ import annotations

from typing import Any

import jsonschema
import orjson
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from claude_daemon.wire.anthropic import error_body, parse_messages
from claude_daemon.wire.openai import completion, models_list, parse_request
from claude_daemon.wire.openai import error_body as openai_error_body
from claude_daemon.wire.openapi import document
from claude_daemon.wire.openapi_answers import SCHEMAS

DOCUMENT = document("1.2.3")
USER = {"role": "user", "content": "hi"}


def schema(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}", "components": DOCUMENT["components"]}


def fits(name: str, value: object) -> bool:
    return jsonschema.Draft202012Validator(schema(name)).is_valid(value)


def test_the_document_is_openapi_3_1_and_can_be_written() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert DOCUMENT["info"]["version"] == "1.2.3"
    assert orjson.dumps(DOCUMENT) == orjson.dumps(document("1.2.3"))


def test_every_route_of_this_version_is_there() -> None:
    assert set(DOCUMENT["paths"]) == {
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{id}",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/live",
        "/ready",
        "/startup",
        "/health",
        "/openapi.json",
    }


def test_no_model_has_the_name_of_an_answer() -> None:
    requests = {name for name in DOCUMENT["components"]["schemas"] if name not in SCHEMAS}
    assert {"InputMessage", "ChatCompletionRequest", "MessagesRequest", "CountTokensRequest"} <= requests
    assert DOCUMENT["components"]["schemas"]["Message"] == SCHEMAS["Message"]


def test_no_shape_is_left_that_only_catches_what_is_refused() -> None:
    assert not [name for name in DOCUMENT["components"]["schemas"] if name.startswith("Other")]


@pytest.mark.parametrize(
    "body",
    [
        {"model": "m", "messages": [USER]},
        {
            "model": "m",
            "messages": [USER],
            "stop": "x",
            "n": 1,
            "temperature": 0.5,
            "response_format": {"type": "text"},
        },
        {
            "model": "m",
            "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}],
            "tool_choice": "auto",
        },
    ],
)
def test_what_parses_fits_the_openai_schema(body: dict[str, Any]) -> None:
    parse_request(orjson.dumps(body))
    assert fits("ChatCompletionRequest", body)


@pytest.mark.parametrize(
    "extra", [{"n": 2}, {"x": 1}, {"seed": 1}, {"temperature": 1.5}, {"messages": []}, {"model": 1}]
)
def test_what_is_refused_does_not_fit_the_openai_schema(extra: dict[str, Any]) -> None:
    assert not fits("ChatCompletionRequest", {"model": "m", "messages": [USER]} | extra)


def test_messages_requests_fit_with_fields_that_we_do_not_know() -> None:
    body = {"model": "m", "max_tokens": 1, "messages": [USER], "zeta": 1}
    parse_messages(orjson.dumps(body))
    assert fits("MessagesRequest", body)
    assert not fits("MessagesRequest", {"model": "m", "messages": [USER]})


def test_what_we_answer_fits() -> None:
    from tests.wire.test_errors_and_models import FAILURE

    message = {"content": [{"type": "text", "text": "x"}], "stop_reason": "end_turn", "usage": {}}
    assert fits("ChatCompletion", completion(message, id="chatcmpl-1", created=1, model="m"))
    assert fits("ModelList", models_list({"a": "b"}, created=1))
    assert fits("OpenAIError", openai_error_body(FAILURE, 400))
    assert fits("AnthropicError", error_body(FAILURE, 400, "r"))
