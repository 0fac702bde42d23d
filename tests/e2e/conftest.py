"""Daemons whose tasks may have tools and directories."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import StartDaemon
from tests.debian import program
from tests.e2e.agents import Agents
from tests.ordinary import ordinary
from tests.support import DaemonProcess


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    directory = tmp_path / "root" / "repository"
    directory.mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (directory / "hello.txt").write_text("hello\n")
    return directory


@pytest.fixture
async def agents(start_daemon: StartDaemon, tmp_path: Path, repository: Path) -> AsyncIterator[Agents]:
    """Starts a daemon whose tasks may work beneath the repository's parent; ``toml`` is added to its configuration.
    ``through``: a command that becomes the daemon's."""

    async def start(
        settings: dict[str, Any] | None = None, toml: str = "", through: Sequence[str] = (), **fields: Any
    ) -> DaemonProcess:
        home = tmp_path / "home"
        (home / ".claude-daemon").mkdir(mode=0o700, exist_ok=True)
        configuration = home / ".claude-daemon" / "config.toml"
        configuration.write_text(f'[[roots]]\npath = "{repository.parent}"\n{toml}')
        configuration.chmod(0o600)
        values = {"engine.workers": 2, "engine.stall_timeout_s": 10, **(settings or {})}
        placed = ordinary(home, repository.parent)
        if through:
            placed["program"] = (*through, *placed["program"])
        started.append(await start_daemon(values, home=home, **placed, **fields))
        return started[-1]

    program("bwrap", "bubblewrap")
    started: list[DaemonProcess] = []
    yield start
    for daemon in started:
        assert [line for line in daemon.log() if line["level"] in ("error", "critical")] == []
        assert await daemon.stop() in (0, -signal.SIGKILL)  # by its test
