"""The table of answers to failures."""

from __future__ import annotations

import json

import orjson
import pytest

from claude_daemon.api.errors import TABLE, Dialect, dialect_of, headers_of, raw_answer, respond, status_of
from claude_daemon.core.errors import Code, Failure, Fault

OPENAI, ANTHROPIC, PROBLEM = Dialect.OPENAI, Dialect.ANTHROPIC, Dialect.PROBLEM


@pytest.mark.parametrize("code", Code)
def test_every_code_has_a_row_with_an_error_status_in_every_dialect(code: Code) -> None:
    assert code in TABLE
    assert all(400 <= status_of(code, dialect) <= 599 for dialect in Dialect)


# INTERFACE.md, "Errors", by cause; what differs by dialect is in the tests below
SPECIFIED = {
    400: [
        "INVALID_REQUEST",
        "BAD_CONFIGURATION",
        "UNSUPPORTED_PARAMETER",
        "LANE_UNAVAILABLE",
        "UPSTREAM_INVALID_REQUEST",
    ],
    401: ["UNAUTHENTICATED"],
    403: ["FORBIDDEN", "FROM_WORKER", "ORIGIN_NOT_ALLOWED", "SANDBOX_UNAVAILABLE"],
    402: ["MAX_COST"],
    404: ["NOT_FOUND", "MODEL_NOT_FOUND", "UPSTREAM_NOT_FOUND"],
    405: ["METHOD_NOT_ALLOWED"],
    408: ["REQUEST_TIMEOUT"],
    409: ["CONFLICT", "IDEMPOTENCY_CONFLICT", "MAX_TURNS", "DISK_QUOTA", "MEMORY_LIMIT"],
    413: ["BODY_TOO_LARGE", "UPSTREAM_TOO_LARGE"],
    415: ["UNSUPPORTED_MEDIA_TYPE"],
    421: ["HOST_NOT_ALLOWED"],
    426: ["CONTROL_VERSION"],
    429: ["UPSTREAM_RATE_LIMITED", "QUEUE_FULL", "RATE_LIMITED"],
    499: ["CANCELLED"],
    500: ["INTERNAL"],
    502: [
        "UPSTREAM_ERROR",
        "UPSTREAM_UNREACHABLE",
        "UPSTREAM_CUT",
        "UPSTREAM_MALFORMED",
        "UPSTREAM_CREDENTIAL",
        "ENGINE_CRASHED",
        "ANSWER_DIVERGED",
        "SCHEMA_MISMATCH",
        "MCP_UNAVAILABLE",
    ],
    503: ["DRAINING", "NOT_READY", "ENGINE_UNAVAILABLE", "INTERRUPTED", "STORE_UNAVAILABLE"],
    504: ["DEADLINE", "STALLED"],
}
OVERLOADS = [Code.OVERLOADED, Code.QUEUE_TIMEOUT, Code.UPSTREAM_OVERLOADED]


@pytest.mark.parametrize(("status", "names"), SPECIFIED.items())
def test_each_cause_has_the_status_that_the_interface_names(status: int, names: list[str]) -> None:
    assert {status_of(Code[name], dialect) for name in names for dialect in Dialect} == {status}


def test_the_two_lists_above_leave_out_no_code() -> None:
    apart = {*OVERLOADS, Code.BUDGET_EXHAUSTED}
    assert {Code[name] for names in SPECIFIED.values() for name in names} | apart == set(Code)


def test_a_spent_budget_is_402_and_what_openai_calls_it_on_its_routes() -> None:
    spent = Failure(code=Code.BUDGET_EXHAUSTED, message="spent")
    assert [status_of(spent.code, dialect) for dialect in (ANTHROPIC, OPENAI, PROBLEM)] == [402, 429, 402]
    assert headers_of(spent) == {"x-should-retry": "false"}
    answer = respond(spent, dialect=OPENAI, request_id="r")
    assert isinstance(answer.body, bytes)
    error = orjson.loads(answer.body)["error"]
    assert (answer.status, error["type"], error["code"]) == (429, "insufficient_quota", "insufficient_quota")
    answer = respond(spent, dialect=ANTHROPIC, request_id="r")
    assert isinstance(answer.body, bytes)
    assert orjson.loads(answer.body)["error"]["type"] == "billing_error"


@pytest.mark.parametrize("code", OVERLOADS)
def test_an_overload_is_529_on_anthropic_routes_and_503_elsewhere(code: Code) -> None:
    assert [status_of(code, dialect) for dialect in (ANTHROPIC, OPENAI, PROBLEM)] == [529, 503, 503]
    assert int(headers_of(Failure(code=code, message=""))["Retry-After"]) >= 1


@pytest.mark.parametrize(("given", "told"), [(0, "1"), (0.2, "1"), (1.1, "2"), (30, "30")])
def test_retry_after_is_in_whole_seconds_rounded_up_and_never_0(given: float, told: str) -> None:
    failure = Failure(code=Code.UPSTREAM_RATE_LIMITED, message="", retry_after_seconds=given)
    assert headers_of(failure)["Retry-After"] == told


def test_an_upstream_rate_limit_without_a_hint_is_passed_on_without_one() -> None:
    assert headers_of(Failure(code=Code.UPSTREAM_RATE_LIMITED, message="")) == {}


def test_draining_says_when_to_come_back_and_closes() -> None:
    headers = headers_of(Failure(code=Code.DRAINING, message=""))
    assert headers["Connection"] == "close" and int(headers["Retry-After"]) >= 1


@pytest.mark.parametrize("code", [Code.CANCELLED, Code.CONFLICT, Code.UPSTREAM_CREDENTIAL])
def test_what_no_repetition_can_mend_tells_client_libraries_not_to_try(code: Code) -> None:
    assert headers_of(Failure(code=code, message=""))["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("path", "dialect"),
    [
        ("/v1/chat/completions", OPENAI),
        ("/v1/models", OPENAI),
        ("/v1/models/claude-sonnet-4-5", OPENAI),
        ("/v1/messages", ANTHROPIC),
        ("/v1/messages/count_tokens", ANTHROPIC),
        ("/v1/messagesx", PROBLEM),
        ("/v1/modelsx", PROBLEM),
        ("/v1/chat/completionsx", PROBLEM),
        ("/v1/tasks", PROBLEM),
        ("/", PROBLEM),
        ("", PROBLEM),
    ],
)
def test_a_path_has_its_dialect(path: str, dialect: Dialect) -> None:
    assert dialect_of(path) is dialect


FAILURE = Failure(code=Code.UNSUPPORTED_PARAMETER, message="no n", param="n", faults=(Fault(path="n", message="no n"),))


def test_each_dialect_has_its_form() -> None:
    def body(dialect: Dialect) -> dict:
        answer = respond(FAILURE, dialect=dialect, request_id="req_1")
        assert answer.status == 400 and isinstance(answer.body, bytes)
        expected = "application/problem+json" if dialect is PROBLEM else "application/json"
        assert answer.content_type == expected
        return json.loads(answer.body)

    assert body(OPENAI)["error"]["code"] == "unsupported_parameter"
    assert body(ANTHROPIC)["error"]["type"] == "invalid_request_error"
    assert body(ANTHROPIC)["request_id"] == "req_1"
    problem = body(PROBLEM)
    assert problem["code"] == "unsupported_parameter" and problem["request_id"] == "req_1"
    assert problem["errors"] == [{"path": "n", "message": "no n"}]


def test_a_lone_surrogate_in_a_message_is_answered_like_any_other() -> None:
    answer = respond(Failure(code=Code.NOT_FOUND, message="no \udcff"), dialect=PROBLEM, request_id="r")
    assert isinstance(answer.body, bytes) and json.loads(answer.body)["detail"] == "no \udcff"


def test_a_message_with_line_breaks_adds_no_header() -> None:
    failure = Failure(code=Code.OVERLOADED, message="a\r\nSet-Cookie: b=c\r\n\r\n")
    head, _, body = raw_answer(failure, dialect=PROBLEM, request_id="req_1").partition(b"\r\n\r\n")
    assert b"Set-Cookie" not in head and json.loads(body)["detail"] == failure.message


def test_the_answer_in_bytes_is_complete_http() -> None:
    failure = Failure(code=Code.OVERLOADED, message="too many")
    head, _, body = raw_answer(failure, dialect=ANTHROPIC, request_id="req_1").partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")
    assert lines[0] == "HTTP/1.1 529 Overloaded"
    headers = dict(line.split(": ", 1) for line in lines[1:])
    assert headers["Connection"] == "close" and headers["X-Request-ID"] == "req_1" and headers["Retry-After"]
    assert int(headers["Content-Length"]) == len(body) and json.loads(body)["error"]["type"] == "overloaded_error"
