"""Where every task and thread is now: for the one who asks why nothing moves."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any, Final

MAX_FRAMES: Final = 24
"""The innermost ones: deeper stacks are the framework's."""


def document() -> dict[str, Any]:
    """``tasks`` and ``threads``, each with its ``stack``, outermost first, as ``file:line in function``."""
    return {
        "tasks": [_task(task) for task in sorted(asyncio.all_tasks(), key=lambda task: task.get_name())],
        "threads": [_thread(thread) for thread in threading.enumerate()],
    }


def _task(task: asyncio.Task[Any]) -> dict[str, Any]:
    coroutine = task.get_coro()
    return {
        "name": task.get_name(),
        "coroutine": getattr(coroutine, "__qualname__", repr(coroutine)),
        "state": "cancelling" if task.cancelling() else "pending",
        "stack": _lines(_awaiting(coroutine)),
    }


def _awaiting(coroutine: Any) -> Iterable[FrameType]:
    """The frames of a coroutine and of what it waits for, which a suspended task's own stack does not tell."""
    while coroutine is not None:
        frame = _first_of(coroutine, "cr_frame", "gi_frame", "ag_frame")
        if frame is not None:
            yield frame
        coroutine = _first_of(coroutine, "cr_await", "gi_yieldfrom", "ag_await")


def _first_of(thing: Any, *names: str) -> Any:
    return next((found for name in names if (found := getattr(thing, name, None)) is not None), None)


def _thread(thread: threading.Thread) -> dict[str, Any]:
    frames: list[FrameType] = []
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        frames.insert(0, frame)
        frame = frame.f_back
    return {"name": thread.name, "stack": _lines(frames)}


def _lines(frames: Iterable[FrameType]) -> list[str]:
    lines = [f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}" for frame in frames]
    return lines[-MAX_FRAMES:]
