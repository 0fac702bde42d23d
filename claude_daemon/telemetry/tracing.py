"""Traces for OpenTelemetry: spans that are over, sent by OTLP over HTTP. An extra: ``pip install claude-daemon[otel]``.

What joins spans to a trace is W3C trace context, which the daemon passes on whether or not anybody collects spans; so a
span is told here once, when it is over, with the ids that it had all along, and nothing on its way waits for this. They
are sent in batches by a thread of the SDK's own; what does not fit its queue is dropped.
"""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

SERVICE: Final = "claude-daemon"
EXTRA: Final = "claude-daemon[otel]"
MAX_QUEUED: Final = 2048
"""Spans that wait to be sent: a second of the most that the direct lane serves."""
EXPORT_TIMEOUT_S: Final = 5.0
"""For a batch; a collector that takes longer loses it."""
FLUSH_S: Final = 2.0
"""How long a stop waits for what has not been sent."""
_TRACES_PATH: Final = "/v1/traces"
_NEEDED: Final = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")
_NANO: Final = 1_000_000_000


class NotInstalled(Exception):
    """The extra is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """``trace_id``, ``span_id`` and ``parent_id`` in hex, the last None where the trace begins here. ``began_at`` is
    seconds since the epoch. ``error``: the code of what went wrong."""

    name: str
    kind: Literal["server", "client", "internal"]
    trace_id: str
    span_id: str
    parent_id: str | None
    began_at: float
    seconds: float
    attributes: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    error: str | None = None


def missing() -> str | None:
    """What there is to install before there can be traces; None when all is here."""
    for name in _NEEDED:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"traces need OpenTelemetry: pip install '{EXTRA}'"
    return None


class Traces:
    """Sends spans. ``exporter`` takes them, see :meth:`open`."""

    def __init__(self, exporter: SpanExporter, *, version: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._resource = Resource.create({"service.name": SERVICE, "service.version": version})
        self._scope = InstrumentationScope("claude_daemon", version)
        self._processor = BatchSpanProcessor(exporter, max_queue_size=MAX_QUEUED)

    @classmethod
    def open(cls, endpoint: str, *, version: str) -> Traces:
        """``endpoint``: a collector's base URL, as ``OTEL_EXPORTER_OTLP_ENDPOINT`` has it. What else the SDK takes from
        its own ``OTEL_`` variables (headers, certificates, resource attributes) counts. Raises NotInstalled."""
        if (why := missing()) is not None:
            raise NotInstalled(why)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        url = endpoint.rstrip("/") + _TRACES_PATH
        return cls(OTLPSpanExporter(endpoint=url, timeout=EXPORT_TIMEOUT_S), version=version)

    def tell(self, span: Span) -> None:
        """Waits for nothing."""
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.status import Status, StatusCode

        began = int(span.began_at * _NANO)
        status = Status() if span.error is None else Status(StatusCode.ERROR, span.error)
        self._processor.on_end(
            ReadableSpan(
                span.name,
                context=_context(span.trace_id, span.span_id, remote=False),
                parent=None if span.parent_id is None else _context(span.trace_id, span.parent_id, remote=True),
                resource=self._resource,
                attributes=dict(span.attributes),
                kind=SpanKind[span.kind.upper()],
                status=status,
                start_time=began,
                end_time=began + int(span.seconds * _NANO),
                instrumentation_scope=self._scope,
            )
        )

    async def flush(self) -> None:
        """Sends what waits, now."""
        await asyncio.to_thread(self._processor.force_flush)

    async def close(self) -> None:
        """Sends what waits, within :data:`FLUSH_S`."""
        ending = threading.Thread(target=self._processor.shutdown, name="traces", daemon=True)
        ending.start()
        await asyncio.to_thread(ending.join, FLUSH_S)


def _context(trace_id: str, span_id: str, *, remote: bool) -> Any:
    from opentelemetry.trace import SpanContext, TraceFlags

    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=remote, trace_flags=TraceFlags(0x01))
