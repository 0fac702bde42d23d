"""Metrics: every family that there is, in one registry of its own, and the text that Prometheus reads.

Two kinds. What happens is counted in place: ``metrics.tasks_ended["chat", "direct", "ok"].inc()`` is a look-up and an
addition. What *is* (queues, workers, budgets) is kept nowhere: :attr:`Metrics.read` is asked for all of it at each
scrape. Names and units follow Prometheus' conventions, times are seconds and sizes bytes. No label holds what a client
may choose: routes are templates, models are the configured ones, and no family has more than :data:`MAX_SERIES`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import orjson
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

NAMESPACE: Final = "claude_daemon"
CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
MAX_SERIES: Final = 1000
"""Of one family. Routes times methods times statuses are some 300 at most, and a scrape of all at their worst is a
megabyte; what comes beyond it is counted under ``other``."""
OTHER: Final = "other"

REQUEST_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
"""From a probe's millisecond to an answer that is streamed for minutes."""
FIRST_DELTA_BUCKETS: Final = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 15, 60)
"""3 ms direct, 30 ms warm, 400 ms cold; the rest is the model's own."""
TURN_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1800)
WAIT_BUCKETS: Final = (0.001, 0.005, 0.025, 0.1, 0.5, 1, 2.5, 5, 15, 30, 60, 300, 900, 3600)
"""A chat waits for seconds, a task of a batch for an hour."""
COMMIT_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5)
ITEM_BUCKETS: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)

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


class Metrics:
    """Made once, by the composition root. ``read`` tells the numbers of the families that are read, by their names
    without the namespace; it runs in the loop and keeps it for as short as it can. ``look`` comes before it, and may
    wait for what is read elsewhere."""

    def __init__(self) -> None:
        self.look: Callable[[], Awaitable[None]] = _nothing
        self.read: Callable[[], Mapping[str, Samples]] = dict
        self.families: list[Family] = []
        """All of them, in the order of the page; those of the process last."""
        self._registry = CollectorRegistry()
        self._read_families: dict[str, Family] = {}
        self._count_edge()
        self._count_turns()
        self._count_engine()
        self._count_store()
        self._read_parts()
        self._process = _Process()
        self._one_scrape = asyncio.Lock()
        self.families += _Process.FAMILIES

    # what is counted in place

    def _count_edge(self) -> None:
        self.http_requests = self._counter(
            "http_requests",
            "Requests to the public port, by route, method and class of their status (499: the client left).",
            "route",
            "method",
            "status",
        )
        self.http_request_seconds = self._histogram(
            "http_request_seconds",
            "From a request's head to the last byte of its answer, streams and WebSockets included.",
            "route",
            buckets=REQUEST_BUCKETS,
        )
        self.control_requests = self._counter(
            "control_requests", "Requests to the control socket, by class of their status.", "status"
        )
        self.control_refused = self._counter(
            "control_refused",
            "Peers that were refused at the control socket; from_worker: a process that an agent started.",
            "reason",
        )
        self.refused = self._counter(
            "refused", "What was refused before it ran, over HTTP and WebSockets, by error code.", "code"
        )

    def _count_turns(self) -> None:
        self.tasks_ended = self._counter(
            "tasks_ended", "Chats and tasks that have ended, by error code, or ok.", "kind", "lane", "code"
        )
        self.queue_wait_seconds = self._histogram(
            "queue_wait_seconds", "From a chat's or task's arrival to its start.", "kind", buckets=WAIT_BUCKETS
        )
        self.first_delta_seconds = self._histogram(
            "first_delta_seconds",
            "From arrival to the first piece of the answer, the wait for a place included.",
            "lane",
            buckets=FIRST_DELTA_BUCKETS,
        )
        self.turn_seconds = self._histogram(
            "turn_seconds", "From the start of a chat or task to its end.", "lane", buckets=TURN_BUCKETS
        )
        self.tokens = self._counter(
            "tokens", "Tokens used, by model and type: input, output, cache_write, cache_read.", "model", "type"
        )
        self.cost_usd = self._counter("cost_usd", "What the tokens cost, by the prices in force.", "model")
        self.charged_usd = self._counter(
            "charged_usd", "What was charged to budgets: the cost, or the reservation where that is not known.", "model"
        )

    def _count_engine(self) -> None:
        self.upstream_calls = self._counter(
            "upstream_calls",
            "Calls to the Messages API that the daemon made, of the direct lane or brokered, by error code, or ok.",
            "lane",
            "outcome",
        )
        self.worker_crashes = self._single("worker_crashes", "Claude Code processes that ended of themselves.")
        self.worker_start_failures = self._single(
            "worker_start_failures", "Claude Code processes that could not be started."
        )
        self.workers_retired = self._counter(
            "workers_retired",
            "Processes that were replaced: turns, age, memory, crashed, room, operator, stuck, closing or other.",
            "reason",
        )
        self.strays_ended = self._single("strays_ended", "Processes that agents left behind and the daemon has ended.")
        self.events = self._counter("events", "What the log tells of the daemon's parts, by its event's name.", "event")
        self.webhook_attempts = self._counter(
            "webhook_attempts", "Attempts to deliver a webhook: delivered, failed (tried again), given_up.", "outcome"
        )

    def _count_store(self) -> None:
        self.commit_seconds = self._only("store_commit_seconds", "Commits of the store's writer.", COMMIT_BUCKETS)
        self.commit_items = self._only(
            "store_commit_items",
            "Verbs that waited together, and were written in one commit.",
            ITEM_BUCKETS,
        )

    # what is read at a scrape

    def _read_parts(self) -> None:
        gauge, counter = self._gauge, self._read_counter
        gauge("build_info", "1, with the versions of the daemon and of Claude Code.", "version", "cli_version")
        gauge("state", "1 for the state that the daemon is in, else 0.", "state")
        gauge("ready", "1 while /ready says 200.")
        gauge("check_status", "Each health check: 0 pass, 1 warn, 2 fail.", "check")
        gauge("event_loop_lag_seconds", "How late the event loop was at worst in the last 10 seconds.")
        gauge("http_requests_in_flight", "Requests whose answer is not complete, streams and WebSockets included.")
        gauge("http_connections", "Open connections to the public port.")
        counter("http_connections_refused", "Connections that were turned away because there were too many.")
        gauge("websockets", "Open WebSockets.")
        gauge("followers", "Who follows a task live, over SSE or a WebSocket.")
        counter("events_delivered", "Events of tasks that were written to followers.")
        counter("slow_readers", "Followers that were let go because they did not read.")
        gauge("queue_length", "What waits for a place: chats in memory, tasks in the store.", "kind")
        gauge("queue_oldest_seconds", "How long the one has waited that has waited longest; 0 when nobody waits.")
        gauge("queue_paused", "1 while no task is begun: paused by an operator, or in a drain.")
        gauge("running", "Chats and tasks that run now, by lane.", "lane")
        gauge("cli_turns", "Turns of Claude Code under way, all lanes together.")
        gauge("cli_turns_limit", "How many there may be at once (engine.workers).")
        gauge("approvals_waiting", "Tool calls that wait for somebody's word.")
        gauge("workers", "Claude Code processes, by lane and state.", "lane", "state")
        counter("starts", "How turns found their process: warm, lent, spare, cold.", "lane", "start")
        gauge("sandbox_missing", "1 where agents ought to be shut in and bubblewrap does not work.")
        gauge("budget_limit_usd", "The budget of all keys together; +Inf without one.", "span")
        gauge("budget_spent_usd", "What all keys together have spent in the current day and month.", "span")
        gauge(
            "budget_left_ratio",
            "The least that is left of any budget, as a share of it: overall, of any domain, of any key (1 while no "
            "key has used 80 % of its own).",
            "purse",
            "span",
        )
        gauge("store_up", "0 while nothing can be made durable.")
        gauge("store_backlog", "Verbs that wait for the store's writer.")
        gauge("store_wal_bytes", "Size of the write-ahead log after the last commit.")
        gauge("audit_records", "The number of the audit chain's newest record that was told as an anchor.")
        gauge("audit_anchor_age_seconds", "Since the audit's head was last compared with the anchor in the log.")
        gauge("audit_strange", "1 where the chain does not go on with this audit.key.")
        gauge("webhooks_waiting", "Webhook deliveries that are not over.")
        gauge("webhook_oldest_due_seconds", "How long the delivery is overdue that is so longest; 0 when none is.")
        gauge("backup_timestamp_seconds", "When the last backup was made, since the epoch; 0 before the first.")
        gauge("keys", "Keys that were made, by state: active, suspended, expired, revoked.", "state")
        gauge("key_next_expiry_timestamp_seconds", "When the first of the active keys expires; +Inf if none does.")
        gauge("disk_free_bytes", "What the daemon may still write on the filesystem of its home.")
        gauge("disk_size_bytes", "Size of that filesystem.")
        counter("log_lines_lost", "Log lines that an output did not take.")

    # how they are made

    def _family(self, name: str, kind: str, told: str, labels: Labels) -> Family:
        whole = f"{NAMESPACE}_{name}" + ("_total" if kind == "counter" else "")
        family = Family(name=whole, kind=kind, help=told, labels=labels)
        self.families.append(family)
        return family

    def _counter(self, name: str, told: str, *labels: str) -> Counted[Counter]:
        family = self._family(name, "counter", told, labels)
        return Counted(Counter(family.name, told, labels, registry=self._registry), len(labels))

    def _single(self, name: str, told: str) -> Counter:
        family = self._family(name, "counter", told, ())
        return Counter(family.name, told, registry=self._registry)

    def _histogram(self, name: str, told: str, label: str, *, buckets: Sequence[float]) -> Counted[Histogram]:
        family = self._family(name, "histogram", told, (label,))
        return Counted(Histogram(family.name, told, (label,), buckets=buckets, registry=self._registry), 1)

    def _only(self, name: str, told: str, buckets: Sequence[float]) -> Histogram:
        family = self._family(name, "histogram", told, ())
        return Histogram(family.name, told, buckets=buckets, registry=self._registry)

    def _gauge(self, name: str, told: str, *labels: str) -> None:
        self._read_families[name] = self._family(name, "gauge", told, labels)

    def _read_counter(self, name: str, told: str, *labels: str) -> None:
        self._read_families[name] = self._family(name, "counter", told, labels)

    # the exposition

    async def text(self) -> bytes:
        """As Prometheus reads it (:data:`CONTENT_TYPE`)."""
        return await self._scrape(generate_latest)

    async def document(self) -> bytes:
        """The same as JSON: ``{"metrics": [{"name", "type", "help", "samples": [{"name", "labels", "value"}]}]}``. A
        value that is not finite is null."""
        return await self._scrape(_document)

    async def _scrape(self, written: Callable[[Collector], bytes]) -> bytes:
        """The parts are read in the loop, and what was read is written in a thread. One at a time, however many ask."""
        async with self._one_scrape:
            await self.look()
            return await asyncio.to_thread(written, self._all())

    def _all(self) -> Collector:
        """Everything as it is now; what is counted, as it is when it is collected."""
        told = self.read()
        if unknown := set(told) - set(self._read_families):
            raise KeyError(f"no such metrics: {', '.join(sorted(unknown))}")
        read = [family.metric(told[name]) for name, family in self._read_families.items() if name in told]
        return _Families([self._counted(), read, self._process.collect()])

    def _counted(self) -> Iterator[Metric]:
        """Without the moment at which each series began, which would be half as many lines again."""
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


async def _nothing() -> None:
    """There is nothing to wait for."""


class _Families(Collector):
    def __init__(self, of: Sequence[Iterable[Metric]]) -> None:
        self._of = of

    def collect(self) -> Iterator[Metric]:
        for metrics in self._of:
            yield from metrics


class _Process(Collector):
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


def _document(collector: Collector) -> bytes:
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


def _threads() -> int | None:
    """None where /proc does not tell."""
    try:
        with open("/proc/self/stat", "rb") as file:  # noqa: PTH123 - read at each scrape
            return int(file.read().rpartition(b")")[2].split()[17])
    except OSError:
        return None


def finite(number: float | None) -> float:
    """A limit that is none is +Inf, so that what is compared with it never reaches it."""
    return math.inf if number is None else number
