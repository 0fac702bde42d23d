"""A real job, as the README tells it: an agent mends a failing test, and its caller watches over a WebSocket."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.ordinary import give
from tests.support import DaemonProcess

pytestmark = pytest.mark.engine

PATIENCE_S = 60.0
SOURCE = "def area(width, height):\n    return width + height\n"
TEST = "from shapes import area\n\nassert area(3, 4) == 12, area(3, 4)\nprint('1 passed')\n"
RUN = "python3 -B test_shapes.py"


def steps(*calls: tuple[str, dict[str, str]]) -> str:
    """What makes the offline model take them one after the other."""
    markers = [f"[[tool={tool}]] [[input={orjson.dumps(given).decode()}]]" for tool, given in calls]
    return f"[[one-by-one]] {' '.join(markers)}"


async def watched(daemon: DaemonProcess, key: str, task: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a task that is submitted over a WebSocket."""
    events: list[dict[str, Any]] = []
    headers = {"Authorization": f"Bearer {key}"}
    async with (
        asyncio.timeout(PATIENCE_S),
        daemon.http.ws_connect("/v1/stream", headers=headers, protocols=["claude-daemon.v1"]) as socket,
    ):
        await socket.send_json({"op": "submit", "ref": "fix", "task": task})
        async for message in socket:
            told = orjson.loads(message.data)
            assert told["op"] in ("ack", "event"), told
            if told["op"] == "event":
                events.append(told)
                if told["type"] in ("task.succeeded", "task.failed", "task.cancelled"):
                    break
    return events


async def test_an_agent_mends_a_failing_test(workshop: DaemonProcess, repository: Path) -> None:
    (repository / "shapes.py").write_text(SOURCE)
    (repository / "test_shapes.py").write_text(TEST)
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x"]):
        subprocess.run(["git", "-c", "safe.directory=*", *command], cwd=repository, check=True)
    give(repository)
    failing = subprocess.run(RUN.split(), cwd=repository, capture_output=True, check=False)
    assert failing.returncode == 1
    made = await workshop.control("keys", "POST", {"name": "ci", "role": "standard"})
    shapes = str(repository / "shapes.py")
    edit = {"file_path": shapes, "old_string": "width + height", "new_string": "width * height"}
    script = steps(
        ("Bash", {"command": RUN}), ("Read", {"file_path": shapes}), ("Edit", edit), ("Bash", {"command": RUN})
    )
    events = await watched(
        workshop,
        made["key"],
        {
            "prompt": f"Fix the failing test in this repository. {script} [[text=The test passes now.]]",
            "tools": {"allow": ["Read", "Edit", "Bash(python3 *)"]},
            "cwd": str(repository),
            "max_turns": 10,
        },
    )
    results = [event["data"] for event in events if event["type"] == "tool.result"]
    assert [(result["name"], result["is_error"]) for result in results] == [
        ("Bash", True),
        ("Read", False),
        ("Edit", False),
        ("Bash", False),
    ], results
    assert "AssertionError: 7" in results[0]["content"]
    assert "1 passed" in results[3]["content"]
    ended = events[-1]
    assert ended["type"] == "task.succeeded", ended
    async with workshop.http.get(
        f"/v1/tasks/{ended['task']}", headers={"Authorization": f"Bearer {made['key']}"}
    ) as got:
        result = (await got.json())["result"]
    assert result["text"] == "The test passes now."
    assert result["diff"] == (
        "--- a/shapes.py\n+++ b/shapes.py\n@@ -1,2 +1,2 @@\n"
        " def area(width, height):\n-    return width + height\n+    return width * height\n"
    )
    assert subprocess.run(RUN.split(), cwd=repository, capture_output=True, check=False).returncode == 0
