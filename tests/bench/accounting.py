"""What keys, roles, limits, budgets and prices add to the first delta: a daemon with all of them, and one with none.

It is the same for a chat in either lane, and a few per cent of a first delta: less than what a clock tells apart where
Claude Code answers. So it is counted in the direct lane, as CPU time of the thread that serves, from a request's first
byte to its settlement: more than what stands before its first delta. That is bounded in itself, and as a share of the
first delta of a warm Claude Code; the share of the direct lane's, which is over in a tenth of that, is told. What the
store's thread does is done beside, and told, too. Both daemons are asked in turns, request by request, so that whatever
else the machine does meets both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from tests.bench.chats import MODEL, Chat
from tests.bench.machine import exact_cpu_seconds
from tests.bench.measure import Case, Row, Scale, Summary, compared, interleave, percentile
from tests.bench.stage import Daemon, Stage

_SHARE_AT_MOST = 0.03
_AT_MOST_S = 0.0003
_ROUND = 20
"""Requests of each, between two looks at the CPU that they took."""
_WARM_UP = 5
_OTHER_KEYS = 500
_NOTHING = "with nothing that can be left out"
_EVERYTHING = f"""
[roles.everything]
scopes = ["sessions", "webhooks"]
routes = ["/v1/messages", "/v1/chat/completions", "/v1/tasks", "/v1/models"]
lanes = ["direct", "text"]
models = ["{MODEL}", "haiku"]
max_turns = 100
max_timeout_s = 600
max_priority = 5
concurrent = 1000

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
class Round:
    """Of one daemon, in seconds: CPU for a request, of its serving thread and of all; and each first delta."""

    serving: float
    all: float
    firsts: list[float]


def accounting(stage: Stage, scale: Scale) -> Iterator[Row]:
    with ExitStack() as stack:
        full = stack.enter_context(stage.fresh_daemon(toml=_EVERYTHING))
        bare = stack.enter_context(stage.fresh_daemon())
        for number in range(_OTHER_KEYS):
            _key(full, f"other-{number}")
        wish = {"role": "everything", "domain": "team", "budget_usd_day": 1000, "budget_usd_month": 10_000}
        key = _key(full, "measured", **wish)
        direct = {bare: _first(bare, "direct", bare.key), full: _first(full, "direct", key)}
        rounds = [_round(direct) for _ in range(_WARM_UP + scale.accounting)][_WARM_UP:]
        more = [(each[full], each[bare]) for each in rounds]
        cost = percentile([ours.serving - theirs.serving for ours, theirs in more], 50)
        yield _direct(more, cost)
        text = {"bare": _first(bare, "text", bare.key), "full": _first(full, "text", key)}
        got = interleave(scale.warm, text, warm_up=_WARM_UP)
        share = cost / percentile(got["bare"], 50)
        yield replace(
            compared("text lane, warm, with everything", got["full"], _NOTHING, got["bare"]),
            hold=f"+ ≤ {_SHARE_AT_MOST:.0%} in CPU",
            holds=share <= _SHARE_AT_MOST,
            notes=[f"what it takes of the serving thread is {share:.1%} of the first delta with nothing"],
        )


def _round(cases: Mapping[Daemon, Case]) -> dict[Daemon, Round]:
    before = {daemon: exact_cpu_seconds(daemon.pid) for daemon in cases}
    names = {f"{number}": ask for number, ask in enumerate(cases.values())}
    firsts = interleave(_ROUND, names, warm_up=0)
    after = {daemon: exact_cpu_seconds(daemon.pid) for daemon in cases}
    found = {}
    for daemon, told in zip(cases, firsts.values(), strict=True):
        serving, every = ((more - less) / _ROUND for more, less in zip(after[daemon], before[daemon], strict=True))
        found[daemon] = Round(serving, every, told)
    return found


def _direct(rounds: list[tuple[Round, Round]], cost: float) -> Row:
    """``rounds``: of the daemon with all of it, and of the one with nothing."""
    every = percentile([full.all - bare.all for full, bare in rounds], 50)
    pairs = [pair for full, bare in rounds for pair in zip(full.firsts, bare.firsts, strict=True)]
    clock = percentile([full - bare for full, bare in pairs], 50)
    first = percentile([bare for _, bare in pairs], 50)
    mine, others = ([one.serving for one in ones] for ones in zip(*rounds, strict=True))
    return Row(
        what="keys, limits and accounting, direct lane",
        unit="µs",
        ours=Summary.of(mine, 1e6),
        reference_is=_NOTHING,
        reference=Summary.of(others, 1e6),
        ratio=percentile(mine, 50) / percentile(others, 50),
        hold=f"+ ≤ {_AT_MOST_S * 1e6:.0f} µs",
        holds=cost <= _AT_MOST_S,
        notes=[
            f"CPU of a request, + {_told(cost, first)} of this lane's first delta of {first * 1e3:.2f} ms",
            f"with the store's thread + {_told(every, first)}; by the clock {_told(clock, first)}",
        ],
        details={"serving_s": cost, "all_threads_s": every, "clock_s": clock, "first_delta_s": first},
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
