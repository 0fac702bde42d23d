"""How long until an agent says its first word, in its sandbox: with a spare of its shape, and without."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from claude_daemon.core.agent import AgentSpec
from tests.bench.chats import Chat
from tests.bench.client import Connection, post
from tests.bench.measure import Row, Scale, compared, interleave
from tests.bench.raw import process_per_request
from tests.bench.stage import Daemon, Stage

_AT_MOST = 0.4
_SPARE_TIMEOUT_S = 60.0
_POLL_S = 0.01
_TOOLS = ("Read", "Bash")


def agent(stage: Stage, scale: Scale) -> Iterator[Row]:
    """A task with tools over the control socket, against ``claude -p`` with the same tools and no sandbox."""
    daemon, prompt = stage.daemon, Chat().prompt
    launch = stage.raw_launch(AgentSpec(allow=_TOOLS))
    control = Connection(daemon.socket)

    def task(tools: tuple[str, ...]) -> float:
        body = {"prompt": prompt, "tools": {"allow": tools}}
        return control.first_delta(post("/control/v1/tasks", body, {"Claude-Daemon-Control": "1"}))

    def served() -> float:
        _at_rest(daemon, spares=1)
        return task(_TOOLS)

    def cold() -> float:
        _at_rest(daemon, spares=1)  # another shape's
        return task((*_TOOLS, f"Bash(n{next(numbers)})"))

    for _ in range(2):  # twice is often
        task(_TOOLS)
    before = _starts(daemon)
    numbers = iter(range(10_000))
    got = interleave(
        scale.per_process,
        {"process": lambda: process_per_request(*launch, prompt), "spare": served, "cold": cold},
    )
    starts = {kind: count - before[kind] for kind, count in _starts(daemon).items()}
    sandbox = "sandboxed" if daemon.control("status")["agents"]["sandboxed"] else "no sandbox"
    note = " · ".join(f"{count} {kind}" for kind, count in starts.items())
    reference = "claude -p with the same tools"
    yield compared(
        f"agent, spare, {sandbox}", got["spare"], reference, got["process"], at_most=_AT_MOST, notes=[f"starts: {note}"]
    )
    yield compared(f"agent, cold, {sandbox}", got["cold"], reference, got["process"])
    control.close()


def _at_rest(daemon: Daemon, *, spares: int) -> None:
    deadline = time.monotonic() + _SPARE_TIMEOUT_S
    agents: dict[str, Any] = {}
    while time.monotonic() < deadline:
        agents = daemon.control("status")["agents"]
        if not agents["running"] and agents["spares"] >= spares:
            return
        time.sleep(_POLL_S)
    raise TimeoutError(f"no spare comes: {agents}")


def _starts(daemon: Daemon) -> dict[str, int]:
    starts: dict[str, int] = daemon.control("status")["agents"]["starts"]
    return dict(starts)
