"""After a load: every acknowledged task is there exactly once, and comes to an end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.load.client import Target
from tests.load.exchange import Connection, Request
from tests.load.report import Report

ENDS: Final = frozenset({"succeeded", "failed", "cancelled"})
PATIENCE_S: Final = 30.0
"""For the next one to end; how many they are is the load's affair."""
_PAGE: Final = 100
_LOOK_AGAIN_S: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``missing`` and ``unended``: ids of acknowledged tasks. ``doubled``: submissions of which there are two tasks."""

    acknowledged: int
    missing: Sequence[str]
    doubled: Sequence[int]
    unended: Sequence[str]
    states: Mapping[str, int]

    @property
    def good(self) -> bool:
        return not (self.missing or self.doubled or self.unended)


async def verify(target: Target, report: Report) -> Verdict:
    """Waits until all have ended, or until none has for :data:`PATIENCE_S`."""
    await _rest(target, report.run)
    return _judge(report, [task async for task in _tasks(target, report.run)])


async def _rest(target: Target, run: str) -> None:
    left, since = -1, 0.0
    while now_left := len([task async for task in _tasks(target, run, "queued", "running")]):
        now = time.monotonic()
        if now_left != left:
            left, since = now_left, now
        elif now - since > PATIENCE_S:
            return
        await asyncio.sleep(_LOOK_AGAIN_S)


def _judge(report: Report, found: Sequence[Mapping[str, Any]]) -> Verdict:
    acknowledged = report.tasks
    states = {task["id"]: task["state"] for task in found}
    submissions = Counter(int(task["metadata"]["number"]) for task in found)
    return Verdict(
        acknowledged=len(acknowledged),
        missing=[task for task in acknowledged.values() if task not in states],
        doubled=[number for number, times in submissions.items() if times > 1],
        unended=[task for task in acknowledged.values() if states.get(task, "succeeded") not in ENDS],
        states=dict(Counter(states.values())),
    )


async def _tasks(target: Target, run: str, *states: str) -> AsyncIterator[Mapping[str, Any]]:
    """Every task of this run, or those in these states, page by page."""
    connection = await Connection.open(target.url)
    query = f"/v1/tasks?kind=task&limit={_PAGE}" + "".join(f"&state={state}" for state in states)
    try:
        cursor = None
        while True:
            path = query if cursor is None else f"{query}&cursor={cursor}"
            answer = await connection.ask(Request(path=path, headers={"Authorization": f"Bearer {target.key}"}))
            if answer.status != 200:
                raise RuntimeError(f"no list of tasks: HTTP {answer.status}: {answer.body[:300]!r}")
            page = answer.json
            for task in page["data"]:
                if task["metadata"].get("load") == run:
                    yield task
            cursor = page["next"]
            if cursor is None:
                return
    finally:
        connection.close()
