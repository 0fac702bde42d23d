"""What the chat routes make of headers, events and requests by themselves; the rest is in tests/e2e/test_sdk_*."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from claude_daemon.api.anthropic import _Message, estimated_tokens
from claude_daemon.api.chat import check_schema, passed_headers
from claude_daemon.core.errors import Code, Failure, Fault, Refusal
from claude_daemon.core.event import MESSAGE_EVENT, Event


def event(data: Any, raw: bytes | None = None) -> Event:
    return Event(1, MESSAGE_EVENT, data, raw)


def sse_events(stream: bytes) -> list[tuple[str, Any]]:
    """As a client reads them: a line that is no field is dropped."""
    events = []
    for frame in stream.decode().replace("\r", "\n").split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in frame.split("\n"))
        events.append((fields["event"], orjson.loads(fields["data"])))
    return events


def test_of_a_clients_headers_only_the_protocols_own_go_on_and_never_its_key() -> None:
    headers = CIMultiDict([("Anthropic-Beta", "a"), ("X-Api-Key", "cd_secret"), ("Cookie", "c")])
    headers.add("anthropic-beta", "b")
    request = make_mocked_request("POST", "/v1/messages", headers=headers)
    assert passed_headers(request) == {"anthropic-beta": "a, b"}


def test_an_upstreams_event_goes_on_byte_for_byte() -> None:
    raw = b'{"type" : "ping",  "of_tomorrow":1.0}'
    assert _Message("req_1").events([event({"type": "ping"}, raw)]) == b"event: ping\ndata: " + raw + b"\n\n"


@pytest.mark.parametrize("raw", [b'{"type":\n"ping"}', b'{"type":\r"ping"}'])
def test_a_line_break_in_an_event_does_not_end_it(raw: bytes) -> None:
    told = _Message("req_1").events([event({"type": "ping"}, raw)])
    assert sse_events(told) == [("ping", {"type": "ping"})]


def test_the_type_of_an_unknown_event_cannot_begin_another_line() -> None:
    told = _Message("req_1").events([event({"type": "of\ntomorrow\r\n"})])
    assert told.startswith(b"event: oftomorrow\ndata: ")
    assert told.count(b"\n") == 3


def test_a_failure_in_mid_stream_is_the_dialects_error_event() -> None:
    told = _Message("req_1").failed(Failure(code=Code.UPSTREAM_OVERLOADED, message="Overloaded"))
    body = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}, "request_id": "req_1"}
    assert sse_events(told) == [("error", body)]


async def test_the_faults_of_a_schema_are_told_where_the_client_wrote_it() -> None:
    class Schemas:
        async def check(self, schema: object) -> list[Fault]:
            return [Fault(path="", message="One."), Fault(path="a.b", message="Two.")]

        async def validate(self, schema: Any, text: str) -> None:
            return None

    with pytest.raises(Refusal) as caught:
        await check_schema(Schemas(), {}, "format.schema")
    failure = caught.value.failure
    assert (failure.code, failure.param) == (Code.INVALID_REQUEST, "format.schema")
    assert [fault.path for fault in failure.faults] == ["format.schema", "format.schema.a.b"]
    assert failure.message == "format.schema: One. format.schema.a.b: Two."


def test_an_estimate_goes_by_the_text_and_not_by_the_bytes_of_a_picture() -> None:
    def asked(*content: Any) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": list(content)}]}

    text = {"type": "text", "text": "x" * 4000}
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 4_000_000}}
    assert 1000 <= estimated_tokens(asked(text)) < 1100
    assert 2600 <= estimated_tokens(asked(text, picture)) < 2700
    assert estimated_tokens({"messages": [{"role": "user", "content": ""}]}) > 0
    assert estimated_tokens(asked(text) | {"system": "y" * 4000}) > 2000


def test_a_message_that_was_made_here_is_json() -> None:
    assert orjson.loads(_Message("req_1").message({"id": "msg_1"}, None)) == {"id": "msg_1"}
    assert _Message("req_1").message({}, b"as it came") == b"as it came"
