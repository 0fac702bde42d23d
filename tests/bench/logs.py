"""What a line of the log costs the event loop: an access line with all its ids, to stderr and to the file."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson
from structlog.contextvars import bound_contextvars

from claude_daemon.config import Log
from claude_daemon.telemetry.floods import BURST
from claude_daemon.telemetry.logging import configure, get_logger
from tests.bench.measure import Row, Scale, Summary, interleave
from tests.bench.stage import Stage

_AT_MOST_US = 15.0
_AT_ONCE = 500
_ROUNDS = 60
log = get_logger("claude_daemon.daemon")

_CONTEXT = {
    "request_id": "req_01m8f4f1dakyn982qwrg36srpr",
    "key_id": "key_01m8f4f1dakyn982qwrg36srpr",
    "task_id": "task_01m8f4f1dakyn982qwrg36srpr",
    "trace_id": "30f51770d1ba4ecfb4d6966d2aa1dad0",
    "span_id": "a682aa44b7f3868b",
}
_FIELDS: dict[str, Any] = {
    "method": "POST",
    "path": "/v1/messages",
    "peer": "127.0.0.1",
    "status": 200,
    "seconds": 0.169186,
    "bytes": 873,
    "lane": "text",
    "model": "claude-sonnet-5-5",
    "first_delta_seconds": 0.15219,
    "input_tokens": 10,
    "output_tokens": 8,
    "cost_usd": 0.00015,
}
_HEAD = {"ts": "2026-11-27T18:32:13.418Z", "level": "info", "event": "http.access", "logger": "claude_daemon.daemon"}


def logs(stage: Stage, scale: Scale) -> Iterator[Row]:
    """Seconds of this thread: it waits for nothing, so what others do meanwhile is not its cost."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        nowhere = stack.enter_context(Path(os.devnull).open("w"))
        handle = configure(Log(), stream=nowhere, path=home / "daemon.log")
        stack.callback(handle.close)
        stack.enter_context(bound_contextvars(**_CONTEXT))
        bare = os.open(home / "bare.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        stack.callback(os.close, bare)
        rounds = min(_ROUNDS, scale.direct)
        names = iter([f"bench.line_{number}" for number in range(rounds + 1)])  # each a burst of its own
        cases = {"ours": lambda: _logged(next(names)), "bare": lambda: _bare(bare, nowhere.fileno())}
        samples = interleave(rounds, cases)
        for _ in range(BURST):
            log.info("bench.flood")
        dropped = [_logged("bench.flood") for _ in range(rounds)]
        assert handle.lost == 0
    ours, reference = Summary.of(samples["ours"], 1e6), Summary.of(samples["bare"], 1e6)
    yield Row(
        what="a line of the log, in the loop",
        unit="µs",
        ours=ours,
        reference_is="orjson.dumps of the same and two writes",
        reference=reference,
        ratio=ours.median / reference.median,
        hold=f"≤ {_AT_MOST_US:g} µs",
        holds=ours.median <= _AT_MOST_US,
    )
    yield Row(what="of a flood, ninety-nine of a hundred of them not told", unit="µs", ours=Summary.of(dropped, 1e6))


def _logged(event: str) -> float:
    """Seconds for one."""
    began = time.thread_time()
    for _ in range(_AT_ONCE):
        log.info(event, **_FIELDS)
    return (time.thread_time() - began) / _AT_ONCE


def _bare(*descriptors: int) -> float:
    began = time.thread_time()
    for _ in range(_AT_ONCE):
        line = orjson.dumps({**_HEAD, **_FIELDS, **_CONTEXT}) + b"\n"
        for descriptor in descriptors:
            os.write(descriptor, line)
    return (time.thread_time() - began) / _AT_ONCE
