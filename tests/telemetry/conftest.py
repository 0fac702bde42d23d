"""A configured log, in memory and in a file."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from claude_daemon.config import Log, Secret
from claude_daemon.telemetry.logging import LogHandle, configure, get_logger

log = get_logger("claude_daemon.tests")
"""Made at import, before anything is configured, as all modules do."""

NOON = 1_700_000_000.125


@dataclass(frozen=True, slots=True, kw_only=True)
class Logs:
    handle: LogHandle
    stream: io.StringIO
    path: Path
    monotonic: list[float]
    """Seconds, of which the last ones are now."""

    def text(self) -> str:
        return self.stream.getvalue()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


Start = Callable[..., Logs]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    handles: list[LogHandle] = []

    def started(*, secrets: tuple[Secret, ...] = (), **settings: Any) -> Logs:
        stream, path, monotonic = io.StringIO(), tmp_path / "daemon.log", [0.0]
        handles.append(
            configure(
                Log(**settings),
                stream=stream,
                path=path,
                secrets=secrets,
                clock=lambda: NOON,
                monotonic=lambda: monotonic[-1],
            )
        )
        return Logs(handle=handles[-1], stream=stream, path=path, monotonic=monotonic)

    yield started
    for handle in handles:
        handle.close()
