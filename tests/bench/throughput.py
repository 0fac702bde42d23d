"""Chats a second at four closed-loop clients: row 4."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

from tests.bench.chats import PROMPT, Chat
from tests.bench.load import Block, Http, Load, Raw
from tests.bench.machine import children_cpu_seconds, cpu_seconds
from tests.bench.measure import Row, Scale, Summary
from tests.bench.stage import Daemon, Stage

CLIENTS = 4
_TEXT_AT_LEAST = 0.8
_DIRECT_AT_LEAST_PER_S = 300.0
_WARM_UP_S = 0.5

Cpu = Mapping[str, Callable[[], float]]
"""CPU seconds so far of each who works for a load, by name."""


class _Side:
    """One load and those who work for it; blocks and CPU add up."""

    def __init__(self, load: Load, cpu: Cpu) -> None:
        self._load = load
        self._cpu = cpu
        self.blocks: list[Block] = []
        self.cpu_s = dict.fromkeys([*cpu, "client"], 0.0)
        load.block(_WARM_UP_S)

    def block(self, seconds: float, calm: Callable[[], None]) -> None:
        calm()
        before = {name: used() for name, used in self._cpu.items()}
        block = self._load.block(seconds)
        for name, used in self._cpu.items():
            self.cpu_s[name] += used() - before[name]
        self.cpu_s["client"] += block.cpu_s
        self.blocks.append(block)

    @property
    def rates(self) -> list[float]:
        return [block.per_second for block in self.blocks]

    @property
    def cpu_ms_per_request(self) -> dict[str, float]:
        requests = sum(block.requests for block in self.blocks)
        return {name: round(seconds * 1000 / requests, 3) for name, seconds in self.cpu_s.items()}

    @property
    def first_ms(self) -> Summary:
        return Summary.ms([first for block in self.blocks for first in block.first_s])


def _alternate(sides: Sequence[_Side], scale: Scale, calm: Callable[[], None]) -> None:
    for at in range(scale.blocks):
        for side in sides if at % 2 else reversed(sides):
            side.block(scale.block_s, calm)


def _row(
    what: str,
    ours: _Side,
    reference_is: str,
    reference: _Side,
    hold: str,
    *,
    at_least: float,
    notes: Sequence[str] = (),
    details: Mapping[str, Any] | None = None,
) -> Row:
    """``at_least``: a part of the reference if below 1, else requests a second."""
    mine, theirs = median(ours.rates), median(reference.rates)
    costs = {"ours": ours.cpu_ms_per_request, "reference": reference.cpu_ms_per_request}
    told = [
        f"blocks: {', '.join(f'{rate:.0f}' for rate in ours.rates)} /s, "
        f"reference {', '.join(f'{rate:.0f}' for rate in reference.rates)}",
        *notes,
    ]
    told += [
        f"CPU ms a request, {side}: " + ", ".join(f"{name} {ms:.2f}" for name, ms in cost.items())
        for side, cost in costs.items()
    ]
    told.append(
        f"first delta under this load: {ours.first_ms.median:.1f} ms (p90 {ours.first_ms.p90:.1f}), "
        f"reference {reference.first_ms.median:.1f} ms (p90 {reference.first_ms.p90:.1f})"
    )
    return Row(
        what=what,
        unit="/s",
        ours=Summary.of(ours.rates),
        reference_is=reference_is,
        reference=Summary.of(reference.rates),
        ratio=mine / theirs,
        hold=hold,
        holds=(mine / theirs if at_least < 1 else mine) >= at_least,
        notes=told,
        details={
            "cpu_ms_per_request": costs,
            "requests": sum(block.requests for block in ours.blocks),
            **(details or {}),
        },
    )


def text(stage: Stage, scale: Scale) -> Iterator[Row]:
    """The text lane against four raw warm processes, each driven by a loop of its own in one process."""
    daemon = stage.daemon
    request = Chat().request("openai", "text", daemon.key).decode("latin-1")
    launches = [stage.raw_launch() for _ in range(CLIENTS)]
    env, upstream = stage.environment(), partial(cpu_seconds, stage.model_process.pid)
    with (
        Load(Http(url=daemon.url, request=request, clients=CLIENTS), env) as served,
        Load(Raw(launches=launches, prompt=PROMPT), env) as raw,
    ):
        clis = partial(children_cpu_seconds, daemon.pid)
        ours = _Side(served, {"daemon": partial(cpu_seconds, daemon.pid), "CLIs": clis, "upstream": upstream})
        reference = _Side(raw, {"CLIs": partial(children_cpu_seconds, raw.pid), "upstream": upstream})
        before = _spawned(daemon)
        _alternate([ours, reference], scale, daemon.calm)
        replaced = _spawned(daemon) - before
    yield _row(
        f"text lane, {CLIENTS} clients",
        ours,
        f"{CLIENTS} raw warm CLIs",
        reference,
        "≥ 0.8 ×",
        at_least=_TEXT_AT_LEAST,
        notes=[f"processes started meanwhile: {replaced} by the daemon, none by the reference"],
        details={"spawned": replaced},
    )


def _spawned(daemon: Daemon) -> int:
    return int(daemon.control("status")["workers"]["spawned"])


def direct(stage: Stage, scale: Scale) -> Iterator[Row]:
    """The direct lane in each dialect against the upstream itself."""
    daemon, chat, env = stage.daemon, Chat(), stage.environment()
    upstream = partial(cpu_seconds, stage.model_process.pid)
    requests = {
        "/v1/messages": chat.request("anthropic", "direct", daemon.key),
        "/v1/chat/completions": chat.request("openai", "direct", daemon.key),
    }
    asked = chat.upstream_request(stage.api_key).decode("latin-1")
    for route, request in requests.items():
        with (
            Load(Http(url=daemon.url, request=request.decode("latin-1"), clients=CLIENTS), env) as served,
            Load(Http(url=stage.base_url, request=asked, clients=CLIENTS), env) as straight,
        ):
            ours = _Side(served, {"daemon": partial(cpu_seconds, daemon.pid), "upstream": upstream})
            reference = _Side(straight, {"upstream": upstream})
            _alternate([ours, reference], scale, lambda: None)
        what = f"direct lane, {CLIENTS} clients, {route}"
        yield _row(what, ours, "upstream itself", reference, "≥ 300 /s", at_least=_DIRECT_AT_LEAST_PER_S)
