"""kill -9 before and after the commit of every verb: what was acknowledged is there, the rest is whole or absent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from claude_daemon.store import VERBS, SqliteStore
from tests.store.files import dump, killed
from tests.store.scenario import Point, life

Dump = Mapping[str, Sequence[tuple[Any, ...]]]


@dataclass(frozen=True)
class Story:
    """The verbs of a life that nobody cut short, and what was in the file after each step (0: before the first)."""

    verbs: Sequence[str]
    dumps: Sequence[Dump]


@pytest.fixture(scope="module")
async def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    point = Point()
    store = SqliteStore.open(tmp_path_factory.mktemp("story") / "daemon.db", observer=point)
    verbs: list[str] = []
    dumps = [dump(store.path)]
    async for verb in life(store, point.unwaited):
        verbs.append(verb)
        dumps.append(dump(store.path))
    assert await store.close()
    return Story(verbs, dumps)


async def test_the_life_meets_every_verb_and_each_step_leaves_a_trace(story: Story) -> None:
    assert set(story.verbs) == set(VERBS)
    assert all(before != after for before, after in zip(story.dumps, story.dumps[1:], strict=False))


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("verb", VERBS)
async def test_killed_at_its_commit(story: Story, tmp_path: Path, verb: str, moment: str) -> None:
    path = tmp_path / "daemon.db"
    for count in range(1, Counter(story.verbs)[verb] + 1):
        path.unlink(missing_ok=True)
        said = killed("-m", "tests.store.scenario", path, verb, moment, count)
        acknowledged = len(said)
        step = [number for number, name in enumerate(story.verbs) if name == verb][count - 1]
        assert acknowledged == step
        store = SqliteStore.open(path)
        assert await store.close()
        assert dump(path) == story.dumps[step + (moment == "after")]


CROWD = """
import asyncio, itertools, os, signal, sys
from pathlib import Path
from claude_daemon.store import SqliteStore
from tests.store.samples import put, task

left = int(sys.argv[2])

def observe(verb, moment):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    store = SqliteStore.open(Path(sys.argv[1]), observer=observe)
    numbers = itertools.count()

    async def submit():
        while True:
            number = next(numbers)
            await put(store, task(f"task_{number}a"), task(f"task_{number}b"))
            os.write(1, f"{number}\\n".encode())

    await asyncio.gather(*(submit() for _ in range(16)))

asyncio.run(main())
"""


@pytest.mark.parametrize("moments", [1, 40, 333, 1000, 1017])
async def test_killed_in_a_crowd(tmp_path: Path, moments: int) -> None:
    path = tmp_path / "daemon.db"
    said = {int(line) for line in killed("-c", CROWD, path, moments)}
    store = SqliteStore.open(path)
    assert await store.check() and await store.close()
    rows = dump(path)
    names = {row[1].removeprefix("task_") for row in rows["tasks"]}
    kept = {int(name[:-1]) for name in names}
    assert said <= kept
    assert names == {f"{number}{half}" for number in kept for half in "ab"}
    assert {row[0].removeprefix("task_") for row in rows["events"]} == names
    assert len(rows["specs"]) == len(rows["audit"]) == len(names)
    assert dict(rows["queue_depth"]) == ({"": len(names), "local": len(names)} if names else {"": 0})
