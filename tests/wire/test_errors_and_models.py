"""Error bodies of the three dialects, and the list of models."""

from __future__ import annotations

import anthropic.types
import openai.types
import pytest

from claude_daemon.core.errors import Code, Failure, Fault
from claude_daemon.wire import anthropic as messages_dialect
from claude_daemon.wire import openai as openai_dialect
from claude_daemon.wire.problem import problem

FAILURE = Failure(code=Code.INVALID_REQUEST, message="a: no.", param="a", faults=(Fault(path="a", message="no."),))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_an_anthropic_error_has_the_type_of_its_status(status: int, kind: str) -> None:
    body = messages_dialect.error_body(FAILURE, status, "req-1")
    assert body == {"type": "error", "error": {"type": kind, "message": "a: no."}, "request_id": "req-1"}


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error"),
     (404, "invalid_request_error"), (429, "rate_limit_error"), (500, "server_error"), (503, "server_error")],
)  # fmt: skip
def test_an_openai_error_has_its_four_fields(status: int, kind: str) -> None:
    body = openai_dialect.error_body(FAILURE, status)
    assert body == {"error": {"message": "a: no.", "type": kind, "param": "a", "code": "invalid_request"}}


def test_a_problem_tells_its_faults() -> None:
    assert problem(FAILURE, 400, "req-1") == {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "detail": "a: no.",
        "code": "invalid_request",
        "request_id": "req-1",
        "errors": [{"path": "a", "message": "no."}],
    }


def test_a_problem_with_a_parameter_and_no_list_names_it() -> None:
    named = problem(Failure(code=Code.UNSUPPORTED_PARAMETER, message="No.", param="x"), 400, "r")
    assert named["errors"] == [{"path": "x", "message": "No."}]
    assert "errors" not in problem(Failure(code=Code.OVERLOADED, message="Full."), 503, "r")
    assert problem(Failure(code=Code.OVERLOADED, message="Full."), 529, "r")["title"] == "Overloaded"


def test_both_client_libraries_read_the_list_of_models() -> None:
    listed = openai_dialect.models_list({"sonnet": "claude-sonnet-9", "best": "claude-sonnet-9"}, created=1_700_000_000)
    assert [model["id"] for model in listed["data"]] == ["sonnet", "best", "claude-sonnet-9"]
    assert (listed["first_id"], listed["last_id"], listed["has_more"]) == ("sonnet", "claude-sonnet-9", False)
    for model in listed["data"]:
        openai.types.Model.model_validate(model)
        read = anthropic.types.ModelInfo.model_validate(model)
        assert read.created_at.timestamp() == 1_700_000_000
        assert read.display_name == "claude-sonnet-9"


def test_a_model_that_is_its_own_alias_is_listed_once_and_an_empty_list_is_a_list() -> None:
    assert len(openai_dialect.models_list({"m": "m"}, created=0)["data"]) == 1
    assert openai_dialect.models_list({}, created=0)["first_id"] is None
