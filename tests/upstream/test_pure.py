"""The pure parts: events out of chunks, usage and errors out of events, headers out of credentials."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_daemon.core.errors import Code
from claude_daemon.upstream.client import passed_on, proxy_for
from claude_daemon.upstream.credential import CredentialKind, UpstreamCredential
from claude_daemon.upstream.meter import CallMeter, failure_of_event, failure_of_response
from claude_daemon.upstream.sse import EventTooLong, SSEDecoder

STREAM = (
    b': a comment\n\nevent: message_start\ndata: {"type":"message_start"}\n\n'
    b"data: one\r\ndata:two\r\nid: 7\r\n\r\nevent: ping\n\ndata: last\n\n"
)
EVENTS = [("message_start", b'{"type":"message_start"}'), ("message", b"one\ntwo"), ("message", b"last")]


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_come_out_whole_wherever_the_chunks_are_cut(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(STREAM)]
    decoder = SSEDecoder()
    chunks = [STREAM[a:b] for a, b in itertools.pairwise(edges)]
    assert [event for chunk in chunks for event in decoder.feed(chunk)] == EVENTS


@given(st.integers(1, 40))
def test_an_event_over_the_cap_is_an_error_however_it_is_cut(size: int) -> None:
    decoder = SSEDecoder(max_event_bytes=100)
    with pytest.raises(EventTooLong):
        for _ in range(200):
            decoder.feed(b"data: " + b"x" * size + b"\n")
    decoder = SSEDecoder(max_event_bytes=100)
    with pytest.raises(EventTooLong):
        for _ in range(101):
            decoder.feed(b"x" * size)


def test_the_cap_is_for_one_event_and_not_for_the_stream() -> None:
    decoder = SSEDecoder(max_event_bytes=20)
    assert [len(decoder.feed(b"data: 12345\n\n")) for _ in range(50)] == [1] * 50


def sse(*events: dict[str, Any]) -> bytes:
    return b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events)


CALL = sse(
    {"type": "message_start", "message": {"usage": {"input_tokens": 5, "output_tokens": 1}}},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"output_tokens": 9, "input_tokens": None},
    },
    {"type": "message_stop"},
)


@given(st.integers(0, len(CALL)))
def test_a_call_is_metered_wherever_it_is_cut_into_chunks(at: int) -> None:
    meter = CallMeter(streaming=True)
    meter.feed(CALL[:at])
    meter.feed(CALL[at:])
    meter.end()
    assert (meter.usage.input_tokens, meter.usage.output_tokens, meter.usage.model_calls) == (5, 9, 1)
    assert (meter.stop_reason, meter.failure) == ("end_turn", None)


def test_a_stream_without_its_end_was_cut() -> None:
    meter = CallMeter(streaming=True)
    meter.feed(CALL[: len(CALL) // 2])
    meter.end()
    assert meter.failure is not None and meter.failure.code is Code.UPSTREAM_CUT


def test_a_whole_answer_is_metered_too() -> None:
    meter = CallMeter(streaming=False)
    meter.feed(b'{"usage": {"input_tokens": 2}, ')
    meter.feed(b'"stop_reason": "max_tokens"}')
    meter.end()
    assert (meter.usage.input_tokens, meter.stop_reason, meter.complete) == (2, "max_tokens", True)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"12", b'{"usage": 3}', b'{"usage": [3]}'])
def test_a_whole_answer_that_is_none_is_malformed(body: bytes) -> None:
    meter = CallMeter(streaming=False)
    meter.feed(body)
    meter.end()
    assert meter.failure is not None and meter.failure.code is Code.UPSTREAM_MALFORMED


@given(
    st.recursive(
        st.none() | st.integers(-9, 9) | st.text(max_size=3),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["type", "message", "usage", "delta", "error"]),
                x | st.sampled_from(["message_start", "message_delta", "error"]),
            )
        ),
        max_leaves=8,
    )
)
def test_no_event_of_any_shape_raises(event: object) -> None:
    meter = CallMeter(streaming=True)
    meter.feed(b"data: " + orjson.dumps(event) + b"\n\n")
    meter.end()
    assert meter.failure is not None


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("overloaded_error", Code.UPSTREAM_OVERLOADED),
        ("rate_limit_error", Code.UPSTREAM_RATE_LIMITED),
        ("api_error", Code.UPSTREAM_ERROR),
        ("authentication_error", Code.UPSTREAM_CREDENTIAL),
        ("never_heard_of", Code.UPSTREAM_ERROR),
    ],
)
def test_an_error_event_tells_its_failure(kind: str, code: Code) -> None:
    failure = failure_of_event({"type": "error", "error": {"type": kind, "message": "why"}})
    assert (failure.code, failure.message) == (code, "why")


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        (None, None),
        ("2", 2.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("inf", None),
        ("nan", None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_absent(retry_after: str | None, seconds: float | None) -> None:
    assert failure_of_response(429, b"{}", retry_after).retry_after_seconds == seconds


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"error": "x"}', b'{"error": null}'])
def test_an_error_page_that_is_no_json_still_tells_the_status(body: bytes) -> None:
    assert failure_of_response(500, body, None).message == "the upstream answered with status 500"


def test_a_credential_is_never_in_its_repr() -> None:
    for kind in CredentialKind:
        credential = UpstreamCredential(kind=kind, secret="sk-secret")
        assert "sk-secret" not in f"{credential!r} {credential}"
        assert "sk-secret" in str(dict(credential.headers()))
    assert UpstreamCredential(kind=CredentialKind.AUTH_TOKEN, secret="t").headers() == {"Authorization": "Bearer t"}


def test_of_a_clients_headers_only_the_protocols_own_go_upstream() -> None:
    given_headers = {
        "Anthropic-Beta": "b",
        "Authorization": "Bearer cd_x",
        "x-api-key": "cd_x",
        "Cookie": "c",
        "anthropic-dangerous-direct-browser-access": "true",
    }
    assert passed_on(given_headers) == {"anthropic-beta": "b", "anthropic-version": "2023-06-01"}
    assert passed_on({"anthropic-version": "2024-01-01"}) == {"anthropic-version": "2024-01-01"}


@pytest.mark.parametrize(
    ("url", "environ", "proxy"),
    [
        ("https://api.anthropic.com", {}, None),
        ("https://api.anthropic.com", {"HTTPS_PROXY": "http://p:1"}, "http://p:1"),
        ("https://api.anthropic.com", {"https_proxy": "http://p:1", "NO_PROXY": "example.org"}, "http://p:1"),
        ("https://api.anthropic.com", {"HTTPS_PROXY": "http://p:1", "no_proxy": ".anthropic.com, x"}, None),
        ("https://api.anthropic.com", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, None),
        ("https://api.anthropic.com", {"HTTP_PROXY": "http://p:1"}, None),
        ("http://127.0.0.1:9", {"HTTP_PROXY": "http://p:1"}, None),
    ],
)
def test_the_proxy_is_the_one_the_environment_names(url: str, environ: dict[str, str], proxy: str | None) -> None:
    assert proxy_for(url, environ) == proxy
