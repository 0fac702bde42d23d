"""The errors of the Messages API: one exception, and the shape it has on the wire."""

from collections.abc import Mapping
from typing import Any, Final

ERROR_TYPES: Final[Mapping[int, str]] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}

MESSAGES: Final[Mapping[int, str]] = {
    400: "The request was refused on demand.",
    401: "invalid x-api-key",
    403: "Your API key does not have permission to use the specified resource.",
    404: "Not found",
    405: "Method Not Allowed",
    413: "Request exceeds the maximum size",
    429: "This request would exceed your organization's rate limit. Please try again later.",
    500: "Internal server error",
    529: "Overloaded",
}


class ApiError(Exception):
    """An answer that is an error. `retry_after_seconds` becomes the `retry-after` header."""

    def __init__(self, status: int, message: str | None = None, *, retry_after_seconds: int | None = None) -> None:
        super().__init__(message or MESSAGES[status])
        self.status = status
        self.retry_after_seconds = retry_after_seconds

    @property
    def type(self) -> str:
        """The API's name for this status."""
        return ERROR_TYPES[self.status]


def error_body(error_type: str, message: str, request_id: str) -> dict[str, Any]:
    """The body of every error, as an answer and as an `error` event."""
    return {"type": "error", "error": {"type": error_type, "message": message}, "request_id": request_id}
