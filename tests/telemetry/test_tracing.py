"""Spans as OpenTelemetry's exporters get them, and which are told at all."""

from __future__ import annotations

import contextvars
import importlib.util
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from opentelemetry.trace.status import StatusCode

from claude_daemon.core.errors import Code, Failure
from claude_daemon.core.task import Kind, Lane, Outcome, State, Task, TaskSpec
from claude_daemon.service.run import Run
from claude_daemon.spans import Spans
from claude_daemon.telemetry.tracing import NotInstalled, Span, Traces, missing

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
REQUEST = f"00-{TRACE}-00f067aa0ba902b7-01"
CALLER = f"00-{TRACE}-1111111111111111-01"


class Kept:
    """Takes spans, and keeps them."""

    def __init__(self) -> None:
        self.spans: list[Span] = []

    def tell(self, span: Span) -> None:
        self.spans.append(span)

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]


def telling() -> tuple[Spans, Kept]:
    kept = Kept()
    return Spans(kept, now=lambda: 5000.0, monotonic=lambda: 104.0), kept


def run(traceparent: str | None = REQUEST, failure: Failure | None = None) -> Run:
    """Arrived at 100 s, begun at 101; it is 104 now, and 5000 by the clock."""
    spec = TaskSpec(
        kind=Kind.CHAT,
        lane=Lane.TEXT,
        request={"model": "claude-sonnet-5-5"},
        key_id="local",
        trust_domain="default",
        request_id="req_1",
        traceparent=traceparent,
    )
    state = State.SUCCEEDED if failure is None else State.FAILED
    made = Run(Task(id="task_1", spec=spec, created_at=0.0, outcome=Outcome(state=state, failure=failure)), 100.0)
    made.start, made.worker_id, made.started_at = "warm", "w_1", 101.0
    return made


CALL = {
    "trace_id": TRACE,
    "span_id": "2222222222222222",
    "parent_span_id": "00f067aa0ba902b7",
    "seconds": 2.0,
    "path": "/v1/messages",
    "model": None,
    "input_tokens": 1,
    "output_tokens": 2,
    "failure": None,
}


async def test_an_exporter_gets_the_ids_times_and_failures_as_they_are() -> None:
    exporter = InMemorySpanExporter()
    traces = Traces(exporter, version="1.2.3")
    root = Span(
        name="POST /v1/messages",
        kind="server",
        trace_id=TRACE,
        span_id="00f067aa0ba902b7",
        parent_id=None,
        began_at=1000.5,
        seconds=0.25,
        attributes={"http.response.status_code": 502},
        error="502",
    )
    traces.tell(root)
    traces.tell(replace(root, kind="client", span_id="2" * 16, parent_id=root.span_id, error=None))
    await traces.flush()
    first, second = exporter.get_finished_spans()
    assert first.context is not None and second.context is not None
    assert (f"{first.context.trace_id:032x}", f"{first.context.span_id:016x}") == (TRACE, root.span_id)
    assert first.parent is None and second.parent is not None
    assert f"{second.parent.span_id:016x}" == root.span_id
    assert (first.start_time, first.end_time) == (1_000_500_000_000, 1_000_750_000_000)
    assert (first.kind, second.kind) == (SpanKind.SERVER, SpanKind.CLIENT)
    assert (first.status.status_code, first.status.description) == (StatusCode.ERROR, "502")
    assert second.status.status_code is StatusCode.UNSET
    assert dict(first.attributes or {}) == {"http.response.status_code": 502}
    assert first.resource.attributes["service.name"] == "claude-daemon"
    assert first.resource.attributes["service.version"] == "1.2.3"
    await traces.close()


def test_without_the_extra_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing() is None
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.startswith("opentelemetry") else there(name)
    )
    assert missing() == "traces need OpenTelemetry: pip install 'claude-daemon[otel]'"
    with pytest.raises(NotInstalled):
        Traces.open("http://127.0.0.1:4318", version="1")


def test_a_turn_is_beneath_its_request_and_its_calls_beneath_the_turn() -> None:
    spans, kept = telling()
    failed = run(failure=Failure(code=Code.STALLED, message="x"))

    def attempt() -> None:
        spans.begins(failed)
        spans.model_call(CALL)

    contextvars.copy_context().run(attempt)
    spans.settled(failed)
    spans.access(REQUEST, CALLER, "POST", "/v1/messages", 504, 4.0)
    call, queue, turn, edge = kept.spans
    assert kept.names == ["model call", "queue", "turn", "POST /v1/messages"]
    assert {span.trace_id for span in kept.spans} == {TRACE}
    assert edge.parent_id == "1" * 16 and (queue.parent_id, turn.parent_id) == (edge.span_id, edge.span_id)
    assert (call.span_id, call.parent_id) == ("2" * 16, turn.span_id)
    assert [(span.began_at, span.seconds) for span in kept.spans] == [
        (4998.0, 2.0),
        (4996.0, 1.0),
        (4997.0, 3.0),
        (4996.0, 4.0),
    ]
    assert [span.error for span in kept.spans] == [None, None, "stalled", "504"]


def test_of_an_attempt_that_is_made_again_the_last_one_is_the_turn() -> None:
    spans, kept = telling()
    again = run()
    for _ in range(2):
        contextvars.copy_context().run(spans.begins, again)
    spans.settled(again)
    spans.settled(again)
    assert kept.names == ["queue", "turn", "queue"]


def test_one_that_waited_in_vain_has_no_turn() -> None:
    spans, kept = telling()
    never = run(failure=Failure(code=Code.QUEUE_TIMEOUT, message="x"))
    never.started_at = None
    spans.settled(never)
    (queue,) = kept.spans
    assert (queue.name, queue.seconds, queue.error) == ("queue", 4.0, "queue_timeout")


@pytest.mark.parametrize("traceparent", [None, f"{REQUEST[:-2]}00"])
def test_what_nobody_collects_is_not_told(traceparent: str | None) -> None:
    spans, kept = telling()
    quiet = run(traceparent)

    def attempt() -> None:
        spans.begins(quiet)
        spans.model_call(CALL)

    contextvars.copy_context().run(attempt)
    spans.settled(quiet)
    spans.access(traceparent, None, "POST", "/v1/messages", 200, 1.0)
    assert kept.spans == []


@pytest.mark.parametrize("route", ["/ready", "/health", "/metrics"])
def test_probes_and_scrapes_are_nobodys_request(route: str) -> None:
    spans, kept = telling()
    spans.access(REQUEST, None, "GET", route, 200, 1.0)
    assert kept.spans == []
