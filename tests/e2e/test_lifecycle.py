"""The daemon's life on the real daemon: start, drain, stop, and everything that goes wrong on the way."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from claude_daemon.engine.lane import bundled_cli
from claude_daemon.offline import OfflineModel
from tests.conftest import StartDaemon
from tests.support import START_TIMEOUT_S, DaemonProcess, alive, share_probe, sse, text_of

TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
PATIENCE_S = 20.0
LANES = ["direct", "text"]
Launch = Callable[..., Awaitable[DaemonProcess]]


@pytest.fixture(autouse=True)
async def probed_before(daemon: DaemonProcess, tmp_path: Path) -> None:
    """Spares each fresh home the probe of the CLI: its result is the warm daemon's. A test with another CLI probes."""
    share_probe(daemon, tmp_path)


@pytest.fixture
async def launch(model: OfflineModel, tmp_path: Path) -> AsyncIterator[Launch]:
    """Launches daemons without waiting for them to serve; kills what is left of them in the end."""
    launched: list[DaemonProcess] = []

    async def start(settings: dict[str, Any] | None = None, **fields: Any) -> DaemonProcess:
        defaults = {"engine.workers": 1, "engine.spares": 0}
        process = DaemonProcess(fields.pop("home", tmp_path), model, {**defaults, **(settings or {})}, **fields)
        launched.append(process)
        await process.launch()
        return process

    yield start
    for process in launched:
        await process.stop(KILL)


def said(daemon: DaemonProcess) -> str:
    """All of its stderr so far."""
    return "".join(daemon._stderr)


def left_behind(daemon: DaemonProcess) -> list[str]:
    """What must not outlive a daemon: its socket, its pid file, its workers' directories and ledger."""
    home = daemon.home / ".claude-daemon"
    places = [home / "run", home / "engine" / "homes", home / "engine" / "ledger"]
    return [str(path) for place in places if place.exists() for path in place.iterdir()]


async def worker_pids(daemon: DaemonProcess) -> list[int]:
    return [worker["pid"] for worker in await daemon.workers() if worker["pid"]]


class Streaming:
    """A streamed chat that has begun: its first event has come."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    @classmethod
    async def begin(cls, daemon: DaemonProcess, prompt: str, *, lane: str, dialect: str = "anthropic") -> Streaming:
        body = {
            "model": "sonnet",
            "max_tokens": 1024,
            "stream": True,
            "messages": [{"role": "user", "content": prompt}],
        }
        path = "/v1/messages" if dialect == "anthropic" else "/v1/chat/completions"
        response = await daemon.http.post(path, json=body, headers={"Claude-Daemon-Lane": lane})
        assert response.status == 200
        await response.content.readline()
        return cls(response)

    async def rest(self) -> list[tuple[str, Any]]:
        async with asyncio.timeout(PATIENCE_S):
            return await sse(self.response)


async def until_waiting(daemon: DaemonProcess, running: int) -> None:
    """Waits until so many tasks run (a request that has not been answered tells nothing of itself)."""
    async with asyncio.timeout(PATIENCE_S):
        while (await daemon.control("status"))["queue"]["running"] != running:
            await asyncio.sleep(0.02)


async def progress(daemon: DaemonProcess, **body: object) -> list[dict[str, Any]]:
    """``POST drain``, and every line of its progress."""
    connector = aiohttp.UnixConnector(str(daemon.socket))
    headers = {"Claude-Daemon-Control": "1"}
    async with (
        asyncio.timeout(PATIENCE_S),
        aiohttp.ClientSession("http://d", connector=connector, headers=headers) as session,
        session.post("/control/v1/drain", json=body) as response,
    ):
        assert response.headers["Content-Type"] == "application/x-ndjson"
        return [orjson.loads(line) async for line in response.content]


async def fresh(daemon: DaemonProcess, path: str, body: object = None) -> aiohttp.ClientResponse:
    """One request on a connection of its own, read whole."""
    async with aiohttp.ClientSession(daemon.url, headers={"Authorization": f"Bearer {daemon.key}"}) as session:
        response = await session.request("GET" if body is None else "POST", path, json=body)
        await response.read()
        return response


CHAT = {"model": "sonnet", "max_tokens": 10, "messages": [{"role": "user", "content": "Hello [[tokens=3]]"}]}


async def assert_draining(daemon: DaemonProcess) -> None:
    """New work is refused and the connection ended; the probes say what the table of LIFECYCLE.md says."""
    for path in ("/v1/messages", "/v1/chat/completions"):
        refused = await fresh(daemon, path, CHAT)
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.headers["Connection"] == "close"
    for path, status in (("/live", 200), ("/startup", 200), ("/ready", 503), ("/health", 503)):
        probe = await fresh(daemon, path)
        assert (path, probe.status) == (path, status)
        assert ("Retry-After" in probe.headers) == (path == "/ready")
        assert probe.headers["Cache-Control"] == "no-store"


# start


async def test_it_says_where_it_serves_once_it_does(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    assert (await fresh(daemon, "/ready")).status == 200
    ready = await daemon.logged("daemon.ready")
    assert ready["url"] == daemon.url
    assert (await fresh(daemon, "/v1/messages", CHAT)).status == 200


async def test_a_reader_of_the_announcement_that_has_left_does_no_harm(launch: Launch, tmp_path: Path) -> None:
    daemon = await launch()
    assert daemon.process is not None
    transport: Any = daemon.process._transport  # type: ignore[attr-defined]
    transport.get_pipe_transport(1).close()
    await daemon.logged("daemon.ready", PATIENCE_S)
    assert (await daemon.control("ready"))["status"] == "pass"
    assert await daemon.stop() == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate: apt-get install openssl")
async def test_with_a_certificate_it_speaks_tls_and_nothing_else(start_daemon: StartDaemon, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout {key} -out {cert}"
    maker = await asyncio.create_subprocess_exec(*command.split(), stderr=asyncio.subprocess.DEVNULL)
    assert await maker.wait() == 0
    daemon = await start_daemon({"http.tls_cert": str(cert), "http.tls_key": str(key)})
    assert daemon.url.startswith("https://127.0.0.1:")
    trust = ssl.create_default_context(cafile=str(cert))
    trust.check_hostname = False
    async with aiohttp.ClientSession() as session:
        async with session.get(daemon.url + "/ready", ssl=trust) as response:
            assert response.status == 200
        with pytest.raises(aiohttp.ClientError):
            await session.get(daemon.url.replace("https", "http") + "/ready")


async def test_an_ipv6_address_is_a_good_url(start_daemon: StartDaemon) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    daemon = await start_daemon({"http.host": "::1"})
    assert daemon.url.startswith("http://[::1]:")
    assert (await fresh(daemon, "/ready")).status == 200


async def test_the_home_is_for_us_alone(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    home = daemon.home / ".claude-daemon"
    modes = {str(path.relative_to(home)): path.lstat().st_mode & 0o777 for path in home.rglob("*") if path.exists()}
    assert home.stat().st_mode & 0o777 == 0o700
    assert {name: oct(mode) for name, mode in modes.items() if mode & 0o077} == {}
    assert {"local.key", "run/ctl.sock", "run/daemon.pid", "log/daemon.log"} <= set(modes)


async def test_a_home_and_a_key_that_others_could_read_are_repaired_and_it_is_said(start_daemon: StartDaemon) -> None:
    first = await start_daemon()
    key = first.key
    assert await first.stop() == 0
    home = first.home / ".claude-daemon"
    home.chmod(0o755)
    (home / "local.key").chmod(0o644)
    second = await start_daemon(home=first.home)
    said = [line["reason"] for line in second.log() if line["event"] == "home.repaired"]
    assert len(said) == 2
    assert (home.stat().st_mode & 0o777, (home / "local.key").stat().st_mode & 0o777) == (0o700, 0o600)
    assert second.key == key
    assert key not in "".join(said)


async def test_a_second_start_is_73_before_it_begins_anything_and_the_first_goes_on(
    start_daemon: StartDaemon, launch: Launch, tmp_path: Path
) -> None:
    """That is what makes it quick: it takes no time that depends on the machine, the CLI or the first one."""
    first = await start_daemon()
    assert first.process is not None
    async with Spawns(tmp_path) as spawns:
        first.process.send_signal(signal.SIGSTOP)  # who asked it anything would wait for ever
        second = await launch({"engine.cli_path": str(spawns.cli)}, home=first.home)
        assert await second.ended() == 73
        first.process.send_signal(signal.SIGCONT)
    already = f"already running (pid {first.process.pid}, {first.home}/.claude-daemon/run/daemon.pid)"
    assert [already in line for line in said(second).splitlines()] == [True]
    assert spawns.pids == []
    assert (await fresh(first, "/ready")).status == 200
    assert (await first.control("ready"))["status"] == "pass"


async def test_a_second_home_with_the_same_control_socket_does_not_steal_it(
    start_daemon: StartDaemon, launch: Launch, tmp_path: Path
) -> None:
    first = await start_daemon()
    other = tmp_path / "other"
    other.mkdir()
    second = await launch({"control.socket": str(first.socket)}, home=other)
    assert await second.ended() == 73
    assert "somebody listens on it" in said(second)
    assert left_behind(second) == []
    assert (await first.control("ready"))["status"] == "pass"


async def test_a_stale_pid_file_and_a_stale_socket_are_no_obstacle(start_daemon: StartDaemon, tmp_path: Path) -> None:
    run = tmp_path / ".claude-daemon" / "run"
    run.mkdir(mode=0o700)
    (run / "daemon.pid").write_text(f"{os.getpid()}\n")  # recycled: somebody else lives under that number
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(run / "ctl.sock"))
    daemon = await start_daemon()
    assert daemon.process is not None
    assert (run / "daemon.pid").read_text() == f"{daemon.process.pid}\n"
    assert (await daemon.control("ready"))["status"] == "pass"


async def test_after_a_sigkill_the_next_start_serves_and_ends_the_old_workers(start_daemon: StartDaemon) -> None:
    first = await start_daemon()
    old = await worker_pids(first)
    key = first.key
    await first.stop(KILL)
    second = await start_daemon(home=first.home)
    assert second.key == key
    assert not any(alive(pid) for pid in old)
    assert (await fresh(second, "/v1/messages", CHAT)).status == 200


# SIGTERM while starting

WRAPPER = """#!/bin/sh
echo "$$ $*" > {fifo}
exec {cli} "$@"
"""
HANGS = """#!/bin/sh
echo "$$ $*" > {fifo}
exec sleep 600
"""


class Spawns:
    """Tells each start of the CLI through a FIFO that a wrapper around it writes to."""

    def __init__(self, directory: Path, script: str = WRAPPER) -> None:
        self.fifo = directory / "spawns"
        os.mkfifo(self.fifo)
        self.cli = directory / "claude"
        self.cli.write_text(script.format(fifo=self.fifo, cli=bundled_cli()))
        self.cli.chmod(0o755)
        self.pids: list[int] = []
        self._come = asyncio.Condition()

    async def __aenter__(self) -> Spawns:
        fd = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK)
        reader = asyncio.StreamReader()
        self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0)
        )
        self._task = asyncio.create_task(self._read(reader))
        return self

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            async with self._come:
                self.pids.append(int(line.split()[0]))
                self._come.notify_all()

    async def number(self, count: int) -> None:
        """Waits for the n-th start."""
        async with asyncio.timeout(PATIENCE_S), self._come:
            await self._come.wait_for(lambda: len(self.pids) >= count)

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        self._transport.close()


async def test_sigterm_in_the_first_moment_leaves_nothing_behind(launch: Launch) -> None:
    daemon = await launch()
    assert await daemon.stop(TERM) in (0, -TERM)  # before Python runs a line of ours the kernel answers
    assert left_behind(daemon) == []


@pytest.mark.parametrize("number", [1, 3, 4, 6])
async def test_sigterm_while_starting_is_a_quick_exit_0_with_nothing_left(
    launch: Launch, tmp_path: Path, number: int
) -> None:
    """At the first spawn (``--version``), in the probe, and while the first workers come up."""
    async with Spawns(tmp_path) as spawns:
        daemon = await launch({"engine.cli_path": str(spawns.cli), "engine.workers": 3})
        if number < 6:
            await spawns.number(number)
        else:
            await daemon.logged("worker.ready", START_TIMEOUT_S)  # a CLI that nobody knows is probed first
        began = time.monotonic()
        assert await daemon.stop(TERM) == 0
        assert time.monotonic() - began < 10
    assert left_behind(daemon) == []
    assert [pid for pid in spawns.pids if alive(pid)] == []
    assert "Traceback" not in said(daemon)


async def test_sigterm_while_a_cli_hangs_in_its_probe_does_not_wait_for_it(launch: Launch, tmp_path: Path) -> None:
    async with Spawns(tmp_path, HANGS) as spawns:
        daemon = await launch({"engine.cli_path": str(spawns.cli)})
        await spawns.number(1)
        starting = await daemon.control("ready")
        assert (starting["state"], starting["reason"]) == ("starting", "the daemon is starting")
        assert (await daemon.control("drain", "POST", {}))["code"] == "not_ready"
        began = time.monotonic()
        assert await daemon.stop(TERM) == 0
        assert time.monotonic() - began < 10  # the probe's own limit is 30 s
    assert left_behind(daemon) == []
    assert [pid for pid in spawns.pids if alive(pid)] == []


async def test_sigterm_while_the_cli_is_asked_for_a_login(launch: Launch, tmp_path: Path) -> None:
    async with Spawns(tmp_path, HANGS) as spawns:
        nothing = {"ANTHROPIC_API_KEY": "", "ANTHROPIC_BASE_URL": ""}
        daemon = await launch({"engine.cli_path": str(spawns.cli)}, environ=nothing)
        await spawns.number(1)
        assert await daemon.stop(TERM) == 0
    assert left_behind(daemon) == []
    assert [pid for pid in spawns.pids if alive(pid)] == []


async def test_drain_with_a_stop_ends_a_daemon_that_is_starting(launch: Launch, tmp_path: Path) -> None:
    async with Spawns(tmp_path, HANGS) as spawns:
        daemon = await launch({"engine.cli_path": str(spawns.cli)})
        await spawns.number(1)
        assert (await progress(daemon, stop=True))[-1]["state"] == "stopping"
        assert await daemon.ended() == 0
    assert left_behind(daemon) == []


# drain by signal


@pytest.mark.parametrize("number", [TERM, INT])
async def test_a_stop_lets_streams_finish_and_refuses_new_work(
    start_daemon: StartDaemon, number: signal.Signals
) -> None:
    daemon = await start_daemon({"engine.workers": 2})
    pids = await worker_pids(daemon)
    prompt = "Tell me. [[tokens=40]] [[pace=50ms]]"
    streams = [
        await Streaming.begin(daemon, prompt, lane=lane, dialect=dialect)
        for lane, dialect in zip(LANES, ["openai", "anthropic"], strict=True)
    ]
    assert daemon.process is not None
    daemon.process.send_signal(number)
    await daemon.logged("daemon.draining", stop=True)
    await assert_draining(daemon)
    assert (await daemon.control("undrain", "POST", {}))["code"] == "conflict"
    openai, anthropic = [await stream.rest() for stream in streams]
    assert openai[-1] == ("message", "[DONE]")
    assert anthropic[-1][0] == "message_stop"
    assert await daemon.ended() == 0
    assert [line["state"] for line in daemon.log() if line["event"] == "task.settled"] == ["succeeded", "succeeded"]
    assert left_behind(daemon) == []
    assert not any(alive(pid) for pid in pids)
    assert daemon.log()[-1]["event"] == "daemon.stopped"


@pytest.mark.parametrize("lane", LANES)
async def test_whoever_waits_in_the_queue_is_answered_before_the_end(start_daemon: StartDaemon, lane: str) -> None:
    daemon = await start_daemon({"engine.workers": 1, "engine.direct_max": 1})
    stream = await Streaming.begin(daemon, "Tell me. [[tokens=10]] [[pace=50ms]]", lane=lane)
    async with asyncio.TaskGroup() as group:
        waiting = [group.create_task(daemon.chat(f"And {n}? [[tokens=5]]", lane=lane)) for n in range(3)]
        async with asyncio.timeout(PATIENCE_S):
            while (await daemon.control("status"))["queue"]["waiting"] < 3:
                await asyncio.sleep(0.02)
        assert daemon.process is not None
        daemon.process.send_signal(TERM)
        assert (await stream.rest())[-1][0] == "message_stop"
    assert [task.result().status for task in waiting] == [200, 200, 200]
    assert [text_of(await task.result().json()) for task in waiting] == ["Hello from the offline model."] * 3
    assert await daemon.ended() == 0


ERRORS = {
    "anthropic": ("error", lambda data: data["error"]["type"]),
    "openai": ("message", lambda data: data["error"]["code"]),
}


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("dialect", list(ERRORS))
async def test_at_the_deadline_a_stream_ends_with_its_dialects_error(
    start_daemon: StartDaemon, lane: str, dialect: str
) -> None:
    daemon = await start_daemon({"drain.deadline_s": 0.3, "engine.stall_timeout_s": 60})
    stream = await Streaming.begin(daemon, "Tell me. [[stall=3]]", lane=lane, dialect=dialect)
    began = time.monotonic()
    assert daemon.process is not None
    daemon.process.send_signal(TERM)
    kind, data = (await stream.rest())[-1]
    assert time.monotonic() - began >= 0.3
    assert kind == ERRORS[dialect][0]
    assert "stopped before the answer was complete" in data["error"]["message"]
    assert await daemon.ended() == 0
    settled = await daemon.logged("task.settled")
    assert (settled["state"], settled["code"]) == ("failed", "interrupted")
    assert left_behind(daemon) == []


@pytest.mark.parametrize("lane", LANES)
async def test_at_the_deadline_who_has_got_nothing_yet_is_answered_503(start_daemon: StartDaemon, lane: str) -> None:
    daemon = await start_daemon({"drain.deadline_s": 0.2, "engine.stall_timeout_s": 60})
    async with asyncio.TaskGroup() as group:
        hanging = group.create_task(daemon.chat("Tell me. [[hang]]", lane=lane))
        await until_waiting(daemon, 1)
        assert daemon.process is not None
        daemon.process.send_signal(TERM)
    assert hanging.result().status == 503
    assert int(hanging.result().headers["Retry-After"]) >= 1
    assert await daemon.ended() == 0


async def test_a_second_signal_waits_no_longer(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"drain.deadline_s": 300, "engine.stall_timeout_s": 300})
    pids = await worker_pids(daemon)
    stream = await Streaming.begin(daemon, "Tell me. [[stall=3]]", lane="text")
    assert daemon.process is not None
    daemon.process.send_signal(TERM)
    await daemon.logged("daemon.draining")
    await assert_draining(daemon)
    daemon.process.send_signal(TERM)
    assert (await stream.rest())[-1][0] == "error"
    assert await daemon.ended() == 0
    assert left_behind(daemon) == []
    assert not any(alive(pid) for pid in pids)


async def test_a_storm_of_signals_is_no_crash(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    assert daemon.process is not None
    for _ in range(20):
        with contextlib.suppress(ProcessLookupError):
            daemon.process.send_signal(TERM)
            await asyncio.sleep(0.005)  # spread over the whole of its end
    assert await daemon.ended() == 0
    assert left_behind(daemon) == []


async def test_a_client_that_reads_nothing_does_not_hold_up_the_end(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"drain.deadline_s": 0.5, "drain.kill_grace_s": 0.5, "engine.stall_timeout_s": 60})
    host, port = daemon.url.removeprefix("http://").split(":")
    body = orjson.dumps({**CHAT, "stream": True, "messages": [{"role": "user", "content": "[[bytes=30000000]]"}]})
    with socket.create_connection((host, int(port))) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = (
            f"POST /v1/messages HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {daemon.key}\r\n"
            f"Claude-Daemon-Lane: direct\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        sock.sendall(head.encode() + body)
        await until_waiting(daemon, 1)
        began = time.monotonic()
        assert await daemon.stop(TERM) == 0
        assert time.monotonic() - began < 10
    assert left_behind(daemon) == []


# drain over the control socket


async def test_a_drain_without_a_stop_ends_in_drained_and_can_be_undone(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    stream = await Streaming.begin(daemon, "Tell me. [[tokens=20]] [[pace=50ms]]", lane="text")
    async with asyncio.TaskGroup() as group:
        draining = group.create_task(progress(daemon))
        await daemon.logged("daemon.draining", stop=False)
        assert (await stream.rest())[-1][0] == "message_stop"
    lines = draining.result()
    assert [lines[0]["state"], lines[0]["running"]] == ["draining", 1]
    assert (lines[-1]["state"], lines[-1]["saved"], lines[-1]["running"]) == ("drained", True, 0)
    await assert_draining(daemon)
    assert (await daemon.control("status"))["state"] == "drained"
    again = await progress(daemon)
    assert [line["state"] for line in again] == ["drained"]

    assert (await daemon.control("undrain", "POST", {}))["state"] in ("ready", "degraded")
    assert (await daemon.control("undrain", "POST", {}))["code"] == "conflict"
    for lane in LANES:
        answer = await daemon.chat("Hello [[tokens=5]]", lane=lane)
        assert (answer.status, answer.headers.get("Connection")) == (200, None)

    assert (await progress(daemon))[-1]["state"] == "drained"
    last = await progress(daemon, stop=True)
    assert last[-1]["saved"] is True
    assert await daemon.ended() == 0
    assert left_behind(daemon) == []


async def test_a_drain_at_its_deadline_interrupts_and_the_daemon_stays(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.stall_timeout_s": 60})
    stream = await Streaming.begin(daemon, "Tell me. [[stall=3]]", lane="text")
    assert (await progress(daemon, deadline_s=0))[-1]["state"] == "drained"
    assert (await stream.rest())[-1][0] == "error"
    assert (await daemon.control("undrain", "POST", {}))["state"] in ("ready", "degraded")
    assert (await daemon.chat("Hello [[tokens=5]]")).status == 200


async def test_undoing_a_drain_half_way_tells_who_follows_it(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.stall_timeout_s": 60})
    stream = await Streaming.begin(daemon, "Tell me. [[tokens=40]] [[pace=50ms]]", lane="direct")
    async with asyncio.TaskGroup() as group:
        draining = group.create_task(progress(daemon, deadline_s=60))
        await daemon.logged("daemon.draining")
        await daemon.control("undrain", "POST", {})
    assert draining.result()[-1]["state"] in ("ready", "degraded")
    assert (await stream.rest())[-1][0] == "message_stop"


async def test_a_drain_can_be_made_a_stop_and_that_cannot_be_undone(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    stream = await Streaming.begin(daemon, "Tell me. [[tokens=30]] [[pace=50ms]]", lane="direct")
    assert (await daemon.control("drain", "POST", {"wait": False}))["state"] == "draining"
    assert (await daemon.control("drain", "POST", {"wait": False, "stop": True}))["state"] == "draining"
    assert (await daemon.control("undrain", "POST", {}))["code"] == "conflict"
    assert (await stream.rest())[-1][0] == "message_stop"
    assert await daemon.ended() == 0


async def test_a_signal_shortens_a_long_drain_to_the_configured_deadline(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"drain.deadline_s": 0.3, "engine.stall_timeout_s": 300})
    stream = await Streaming.begin(daemon, "Tell me. [[stall=3]]", lane="direct")
    await daemon.control("drain", "POST", {"wait": False, "stop": True, "deadline_s": 300})
    assert daemon.process is not None
    daemon.process.send_signal(TERM)
    assert (await stream.rest())[-1][0] == "error"
    assert await daemon.ended() == 0


async def test_who_waits_for_readiness_is_told_at_once_that_it_stops(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    await progress(daemon)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as group:
        wait = group.create_task(daemon.control("ready?wait=30"))
        await asyncio.sleep(0)
        await progress(daemon, stop=True)
    assert wait.result()["status"] == "fail"
    assert await daemon.ended() == 0


# a part that fails

BROKEN = """
import asyncio
from claude_daemon.engine.lane import TextLane
run = TextLane.run
async def broken(lane):
    async with asyncio.TaskGroup() as group:
        group.create_task(run(lane))
        await lane.probed()
        raise RuntimeError("a bug in the pool")
TextLane.run = broken
from claude_daemon.cli import main
main()
"""


async def test_a_part_that_fails_ends_the_daemon_with_1_and_says_why(model: OfflineModel, tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path, model, {"engine.workers": 1})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BROKEN, "run",
        env=daemon.environment(), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(PATIENCE_S):
        _, stderr = await process.communicate()
    lines = [orjson.loads(line) for line in stderr.splitlines()]
    assert process.returncode == 1
    (crash,) = [line for line in lines if line["event"] == "daemon.crashed"]
    assert crash["level"] == "critical"
    assert "a bug in the pool" in str(crash["exception"])
    assert list((daemon.home / ".claude-daemon" / "run").iterdir()) == []
    pids = [line["pid"] for line in lines if line["event"] == "worker.ready"]
    assert pids
    async with asyncio.timeout(PATIENCE_S):  # a worker reads the end of its input and goes
        while any(alive(pid) for pid in pids):
            await asyncio.sleep(0.02)
