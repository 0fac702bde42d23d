"""RFC 9457 problem details, the form of every error outside the two chat dialects."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from claude_daemon.core.errors import Failure

CONTENT_TYPE: Final = "application/problem+json"


def problem(failure: Failure, status: int, request_id: str) -> dict[str, Any]:
    """The body; its ``type`` is ``about:blank``: ``title`` is the status's phrase, ``code`` tells which."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": _phrase(status),
        "status": status,
        "detail": failure.message,
        "code": failure.code.value,
        "request_id": request_id,
    }
    if failure.faults:
        body["errors"] = [{"path": fault.path, "message": fault.message} for fault in failure.faults]
    elif failure.param is not None:
        body["errors"] = [{"path": failure.param, "message": failure.message}]
    return body


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Overloaded" if status == 529 else "Error"
