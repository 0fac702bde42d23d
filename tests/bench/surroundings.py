"""Around the chats: ``claudectl``, the readiness probe, and the daemon's memory. Rows 6 to 8."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from tests.bench.chats import Chat
from tests.bench.client import Connection, Unexpected
from tests.bench.followers import Follow, Followers
from tests.bench.machine import rss_mb
from tests.bench.measure import Row, Scale, Summary, compared, interleave
from tests.bench.stage import Daemon, Stage

_HEALTH_AT_MOST = 6.5
_READY_P99_MS = 20.0
_WEBSOCKETS = 1000
_PACE_MS = 16
_REST_S = 0.2
_SEED = 6
_BETWEEN_PROBES_S = 0.02
_RSS_AT_MOST_MB = 90.0
_NOT_IMPORTED = ("aiohttp", "httpx", "rich", "asyncio", "pydantic")
# Runs the entry point's function as the installed script does, and tells what it has imported by its end.
_IMPORTS = f"""
import sys
from claudectl.main import main
sys.argv = ["claudectl", "health"]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("\\n" + " ".join(name for name in {_NOT_IMPORTED!r} if name in sys.modules))
"""
# What the daemon cannot do without, and nothing of ours.
_LIBRARIES = """
import asyncio, sqlite3, ssl
import aiohttp.web, click, orjson, pydantic, structlog, uvloop
for line in open("/proc/self/status"):
    if line.startswith("VmRSS:"):
        print(line.split()[1])
"""


def claudectl(stage: Stage, scale: Scale) -> Iterator[Row]:
    """``claudectl health`` as it is installed, against an empty program of the same interpreter."""
    daemon = stage.daemon
    ordinary, env = stage.ordinary_bin, stage.environment(daemon.home)
    del env["PYTHONPATH"]

    def timed(command: Sequence[object]) -> float:
        began = time.perf_counter()
        subprocess.run([str(word) for word in command], env=env, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - began

    got = interleave(
        scale.processes,
        {
            "python": lambda: timed([ordinary / "python", "-c", "pass"]),
            "health": lambda: timed([ordinary / "claudectl", "health"]),
        },
    )
    told = subprocess.run([ordinary / "python", "-c", _IMPORTS], env=env, check=True, stdout=subprocess.PIPE, text=True)
    imported = told.stdout.splitlines()[-1].split()
    yield compared(
        "claudectl health",
        got["health"],
        "python -c pass",
        got["python"],
        at_most=_HEALTH_AT_MOST,
        notes=[f"imported: {', '.join(imported) or 'none'} of {', '.join(_NOT_IMPORTED)}"],
        details={"imported": imported},
    )
    if imported:
        raise Unexpected(f"claudectl health imports {', '.join(imported)}")


def ready(stage: Stage, scale: Scale) -> Iterator[Row]:
    """``/ready`` while every worker streams and a thousand WebSockets follow one of them, against nothing to do."""
    daemon, chance = stage.daemon, random.Random(_SEED)
    with Connection(daemon.url) as probe:

        def probes() -> list[float]:
            """At moments of chance: who asks again at once sees the quiet after each pass more often than the pass."""
            return [_probed(probe, chance.uniform(0, _BETWEEN_PROBES_S)) for _ in range(scale.probes)]

        idle = probes()
        with _Streaming(daemon) as task, _Full(daemon):
            alone = Summary.ms(probes())
            with _followed(stage, daemon, None):
                silent = Summary.ms(probes())
            with _followed(stage, daemon, task):
                busy = probes()
        idle += probes()
    daemon.calm()
    mine, theirs = Summary.ms(busy), Summary.ms(idle)
    yield Row(
        what=f"/ready, pool full, {_WEBSOCKETS} WebSockets",
        unit="ms",
        ours=mine,
        reference_is="nothing to do",
        reference=theirs,
        ratio=mine.median / theirs.median,
        hold=f"p99 ≤ {_READY_P99_MS:g} ms",
        holds=mine.p99 <= _READY_P99_MS,
        notes=[
            f"p99 {mine.p99:.2f} ms, with nothing to do {theirs.p99:.2f}; every WebSocket follows a task of one event "
            f"every {_PACE_MS} ms, the other workers say one every 5 ms",
            f"p99 with the pool full alone {alone.p99:.2f} ms, with WebSockets that follow nothing {silent.p99:.2f}",
        ],
        details={"pool_full_p99": alone.p99, "silent_websockets_p99": silent.p99},
    )


def _followed(stage: Stage, daemon: Daemon, task: str | None) -> Followers:
    """A thousand WebSockets that are live: what the task has said by now they do not ask for."""
    after = daemon.last_seq(task) if task is not None else 0
    follow = Follow(
        url=daemon.url,
        path="/v1/stream",
        key=daemon.key,
        followers=_WEBSOCKETS,
        task=task,
        after=after,
        rest_s=_REST_S,
    )
    return Followers(follow, stage.environment())


def _probed(connection: Connection, after_s: float) -> float:
    time.sleep(after_s)
    answer = connection.get("/ready")
    if answer.status != 200:
        raise Unexpected(f"/ready: HTTP {answer.status}: {answer.body!r}")
    return answer.total_s


class _Streaming:
    """While it is entered one worker is busy with a task."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._task = ""

    def __enter__(self) -> str:
        busy = int(self._daemon.control("status")["workers"]["busy"])
        self._task = self._daemon.submit(f"Tell me everything. [[tokens=100000]] [[pace={_PACE_MS}ms]]")
        _wait_busy(self._daemon, busy + 1)
        return self._task

    def __exit__(self, *exc: object) -> None:
        self._daemon.act(f"tasks/{self._task}/cancel")


def _wait_busy(daemon: Daemon, workers: int) -> None:
    deadline = time.monotonic() + 30
    while daemon.control("status")["workers"]["busy"] < workers:
        if time.monotonic() > deadline:
            raise TimeoutError("the pool does not fill up")
        time.sleep(0.01)


class _Full:
    """While it is entered every worker that was not is busy with an answer of one delta every 5 ms."""

    _PROMPT = "Tell me everything. [[tokens=100000]] [[pace=5ms]]"

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        workers = daemon.control("status")["workers"]
        self._limit = int(workers["limit"])
        self._connections = [Connection(daemon.url) for _ in range(self._limit - int(workers["busy"]))]
        self._threads = [threading.Thread(target=self._read, args=(c,), daemon=True) for c in self._connections]

    def _read(self, connection: Connection) -> None:
        request = Chat(prompt=self._PROMPT).request("openai", "text", self._daemon.key)
        with suppress(OSError, Unexpected):  # left in the middle: that is how it ends
            connection.ask(request)

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()
        _wait_busy(self._daemon, self._limit)

    def __exit__(self, *exc: object) -> None:
        for connection in self._connections:
            connection.shut()
        for thread in self._threads:
            thread.join()


def memory(stage: Stage, scale: Scale) -> Iterator[Row]:
    """A daemon that has started its workers and done nothing else, against its libraries alone."""
    env, daemon = stage.environment(), stage.daemon
    fresh = rss_mb(daemon.pid)
    for dialect, lane in (("openai", "text"), ("anthropic", "text"), ("openai", "direct"), ("anthropic", "direct")):
        for _ in range(5):
            daemon.http.first_delta(Chat().request(dialect, lane, daemon.key))
    daemon.calm()
    used = rss_mb(daemon.pid)
    told = subprocess.run([sys.executable, "-c", _LIBRARIES], env=env, check=True, stdout=subprocess.PIPE)
    libraries = int(told.stdout) / 1024
    yield Row(
        what="idle daemon, resident memory",
        unit="MB",
        ours=Summary.of([fresh]),
        reference_is="its libraries alone",
        reference=Summary.of([libraries]),
        ratio=fresh / libraries,
        hold=f"≤ {_RSS_AT_MOST_MB:g} MB",
        holds=max(fresh, used) <= _RSS_AT_MOST_MB,
        notes=[f"{used:.1f} MB after 20 chats; workers' memory not counted"],
    )
