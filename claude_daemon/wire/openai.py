"""The OpenAI dialect: what ``api`` needs of it, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from claude_daemon.core.errors import Code, Failure
from claude_daemon.wire import text_lane
from claude_daemon.wire.openai_answer import completion
from claude_daemon.wire.openai_chunks import DONE, ChunkStream, encode
from claude_daemon.wire.openai_models import model_object, models_list
from claude_daemon.wire.openai_request import ChatCompletionRequest
from claude_daemon.wire.openai_translate import Translated, to_messages
from claude_daemon.wire.parse import parse

__all__ = [
    "DONE",
    "ChatCompletionRequest",
    "ChunkStream",
    "Translated",
    "completion",
    "encode",
    "error_body",
    "in_client_words",
    "model_object",
    "models_list",
    "parse_request",
    "to_messages",
]

CLIENT_NAMES: Final[Mapping[str, str]] = {
    "stop_sequences": "stop",
    "output_config.effort": "reasoning_effort",
    "thinking": "reasoning_effort",
    "output_config": "response_format",
    "metadata": "user",
    "system": "messages",
    "messages": "messages",
    "tools": "tools",
    "tool_choice.disable_parallel_tool_use": "parallel_tool_calls",
}
"""Messages API names by the beginning of their path; what is not here has the same name in both."""

ERROR_TYPES: Final[Mapping[int, str]] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


def parse_request(body: bytes) -> ChatCompletionRequest:
    """Raises as :func:`~claude_daemon.wire.parse.parse` does."""
    return parse(ChatCompletionRequest, body)


def in_client_words(failure: Failure) -> Failure:
    """An ``unsupported_parameter`` found in the translated request, under the client's own name for it.

    Positions in ``messages`` are left out: translation merges messages. Other failures are as they were.
    """
    path = failure.param
    if failure.code is not Code.UNSUPPORTED_PARAMETER or path is None:
        return failure
    theirs = next((name for start, name in CLIENT_NAMES.items() if f"{path}.".startswith(f"{start}.")), path)
    return text_lane.renamed(failure, theirs)


def error_body(failure: Failure, status: int) -> dict[str, Any]:
    """OpenAI's error object; also the data of an error in the middle of a stream."""
    if failure.code is Code.BUDGET_EXHAUSTED:
        quota = "insufficient_quota"
        return {"error": {"message": failure.message, "type": quota, "param": failure.param, "code": quota}}
    usual = "invalid_request_error" if 400 <= status < 500 else "server_error"
    kind = ERROR_TYPES.get(status, usual)
    return {
        "error": {
            "message": failure.message,
            "type": kind,
            "param": failure.param,
            "code": failure.code.value,
        }
    }
