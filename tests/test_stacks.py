"""Where everything is now."""

from __future__ import annotations

import asyncio
import threading

from claude_daemon import stacks


async def test_a_task_tells_what_it_waits_for_down_to_the_innermost_call() -> None:
    reached = asyncio.Event()

    async def inner() -> None:
        reached.set()
        await asyncio.Event().wait()

    async def outer() -> None:
        await inner()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(outer(), name="the one")
        await reached.wait()
        (found,) = [entry for entry in stacks.document()["tasks"] if entry["name"] == "the one"]
        task.cancel()
        (cancelled,) = [entry for entry in stacks.document()["tasks"] if entry["name"] == "the one"]
    assert found["coroutine"].endswith("outer")
    assert [line.rpartition(" in ")[2].rpartition(".")[2] for line in found["stack"]] == ["outer", "inner", "wait"]
    assert (found["state"], cancelled["state"]) == ("pending", "cancelling")


async def test_a_thread_tells_its_stack() -> None:
    began, may_end = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        may_end.wait()

    thread = threading.Thread(target=work, name="a worker")
    thread.start()
    await asyncio.to_thread(began.wait)
    (found,) = [entry for entry in stacks.document()["threads"] if entry["name"] == "a worker"]
    may_end.set()
    thread.join()
    assert any("work" in line for line in found["stack"])
    assert len(found["stack"]) <= stacks.MAX_FRAMES
