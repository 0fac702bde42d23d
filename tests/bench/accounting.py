"""What authentication, roles, limits, budgets and prices add to the first delta.

It is the same for a chat in either lane, and a few per cent of a first delta: less than what a clock tells apart where
Claude Code answers. So it is counted in the direct lane, as CPU time of the thread that serves, from a request's first
byte to its settlement: more than what stands before its first delta. It is held as a share of that lane's first delta,
which is over in a tenth of a warm Claude Code's, and of that one's. What the clock says there, and what the store's
thread does beside, is told, too.

No chat is without a key. So what a key costs is counted where one may be missing: a probe after a chat, which leaves it
as little in the caches as a chat finds there, is asked with one and without.

Two processes of the same program differ by more than that, by where their memory lies. So one daemon is asked, a block
of requests with all of it and a block with none, and reloads its configuration in between.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.bench.chats import MODEL, Chat
from tests.bench.machine import exact_cpu_seconds
from tests.bench.measure import Case, Row, Scale, Summary, interleave, percentile
from tests.bench.stage import Daemon, Stage

_SHARE_AT_MOST = 0.03
_BLOCK = 20
"""Requests between two looks at the CPU that they took."""
_WARM_UP = 3
_OTHER_KEYS = 500
_NOTHING = "with nothing that can be left out"
_ROLE = f"""
[roles.everything]
scopes = ["sessions", "webhooks"]
routes = ["/v1/messages", "/v1/chat/completions", "/v1/tasks", "/v1/models"]
lanes = ["direct", "text"]
models = ["{MODEL}", "haiku"]
max_turns = 100
max_timeout_s = 600
max_priority = 5
concurrent = 1000
"""
"""That nobody here has: a key may not be without its role."""
_EVERYTHING = f"""{_ROLE}
[limits]
requests_per_minute = 1000000
tokens_per_minute = 1000000000
concurrent = 1000
overall_requests_per_minute = 1000000
overall_tokens_per_minute = 1000000000
overall_concurrent = 1000

[prices.{MODEL}]
input = 3.0
output = 15.0
cache_write = 3.75
cache_read = 0.3

[budget]
usd_per_day = 100000
usd_per_month = 1000000
timezone = "Europe/Berlin"

[budget.domains.team]
usd_per_day = 10000
usd_per_month = 100000
"""


@dataclass(frozen=True, slots=True)
class Block:
    """In seconds: CPU for a request, of the serving thread and of all; and each first delta."""

    serving: float
    all: float
    firsts: list[float]


def accounting(stage: Stage, scale: Scale) -> Iterator[Row]:
    with stage.fresh_daemon(toml=_EVERYTHING) as daemon:
        for number in range(_OTHER_KEYS):
            _key(daemon, f"other-{number}")
        wish = {"role": "everything", "domain": "team", "budget_usd_day": 1000, "budget_usd_month": 10_000}
        key = _key(daemon, "measured", **wish)
        cases = {_EVERYTHING: _first(daemon, "direct", key), _ROLE: _first(daemon, "direct", daemon.key)}
        blocks: dict[str, list[Block]] = {toml: [] for toml in cases}
        for number in range(-1, scale.accounting):
            for toml in sorted(cases, reverse=bool(number % 2)):
                block = _block(daemon, toml, cases[toml])
                if number >= 0:
                    blocks[toml].append(block)
        pairs = list(zip(blocks[_EVERYTHING], blocks[_ROLE], strict=True))
        daemon.reload(_EVERYTHING)
        keys = _keys(daemon, cases[_EVERYTHING], key, scale.accounting)
        costs = [full.serving - bare.serving + one for (full, bare), one in zip(pairs, keys, strict=True)]
        yield _direct(pairs, percentile(keys, 50), percentile(costs, 50))
        text = interleave(scale.warm, {"text": _first(daemon, "text", key)}, warm_up=_WARM_UP)["text"]
        share = percentile(costs, 50) / percentile(text, 50)
        yield Row(
            what="together, of a warm Claude Code's first delta",
            unit="µs",
            ours=Summary.of(costs, 1e6),
            reference_is="text lane, warm, with all of it",
            reference=Summary.of(text, 1e6),
            ratio=share,
            hold=f"≤ {_SHARE_AT_MOST:g} ×",
            holds=share <= _SHARE_AT_MOST,
        )


def _block(daemon: Daemon, toml: str, case: Case) -> Block:
    daemon.reload(toml)
    for _ in range(_WARM_UP):
        case()
    before = exact_cpu_seconds(daemon.pid)
    firsts = [case() for _ in range(_BLOCK)]
    serving, every = ((more - less) / _BLOCK for more, less in zip(exact_cpu_seconds(daemon.pid), before, strict=True))
    return Block(serving, every, firsts)


def _keys(daemon: Daemon, chat: Case, key: str, blocks: int) -> list[float]:
    """In seconds: CPU of the serving thread that it takes to know a key, of a request in each block."""
    spent: dict[str, list[float]] = {"x-api-key": [], "x-any-name": []}
    for number in range(blocks):
        for header in sorted(spent, reverse=bool(number % 2)):
            before, _ = exact_cpu_seconds(daemon.pid)
            for _ in range(_BLOCK):
                chat()
                daemon.http.get("/live", {header: key})
            spent[header].append((exact_cpu_seconds(daemon.pid)[0] - before) / _BLOCK)
    return [known - not_told for known, not_told in zip(*spent.values(), strict=True)]


def _direct(pairs: list[tuple[Block, Block]], key: float, cost: float) -> Row:
    """``pairs``: with all of it that can be left out, and with nothing. In seconds: what it costs to know a ``key``,
    and all together."""
    every = percentile([full.all - bare.all for full, bare in pairs], 50)
    clock = percentile([percentile(full.firsts, 50) - percentile(bare.firsts, 50) for full, bare in pairs], 50)
    first = percentile([first for _, bare in pairs for first in bare.firsts], 50)
    share = cost / first
    mine, others = ([one.serving for one in ones] for ones in zip(*pairs, strict=True))
    return Row(
        what="limits and accounting, direct lane",
        unit="µs",
        ours=Summary.of(mine, 1e6),
        reference_is=_NOTHING,
        reference=Summary.of(others, 1e6),
        ratio=percentile(mine, 50) / percentile(others, 50),
        hold=f"+ ≤ {_SHARE_AT_MOST:.0%} of the first delta",
        holds=share <= _SHARE_AT_MOST,
        notes=[
            f"CPU of a request; to know its key + {key * 1e6:.0f} µs",
            f"together {_told(cost, first)} of this lane's first delta of {first * 1e3:.2f} ms",
            f"with the store's thread + {_told(every, first)}; by the clock {_told(clock, first)}",
        ],
        details={"serving_s": cost, "key_s": key, "all_threads_s": every, "clock_s": clock, "first_delta_s": first},
    )


def _told(seconds: float, first: float) -> str:
    return f"{seconds * 1e6:.0f} µs, {seconds / first:.1%}"


def _first(daemon: Daemon, lane: str, key: str) -> Case:
    request = Chat().request("anthropic", lane, key)

    def run() -> float:
        first = daemon.http.first_delta(request)
        if lane == "text":
            daemon.calm()
        return first

    return run


def _key(daemon: Daemon, name: str, **wish: object) -> str:
    return str(daemon.act("keys", {"name": name, **wish})["key"])
