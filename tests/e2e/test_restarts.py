"""Restarts under a constant load of chats and submitted tasks: no request fails, and no task is lost.

``RESTARTS`` says how many, for each of the two ways in which a listener outlives a daemon: the test holds it, as a
systemd socket unit does, or each daemon hands it to the next. The clients are of both modes: half never try again.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from claude_daemon.offline import OfflineModel
from tests.load.client import Load, Target
from tests.load.report import Report
from tests.load.verify import verify
from tests.support import DaemonProcess, alive, share_probe

pytestmark = [pytest.mark.restarts, pytest.mark.timeout(600)]

RESTARTS = int(os.environ.get("RESTARTS", "50"))
PATIENCE_S = 60.0
SERVED_BETWEEN = 20
"""Requests that are over between two restarts: each daemon has served, and is loaded, when it is told to go."""
SETTINGS = {"engine.workers": 2, "engine.spares": 0}
BACKLOG = 1024
"""As the socket unit has it."""
ACTIVATED = str(Path(__file__).with_name("activated.py"))


@pytest.fixture(autouse=True)
def probed_before(daemon: DaemonProcess, tmp_path: Path) -> None:
    share_probe(daemon, tmp_path)


@asynccontextmanager
async def loaded(target: Target) -> AsyncIterator[Load]:
    """A load that goes on while the body restarts; one that cannot go on ends the body."""
    load = Load(target)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(load.run())
            yield load
            load.stop()
    finally:
        print(load.report())


async def judge(target: Target, report: Report, log: list[dict[str, Any]], home: Path) -> None:
    """Asserts that nothing failed and nothing was lost; a failure comes with what the daemons said of the request."""
    failures = [failed for counts in report.modes.values() for failed in counts.failures]
    for failed in failures:
        print(failed, *(line for line in log if line.get("request_id") == failed.request_id), sep="\n    ")
    assert report.failed == 0
    verdict = await verify(target, report)
    assert verdict.good, verdict
    assert verdict.states == {"succeeded": verdict.acknowledged}, verdict
    database = sqlite3.connect(f"file:{home / '.claude-daemon' / 'daemon.db'}?mode=ro", uri=True)
    ends = "SELECT task_id FROM events WHERE type IN ('task.succeeded', 'task.failed', 'task.cancelled')"
    ended = [row[0] for row in database.execute(ends)]
    database.close()
    assert len(ended) == len(set(ended)), "a task has ended twice"


# the listener is the test's


@dataclass(frozen=True, slots=True)
class SocketUnit:
    """Bound once, before the first daemon, and there until after the last."""

    http: socket.socket
    control: socket.socket

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.getsockname()[1]}"


@contextmanager
def socket_unit(home: Path) -> Iterator[SocketUnit]:
    path = home / ".claude-daemon" / "run" / "ctl.sock"
    path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as http, socket.socket(socket.AF_UNIX) as control:
        control.bind(str(path))
        path.chmod(0o600)
        control.listen(BACKLOG)
        yield SocketUnit(http, control)


class Unit(DaemonProcess):
    """A daemon that is given its sockets."""

    sockets: SocketUnit

    async def launch(self) -> None:
        given = {"http": self.sockets.http.fileno(), "control": self.sockets.control.fileno()}
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            ACTIVATED,
            *(f"{name}={fd}" for name, fd in given.items()),
            "--",
            *self.program,
            "run",
            env=self.environment(),
            pass_fds=tuple(given.values()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reader = asyncio.create_task(self._read_stderr())


async def test_restarts_behind_a_socket_unit_drop_nothing(tmp_path: Path, model: OfflineModel) -> None:
    log: list[dict[str, Any]] = []
    with socket_unit(tmp_path) as sockets:

        async def start() -> Unit:
            unit = Unit(tmp_path, model, SETTINGS)
            unit.sockets = sockets
            await unit.start()
            return unit

        unit = await start()
        target = Target(url=sockets.url, key=unit.key)
        try:
            async with loaded(target) as load:
                for number in range(RESTARTS):
                    await load.more(SERVED_BETWEEN)
                    assert await unit.stop() == 0, f"restart {number}"
                    log += unit.log()
                    unit = await start()
                await load.more(SERVED_BETWEEN)
            await judge(target, load.report(), log + unit.log(), tmp_path)
        finally:
            assert await unit.stop() == 0


# the daemon hands its listener on


class Generations:
    """A daemon and those that come after it. All of them write into the streams of the first."""

    def __init__(self, first: DaemonProcess) -> None:
        assert first.process is not None
        assert first.process.stdout is not None
        self.first = first
        self.pid = first.process.pid
        self._announcements = asyncio.create_task(first.process.stdout.read())  # nobody is to wait for room in there

    async def restart(self) -> None:
        """Over when the one before has ended; the successor is the daemon then, though it may be starting still."""
        connector = aiohttp.UnixConnector(str(self.first.socket), force_close=True)
        headers = {"Claude-Daemon-Control": "1"}
        predecessor = self.pid
        async with (
            asyncio.timeout(PATIENCE_S),
            aiohttp.ClientSession("http://daemon", connector=connector, headers=headers) as session,
            session.post("/control/v1/restart", json={"wait": True}) as response,
        ):
            assert response.status == 200, await response.text()
            lines = [orjson.loads(line) async for line in response.content]
        self.pid = next(int(line["successor"]) for line in lines if "successor" in line)
        await gone(predecessor)

    async def stop(self) -> None:
        if alive(self.pid):
            os.kill(self.pid, signal.SIGTERM)
        await gone(self.pid)
        assert await self.first.ended() == 0
        await self._announcements


async def gone(pid: int) -> None:
    """Waits for the end of a process that need not be our child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="waits for processes that are not its own: Linux")
async def test_hot_restarts_drop_nothing(tmp_path: Path, model: OfflineModel) -> None:
    first = await DaemonProcess(tmp_path, model, SETTINGS).start()
    generations = Generations(first)
    target = Target(url=first.url, key=first.key)
    try:
        async with loaded(target) as load:
            for _ in range(RESTARTS):
                await load.more(SERVED_BETWEEN)
                await generations.restart()
            await load.more(SERVED_BETWEEN)
        await judge(target, load.report(), first.log(), tmp_path)
    finally:
        await generations.stop()
    ends = [line["event"] for line in first.log() if line["event"] in ("daemon.stopped", "daemon.crashed")]
    assert ends == ["daemon.stopped"] * (RESTARTS + 1)
