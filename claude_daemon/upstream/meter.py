"""Usage and errors, read off the response of one model call as it passes, pure."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any, Final

import orjson

from claude_daemon.core.errors import Code, Failure, failure_of_upstream_status
from claude_daemon.core.message import usage_of
from claude_daemon.core.task import Usage
from claude_daemon.upstream.sse import EventTooLong, SSEDecoder

# The error types of the Messages API that arrive inside a stream, as the status they would have had before it.
_STATUS_OF_TYPE: Mapping[str, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "overloaded_error": 529,
}
_MAX_MESSAGE_CHARS = 2000  # an upstream's error page is not our caller's error message


class CallMeter:
    """One model call. Feed it the body; ``usage``, ``failure``, ``stop_reason`` and ``model`` tell what has passed.

    Whatever an upstream sends, nothing here raises: what cannot be read is ``upstream_malformed``.
    """

    def __init__(self, *, streaming: bool) -> None:
        self.failure: Failure | None = None
        self.stop_reason: str | None = None
        self.model: str | None = None
        self.complete = False
        self.streaming = streaming
        self._decoder = SSEDecoder()
        self._body: list[bytes] = []
        self._usage: dict[str, Any] = {}

    @property
    def usage(self) -> Usage:
        return usage_of(self._usage)

    def feed(self, chunk: bytes) -> None:
        if not self.streaming:
            self._body.append(chunk)
            return
        try:
            for _, data in self._decoder.feed(chunk):
                self.read(orjson.loads(data))
        except (*UNREADABLE, EventTooLong):
            self.failure = malformed()

    def read(self, event: Mapping[str, Any]) -> None:
        """An event of the stream, already decoded. Raises one of :data:`UNREADABLE` for what is none."""
        kind = event["type"]
        if kind == "message_start":
            message = event["message"]
            self._usage.update(message.get("usage") or {})
            self.model = _name(message.get("model"))
        elif kind == "message_delta":
            self._usage.update({k: v for k, v in (event.get("usage") or {}).items() if v is not None})
            self.stop_reason = (event.get("delta") or {}).get("stop_reason")
        elif kind == "message_stop":
            self.complete = True
        elif kind == "error":
            self.failure = failure_of_event(event)

    def end(self) -> None:
        """The body is over: a stream that did not end with ``message_stop`` was cut."""
        if not self.streaming:
            self._whole()
        elif not self.complete and self.failure is None:
            self.failure = cut()

    def _whole(self) -> None:
        try:
            body = orjson.loads(b"".join(self._body))
            self._usage.update(body.get("usage") or {})
            self.model = _name(body.get("model"))
            self.stop_reason = body.get("stop_reason")
            self.complete = True
        except UNREADABLE:
            self.failure = malformed()


def call_fields(meter: CallMeter, failure: Failure | None, seconds: float) -> dict[str, Any]:
    """What is told of a call that is over."""
    usage = meter.usage
    return {
        "model": meter.model,
        "seconds": round(seconds, 6),
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_creation_input_tokens": usage.cache_creation_input_tokens,
        "cache_read_input_tokens": usage.cache_read_input_tokens,
        "stop_reason": meter.stop_reason,
        "failure": failure.code.value if failure is not None else None,
    }


def _name(model: object) -> str | None:
    return model if isinstance(model, str) else None


# What reading JSON of any shape as an event of the API raises (orjson's own error is a ValueError).
UNREADABLE: Final = (ValueError, KeyError, TypeError, AttributeError)


def malformed() -> Failure:
    return Failure(code=Code.UPSTREAM_MALFORMED, message="the upstream's answer cannot be read")


def cut() -> Failure:
    return Failure(code=Code.UPSTREAM_CUT, message="the upstream's answer broke off")


def failure_of_event(event: Mapping[str, Any]) -> Failure:
    """The failure that an ``error`` event inside a stream tells."""
    error = event.get("error")
    error = error if isinstance(error, Mapping) else {}
    status = _STATUS_OF_TYPE.get(str(error.get("type")), 500)
    return failure_of_upstream_status(status, str(error.get("message") or "the upstream failed")[:_MAX_MESSAGE_CHARS])


def failure_of_response(status: int, body: bytes, retry_after: str | None) -> Failure:
    """The failure that an error response tells: its own message where it has one, its ``Retry-After`` in seconds."""
    message = f"the upstream answered with status {status}"
    with contextlib.suppress(*UNREADABLE):
        error = orjson.loads(body).get("error") or {}
        message = str(error.get("message") or message)[:_MAX_MESSAGE_CHARS]
    return failure_of_upstream_status(status, message, _seconds(retry_after))


def _seconds(retry_after: str | None) -> float | None:
    """``Retry-After`` in seconds; its date form, which the API does not use, counts as absent."""
    try:
        seconds = float(retry_after) if retry_after is not None else None
    except ValueError:
        return None
    return max(0.0, seconds) if seconds is not None and math.isfinite(seconds) else None
