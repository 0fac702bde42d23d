"""Submissions that are durable when they are answered: how many a second, and how many may wait."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tests.bench.client import Unexpected, post
from tests.bench.load import Block
from tests.bench.machine import cpu_seconds, rss_mb
from tests.bench.measure import Row, Scale, Summary
from tests.bench.stage import Stage
from tests.bench.submitters import Amount, Submit, Submitters

CLIENTS = 64
_AT_LEAST_PER_S = 3000.0
_AT_LEAST = 0.4
_WARM_UP_S = 0.5
_THOUSAND = 1000
_BYTES_A_TASK = 1024
_FILLED = 10_000
_FSYNCS = 200
_PAGE_BYTES = 4096
# No task is run here, so there is nothing for more workers to do.
_SETTINGS = {
    "ENGINE__WORKERS": 1,
    "ENGINE__SPARES": 0,
    "QUEUE__MAX_QUEUED": 10_000_000,
    "QUEUE__MAX_QUEUED_PER_KEY": 10_000_000,
}


class _Side:
    """Submissions to one server; blocks add up."""

    def __init__(self, submitters: Submitters, pid: int) -> None:
        self._submitters = submitters
        self._pid = pid
        self.blocks: list[Block] = []
        self.cpu_s = 0.0
        submitters.block(Amount(seconds=_WARM_UP_S))

    def block(self, seconds: float) -> None:
        before = cpu_seconds(self._pid)
        self.blocks.append(self._submitters.block(Amount(seconds=seconds)))
        self.cpu_s += cpu_seconds(self._pid) - before

    @property
    def rates(self) -> list[float]:
        return [block.per_second for block in self.blocks]

    @property
    def told(self) -> str:
        requests = sum(block.requests for block in self.blocks)
        took = Summary.ms([seconds for block in self.blocks for seconds in block.first_s])
        blocks = ", ".join(f"{rate:.0f}" for rate in self.rates)
        client = sum(block.cpu_s for block in self.blocks)
        return (
            f"blocks {blocks} /s; answered in {took.median:.1f} ms, p99 {took.p99:.1f}; CPU a submission "
            f"{self.cpu_s * 1e6 / requests:.0f} µs, of the clients {client * 1e6 / requests:.0f}"
        )


def _submitters(stage: Stage, url: str, key: str) -> Submitters:
    body = {"prompt": "What is the capital of France?", "model": "sonnet", "metadata": {"by": "bench"}}
    request = post("/v1/tasks", body, {"Authorization": f"Bearer {key}"}).decode("latin-1")
    return Submitters(Submit(url=url, request=request, clients=CLIENTS), stage.environment())


def submissions(stage: Stage, scale: Scale) -> Iterator[Row]:
    """A daemon whose queue is paused against the same edge, desk and dispatcher with a store that keeps nothing."""
    with (
        stage.fresh_daemon(_SETTINGS) as daemon,
        stage.edge() as edge,
        _submitters(stage, daemon.url, daemon.key) as durably,
        _submitters(stage, edge.hello["url"], edge.hello["key"]) as nowhere,
    ):
        daemon.act("queue/pause")
        ours, reference = _Side(durably, daemon.pid), _Side(nowhere, edge.pid)
        for at in range(scale.submission_blocks):
            for side in (ours, reference) if at % 2 else (reference, ours):
                side.block(scale.submission_block_s)
    mine, theirs = median(ours.rates), median(reference.rates)
    disk = Summary.ms(_fsyncs(stage.directory))
    yield Row(
        what=f"durable submissions, {CLIENTS} clients",
        unit="/s",
        ours=Summary.of(ours.rates),
        reference_is="the same edge over a store that keeps nothing",
        reference=Summary.of(reference.rates),
        ratio=mine / theirs,
        hold=f"≥ {_AT_LEAST_PER_S:.0f} /s or {_AT_LEAST:g} ×",
        holds=mine >= _AT_LEAST_PER_S or mine / theirs >= _AT_LEAST,
        notes=[
            ours.told,
            f"reference {reference.told}",
            f"this disk: 4 KiB and fsync in {disk.median:.2f} ms, p99 {disk.p99:.2f}",
        ],
        details={"fsync_ms": disk.median},
    )


def _fsyncs(directory: Path) -> list[float]:
    """Seconds that a page and its fsync take, each time appended to one file where the store's would be."""
    took = []
    with (directory / "fsync").open("wb", buffering=0) as file:
        for _ in range(_FSYNCS):
            began = time.perf_counter()
            file.write(bytes(_PAGE_BYTES))
            os.fsync(file.fileno())
            took.append(time.perf_counter() - began)
    return took


def waiting(stage: Stage, scale: Scale) -> Iterator[Row]:
    """Ten thousand tasks that wait: neither do they slow down those that come, nor do they fill the memory."""
    with stage.fresh_daemon(_SETTINGS) as daemon, _submitters(stage, daemon.url, daemon.key) as submitters:
        daemon.act("queue/pause")
        rates, rss = [], [rss_mb(daemon.pid)]
        for _ in range(2 * scale.queued // _THOUSAND):
            rates.append(submitters.block(Amount(requests=_THOUSAND)).per_second)
            rss.append(rss_mb(daemon.pid))
        queued = int(daemon.control("status")["queue"]["queued"])
    if queued != 2 * scale.queued:
        raise Unexpected(f"{queued} tasks wait, not {2 * scale.queued}")
    half = scale.queued // _THOUSAND
    first, last = rates[0], rates[half - 1]
    yield Row(
        what=f"durable submissions, the last thousand of {scale.queued}",
        unit="/s",
        ours=Summary.of([last]),
        reference_is="the first thousand",
        reference=Summary.of([first]),
        ratio=last / first,
        notes=[f"thousand by thousand, up to {queued}: {', '.join(f'{rate:.0f}' for rate in rates)} /s"],
    )
    grown = (rss[-1] - rss[half]) * 2**20 / scale.queued
    yield Row(
        what="a task that waits, resident memory",
        unit="B",
        ours=Summary.of([grown]),
        hold=f"< {_BYTES_A_TASK} B",
        holds=grown < _BYTES_A_TASK if scale.queued >= _FILLED else None,
        notes=[
            f"of the second {scale.queued}: by {_FILLED} SQLite's page cache has grown as far as it may",
            f"{rss[0]:.1f} MB with none, {rss[half]:.1f} with {scale.queued}, {rss[-1]:.1f} with {queued}",
        ],
        details={"rss_mb": rss},
    )
