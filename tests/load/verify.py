"""After a load: every acknowledged task is there exactly once, and comes to an end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.load.client import Target
from tests.load.exchange import Connection, Request
from tests.load.report import Report

ENDS: Final = frozenset({"succeeded", "failed", "cancelled"})
PATIENCE_S: Final = 120.0
"""For the last of some hundred short tasks, one CLI turn after the other."""
_PAGE: Final = 100
_LOOK_AGAIN_S: Final = 0.2


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
    """Looks until all have ended, or for :data:`PATIENCE_S`."""
    until = asyncio.get_running_loop().time() + PATIENCE_S
    while True:
        verdict = _judge(report, [task async for task in _tasks(target, report.run)])
        if not verdict.unended or asyncio.get_running_loop().time() > until:
            return verdict
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


async def _tasks(target: Target, run: str) -> AsyncIterator[Mapping[str, Any]]:
    """Every task of this run, page by page."""
    connection = await Connection.open(target.url)
    try:
        cursor = ""
        while True:
            path = f"/v1/tasks?kind=task&limit={_PAGE}{f'&cursor={cursor}' if cursor else ''}"
            answer = await connection.ask(Request(path=path, headers={"Authorization": f"Bearer {target.key}"}))
            if answer.status != 200:
                raise RuntimeError(f"no list of tasks: HTTP {answer.status}: {answer.body[:300]!r}")
            page = answer.json
            for task in page["data"]:
                if task["metadata"].get("load") == run:
                    yield task
            cursor = page["next"]
            if not cursor:
                return
    finally:
        connection.close()
