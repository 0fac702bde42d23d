"""Secrets are planted wherever the daemon takes one; then it does all it does, and nothing that it says or writes has
them: not its log, its answers, its store, its files, what claudectl prints, nor what the model is told."""

from __future__ import annotations

import asyncio
import base64
import signal
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from claude_daemon.offline import OfflineModel
from tests.conftest import StartDaemon
from tests.support import BIN, DaemonProcess

PATIENCE_S = 60.0
WEBHOOKS = "planted-for-webhooks-1f9d2c"
MCP = "planted-for-a-server-77ab41"
REDIS = "planted-for-redis-0c5e9d"
OWN = {"local.key", "audit.key", "config.toml"}
"""Files of the home that hold secrets because that is what they are for."""
ASKED = (
    "health", "status", "workers", "tasks", "sessions", "connections", "keys", "audit?limit=1000", "audit/verify",
    "stacks", "approvals", "log-level", "config", "metrics",
)  # fmt: skip
SHOWN = (
    ["health"], ["status"], ["workers", "list"], ["tasks", "list"], ["keys", "list"], ["connections"], ["audit"],
    ["stacks"], ["reload"], ["config"], ["top", "--once", "--json"], ["metrics"],
)  # fmt: skip


@pytest.mark.timeout(120)  # it does all that a daemon does, and asks for all that can be asked
async def test_what_is_planted_is_found_nowhere(start_daemon: StartDaemon, model: OfflineModel, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / ".claude-daemon").mkdir(parents=True, mode=0o700)
    config = home / ".claude-daemon" / "config.toml"
    config.write_text(
        f'[webhooks]\nsecret = "{WEBHOOKS}"\n[redis]\nurl = "redis://user:{REDIS}@127.0.0.1:1/0"\n'
        f'[mcp.notes]\nurl = "http://127.0.0.1:1/mcp"\nheaders = {{ Authorization = "Bearer {MCP}" }}\n'
    )
    config.chmod(0o600)
    daemon = await start_daemon({"log.level": "debug"}, home=home)
    made = await daemon.control("keys", "POST", {"name": "alice", "role": "full"})
    planted = [model.api_key, daemon.key, made["key"], WEBHOOKS, MCP, REDIS]
    planted.append((home / ".claude-daemon" / "audit.key").read_text().strip())
    heard = [text async for text in _everything(daemon, made["key"])]
    for sign in ("ANTHROPIC_BASE_URL=http", "task.succeeded", "mcp_unavailable", "upstream", "sess_"):
        assert sign in "".join(heard)  # else nothing was tried
    outputs = [await _claudectl(daemon, *args) for args in SHOWN]
    outputs.append(await _run("claude-daemon", "check-config", env=daemon.environment()))
    outputs += await _bundled(daemon, tmp_path / "bundle.tar.gz")
    daemon.process.send_signal(signal.SIGUSR2)  # type: ignore[union-attr]
    await daemon.logged("daemon.stacks.threads")
    assert await daemon.stop() == 0
    _nowhere(planted, {"answers": "".join(heard), "claudectl": "".join(outputs), "stderr": "".join(daemon._stderr)})
    asked = "".join(str(dict(request.headers)) + str(request.body) for request in model.requests)
    _nowhere([secret for secret in planted if secret != model.api_key], {"what the model was told": asked})
    files = {path.name: path.read_bytes().decode(errors="replace") for path in _files(home)}
    assert {"daemon.db", "daemon.log"} <= files.keys()
    _nowhere(planted, files)


async def _everything(daemon: DaemonProcess, key: str) -> AsyncIterator[str]:
    """Work on every lane, what goes wrong with it too, and all that can be asked."""
    for lane in ("direct", "text"):
        for prompt in ("Hello", "[[error=401]]", "[[error=500]]"):
            response = await daemon.chat(prompt, lane=lane)
            yield await response.text() + str(response.headers)
    for task in (
        {"prompt": "Hello"},
        {"prompt": "Hello", "tools": {"allow": ["mcp__notes"]}, "mcp_servers": ["notes"]},
        {"prompt": "[[tool=Bash]] [[input={\"command\":\"env; cat /proc/*/environ\"}]]",
         "tools": {"allow": ["Bash"], "approval": "auto"}},
        {"prompt": "Hello", "session": {}},
        {"prompt": "Hello", "webhook": "https://example.org/hook", "cwd": "/nowhere"},
    ):  # fmt: skip
        answer = await daemon.control("tasks?detach=true", "POST", task)
        yield str(answer)
        if "id" in answer:
            async with asyncio.timeout(PATIENCE_S):
                async with daemon.http.get(f"/v1/tasks/{answer['id']}/events") as response:
                    yield await response.text()
            yield str(await daemon.control(f"tasks/{answer['id']}"))
    for headers in ({"x-api-key": key + "x"}, {"Authorization": f"Bearer {key[:-1]}"}, {"Host": "evil.example"}):
        async with daemon.http.get(f"/v1/tasks?state={quote(key)}", headers=headers) as response:
            yield (await response.text()).replace(key, "")  # it is the client's own word
    for path in ASKED:
        yield str(await daemon.control(path))


async def _claudectl(daemon: DaemonProcess, *args: str) -> str:
    return await _run("claudectl", "--socket", str(daemon.socket), *args, env=daemon.environment())


async def _bundled(daemon: DaemonProcess, path: Path) -> list[str]:
    """What is in a debug bundle, every part of it there."""
    said = await _claudectl(daemon, "debug-bundle", str(path))
    with tarfile.open(path) as archive:
        found = {name: archive.extractfile(name).read().decode() for name in archive.getnames()}  # type: ignore[union-attr]
    names = {name.rpartition("/")[2] for name in found}
    assert names >= {
        "README.txt", "status.json", "health.json", "workers.json", "config.json", "stacks.json", "doctor.json",
        "versions.json", "config.txt", "daemon.log",
    }, said  # fmt: skip
    return [said, *found.values()]


async def _run(program: str, *args: str, env: dict[str, str]) -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(str(BIN / program), *args, env=env, stdout=pipe, stderr=pipe)
    async with asyncio.timeout(PATIENCE_S):
        return "".join(said.decode(errors="replace") for said in await process.communicate())


def _files(home: Path) -> Iterator[Path]:
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name not in OWN:
            yield path


def _nowhere(planted: list[str], places: dict[str, str]) -> None:
    for secret in planted:
        forms = (secret, quote(secret, safe=""), base64.b64encode(secret.encode()).decode(), secret.encode().hex())
        for where, text in places.items():
            for form in forms:
                assert form not in text, f"{form[:12]}… is in {where}: {_around(text, form)}"


def _around(text: str, form: str) -> str:
    at = text.index(form)
    return text[max(0, at - 100) : at].replace("\n", " ")
