"""Daemons whose tasks may have tools and directories: one that is shared, and those that a test has for itself."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from claude_daemon.offline import OfflineModel
from tests.conftest import StartDaemon
from tests.debian import program
from tests.e2e.agents import AGENT_SETTINGS, Agents, configured
from tests.ordinary import give, ordinary
from tests.support import DaemonProcess, share_probe

NARROW = '[roles.narrow]\nroutes = ["/v1/sessions"]\n'
"""A role that may see next to nothing."""


@pytest.fixture(scope="session")
def workshop_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shared daemon's tasks may work: ``root``, and ``trusted``, whose projects' settings may count."""
    directory = tmp_path_factory.mktemp("workshop")
    for name in ("root", "trusted"):
        (directory / name).mkdir()
    return directory


@pytest.fixture(scope="session")
async def shared_workshop(
    daemon: DaemonProcess, model: OfflineModel, workshop_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[DaemonProcess]:
    program("bwrap", "bubblewrap")
    home = tmp_path_factory.mktemp("workshop-home") / "home"
    roots = [
        f'[[roots]]\npath = "{workshop_root}/root"',
        f'[[roots]]\npath = "{workshop_root}/trusted"\ntrusted = true',
    ]
    configure(home, "\n".join([*roots, configured("small"), NARROW]))
    share_probe(daemon, home)
    process = DaemonProcess(home, model, {**AGENT_SETTINGS, "engine.workers": 3}, **ordinary(home, workshop_root))
    yield await process.start()
    assert await process.stop() == 0


@pytest.fixture
async def workshop(shared_workshop: DaemonProcess) -> AsyncIterator[DaemonProcess]:
    """The one warm daemon whose tasks have tools: not to be killed, drained or filled up by a test."""
    before = len(shared_workshop.log())
    yield shared_workshop
    said = shared_workshop.log()[before:]
    assert [line for line in said if line["level"] in ("error", "critical")] == []


@pytest.fixture
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory to work in, of this test alone, beneath a root of its daemon."""
    if "workshop" in request.fixturenames:
        return shared_project(request.getfixturevalue("workshop_root") / "root" / tmp_path.name)
    (tmp_path / "home").mkdir()
    return project_in(tmp_path / "root")  # which becomes its daemon's user's when that starts


@pytest.fixture
def trusted(workshop_root: Path, tmp_path: Path) -> Path:
    """The same, where a project's settings may count."""
    return shared_project(workshop_root / "trusted" / tmp_path.name)


def shared_project(parent: Path) -> Path:
    directory = project_in(parent)
    give(parent)
    return directory


def project_in(parent: Path) -> Path:
    directory = parent / "repository"
    directory.mkdir(parents=True)
    (directory / "hello.txt").write_text("hello\n")
    return directory


def configure(home: Path, toml: str) -> None:
    (home / ".claude-daemon").mkdir(mode=0o700, parents=True, exist_ok=True)
    configuration = home / ".claude-daemon" / "config.toml"
    configuration.write_text(toml)
    configuration.chmod(0o600)


@pytest.fixture
async def agents(start_daemon: StartDaemon, tmp_path: Path, repository: Path) -> AsyncIterator[Agents]:
    """Starts a daemon whose tasks may work beneath the repository's parent; ``toml`` is added to its configuration.
    ``through``: a command that becomes the daemon's."""

    async def start(
        settings: dict[str, Any] | None = None, toml: str = "", through: Sequence[str] = (), **fields: Any
    ) -> DaemonProcess:
        home = tmp_path / "home"
        configure(home, f'[[roots]]\npath = "{repository.parent}"\n{toml}')
        values = {**AGENT_SETTINGS, **(settings or {})}
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
