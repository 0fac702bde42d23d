"""``python -m tests.bench.load``: closed loops in a process of their own, so that a client costs others no time.

The first order says what each loop does (:class:`Http` or :class:`Raw`), each further one how many seconds of load, and
is answered by a :class:`Block`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Self

from tests.bench.chats import Chat
from tests.bench.child import Child, answer, end_on_sigterm, orders
from tests.bench.client import Connection
from tests.bench.raw import RawCli

Loop = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Http:
    """Each loop sends this request over a connection of its own."""

    url: str
    request: str
    clients: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """Each loop has a warm CLI, and clears it after every turn. ``launches``: argv, environment, directory."""

    launches: Sequence[tuple[list[str], dict[str, str], str]]
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """``cpu_s``: what the client itself used."""

    requests: int
    seconds: float
    first_s: Sequence[float]
    cpu_s: float

    @property
    def per_second(self) -> float:
        return self.requests / self.seconds


class Load:
    """The process, from its parent's side."""

    def __init__(self, work: Http | Raw, env: Mapping[str, str]) -> None:
        self._child = Child("load", env)
        self.pid = self._child.pid
        self._child.ask({"kind": type(work).__name__, **asdict(work)})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Ends it, and it its CLIs, whatever they are doing."""
        self._child.end()

    def block(self, seconds: float) -> Block:
        """Runs all loops for so long; each ends the request it has begun."""
        return Block(**self._child.ask(seconds))


def _http_loops(stack: ExitStack, work: Http) -> list[Loop]:
    request = work.request.encode("latin-1")

    def loop(connection: Connection) -> Loop:
        return lambda: connection.first_delta(request)

    return [loop(stack.enter_context(Connection(work.url))) for _ in range(work.clients)]


def _raw_loops(stack: ExitStack, work: Raw) -> list[Loop]:
    chat = Chat(prompt=work.prompt)

    def loop(cli: RawCli) -> Loop:
        return lambda: cli.turn_and_clear(chat)

    return [loop(stack.enter_context(RawCli(*launch))) for launch in work.launches]


def _run(loops: Sequence[Loop], seconds: float) -> Block:
    first: list[float] = []
    errors: list[BaseException] = []
    began, cpu = time.perf_counter(), time.process_time()

    def repeat(loop: Loop) -> None:
        try:
            while time.perf_counter() - began < seconds and not errors:
                first.append(loop())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(loop,), daemon=True) for loop in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    took = time.perf_counter() - began
    return Block(requests=len(first), seconds=took, first_s=first, cpu_s=time.process_time() - cpu)


def main() -> None:
    end_on_sigterm()
    answer("up")
    asked = orders()
    work: dict[str, Any] = next(asked)
    kind = work.pop("kind")
    with ExitStack() as stack:
        loops = _http_loops(stack, Http(**work)) if kind == "Http" else _raw_loops(stack, Raw(**work))
        answer("ready")
        for seconds in asked:
            answer(asdict(_run(loops, seconds)))


if __name__ == "__main__":
    main()
