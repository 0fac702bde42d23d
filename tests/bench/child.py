"""A part of the benchmark in a process of its own, so that what it does costs the others no time."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Self

import orjson

_STOP_TIMEOUT_S = 10.0


class Child:
    """``python -m tests.bench.<module>``: each line on its stdin is an order, and one line on its stdout answers it.

    Its first line, before any order, is :attr:`hello`.
    """

    def __init__(self, module: str, env: Mapping[str, str], *words: object) -> None:
        self._module = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.bench.{module}", *map(str, words)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.pid = self._process.pid
        try:
            self.hello = self._answer()
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def end(self) -> None:
        """Ends it, whatever it is doing."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.__exit__(None, None, None)

    def ask(self, order: object) -> Any:
        """Raises RuntimeError when it has ended; its own complaint is on stderr."""
        assert self._process.stdin is not None
        self._process.stdin.write(orjson.dumps(order) + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"tests.bench.{self._module} ended with status {self._process.wait()}")
        return orjson.loads(line)


def answer(what: object) -> None:
    """From within a child: the line that its parent waits for."""
    sys.stdout.buffer.write(orjson.dumps(what) + b"\n")
    sys.stdout.buffer.flush()


def orders() -> Iterator[Any]:
    """From within a child: what it is told, until its parent has ended."""
    for line in sys.stdin.buffer:
        yield orjson.loads(line)


def end_on_sigterm() -> None:
    """From within a child: its parent's :meth:`Child.end` unwinds what it has begun."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def more_files() -> None:
    """As many descriptors as the system grants us: a thousand connections are more than the usual soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(_ENOUGH_FILES, hard if hard != resource.RLIM_INFINITY else _ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


_ENOUGH_FILES = 8192
