"""Events: numbered facts about one task.

The inner form that all dialects speak is the Messages API's stream: its events travel as events of type
:data:`MESSAGE_EVENT`, whose data is the Messages API event. A caller who did not ask for a stream gets one event of
type :data:`MESSAGE` instead, whose data is the whole message. The rest are our own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MESSAGE_EVENT = "message.event"
MESSAGE = "message"
TASK_QUEUED = "task.queued"
TASK_STARTED = "task.started"
TASK_REQUEUED = "task.requeued"
TEXT_RESET = "text.reset"
RETRY = "retry"
TOOL_USE = "tool.use"
TOOL_RESULT = "tool.result"
TOOL_DENIED = "tool.denied"
FILE_CHANGED = "file.changed"
APPROVAL_REQUESTED = "approval.requested"
APPROVAL_RESOLVED = "approval.resolved"
TASK_SUCCEEDED = "task.succeeded"
TASK_FAILED = "task.failed"
TASK_CANCELLED = "task.cancelled"

TERMINAL = frozenset({TASK_SUCCEEDED, TASK_FAILED, TASK_CANCELLED})

# seq = fence << FENCE_SHIFT | n: an attempt of more than 16 million events is not a stream but a leak
FENCE_SHIFT = 24


def first_seq(fence: int) -> int:
    """The number of the first event that is told under this fence."""
    return (fence << FENCE_SHIFT) + 1


@dataclass(frozen=True, slots=True)
class Emission:
    """What an engine says, before it is numbered.

    ``data`` is the decoded form. ``raw`` is the same as JSON bytes where the engine already has them, so that the
    direct lane passes on exactly what it received; None where they have to be made.
    """

    type: str
    data: Mapping[str, Any]
    raw: bytes | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One numbered fact about one task; ``seq`` only grows within a task, with gaps."""

    seq: int
    type: str
    data: Mapping[str, Any]
    raw: bytes | None = None
