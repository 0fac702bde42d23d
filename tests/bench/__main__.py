"""``make bench``: the numbers of DESIGN.md, each as a ratio against a reference measured in the same run.

Offline: the daemon, raw Claude Code processes and the upstream itself all talk to one offline model, a process of its
own. Both sides of a row are measured in turns, so that what drifts on the machine drifts for both. A row that misses
its number is told and is no error; the exit status is 1 only when something did not work.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType

import orjson

from tests.bench import (
    agent,
    durable,
    fanout,
    first_delta,
    keys,
    latency,
    logs,
    metrics,
    mixed,
    shutdown,
    surroundings,
    throughput,
)
from tests.bench.machine import OthersWork, load_average
from tests.bench.measure import FULL, QUICK, Row, Scale
from tests.bench.render import document, table
from tests.bench.stage import Stage

Group = Callable[[Stage, Scale], Iterable[Row]]

# In this order: what is disturbed by a busy or grown daemon comes first.
GROUPS: Mapping[str, Group] = {
    "memory": surroundings.memory,
    "claudectl": surroundings.claudectl,
    "keys": keys.keys,
    "logs": logs.logs,
    "metrics": metrics.metrics,
    "direct": first_delta.direct,
    "text": first_delta.text,
    "history": first_delta.history,
    "schema": first_delta.schema,
    "system": first_delta.system,
    "agent": agent.agent,
    "throughput-text": throughput.text,
    "throughput-direct": throughput.direct,
    "ready": surroundings.ready,
    "latency": latency.latency,
    "fanout": fanout.flooding,
    "durable": durable.submissions,
    "waiting": durable.waiting,
    "shutdown": shutdown.shutdown,
    "mixed-open": mixed.open_loop,
    "mixed-closed": mixed.closed_loop,
}


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    scale = QUICK if options.quick else FULL
    _end_in_order(scale.limit_s)
    rows: dict[str, list[Row]] = {}
    noise: dict[str, dict[str, float]] = {}
    failed = False
    began = load_average()
    with Stage() as stage:
        for name in options.only or GROUPS:
            _progress(f"{name} …")
            rows[name] = []
            others = OthersWork()
            try:
                with others:
                    rows[name].extend(GROUPS[name](stage, scale))
            except Exception:
                failed = True
                _progress("\n".join([f"{name} failed:", traceback.format_exc(), *stage.complaints()[-3:]]))
            noise[name] = {"others_share": round(others.share, 3), "load_average": round(load_average(), 2)}
            _progress(f"{name}: others used {others.share:.0%} of the machine")
    about = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "load_average_before": began,
        "quick": options.quick,
        "failed": failed,
    }
    if options.json:
        print(orjson.dumps(document(rows, about, noise), option=orjson.OPT_INDENT_2).decode())
    else:
        print(table(rows))
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="The numbers this project holds.")
    parser.add_argument("--quick", action="store_true", help="a smoke of every row in less than two minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--only", action="append", choices=list(GROUPS), metavar="ROW", help=", ".join(GROUPS))
    return parser


def _progress(said: str) -> None:
    print(said, file=sys.stderr, flush=True)


def _end_in_order(limit_s: float) -> None:
    """Ctrl-C, SIGTERM and the time limit: every process that was started is ended first."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(f"ended by {signal.Signals(number).name}")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt as end:
        _progress(f"bench: {end}")
        sys.exit(130)
