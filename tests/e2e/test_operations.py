"""What an operator does to a running daemon: reload, workers, levels, connections, stacks, panic, stop, restart."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from claude_daemon.offline import OfflineModel
from claude_daemon.supervise import pidfile
from tests.conftest import StartDaemon
from tests.support import DaemonProcess, alive, sse, text_of

PATIENCE_S = 20.0
LONG = "Tell me [[tokens=400]] [[pace=100ms]]"
"""Forty seconds of answer: whoever waits for its end has failed."""


@pytest.fixture(autouse=True)
def no_successor_is_left(start_daemon: StartDaemon, tmp_path: Path) -> Iterator[None]:
    """One that a failing test has not ended is nobody's child, and holds the pipes of the first daemon open."""
    yield
    pid = pidfile.running(tmp_path / ".claude-daemon" / "run" / "daemon.pid")
    if pid is not None and b"--takeover" in Path(f"/proc/{pid}/cmdline").read_bytes():
        os.kill(pid, signal.SIGKILL)


def write_config(daemon: DaemonProcess, toml: str) -> Path:
    file = daemon.home / ".claude-daemon" / "config.toml"
    file.write_text(toml)
    file.chmod(0o600)
    return file


async def post(daemon: DaemonProcess, path: str, **body: object) -> Any:
    return await daemon.control(path, "POST", body)


async def until(daemon: DaemonProcess, holds: Any) -> None:
    """Waits for what the workers' list alone tells."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds(await daemon.workers()):
            await asyncio.sleep(0.02)


async def running(daemon: DaemonProcess, prompt: str = LONG) -> aiohttp.ClientResponse:
    """A streamed chat on the text lane that has begun."""
    body = {"model": "sonnet", "max_tokens": 4096, "stream": True, "messages": [{"role": "user", "content": prompt}]}
    response = await daemon.http.post("/v1/messages", json=body, headers={"Claude-Daemon-Lane": "text"})
    await response.content.readline()
    return response


async def submit(daemon: DaemonProcess, prompt: str) -> str:
    async with daemon.http.post("/v1/tasks", json={"prompt": prompt}) as response:
        assert response.status == 202
        return str((await response.json())["id"])


async def state_of(daemon: DaemonProcess, task_id: str) -> str:
    async with daemon.http.get(f"/v1/tasks/{task_id}") as response:
        return str((await response.json())["state"])


async def until_state(daemon: DaemonProcess, task_id: str, state: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await state_of(daemon, task_id) != state:
            await asyncio.sleep(0.02)


async def until_config(daemon: DaemonProcess, status: str) -> None:
    """Checks are cached for a second."""
    async with asyncio.timeout(PATIENCE_S):
        while (await daemon.control("health"))["checks"]["config"]["status"] != status:
            await asyncio.sleep(0.02)


# reload


async def test_a_reload_brings_a_changed_file_into_force_and_tells_what_changed(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    before = (await daemon.control("status"))["config"]
    write_config(
        daemon, '[http]\nmax_body_bytes = 200\nallowed_hosts = ["127.0.0.1", "box.example"]\n[log]\nlevel = "debug"\n'
    )
    await until_config(daemon, "warn")
    told = await post(daemon, "reload")
    assert {change["key"]: change["new"] for change in told["changed"]} == {
        "http.max_body_bytes": "200",
        "http.allowed_hosts": '["127.0.0.1", "box.example"]',
        "log.level": '"debug"',
    }
    assert told["needs_restart"] == []
    assert told["config"]["hash"] != before["hash"]
    await until_config(daemon, "pass")
    assert (await daemon.chat("x" * 300)).status == 413
    async with daemon.http.get("/v1/models", headers={"Host": "box.example"}) as response:
        assert response.status == 200
    assert (await daemon.control("log-level"))["levels"][""] == "debug"


async def test_a_bad_file_changes_nothing_and_every_fault_is_named(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    before = (await daemon.control("status"))["config"]["hash"]
    file = write_config(daemon, '[http]\nmax_body_bites = 200\n[log]\nlevel = "loud"\n')
    told = await post(daemon, "reload")
    assert (told["status"], told["code"]) == (400, "bad_configuration")
    assert [fault["path"] for fault in told["errors"]] == ["http.max_body_bites", "log.level"]
    assert all(str(file) in fault["message"] for fault in told["errors"])
    assert (await daemon.control("status"))["config"]["hash"] == before
    assert (await daemon.chat("Hello [[tokens=3]]")).status == 200
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    refused = await daemon.logged("daemon.reload_refused")
    assert len(refused["faults"]) == 2


async def test_a_file_that_is_gone_is_no_configuration_of_defaults(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    file = write_config(daemon, "[queue]\nmax_queued = 7\n")
    assert len((await post(daemon, "reload"))["changed"]) == 1
    file.unlink()
    told = await post(daemon, "reload")
    assert (told["code"], [fault["path"] for fault in told["errors"]]) == ("bad_configuration", [str(file)])
    write_config(daemon, "")
    assert [change["key"] for change in (await post(daemon, "reload"))["changed"]] == ["queue.max_queued"]


async def test_sighup_reloads(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    write_config(daemon, "[engine]\nspares = 2\n")
    environ_wins = await post(daemon, "reload")
    assert environ_wins["changed"] == []  # the test's daemon has engine.spares from its environment
    write_config(daemon, "[engine]\nmax_turns_per_worker = 7\n")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    told = await daemon.logged("daemon.reloaded", changed={"engine.max_turns_per_worker": "600 -> 7"})
    assert told["needs_restart"] == []


async def test_what_needs_a_restart_is_named_until_it_is_taken_back(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    write_config(daemon, '[store]\npath = "elsewhere.db"\n')
    assert (await post(daemon, "reload"))["needs_restart"] == ["store.path"]
    assert (await daemon.control("status"))["config"]["needs_restart"] == ["store.path"]
    write_config(daemon, "")
    assert (await post(daemon, "reload"))["needs_restart"] == []


async def test_a_credential_in_a_file_is_read_again(
    start_daemon: StartDaemon, model: OfflineModel, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("sk-ant-api03-" + "w" * 24)
    file.chmod(0o600)
    environ = {"ANTHROPIC_API_KEY": "", "ANTHROPIC_API_KEY_FILE": str(file)}
    daemon = await start_daemon({}, environ=environ)
    for lane in ("direct", "text"):
        assert (await daemon.chat("Hello [[tokens=3]]", lane=lane)).status == 502
    file.write_text(model.api_key)
    told = await post(daemon, "reload")
    assert [(change["key"], change["new"]) for change in told["changed"]] == [("credential", "api_key *** (another)")]
    for lane in ("direct", "text"):
        assert (await daemon.chat("Hello [[tokens=3]]", lane=lane)).status == 200
    assert model.api_key not in "".join(daemon._stderr)


async def certificate(directory: Path, name: str) -> None:
    cert, key = directory / "cert.pem", directory / "key.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -keyout {key} -out {cert}"
    maker = await asyncio.create_subprocess_exec(*command.split(), stderr=asyncio.subprocess.DEVNULL)
    assert await maker.wait() == 0


async def served_certificate(daemon: DaemonProcess, *, name: str | None) -> bytes:
    """The certificate of a handshake; ``name`` None: by a client that names no server."""
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    host, port = daemon.url.removeprefix("https://").split(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=anyone, server_hostname=name or "")
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return bytes(der)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate: apt-get install openssl")
@pytest.mark.parametrize("name", [None, "box.example"])
async def test_a_renewed_certificate_serves_the_handshakes_after_a_reload(
    start_daemon: StartDaemon, tmp_path: Path, name: str | None
) -> None:
    await certificate(tmp_path, "one")
    settings = {"http.tls_cert": str(tmp_path / "cert.pem"), "http.tls_key": str(tmp_path / "key.pem")}
    daemon = await start_daemon(settings)
    before = await served_certificate(daemon, name=name)
    await certificate(tmp_path, "two")
    assert await served_certificate(daemon, name=name) == before
    assert (await post(daemon, "reload"))["changed"] == []
    after = await served_certificate(daemon, name=name)
    assert after == ssl.PEM_cert_to_DER_cert((tmp_path / "cert.pem").read_text()) != before
    (tmp_path / "key.pem").write_text("no key")
    assert (await post(daemon, "reload"))["code"] == "bad_configuration"
    assert await served_certificate(daemon, name=name) == after


async def test_a_hundred_reloads_leave_nothing_behind(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    assert daemon.process is not None
    pid = daemon.process.pid
    assert (await daemon.chat("Hello [[tokens=3]]")).status == 200
    await post(daemon, "reload")

    async def held() -> tuple[int, int, list[int]]:
        tasks = len((await daemon.control("stacks"))["tasks"])
        return len(list(Path(f"/proc/{pid}/fd").iterdir())), tasks, sorted(w["pid"] for w in await daemon.workers())

    before = await held()
    for number in range(100):
        write_config(daemon, f"[queue]\nmax_queued = {number + 1}\n")
        assert len((await post(daemon, "reload"))["changed"]) == 1
    after = await held()
    assert (after[0], after[2]) == (before[0], before[2])
    async with asyncio.timeout(PATIENCE_S):
        while (await held())[1] > before[1]:  # one that writes down the last reload may be on its way
            await asyncio.sleep(0.02)


async def test_what_was_set_by_hand_outlives_a_reload_of_something_else(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.workers": 1})
    await post(daemon, "workers/scale", workers=3, spares=0)
    await post(daemon, "log-level", level="debug", logger="claude_daemon.pool")
    write_config(daemon, "[queue]\nmax_queued = 7\n")
    assert [change["key"] for change in (await post(daemon, "reload"))["changed"]] == ["queue.max_queued"]
    assert (await daemon.control("log-level"))["levels"] == {"": "info", "claude_daemon.pool": "debug"}
    await until(daemon, lambda workers: [w["state"] for w in workers] == ["idle"] * 3)


async def test_a_stop_in_the_middle_of_reloads_is_a_stop(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    assert daemon.process is not None
    for _ in range(20):
        daemon.process.send_signal(signal.SIGHUP)
    daemon.process.send_signal(signal.SIGTERM)
    for _ in range(20):
        daemon.process.send_signal(signal.SIGHUP)
    assert await daemon.ended() == 0


# workers


async def test_workers_are_scaled_up_and_down(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.workers": 1})
    assert await post(daemon, "workers/scale", workers=3, spares=0) == {"workers": 3, "spares": 0}
    await until(daemon, lambda workers: [w["state"] for w in workers] == ["idle"] * 3)
    assert await post(daemon, "workers/scale", workers=1) == {"workers": 1, "spares": 0}
    await until(daemon, lambda workers: len(workers) == 1)
    assert (await post(daemon, "workers/scale"))["code"] == "invalid_request"
    assert (await post(daemon, "workers/scale", workers=0))["code"] == "invalid_request"


async def test_an_idle_worker_is_replaced_at_once_and_a_busy_one_after_its_turn(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.workers": 2})
    await until(daemon, lambda workers: [w["state"] for w in workers] == ["idle"] * 2)
    response = await running(daemon, "Hello [[tokens=30]] [[pace=50ms]]")
    before = {worker["id"]: worker["state"] for worker in await daemon.workers()}
    (busy,) = [worker_id for worker_id, state in before.items() if state == "busy"]
    told = await post(daemon, "workers/recycle", rolling=False)
    assert set(told["recycling"]) == set(before)
    await until(daemon, lambda ws: len(ws) == 2 and {w["id"] for w in ws} & set(before) == {busy})
    assert (await sse(response))[-1][0] == "message_stop"
    await until(daemon, lambda ws: len(ws) == 2 and not {w["id"] for w in ws} & set(before))
    assert (await post(daemon, f"workers/{busy}/recycle"))["code"] == "not_found"


async def test_a_rolling_recycle_replaces_every_worker(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.workers": 2})
    await until(daemon, lambda workers: [w["state"] for w in workers] == ["idle"] * 2)
    before = {worker["id"] for worker in await daemon.workers()}
    assert set((await post(daemon, "workers/recycle"))["recycling"]) == before
    await until(daemon, lambda ws: len(ws) == 2 and not {w["id"] for w in ws} & before)


async def test_a_task_on_a_worker_that_is_killed_is_made_again(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.workers": 1})
    task_id = await submit(daemon, "Hello [[tokens=40]] [[pace=50ms]]")
    await until(daemon, lambda workers: [w["state"] for w in workers] == ["busy"])
    (worker,) = await daemon.workers()
    await post(daemon, f"workers/{worker['id']}/kill")
    async with daemon.http.get(f"/v1/tasks/{task_id}/events") as response:
        events = [kind for kind, _ in await sse(response)]
    assert events[-1] == "task.succeeded"
    assert "task.requeued" in events
    assert not alive(worker["pid"])


# what it tells


async def test_levels_are_set_by_logger_and_given_back(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    assert (await daemon.control("log-level"))["levels"] == {"": "info"}
    told = await post(daemon, "log-level", level="debug", logger="claude_daemon.api")
    assert told["levels"] == {"": "info", "claude_daemon.api": "debug"}
    await daemon.logged("control.access", path="/control/v1/log-level")
    assert (await post(daemon, "log-level", level=None, logger="claude_daemon.api"))["levels"] == {"": "info"}
    assert (await post(daemon, "log-level", level="error"))["levels"] == {"": "error"}
    assert (await post(daemon, "log-level", level=None))["levels"] == {"": "info"}
    assert (await post(daemon, "log-level", level="loud"))["code"] == "invalid_request"


async def test_connections_are_listed_with_what_they_do_and_closed(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    response = await running(daemon)
    (found,) = (await daemon.control("connections"))["connections"]
    assert (found["state"], found["path"], found["key_id"]) == ("stream", "/v1/messages", "local")
    assert found["request_id"] == response.headers["X-Request-ID"]
    assert (await daemon.control(f"connections/{found['id']}", "DELETE"))["closed"] is True
    with pytest.raises(aiohttp.ClientError):
        await response.read()
    await until(daemon, lambda workers: [w["state"] for w in workers] != ["busy"])
    assert (await daemon.control(f"connections/{found['id']}", "DELETE"))["code"] == "not_found"


async def test_stacks_are_told_over_the_socket_and_for_a_signal(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    told = await daemon.control("stacks")
    assert {"dispatcher", "drain", "health", "text lane"} <= {task["name"] for task in told["tasks"]}
    assert "MainThread" in {thread["name"] for thread in told["threads"]}
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGUSR2)
    line = await daemon.logged("daemon.stacks.tasks", name="dispatcher")
    assert any("Dispatcher.run" in frame for frame in line["stack"])


async def test_usr1_opens_the_log_anew(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"log.file": "log/daemon.log"})
    file = daemon.home / ".claude-daemon" / "log" / "daemon.log"
    rotated = file.rename(file.with_suffix(".1"))
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGUSR1)
    await daemon.logged("log.reopened")
    await daemon.control("health")  # the line is in stderr first, and in the file before anything else is done
    assert [orjson.loads(line)["event"] for line in file.read_bytes().splitlines()] == ["log.reopened"]
    assert b"daemon.ready" in rotated.read_bytes()


# panic and stop


async def test_panic_cuts_what_runs_and_takes_nothing_until_it_is_told_to(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.workers": 1})
    response = await running(daemon)
    queued = await submit(daemon, "Hello [[tokens=3]]")
    (worker,) = await daemon.workers()
    told = await post(daemon, "panic")
    assert (told["killed"], told["paused"]) == ([worker["id"]], True)
    assert (await sse(response))[-1][0] == "error"
    assert (await daemon.chat("Hello")).status == 503
    await until(daemon, lambda workers: worker["id"] not in {w["id"] for w in workers})
    assert not alive(worker["pid"])
    assert (await post(daemon, "undrain"))["state"] in ("ready", "degraded")
    assert (await daemon.chat("Hello [[tokens=3]]")).status == 200
    assert await state_of(daemon, queued) == "queued"
    await post(daemon, "queue/resume")
    await until_state(daemon, queued, "succeeded")


@pytest.mark.parametrize("how", ["QUIT", "fast", "immediate"])
async def test_a_fast_stop_interrupts_at_once_and_puts_tasks_back(
    start_daemon: StartDaemon, tmp_path: Path, how: str
) -> None:
    daemon = await start_daemon({"engine.workers": 1, "drain.deadline_s": 300})
    task_id = await submit(daemon, LONG)
    await until_state(daemon, task_id, "running")
    assert daemon.process is not None
    if how == "QUIT":
        daemon.process.send_signal(signal.SIGQUIT)
    else:
        await post(daemon, "stop", mode=how, wait=False)
    assert await daemon.ended() == 0
    again = await start_daemon({"engine.workers": 1}, home=tmp_path)
    async with again.http.get(f"/v1/tasks/{task_id}") as response:
        found = await response.json()
    assert (found["state"], found["error"]) in (("queued", None), ("running", None))
    await post(again, f"tasks/{task_id}/cancel")


async def test_a_smart_stop_is_a_drain_and_tells_its_progress(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.workers": 1})
    response = await running(daemon, "Hello [[tokens=20]] [[pace=50ms]]")
    connector = aiohttp.UnixConnector(str(daemon.socket))
    headers = {"Claude-Daemon-Control": "1"}
    async with (
        aiohttp.ClientSession("http://d", connector=connector, headers=headers) as session,
        session.post("/control/v1/stop", json={"mode": "smart"}) as stopping,
    ):
        lines = [orjson.loads(line) async for line in stopping.content]
    assert lines[0]["running"] == 1
    assert (lines[-1]["state"], lines[-1]["saved"]) == ("drained", True)
    assert (await sse(response))[-1][0] == "message_stop"
    assert await daemon.ended() == 0


# hot restart


async def successor_of(daemon: DaemonProcess, pid: int) -> dict[str, Any]:
    """The status of the next daemon of this home, once it is ready."""
    assert daemon._control is not None
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                status = dict(await daemon.control("status"))
            except (aiohttp.ClientError, OSError):
                status = {}
            if status.get("pid") not in (None, pid) and status["state"] in ("ready", "degraded"):
                return status
            await asyncio.sleep(0.02)


async def end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    async with asyncio.timeout(PATIENCE_S):
        while alive(pid):
            await asyncio.sleep(0.02)


async def gone(daemon: DaemonProcess) -> None:
    """Its pipes may outlive it: its successor writes to the same ones."""
    assert daemon.process is not None
    async with asyncio.timeout(PATIENCE_S):
        while daemon.process.returncode is None:
            await asyncio.sleep(0.02)
    assert daemon.process.returncode == 0


async def test_a_hot_restart_finishes_what_runs_and_serves_what_comes_at_the_same_address(
    start_daemon: StartDaemon,
) -> None:
    daemon = await start_daemon({"engine.workers": 1})
    assert daemon.process is not None
    pid = daemon.process.pid
    response = await running(daemon, "Hello [[tokens=20]] [[pace=50ms]]")
    told = await post(daemon, "restart", wait=False)
    assert told["successor"] != pid
    async with aiohttp.ClientSession(daemon.url, headers={"Authorization": f"Bearer {daemon.key}"}) as session:
        body = {"model": "sonnet", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello [[tokens=3]]"}]}
        async with session.post("/v1/messages", json=body) as next_answer:
            assert next_answer.status == 200  # it waited in the kernel, and the next daemon has answered it
            assert text_of(await next_answer.json())
    assert (await sse(response))[-1][0] == "message_stop"
    await gone(daemon)
    status = await successor_of(daemon, pid)
    assert (status["pid"], status["url"], status["supervisor"]) == (told["successor"], daemon.url, "detached")
    await end(status["pid"])
    assert not daemon.socket.exists()


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("[http]\nprot = 1\n", "http.prot"),
        ('[webhooks]\nsecret = "whsec_!"\n', "webhooks.secret"),
        ('[http]\ntls_cert = "/none.pem"\ntls_key = "/none.pem"\n', "http.tls_cert /none.pem"),
    ],
)
async def test_a_restart_with_a_bad_configuration_is_refused_and_the_daemon_goes_on(
    start_daemon: StartDaemon, toml: str, said: str
) -> None:
    daemon = await start_daemon()
    write_config(daemon, toml)
    told = await post(daemon, "restart")
    assert (told["status"], told["code"]) == (400, "bad_configuration")
    assert said in told["detail"]
    assert (await daemon.control("status"))["state"] in ("ready", "degraded")
    assert (await daemon.chat("Hello [[tokens=3]]")).status == 200


def successors(pid: int) -> list[int]:
    """Its children that are to take over."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"--takeover" in Path(f"/proc/{child}/cmdline").read_bytes()]


async def test_who_asks_for_a_restart_and_leaves_keeps_nobody_else_from_one(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon()
    assert daemon.process is not None
    pid = daemon.process.pid
    asking = asyncio.create_task(post(daemon, "restart", wait=False))
    async with asyncio.timeout(PATIENCE_S):
        while not (first := successors(pid)):
            await asyncio.sleep(0)
    asking.cancel()
    async with asyncio.timeout(PATIENCE_S):
        while any(alive(child) for child in first):
            await asyncio.sleep(0.01)
    told = await post(daemon, "restart", wait=False)
    await gone(daemon)
    assert (await successor_of(daemon, pid))["pid"] == told["successor"] not in first
    await end(told["successor"])


async def test_a_daemon_goes_on_when_its_successor_is_lost_while_it_waits(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({"engine.workers": 2})
    assert daemon.process is not None
    response = await running(daemon, "Hello [[tokens=60]] [[pace=50ms]]")
    told = await post(daemon, "restart", wait=False)
    os.kill(told["successor"], signal.SIGKILL)
    await daemon.logged("daemon.goes_on")
    assert (await daemon.chat("Hello [[tokens=3]]")).status == 200
    task_id = await submit(daemon, "Hello [[tokens=3]]")
    await until_state(daemon, task_id, "succeeded")
    assert (await sse(response))[-1][0] == "message_stop"
    again = await post(daemon, "restart", wait=False)
    await gone(daemon)
    await end(again["successor"])


@pytest.mark.parametrize("how", ["TERM", "fast"])
async def test_a_stop_during_a_restart_leaves_no_daemon(start_daemon: StartDaemon, how: str) -> None:
    daemon = await start_daemon({"engine.workers": 1, "drain.deadline_s": 1})
    assert daemon.process is not None
    response = await running(daemon)
    told = await post(daemon, "restart", wait=False)
    if how == "TERM":
        daemon.process.send_signal(signal.SIGTERM)
    else:
        await post(daemon, "stop", mode="fast", wait=False)
    assert await daemon.ended() == 0
    assert not alive(told["successor"])
    assert (await sse(response))[-1][0] == "error"
    assert not daemon.socket.exists()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


async def test_a_successor_listens_where_its_configuration_says(start_daemon: StartDaemon, tmp_path: Path) -> None:
    first, second = free_port(), free_port()
    home = tmp_path / ".claude-daemon"
    home.mkdir(mode=0o700)
    for port in (first, second):
        (home / f"{port}.toml").write_text(f'[http]\nport = {port}\n[control]\nsocket = "{home}/{port}.sock"\n')
        (home / f"{port}.toml").chmod(0o600)
    (home / f"{first}.toml").rename(home / "config.toml")
    daemon = await start_daemon(environ={"CLAUDE_DAEMON_HTTP__PORT": ""}, home=tmp_path)
    assert daemon.process is not None and daemon.url == f"http://127.0.0.1:{first}"
    (home / f"{second}.toml").rename(home / "config.toml")
    connector, headers = aiohttp.UnixConnector(str(home / f"{first}.sock")), {"Claude-Daemon-Control": "1"}
    async with (
        aiohttp.ClientSession("http://d", connector=connector, headers=headers) as session,
        session.post("/control/v1/restart", json={"wait": False}) as response,
    ):
        successor = (await response.json())["successor"]
    await gone(daemon)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{second}") as session, session.get("/live") as response:
        assert response.status == 200
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", first)
    await end(successor)
    assert sorted(path.suffix for path in home.iterdir() if path.is_socket()) == []


async def test_a_daemon_that_is_supervised_leaves_restarts_to_its_supervisor(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon({}, environ={"CLAUDE_DAEMON_SUPERVISOR": "systemd"})
    told = await post(daemon, "restart")
    assert (told["status"], told["code"]) == (409, "conflict")
    assert "systemctl restart" in told["detail"]
    assert (await daemon.control("status"))["supervisor"] == "systemd"
