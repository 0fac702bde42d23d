"""Traces of a real daemon, as a collector of OTLP over HTTP receives them: one from the edge to the upstream's call."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from claude_daemon.offline import OfflineModel
from tests.conftest import StartDaemon
from tests.support import BIN, DaemonProcess, sse

PATIENCE_S = 20.0
KINDS = {Span.SPAN_KIND_SERVER: "server", Span.SPAN_KIND_CLIENT: "client", Span.SPAN_KIND_INTERNAL: "internal"}


@dataclass(frozen=True, kw_only=True)
class Told:
    """One span, and the service that told it."""

    span: Span
    service: str

    @property
    def trace_id(self) -> str:
        return self.span.trace_id.hex()

    @property
    def id(self) -> str:
        return self.span.span_id.hex()

    @property
    def parent(self) -> str:
        return self.span.parent_span_id.hex()

    @property
    def attributes(self) -> dict[str, Any]:
        return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in self.span.attributes}


@dataclass
class Collector:
    """What an OpenTelemetry collector's receiver does with OTLP over HTTP."""

    url: str = ""
    spans: list[Told] = field(default_factory=list)
    _came: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def receive(self, request: web.Request) -> web.Response:
        assert request.headers["Content-Type"] == "application/x-protobuf" and request.headers["x-tenant"] == "mine"
        export = ExportTraceServiceRequest.FromString(await request.read())
        async with self._came:
            for of_resource in export.resource_spans:
                resource = {a.key: a.value.string_value for a in of_resource.resource.attributes}
                assert resource["deployment.environment.name"] == "tests"
                for scope in of_resource.scope_spans:
                    self.spans += [Told(span=span, service=resource["service.name"]) for span in scope.spans]
            self._came.notify_all()
        return web.Response(body=b"", content_type="application/x-protobuf")

    async def trace(self, trace_id: str, count: int) -> list[Told]:
        """Waits until so many spans of a trace have come."""

        def found() -> list[Told]:
            return [one for one in self.spans if one.trace_id == trace_id]

        async with asyncio.timeout(PATIENCE_S), self._came:
            await self._came.wait_for(lambda: len(found()) >= count)
        return found()


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", made.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    made.url = f"http://{host}:{port}"
    yield made
    await runner.cleanup()


@pytest.fixture
async def traced(start_daemon: StartDaemon, collector: Collector) -> DaemonProcess:
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=mine",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=tests",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
    }
    return await start_daemon(environ=environ)


TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"


def shape(spans: list[Told]) -> dict[str, tuple[str, str | None]]:
    """Each span's kind, and the name of the one it is beneath."""
    names = {one.id: one.span.name for one in spans}
    assert len(names) == len({one.span.name for one in spans}), names
    return {one.span.name: (KINDS[one.span.kind], names.get(one.parent)) for one in spans}


def upstream_of(model: OfflineModel, trace_id: str) -> list[str]:
    """What the upstream was told of the trace, for each of its calls."""
    told = [request.headers.get("traceparent", "") for request in model.requests]
    return [header for header in told if header.split("-")[1:2] == [trace_id]]


async def test_a_chat_is_one_trace_from_the_edge_to_the_upstream_and_so_is_a_task(
    traced: DaemonProcess, collector: Collector, model: OfflineModel
) -> None:
    whole = {"queue": ("internal", 0), "turn": ("internal", 0), "model call": ("client", "turn")}
    for number, lane in enumerate(("direct", "text"), 1):
        trace_id = f"{TRACE[:-1]}{number}"
        response = await traced.http.post(
            "/v1/messages",
            json={"model": "sonnet", "max_tokens": 99, "messages": [{"role": "user", "content": "Hello"}]},
            headers={"Claude-Daemon-Lane": lane, "traceparent": f"00-{trace_id}-{CALLER}-01"},
        )
        assert response.status == 200
        spans = await collector.trace(trace_id, 4)
        edge = "POST /v1/messages"
        assert shape(spans) == {
            edge: ("server", None),
            **{name: (kind, above or edge) for name, (kind, above) in whole.items()},
        }
        by_name = {one.span.name: one for one in spans}
        assert by_name[edge].parent == CALLER and {one.service for one in spans} == {"claude-daemon"}
        assert by_name[edge].attributes["http.response.status_code"] == 200
        turn = by_name["turn"]
        assert turn.attributes["claude_daemon.lane"] == lane
        assert turn.attributes["claude_daemon.task_id"] == response.headers["X-Task-ID"]
        assert turn.attributes["gen_ai.usage.output_tokens"] > 0
        assert ("claude_daemon.worker_id" in turn.attributes) is (lane == "text")
        assert upstream_of(model, trace_id) == [f"00-{trace_id}-{by_name['model call'].id}-01"]
        for one in spans:
            assert by_name[edge].span.start_time_unix_nano - 10**7 <= one.span.start_time_unix_nano
            assert one.span.start_time_unix_nano <= one.span.end_time_unix_nano
    # a task outlives the request that brings it, and is of its trace
    trace_id = f"{TRACE[:-1]}3"
    async with traced.http.post(
        "/v1/tasks",
        json={"prompt": "Hello"},
        headers={"Accept": "text/event-stream", "traceparent": f"00-{trace_id}-{CALLER}-01"},
    ) as response:
        assert (await sse(response))[-1][0] == "task.succeeded"
    spans = await collector.trace(trace_id, 4)
    edge = "POST /v1/tasks"
    assert shape(spans) == {
        edge: ("server", None),
        **{name: (kind, above or edge) for name, (kind, above) in whole.items()},
    }
    trace_id = f"{TRACE[:-1]}5"
    headers = {"traceparent": f"00-{trace_id}-{CALLER}-01"}
    async with traced.http.ws_connect("/v1/stream", protocols=("claude-daemon.v1",), headers=headers) as socket:
        await socket.send_json({"op": "submit", "task": {"prompt": "Hello"}})
        async with asyncio.timeout(PATIENCE_S):
            while (await socket.receive_json()).get("type") != "task.succeeded":
                pass
    edge = "GET /v1/stream"
    assert shape(await collector.trace(trace_id, 4)) == {
        edge: ("server", None),
        **{name: (kind, above or edge) for name, (kind, above) in whole.items()},
    }
    # one that begins here is collected too, and a failure is told; one whose caller collects nothing is not
    refused = f"{TRACE[:-1]}4"
    assert (await traced.chat("Hello [[error=400]]", lane="direct")).status == 400
    response = await traced.http.post("/v1/tasks", json={}, headers={"traceparent": f"00-{refused}-{CALLER}-00"})
    assert response.status == 400
    (call,) = upstream_roots(model)
    spans = await collector.trace(call.split("-")[1], 4)
    errors = {one.span.name: one.span.status.message for one in spans}
    assert errors == {
        "POST /v1/messages": "",
        "queue": "",
        "turn": "upstream_invalid_request",
        "model call": "upstream_invalid_request",
    }
    (root,) = [one for one in spans if one.span.name == "POST /v1/messages"]
    assert root.parent == "" and call == f"00-{root.trace_id}-{shape_id(spans, 'model call')}-01"
    async with traced.http.get("/ready") as response:
        assert response.status == 200
    assert await traced.stop() == 0  # which sends what waits
    assert not [one for one in collector.spans if one.trace_id == refused]
    assert {one.span.name for one in collector.spans if one.span.kind == Span.SPAN_KIND_SERVER} == {
        "POST /v1/messages",
        "POST /v1/tasks",
        "GET /v1/stream",
    }


def upstream_roots(model: OfflineModel) -> list[str]:
    """Traces of the last call that are none of the test's."""
    told = [request.headers.get("traceparent", "") for request in model.requests[-1:]]
    return [header for header in told if header and not header.startswith(f"00-{TRACE[:-1]}")]


def shape_id(spans: list[Told], name: str) -> str:
    (one,) = [one for one in spans if one.span.name == name]
    return one.id


async def test_a_collector_that_is_not_there_hurts_nobody(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon(
        {"telemetry.otlp_endpoint": "http://127.0.0.1:9"}, environ={"OTEL_BSP_SCHEDULE_DELAY": "50"}
    )
    assert (await daemon.chat("Hello", lane="direct")).status == 200
    assert await daemon.stop() == 0


_WITHOUT_EXTRA = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
from claude_daemon.cli import main
sys.argv = ["claude-daemon", "run", "--offline"]
main()
"""


def test_without_the_extra_a_configured_collector_is_a_clear_error(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "PATH": f"{BIN}:/usr/bin:/bin", "LANG": "C.UTF-8", "CLAUDE_DAEMON_HTTP__PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_EXTRA],
        env=env | {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 78
    why = "telemetry.otlp_endpoint: traces need OpenTelemetry: pip install 'claude-daemon[otel]'"
    assert why in done.stderr, done.stderr
