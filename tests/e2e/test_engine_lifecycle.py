"""Workers that die, cannot start, wear out or outlive their daemon; and callers that leave."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from claude_daemon.engine.lane import bundled_cli
from claude_daemon.engine.ledger import start_time
from claude_daemon.offline import OfflineModel
from tests.conftest import StartDaemon
from tests.support import DaemonProcess, alive, sse, text_of

pytestmark = pytest.mark.engine

CLI = bundled_cli()
_POLL_S = 0.02
PATIENCE_S = 20.0


async def until(condition: Callable[[], bool], timeout_s: float = 15.0) -> float:
    """Waits for something outside of our processes' words, such as a pid's end; how long it took."""
    began = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(_POLL_S)
    return time.monotonic() - began


async def worker_where(daemon: DaemonProcess, **fields: object) -> dict[str, Any]:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            for worker in await daemon.workers():
                if all(worker[name] == value for name, value in fields.items()):
                    return worker
            await asyncio.sleep(_POLL_S)


def script(path: Path, body: str) -> Path:
    """A stand-in for the CLI; ``$CLI`` in it is the real one."""
    path.write_text(f"#!/bin/sh\nCLI={shlex.quote(str(CLI))}\n{body}\n")
    path.chmod(0o755)
    return path


async def slow_stream(daemon: DaemonProcess, prompt: str) -> Any:
    """A stream of which the first text has arrived."""
    body = {"model": "sonnet", "max_tokens": 999, "stream": True, "messages": [{"role": "user", "content": prompt}]}
    response = await daemon.http.post("/v1/messages", json=body, headers={"Claude-Daemon-Lane": "text"})
    async for line in response.content:
        if b"text_delta" in line:
            return response
    raise AssertionError("no text")


async def test_a_caller_who_leaves_frees_the_worker_and_the_model(
    start_daemon: StartDaemon, model: OfflineModel
) -> None:
    daemon = await start_daemon()
    response = await slow_stream(daemon, "leave me [[tokens=900]] [[pace=100ms]]")  # a minute and a half
    pid = (await worker_where(daemon, state="busy"))["pid"]
    left = time.monotonic()
    response.close()
    async with asyncio.timeout(PATIENCE_S):
        await model.wait_until(lambda m: m.active == 0)
    gone = time.monotonic() - left
    await worker_where(daemon, state="idle", pid=pid)
    again = await daemon.chat("Hello [[tokens=3]]")
    took = time.monotonic() - left
    print(f"\ncaller left: model call gone after {gone * 1000:.0f} ms, next answer after {took * 1000:.0f} ms")
    assert text_of(await again.json()) == "Hello from the"
    assert (await worker_where(daemon, state="idle"))["pid"] == pid
    said = orjson.dumps(model.requests[-1].body["messages"]).decode()
    assert "leave me" not in said
    assert (await daemon.logged("task.settled", state="cancelled"))["worker_id"]


async def test_a_caller_who_leaves_before_the_first_byte_frees_the_worker_too(
    start_daemon: StartDaemon, model: OfflineModel
) -> None:
    daemon = await start_daemon({"engine.stall_timeout_s": 30})
    hung = asyncio.ensure_future(daemon.chat("hang on [[hang]]"))
    await model.wait_until(lambda m: m.active == 1)
    hung.cancel()
    async with asyncio.timeout(PATIENCE_S):
        await model.wait_until(lambda m: m.active == 0)
    await worker_where(daemon, state="idle")  # whoever comes while it is being cleared may be given another one
    assert (await daemon.chat("Hello [[tokens=3]]")).status == 200
    assert (await daemon.control("status"))["workers"]["spawned"] == 1


async def test_a_worker_killed_in_mid_turn_is_an_error_event_and_is_replaced(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    response = await slow_stream(daemon, "kill me [[tokens=400]] [[pace=50ms]]")
    os.kill((await worker_where(daemon, state="busy"))["pid"], signal.SIGKILL)
    killed = time.monotonic()
    events = await sse(response)
    assert events[-1][0] == "error"
    assert (await daemon.logged("task.settled", code="engine_crashed"))["state"] == "failed"
    assert (await daemon.chat("Hello [[tokens=3]]")).status == 200
    print(f"\nkilled in mid-turn: next answer {time.monotonic() - killed:.2f} s later")
    health = await daemon.control("health")
    assert health["checks"]["worker_pool"]["status"] == "warn"


async def test_a_worker_killed_before_its_first_word_is_replaced_and_nobody_notices(
    start_daemon: StartDaemon, model: OfflineModel
) -> None:
    daemon = await start_daemon()
    asking = asyncio.ensure_future(daemon.chat("think first [[first=500ms]] [[tokens=3]]"))
    await model.wait_until(lambda m: m.active == 1)
    os.kill((await worker_where(daemon, state="busy"))["pid"], signal.SIGKILL)
    response = await asking
    assert (response.status, text_of(await response.json())) == (200, "Hello from the")
    assert (await daemon.logged("task.settled", attempt=2))["state"] == "succeeded"
    assert (await daemon.logged("worker.crashed"))["request_id"] == response.headers["X-Request-ID"]


async def test_a_worker_killed_at_idle_is_replaced_at_once(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    assert (await daemon.chat("Hello [[tokens=3]]")).status == 200
    pid = (await worker_where(daemon, state="idle", turns=1))["pid"]
    os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    crash = await daemon.logged("worker.crashed", pid=pid)
    assert not crash.get("request_id"), "the request that it served is over"
    assert (await daemon.chat("Hello [[tokens=3]]")).status == 200
    print(f"\nkilled at idle: answer {time.monotonic() - killed:.2f} s later")
    assert not alive(pid)


async def test_a_worker_killed_while_it_starts_is_replaced(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """The second start after the probe's: the CLI is only exec'd once the test has killed the first try."""
    held = tmp_path / "held"
    body = f'[ "$1" = --print ] && [ -e {held} ] && {{ echo $$ > {held}; exec sleep 60; }}\nexec "$CLI" "$@"'
    daemon = await start_daemon({"engine.cli_path": script(tmp_path / "cli", body)})
    held.touch()
    os.kill((await worker_where(daemon, state="idle"))["pid"], signal.SIGKILL)
    await until(lambda: bool(held.read_text().strip()))
    pid = int(held.read_text())
    held.unlink()
    os.kill(pid, signal.SIGKILL)
    assert (await daemon.chat("Hello [[tokens=3]]")).status == 200
    assert (await daemon.logged("worker.start_failed", pid=pid))["error"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (None, "No such file"),
        ("-", "ermission denied"),
        ("echo I am cat 9.4", "ended with status 0"),
        ("exit 3", "status 3"),
    ],
)
async def test_what_is_no_claude_code_fails_the_lane_and_not_the_daemon(
    start_daemon: StartDaemon, tmp_path: Path, body: str | None, says: str
) -> None:
    cli = tmp_path / "cli"
    if body is not None:
        script(cli, body)
    if body == "-":
        cli.chmod(0o644)
    daemon = await start_daemon({"engine.cli_path": cli})
    async with asyncio.timeout(10):
        response = await daemon.chat("Hello")
    assert response.status in (502, 503, 529)
    message = (await response.json())["error"]["message"]
    assert "Claude Code cannot be started" in message
    assert says in message
    assert (await daemon.chat("Hello [[tokens=3]]", lane="direct")).status == 200
    assert (await daemon.control("health"))["checks"]["engine"]["status"] == "warn"


async def test_a_cli_that_dies_as_soon_as_it_starts_is_not_started_again_and_again(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    broken, starts = tmp_path / "broken", tmp_path / "starts"
    body = f'[ -e {broken} ] && {{ echo x >> {starts}; echo "out of luck" >&2; exit 9; }}\nexec "$CLI" "$@"'
    daemon = await start_daemon({"engine.cli_path": script(tmp_path / "cli", body), "engine.workers": 2})
    broken.touch()
    began = time.monotonic()
    for worker in await daemon.workers():
        with contextlib.suppress(ProcessLookupError):  # one that was starting has died of it already
            os.kill(worker["pid"], signal.SIGKILL)
    assert "out of luck" in (await daemon.logged("worker.start_failed", stderr="out of luck"))["stderr"]
    assert (await daemon.logged("worker.stderr", said="out of luck"))["worker_id"]
    async with asyncio.timeout(PATIENCE_S):
        response = await daemon.chat("Hello")
    assert response.status in (503, 529)
    said = (await response.json())["error"]["message"]
    assert "ended with status" in said  # 9, or -9 of those that we killed
    assert "out of luck" not in said  # nobody knows what a CLI writes to stderr
    assert (await daemon.control("health"))["checks"]["worker_pool"]["status"] in ("warn", "fail")
    await until(lambda: time.monotonic() - began > 5)
    assert len(starts.read_text().split()) <= 8
    broken.unlink()
    async with asyncio.timeout(30):
        while (await daemon.chat("Hello [[tokens=3]]")).status != 200:
            await asyncio.sleep(0.2)


async def test_what_an_idle_process_writes_is_no_request_s(start_daemon: StartDaemon, tmp_path: Path) -> None:
    word = tmp_path / "word"
    waits = f"while kill -0 $$ 2>&- && ! [ -e {word} ]; do sleep 0.05; done; [ -e {word} ] && echo by the way >&2"
    body = f'case "$*" in *--print*) ( {waits} ) <&- >&- & esac\nexec "$CLI" "$@"'
    daemon = await start_daemon({"engine.cli_path": script(tmp_path / "cli", body)})
    assert (await daemon.chat("Hello")).status == 200
    async with asyncio.timeout(PATIENCE_S):
        while [worker["state"] for worker in await daemon.workers()] != ["idle"]:
            await asyncio.sleep(0.02)
    word.touch()
    assert (await daemon.logged("worker.stderr", said="by the way")).get("request_id") is None


async def test_noise_on_stdout_is_passed_over(start_daemon: StartDaemon, tmp_path: Path) -> None:
    noise = 'if [ "$1" = --print ]; then echo "warning: {"; echo "{not json"; echo; echo 42; fi\nexec "$CLI" "$@"'
    daemon = await start_daemon({"engine.cli_path": script(tmp_path / "cli", noise)})
    response = await daemon.chat("Hello [[tokens=3]]")
    assert text_of(await response.json()) == "Hello from the"


async def test_a_wrapper_that_does_not_exec_is_ended_with_its_child(start_daemon: StartDaemon, tmp_path: Path) -> None:
    """SIGKILL hits the wrapper alone; the CLI below holds the pipes and must not keep the worker alive."""
    daemon = await start_daemon({"engine.cli_path": script(tmp_path / "cli", '"$CLI" "$@"\nexit $?')})
    pid = (await worker_where(daemon, state="idle"))["pid"]
    child = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])
    os.kill(pid, signal.SIGKILL)
    await daemon.logged("worker.crashed", pid=pid)
    assert (await daemon.chat("Hello [[tokens=3]]")).status == 200
    await until(lambda: not alive(child))


@pytest.mark.parametrize(
    ("setting", "value", "turns"),
    [("max_turns_per_worker", 2, 2), ("max_worker_age_s", 0.05, 1), ("max_worker_rss_mb", 1, 1)],
)
async def test_a_worn_out_worker_is_replaced(
    start_daemon: StartDaemon, setting: str, value: object, turns: int
) -> None:
    daemon = await start_daemon({f"engine.{setting}": value})
    pids = []
    for number in range(4):
        response = await daemon.chat(f"turn {number} [[tokens=3]]")
        assert text_of(await response.json()) == "Hello from the"
        line = await daemon.logged("task.settled", task_id=response.headers["X-Task-ID"])
        pids.append(line["worker_id"])
    assert len(set(pids)) >= 4 // turns
    assert (await daemon.logged("worker.retiring"))["turns"] >= 1


async def test_a_worker_holds_no_secret_of_the_daemon(start_daemon: StartDaemon, model: OfflineModel) -> None:
    secrets = {"AWS_SECRET_ACCESS_KEY": "s3cr3t-aws", "NOTIFY_SOCKET": "/run/s3cr3t", "CLAUDECODE": "1"}
    daemon = await start_daemon(environ=secrets)
    pid = (await worker_where(daemon, state="idle"))["pid"]
    for name in ("environ", "cmdline"):
        held = Path(f"/proc/{pid}/{name}").read_text()
        for secret in (model.api_key, daemon.key, "s3cr3t", "CLAUDECODE="):
            assert secret not in held
    assert "cdw_" in Path(f"/proc/{pid}/environ").read_text()


async def test_nothing_survives_a_stop(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.workers": 2})
    await daemon.chat("Hello [[tokens=3]]")
    pids = [worker["pid"] for worker in await daemon.workers()]
    assert await daemon.stop() == 0
    assert pids and not any(map(alive, pids))


async def test_a_start_after_sigkill_ends_the_old_workers_and_only_those(
    start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """Forged entries: a process of somebody else's under a recorded pid, with its own start time and with another."""
    first = await start_daemon()
    response = await slow_stream(first, "busy [[tokens=900]] [[pace=50ms]]")
    pids = [worker["pid"] for worker in await first.workers()]
    assert first.process is not None
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)  # it would end by itself, sooner or later
    first.process.kill()
    await first.process.wait()
    response.close()
    assert all(map(alive, pids))
    bystanders = [subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(2)]
    try:
        ledger = tmp_path / ".claude-daemon" / "engine" / "ledger"
        for number, (process, started) in enumerate(zip(bystanders, (start_time(bystanders[0].pid), "1"), strict=True)):
            entry = {"pid": process.pid, "started": started, "nonce": f"forged{number}"}
            (ledger / f"forged{number}.json").write_bytes(orjson.dumps(entry))
        began = time.monotonic()
        second = await start_daemon()
        await until(lambda: not any(map(alive, pids)))
        print(f"\nstart after SIGKILL: serving and old workers gone after {time.monotonic() - began:.2f} s")
        assert [process.poll() for process in bystanders] == [None, None]
        assert (await second.chat("Hello [[tokens=3]]")).status == 200
        ended = (await second.logged("engine.old_workers_ended"))["pids"]
        assert not {process.pid for process in bystanders} & set(ended)
    finally:
        for process in bystanders:
            process.kill()
            process.wait()


async def test_a_login_stays_with_the_cli(start_daemon: StartDaemon, model: OfflineModel) -> None:
    """With an OAuth token there is no broker: the CLI's own requests carry it, and the direct lane is closed."""
    daemon = await start_daemon(environ={"ANTHROPIC_API_KEY": "", "CLAUDE_CODE_OAUTH_TOKEN": model.api_key})
    before = len(model.requests)
    response = await daemon.chat("Hello [[tokens=3]]", lane="auto")
    assert (response.status, response.headers["Claude-Daemon-Lane"]) == (200, "text")
    assert text_of(await response.json()) == "Hello from the"
    asked = model.requests[before:]
    assert [request.headers.get("authorization") for request in asked] == [f"Bearer {model.api_key}"]
    refused = await daemon.chat("Hello", lane="direct")
    assert refused.status == 400
    assert "API key" in (await refused.json())["error"]["message"]
    pid = (await worker_where(daemon, state="idle"))["pid"]
    variables = Path(f"/proc/{pid}/environ").read_text().split("\0")
    assert [v.split("=")[0] for v in variables if model.api_key in v] == ["CLAUDE_CODE_OAUTH_TOKEN"]
    assert b"--bare" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    assert not any(line["event"] == "model_call" for line in daemon.log())
    again = await daemon.chat("Hello [[tokens=3]]", lane="text", system="You are a cat.")
    assert again.status == 200
