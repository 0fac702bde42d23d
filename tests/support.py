"""The real daemon as a subprocess, for tests: a home of its own, a scrubbed environment, the offline model behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from claude_daemon.offline import OfflineModel

BIN = Path(sys.executable).parent
# What a slow machine's times are multiplied with: those that say when something has failed, never one that is measured.
PATIENCE = float(os.environ.get("PATIENCE", "1"))
START_TIMEOUT_S = 60.0 * PATIENCE
STOP_TIMEOUT_S = 30.0 * PATIENCE

# What a test run needs, and nothing else of the surroundings; coverage measures the subprocess too.
_KEPT = ("COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG", "COVERAGE_FILE", "TMPDIR")

spawned_clis: dict[str, int] = {}
"""CLI processes that each daemon of this test run has started, told in pytest's summary."""


@dataclass
class DaemonProcess:
    """One ``claude-daemon run``. :meth:`start` returns once it serves; :meth:`stop` once it has ended."""

    home: Path
    model: OfflineModel
    settings: Mapping[str, object] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    program: tuple[str, ...] = (str(BIN / "claude-daemon"),)
    process: asyncio.subprocess.Process | None = None
    url: str = ""
    _session: aiohttp.ClientSession | None = None
    _control: aiohttp.ClientSession | None = None
    _reader: asyncio.Task[None] | None = None
    _stderr: list[str] = field(default_factory=list)
    _told: asyncio.Condition = field(default_factory=asyncio.Condition)

    def environment(self) -> dict[str, str]:
        """The daemon's whole environment. ``settings`` are ``section.key`` → value."""
        env = {name: os.environ[name] for name in _KEPT if name in os.environ}
        env |= {"PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin", "HOME": str(self.home), "LANG": "C.UTF-8"}
        env |= {"ANTHROPIC_API_KEY": self.model.api_key, "ANTHROPIC_BASE_URL": self.model.base_url}
        env |= {"CLAUDE_DAEMON_HTTP__PORT": "0", "CLAUDE_DAEMON_LOG__FORMAT": "json"}
        for key, value in self.settings.items():
            section, name = key.split(".")
            env[f"CLAUDE_DAEMON_{section.upper()}__{name.upper()}"] = str(value)
        env |= self.environ
        return {name: value for name, value in env.items() if value != ""}

    async def start(self) -> DaemonProcess:
        """Starts it and waits until it says where it serves. Raises RuntimeError with its words if it ends first."""
        await self.launch()
        assert self.process is not None and self.process.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            async for raw in self.process.stdout:
                line = raw.decode()
                if " serves at " in line:
                    self.url = line.split(" serves at ")[1].split()[0]
                    return self
        raise RuntimeError(f"the daemon did not start: {''.join(self._stderr)}")

    async def launch(self) -> None:
        """Starts it and waits for nothing."""
        self.process = await asyncio.create_subprocess_exec(
            *self.program,
            "run",
            *self.args,
            env=self.environment(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reader = asyncio.create_task(self._read_stderr())

    async def _read_stderr(self) -> None:
        assert self.process is not None and self.process.stderr is not None
        async for line in self.process.stderr:
            async with self._told:
                self._stderr.append(line.decode(errors="replace"))
                self._told.notify_all()

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signals it, waits for its end and tells its exit status; one that has ended already is no error."""
        assert self.process is not None
        if self.process.returncode is None:
            if self.url and number is signal.SIGTERM:
                await self._count_spawns()
            self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        """Waits for its end; the exit status."""
        assert self.process is not None
        async with asyncio.timeout(STOP_TIMEOUT_S):
            status = await self.process.wait()
        for session in (self._session, self._control):
            if session is not None:
                await session.close()
        self._session = self._control = None
        if self._reader is not None:
            await self._reader
        return status

    async def _count_spawns(self) -> None:
        status = await self.control("status")
        spawned_clis[str(self.home)] = int(status["workers"]["spawned"])

    @property
    def key(self) -> str:
        """The ``local`` key's secret."""
        return (self.home / ".claude-daemon" / "local.key").read_text().strip()

    @property
    def socket(self) -> Path:
        return self.home / ".claude-daemon" / "run" / "ctl.sock"

    @property
    def http(self) -> aiohttp.ClientSession:
        """A client with the key; ``Claude-Daemon-Lane`` and the rest are the caller's."""
        if self._session is None:
            headers = {"Authorization": f"Bearer {self.key}"}
            self._session = aiohttp.ClientSession(self.url, headers=headers)
        return self._session

    async def control(self, path: str, method: str = "GET", body: object = None) -> Any:
        """One request to the control API; its JSON."""
        if self._control is None:
            connector = aiohttp.UnixConnector(str(self.socket))
            headers = {"Claude-Daemon-Control": "1"}
            self._control = aiohttp.ClientSession("http://daemon", connector=connector, headers=headers)
        async with self._control.request(method, f"/control/v1/{path}", json=body) as response:
            return orjson.loads(await response.read())

    async def workers(self) -> list[dict[str, Any]]:
        return list((await self.control("workers"))["workers"])

    def log(self) -> list[dict[str, Any]]:
        """Every line of its log so far."""
        return [orjson.loads(line) for line in self._stderr if line.startswith("{")]

    async def logged(self, event: str, timeout_s: float = 15.0, **fields: object) -> dict[str, Any]:
        """Waits for a log line with this event and these fields."""

        def found() -> dict[str, Any] | None:
            for line in self.log():
                if line["event"] == event and all(line.get(name) == value for name, value in fields.items()):
                    return line
            return None

        async with asyncio.timeout(timeout_s), self._told:
            await self._told.wait_for(lambda: found() is not None)
        line = found()
        assert line is not None
        return line

    async def chat(self, prompt: str, *, lane: str = "text", **body: object) -> aiohttp.ClientResponse:
        """A chat over ``/v1/messages``, read whole; ``.status``, ``.headers`` and ``await .json()`` are there."""
        request = {"model": "sonnet", "max_tokens": 1024, "messages": [{"role": "user", "content": prompt}], **body}
        response = await self.http.post("/v1/messages", json=request, headers={"Claude-Daemon-Lane": lane})
        await response.read()
        return response


def found_by(daemon: DaemonProcess) -> Path:
    """What its probe of the CLI has found."""
    return daemon.home / ".claude-daemon" / "engine" / "capabilities.json"


def share_probe(warm: DaemonProcess, home: Path) -> None:
    """Spares a fresh home the probe of the CLI, by the warm daemon's result; for another CLI it does not count."""
    take_probe(found_by(warm), home)


def take_probe(probed: Path, home: Path) -> None:
    """The same, of a result in any file; without effect where there is none."""
    engine = home / ".claude-daemon" / "engine"
    if probed.exists() and not engine.exists():
        engine.mkdir(parents=True, mode=0o700)
        engine.parent.chmod(0o700)
        shutil.copy(probed, engine)


async def sse(response: aiohttp.ClientResponse) -> list[tuple[str, Any]]:
    """Every event of an SSE answer to its end: ``(event type or "message", data)``; ``[DONE]`` stays a string."""
    events: list[tuple[str, Any]] = []
    kind = "message"
    async for raw in response.content:
        line = raw.decode().rstrip("\n")
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
            events.append((kind, data if data == "[DONE]" else orjson.loads(data)))
            kind = "message"
    return events


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a Messages API message."""
    return "".join(block["text"] for block in message["content"] if block["type"] == "text")


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
