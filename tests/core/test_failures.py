"""Failures as data."""

from __future__ import annotations

import pytest

from claude_daemon.core.errors import Code, Refusal, failure_of_upstream_status


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, Code.UPSTREAM_INVALID_REQUEST),
        (401, Code.UPSTREAM_CREDENTIAL),
        (403, Code.UPSTREAM_CREDENTIAL),
        (404, Code.UPSTREAM_NOT_FOUND),
        (413, Code.UPSTREAM_TOO_LARGE),
        (422, Code.UPSTREAM_INVALID_REQUEST),
        (429, Code.UPSTREAM_RATE_LIMITED),
        (500, Code.UPSTREAM_ERROR),
        (503, Code.UPSTREAM_ERROR),
        (529, Code.UPSTREAM_OVERLOADED),
        (302, Code.UPSTREAM_ERROR),
    ],
)
def test_each_status_of_the_upstream_has_its_code(status: int, code: Code) -> None:
    failure = failure_of_upstream_status(status, "said", 3.0)
    assert (failure.code, failure.message, failure.retry_after_seconds) == (code, "said", 3.0)


def test_a_refusal_says_what_its_failure_says() -> None:
    refusal = Refusal.because(Code.CONFLICT, "no", param="model", retry_after_seconds=2)
    assert str(refusal) == "no"
    assert (refusal.failure.code, refusal.failure.param, refusal.failure.retry_after_seconds) == (
        "conflict",
        "model",
        2,
    )
