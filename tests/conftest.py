"""What all tests share: one offline model and one warm daemon for the whole run of a process."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from claude_daemon.offline import OfflineModel
from tests.support import PATIENCE, DaemonProcess, found_by, spawned_clis, take_probe

StartDaemon = Callable[..., Awaitable[DaemonProcess]]

# What is not found today is not to be found in somebody else's change tomorrow: HYPOTHESIS=explore looks further.
# No deadline: what a busy machine takes is no test.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS", "same"))

# A shell ignores SIGINT for what it runs in the background, and programs hand that on: tests that interrupt need it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Short enough for a test to wait for, long enough for a busy machine's slowest turn.
STALL_TIMEOUT_S = 2.0 * PATIENCE


@pytest.fixture(scope="session")
async def model() -> AsyncIterator[OfflineModel]:
    """The upstream of all daemons of this run; it records what it is asked."""
    async with OfflineModel(record=True) as offline:
        yield offline


@pytest.fixture(scope="session")
async def daemon(model: OfflineModel, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[DaemonProcess]:
    """The one warm daemon: not to be killed, drained or filled up by a test."""
    settings = {"engine.workers": 3, "engine.stall_timeout_s": STALL_TIMEOUT_S, "engine.max_retries": 1}
    process = DaemonProcess(tmp_path_factory.mktemp("daemon"), model, settings)
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "capabilities.json"
    with shared.with_suffix(".lock").open("w") as turn:  # of a run's processes one probes, and the others wait for it
        await asyncio.to_thread(fcntl.flock, turn, fcntl.LOCK_EX)
        take_probe(shared, process.home)
        await process.start()
        shutil.copy(found_by(process), shared)
    yield process
    assert await process.stop() == 0


@pytest.fixture(scope="session")
def probed(request: pytest.FixtureRequest) -> Path:
    """What a probe of the CLI has found: PROBED, where somebody has done it before; else by the warm daemon."""
    if "PROBED" in os.environ:
        return Path(os.environ["PROBED"])
    return found_by(request.getfixturevalue("daemon"))


@pytest.fixture
async def start_daemon(probed: Path, model: OfflineModel, tmp_path: Path) -> AsyncIterator[StartDaemon]:
    """Starts further daemons, for tests that end or starve them: ``await start_daemon({"engine.workers": 1})``."""
    started: list[DaemonProcess] = []

    async def start(settings: dict[str, Any] | None = None, **fields: Any) -> DaemonProcess:
        defaults = {"engine.workers": 1, "engine.spares": 0, "engine.stall_timeout_s": STALL_TIMEOUT_S}
        home = fields.pop("home", tmp_path)
        take_probe(probed, home)
        process = DaemonProcess(home, fields.pop("model", model), {**defaults, **(settings or {})}, **fields)
        started.append(process)
        return await process.start()

    yield start
    for process in started:
        await process.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items if PATIENCE != 1 else ():
        own = item.get_closest_marker("timeout")
        seconds = float(own.args[0] if own else item.config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(seconds * PATIENCE), append=False)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """One of several processes tells the one that started it."""
    told = getattr(session.config, "workeroutput", None)
    if told is not None:
        told["spawned_clis"] = dict(spawned_clis)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    spawned_clis.update(getattr(node, "workeroutput", {}).get("spawned_clis", {}))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if spawned_clis:
        total = sum(spawned_clis.values())
        terminalreporter.write_line(f"CLI processes started: {total} by {len(spawned_clis)} daemons")
    called = [report for reports in terminalreporter.stats.values() for report in reports]
    for report in (report for report in called if getattr(report, "when", None) == "call"):
        for sandbox, found in (value for name, value in report.user_properties if name == "attacks"):
            succeeded = sorted(name for name, so in found.items() if so)
            terminalreporter.write_line(f"sandbox {sandbox}: {len(succeeded)} of {len(found)} attacks succeed")
            for name in succeeded:
                terminalreporter.write_line(f"  an agent {name}")
