"""``claude-daemon start`` and ``stop``: the daemon in the background, and what its caller is told."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from claude_daemon.supervise.pidfile import PidFile, running
from tests.conftest import StartDaemon
from tests.support import BIN, DaemonProcess, alive, share_probe

PATIENCE_S = 30.0


@pytest.fixture(autouse=True)
def probed_before(daemon: DaemonProcess, tmp_path: Path) -> None:
    share_probe(daemon, tmp_path)


def environment(home: Path, **environ: str) -> dict[str, str]:
    base = {"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(home), "LANG": "C.UTF-8"}
    return {**base, "CLAUDE_DAEMON_HTTP__PORT": "0", "CLAUDE_DAEMON_ENGINE__WORKERS": "1", **environ}


async def claude_daemon(home: Path, *args: str, **environ: str) -> tuple[int, str, str]:
    """Exit status, stdout, stderr. Its pipes are at their end when it ends: what it has started holds none of them."""
    process = await asyncio.create_subprocess_exec(
        str(BIN / "claude-daemon"),
        *args,
        env=environment(home, **environ),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def pid_file(home: Path) -> Path:
    return home / ".claude-daemon" / "run" / "daemon.pid"


@contextmanager
def in_the_end(home: Path) -> Iterator[None]:
    """Whatever a test has started and not stopped is ended."""
    try:
        yield
    finally:
        if (pid := running(pid_file(home))) is not None:
            os.kill(pid, signal.SIGKILL)


async def test_start_returns_when_it_serves_and_stop_when_it_is_gone(tmp_path: Path) -> None:
    with in_the_end(tmp_path):
        status, out, err = await claude_daemon(tmp_path, "start", "--offline")
        assert (status, err) == (0, "")
        found = re.fullmatch(r"claude-daemon \S+ serves at http://127\.0\.0\.1:\d+ \(pid (\d+)\)(.*)\n", out)
        assert found is not None
        pid = int(found[1])
        assert found[2] == ", on the offline model: no account, no network"
        assert running(pid_file(tmp_path)) == pid
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        assert int(stat[3]) != os.getsid(0)  # a session of its own
        assert Path(f"/proc/{pid}/cwd").resolve() == Path("/")
        assert {str(Path(f"/proc/{pid}/fd/{fd}").readlink()) for fd in range(3)} == {"/dev/null"}
        assert "Umask:\t0077" in Path(f"/proc/{pid}/status").read_text()
        assert (await claude_daemon(tmp_path, "stop"))[:2] == (0, "stopped\n")
        assert not alive(pid)
        assert list(pid_file(tmp_path).parent.iterdir()) == []
        log = (tmp_path / ".claude-daemon" / "log" / "daemon.log").read_text()
        assert "daemon.ready" in log and "daemon.stopped" in log


async def test_a_second_start_is_73_and_names_the_first_which_goes_on(tmp_path: Path) -> None:
    with in_the_end(tmp_path):
        assert (await claude_daemon(tmp_path, "start", "--offline"))[0] == 0
        pid = running(pid_file(tmp_path))
        for verb in ("start", "run"):
            status, out, err = await claude_daemon(tmp_path, verb, "--offline")
            assert (status, out) == (73, "")
            assert f"already running (pid {pid}, {pid_file(tmp_path)})" in err
        assert running(pid_file(tmp_path)) == pid
        assert (await claude_daemon(tmp_path, "stop"))[0] == 0


@pytest.mark.parametrize(
    ("environ", "status", "said"),
    [
        ({"CLAUDE_DAEMON_HTTP__PORT": "x"}, 78, "http.port"),
        ({"CLAUDE_DAEMON_LOG__FILE": "none"}, 78, "log.file is none"),
        ({"CLAUDE_DAEMON_WEBHOOKS__SECRET": "whsec_!"}, 78, "webhooks.secret"),
        ({"CLAUDE_DAEMON_REDIS__URL": "redis://u@v@w/x?y=1"}, 78, "redis.url"),
        ({"CLAUDE_DAEMON_HTTP__HOST": "192.0.2.1", "CLAUDE_DAEMON_HTTP__ALLOW_PLAINTEXT": "true"}, 73, "192.0.2.1:0"),
    ],
)
async def test_a_start_that_fails_tells_its_caller_why_and_leaves_nothing(
    tmp_path: Path, environ: dict[str, str], status: int, said: str
) -> None:
    with in_the_end(tmp_path):
        found, out, err = await claude_daemon(tmp_path, "start", "--offline", **environ)
        assert (found, out) == (status, "")
        assert said in err
        assert running(pid_file(tmp_path)) is None


async def test_a_start_that_is_not_ready_says_so_and_stays(tmp_path: Path) -> None:
    with in_the_end(tmp_path):
        status, out, err = await claude_daemon(tmp_path, "start", "--profile", "prod")
        assert status == 0
        assert "serves at" in out
        assert "it is not ready: engine: no credential" in err
        assert running(pid_file(tmp_path)) is not None
        assert (await claude_daemon(tmp_path, "stop"))[0] == 0


async def test_stop_stops_a_daemon_whoever_started_it(start_daemon: StartDaemon, tmp_path: Path) -> None:
    daemon = await start_daemon()
    assert (await claude_daemon(tmp_path, "stop"))[:2] == (0, "stopped\n")
    assert await daemon.ended() == 0


async def test_stop_needs_no_good_configuration(tmp_path: Path) -> None:
    with in_the_end(tmp_path):
        assert (await claude_daemon(tmp_path, "start", "--offline"))[0] == 0
        config = tmp_path / ".claude-daemon" / "config.toml"
        config.write_text("[http]\nprot = 1\n")
        config.chmod(0o600)
        assert await claude_daemon(tmp_path, "stop") == (0, "stopped\n", "")
        assert running(pid_file(tmp_path)) is None


async def test_what_runs_in_the_background_restarts_itself(tmp_path: Path) -> None:
    with in_the_end(tmp_path):
        assert (await claude_daemon(tmp_path, "start", "--offline"))[0] == 0
        first = running(pid_file(tmp_path))
        connector = aiohttp.UnixConnector(str(tmp_path / ".claude-daemon" / "run" / "ctl.sock"))
        headers = {"Claude-Daemon-Control": "1"}
        async with aiohttp.ClientSession("http://d", connector=connector, headers=headers) as session:
            async with session.post("/control/v1/restart", json={"wait": False}) as response:
                assert response.status == 200
                successor = (await response.json())["successor"]
            async with asyncio.timeout(PATIENCE_S):
                while running(pid_file(tmp_path)) != successor:
                    await asyncio.sleep(0.02)
            async with asyncio.timeout(PATIENCE_S):
                while not await _ready(session):
                    await asyncio.sleep(0.02)
        assert first is not None
        async with asyncio.timeout(PATIENCE_S):  # its process ends a moment after it has handed over
            while alive(first):
                await asyncio.sleep(0.02)
        assert (await claude_daemon(tmp_path, "stop"))[:2] == (0, "stopped\n")
        assert not alive(successor)


async def _ready(session: aiohttp.ClientSession) -> bool:
    try:
        async with session.get("/control/v1/status") as response:
            return (await response.json())["state"] in ("ready", "degraded")
    except (aiohttp.ClientError, OSError):
        return False


async def test_stop_without_a_daemon_says_so(tmp_path: Path) -> None:
    status, out, _ = await claude_daemon(tmp_path, "stop")
    assert (status, out) == (0, f"claude-daemon is not running ({pid_file(tmp_path)})\n")


async def test_a_takeover_waits_for_the_lock_and_can_be_told_to_stop_meanwhile(tmp_path: Path) -> None:
    pid_file(tmp_path).parent.mkdir(parents=True)
    (tmp_path / ".claude-daemon").chmod(0o700)
    with PidFile(pid_file(tmp_path)):
        process = await asyncio.create_subprocess_exec(
            str(BIN / "claude-daemon"),
            *("run", "--offline", "--takeover"),
            env=environment(tmp_path, CLAUDE_DAEMON_LOG__FORMAT="json"),
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None
        async with asyncio.timeout(PATIENCE_S):
            while b"daemon.waiting" not in await process.stderr.readline():
                pass
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            assert await process.wait() == 0
        assert running(pid_file(tmp_path)) == os.getpid()


async def test_signals_in_the_first_moments_end_nothing(tmp_path: Path) -> None:
    """From when a stop is handled: what comes before that meets Python's own start."""
    with in_the_end(tmp_path):
        process = await asyncio.create_subprocess_exec(
            str(BIN / "claude-daemon"),
            *("run", "--offline"),
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        serves = asyncio.create_task(process.stdout.readuntil(b" serves at "))
        status = Path(f"/proc/{process.pid}/status")
        async with asyncio.timeout(PATIENCE_S):
            while not _mask(status, "SigCgt") >> (signal.SIGTERM - 1) & 1:
                await asyncio.sleep(0)
            while not serves.done():
                for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
                    process.send_signal(number)
                await asyncio.sleep(0.01)
            await serves
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0


def _mask(status: Path, name: str) -> int:
    fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
    return int(fields[name], 16)
