"""What metrics are made of: families, their series and the bound of these, and the figures of the process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

MAX_SERIES: Final = 1000
"""Of one family. Routes times methods times statuses are some 300 at most, and a scrape of all at their worst is a
megabyte; what comes beyond it is counted under ``other``."""
OTHER: Final = "other"

Labels = tuple[str, ...]
Samples = float | Mapping[Labels, float]
"""A number, or one for each combination of the family's labels."""
C = TypeVar("C", bound=MetricWrapperBase)


class Counted(dict[str | Labels, C], Generic[C]):
    """One family's children by the values of their labels, in the order of the labels: one label is a plain string."""

    def __init__(self, metric: C, labels: int) -> None:
        super().__init__()
        self._metric = metric
        self._others = (OTHER,) * labels

    def begin(self, *keys: str | Labels) -> None:
        """These stand at 0 from now on: Prometheus sees no rise in a series that begins with 1."""
        for key in keys:
            self[key]

    def __missing__(self, key: str | Labels) -> C:
        if len(self) >= MAX_SERIES:
            return self._metric.labels(*self._others)
        values = (key,) if isinstance(key, str) else key
        child = self[key] = self._metric.labels(*values)
        return child


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a family is, for its documentation and for those that are read. ``kind``: counter, gauge or histogram;
    ``name`` is whole, a counter's with ``_total``."""

    name: str
    kind: str
    help: str
    labels: Labels = ()

    def metric(self, samples: Samples) -> Metric:
        short = self.name.removesuffix("_total")
        made: CounterMetricFamily | GaugeMetricFamily
        if self.kind == "counter":
            made = CounterMetricFamily(short, self.help, labels=self.labels)
        else:
            made = GaugeMetricFamily(short, self.help, labels=self.labels)
        told = samples if isinstance(samples, Mapping) else {(): samples}
        for values, number in told.items():
            made.add_metric(values, number)
        return made


class Process(Collector):
    """``process_…``, by the names that every exporter uses; from /proc, so on Linux alone."""

    FAMILIES: Final = (
        Family(name="process_cpu_seconds_total", kind="counter", help="Processor time of the daemon itself."),
        Family(name="process_resident_memory_bytes", kind="gauge", help="Memory of the daemon itself."),
        Family(name="process_virtual_memory_bytes", kind="gauge", help="Its address space."),
        Family(name="process_start_time_seconds", kind="gauge", help="When it was started, since the epoch."),
        Family(name="process_open_fds", kind="gauge", help="Open file descriptors."),
        Family(name="process_max_fds", kind="gauge", help="How many there may be."),
        Family(name="process_threads", kind="gauge", help="Its threads."),
    )

    def __init__(self) -> None:
        self._collector = ProcessCollector(registry=CollectorRegistry())

    def collect(self) -> Iterator[Metric]:
        yield from self._collector.collect()
        if (threads := _threads()) is not None:
            yield GaugeMetricFamily("process_threads", "Its threads.", value=threads)


def _threads() -> int | None:
    """None where /proc does not tell."""
    try:
        with open("/proc/self/stat", "rb") as file:  # noqa: PTH123 - read at each scrape
            return int(file.read().rpartition(b")")[2].split()[17])
    except OSError:
        return None


def document(collector: Collector) -> bytes:
    """As JSON, see :meth:`Metrics.document <claude_daemon.telemetry.metrics.Metrics.document>`."""
    told = [
        {
            "name": metric.name,
            "type": metric.type,
            "help": metric.documentation,
            "samples": [
                {"name": sample.name, "labels": sample.labels, "value": sample.value} for sample in metric.samples
            ],
        }
        for metric in collector.collect()
    ]
    return orjson.dumps({"metrics": told})
